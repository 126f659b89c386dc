"""Choice of the compute device: the one asked for, or an error."""

from __future__ import annotations

import functools
from pathlib import Path

from d2s_ros.errors import DeviceError, UsageError


def resolve_device(name: str) -> str:
    """Return 'cpu' or 'cuda' for 'auto', 'cpu' or 'cuda'.

    Raises:
        DeviceError: if 'cuda' was asked for and there is no usable GPU.
        UsageError: for another name.
    """
    if name not in ('auto', 'cpu', 'cuda'):
        raise UsageError(f'device {name!r} is unknown; use auto, cpu or cuda')
    if name == 'cpu':
        return 'cpu'
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
    import torch

    try:
        flags = Path('/proc/cpuinfo').read_text()
    except OSError:
        return False
    return (
        ('avx512_vnni' in flags or 'avx_vnni' in flags)
        and bool(torch.backends.mkldnn.is_available())
        and hasattr(torch.ops.onednn, 'qconv2d_pointwise')
        and hasattr(torch.ops.onednn, 'qlinear_pointwise')
    )
