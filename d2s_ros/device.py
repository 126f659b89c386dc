"""Choice of the compute device: the one asked for, or an error."""

from __future__ import annotations

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
