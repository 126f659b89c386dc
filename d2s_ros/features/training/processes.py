"""Training in several processes, as torchrun starts them; without it, one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed


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
    distributed.init_process_group('nccl' if on_gpu else 'gloo')
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
    device = 'cuda' if distributed.get_backend() == 'nccl' else 'cpu'
    shared = torch.tensor([int(flag)], device=device)
    distributed.broadcast(shared, 0)
    return bool(shared.item())


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
