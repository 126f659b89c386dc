"""Choice of the compute device: the one asked for, or an error. PyTorch may be missing."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path

from d2s_ros.errors import DeviceError, UsageError


@functools.cache
def has_torch() -> bool:
    """Return whether PyTorch is installed; nothing is imported."""
    try:
        return importlib.util.find_spec('torch') is not None
    except (ImportError, ValueError):
        return False


def missing_torch(what: str) -> UsageError:
    """Return the error where something needs PyTorch and it is not installed."""
    return UsageError(
        f'PyTorch is not installed here, and {what} cannot do without it: pip install torch (or '
        '"d2s_ros[mapping]"); maps with landmarks are localized in on a CPU without it'
    )


def require_torch(what: str) -> None:
    """Raise UsageError where PyTorch is not installed; `what` says what needs it."""
    if not has_torch():
        raise missing_torch(what)


def _may_have_gpu() -> bool:
    """Return whether a GPU has a driver here, without the seconds of importing PyTorch."""
    if Path('/dev/kfd').exists():
        return True
    try:
        ctypes.CDLL('libcuda.so.1')
    except OSError:
        return False
    return True


def resolve_device(name: str) -> str:
    """Return 'cpu' or 'cuda' for 'auto', 'cpu' or 'cuda'.

    Raises:
        DeviceError: if 'cuda' was asked for and there is no usable GPU.
        UsageError: for another name, or 'cuda' without PyTorch.
    """
    if name not in ('auto', 'cpu', 'cuda'):
        raise UsageError(f'device {name!r} is unknown; use auto, cpu or cuda')
    if name == 'cpu' or (name == 'auto' and not (has_torch() and _may_have_gpu())):
        return 'cpu'
    require_torch('the device cuda')
    import torch

    if torch.cuda.is_available():
        return 'cuda'
    if name == 'cuda':
        raise DeviceError(
            'no CUDA device can be used; check the driver, or choose the cpu or auto device'
        )
    return 'cpu'


def has_fast_bfloat16(device: str) -> bool:
    """Return whether networks run faster in bfloat16 than in float32 on a device."""
    import torch

    if device == 'cuda':
        return torch.cuda.is_bf16_supported()
    # oneDNN has it from AVX512 on; real speed needs the dot products of AVX512-BF16 or AMX.
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and bool(
        torch.cpu._is_avx512_bf16_supported()
    )


@functools.cache
def has_fast_int8() -> bool:
    """Return whether this CPU multiplies bytes fast and exactly, and PyTorch has the operations.

    Without VNNI, sums of products of bytes saturate in 16 bits.
    """
    try:
        flags = Path('/proc/cpuinfo').read_text()
    except OSError:
        return False
    if not has_torch() or not ('avx512_vnni' in flags or 'avx_vnni' in flags):
        return False
    import torch

    return (
        bool(torch.backends.mkldnn.is_available())
        and hasattr(torch.ops.onednn, 'qconv2d_pointwise')
        and hasattr(torch.ops.onednn, 'qlinear_pointwise')
    )
