"""Training in several processes, as torchrun starts them; without it, one."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from d2s_ros.errors import UsageError

#: Processes that wait for what only the first one does must not give up before it is done.
_PATIENCE = datetime.timedelta(days=7)


@contextmanager
def group(device: str) -> Iterator[str]:
    """Join the processes that torchrun started; yields the device of this one."""
    if 'RANK' not in os.environ:
        yield device
        return
    on_gpu = device.startswith('cuda')
    if on_gpu:
        device = f'cuda:{os.environ.get("LOCAL_RANK", "0")}'
        torch.cuda.set_device(device)
    distributed.init_process_group('nccl' if on_gpu else 'gloo', timeout=_PATIENCE)
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def _many() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Return this process's number; it is known before the group is joined."""
    return int(os.environ.get('RANK', '0'))


def world() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if _many() else 1


def wait() -> None:
    """Wait until every process is here."""
    if _many():
        distributed.barrier()


def agree(flag: bool) -> bool:
    """Return the first process's flag, so that all stop at the same step."""
    if not _many():
        return flag
    shared = torch.tensor([int(flag)], device=_device())
    distributed.broadcast(shared, 0)
    return bool(shared.item())


def mean(value: float) -> float:
    """Return the mean of a number over the processes."""
    if not _many():
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=_device())
    distributed.all_reduce(shared)
    return float(shared.item()) / world()


def share_bytes(data: bytes) -> bytes:
    """Return the first process's bytes."""
    if not _many():
        return data
    size = torch.tensor([len(data)], device=_device())
    distributed.broadcast(size, 0)
    if not size.item():
        return b''
    content = torch.zeros(int(size.item()), dtype=torch.uint8)
    if rank() == 0:
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    content = content.to(_device())
    distributed.broadcast(content, 0)
    return content.cpu().numpy().tobytes()


def share_of(count: int, *, equal: bool = False) -> slice:
    """Return which of the `count` images of a batch are this process's.

    Args:
        count: Images of a batch.
        equal: Every process must have as many as the others.

    Raises:
        UsageError: they cannot be shared in that way.
    """
    if count < world() or (equal and count % world()):
        raise UsageError(
            f'{world()} processes cannot share the {count} images of a training step; start '
            f'{"a divisor of that" if equal else "at most as many"}'
        )
    return slice(rank() if _many() else 0, None, world())


def _device() -> str:
    return 'cuda' if distributed.get_backend() == 'nccl' else 'cpu'


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the processes, in one exchange."""
    if not _many():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= world()
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
