"""How many threads numerical libraries use, and how they wait for each other."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

#: What `limit_threads` was asked for; PyTorch may be imported later.
_limits: list[int] = []


def set_passive_omp_wait() -> None:
    """Let OpenMP threads sleep at barriers instead of spinning; call before torch is imported.

    A spinning thread holds the core that the thread it waits for needs. On a computer shared with
    other processes this slows training by more than ten times (docs/design/experiments.md); on an
    idle one it costs nothing measurable. Values that are set already are kept.
    """
    os.environ.setdefault('GOMP_SPINCOUNT', '0')
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    os.environ.setdefault('KMP_BLOCKTIME', '0')


def limit_threads(count: int) -> int:
    """Let PyTorch, OpenCV and the kernels use `count` CPU threads; 0 leaves one core to others.

    Returns:
        The number of threads.
    """
    import cv2

    if count <= 0:
        count = max(1, len(os.sched_getaffinity(0)) - 1)
    _limits.append(count)
    cv2.setNumThreads(count)
    apply_limit_to_torch()
    return count


def apply_limit_to_torch() -> None:
    """Let PyTorch, where it was imported, use as many threads as were asked for last."""
    torch = sys.modules.get('torch')
    if torch is not None and _limits:
        torch.set_num_threads(_limits[-1])


def num_threads() -> int:
    """Return how many threads a computation may use: those of PyTorch, where it was imported."""
    torch = sys.modules.get('torch')
    # Another thread may be in the middle of its import.
    if torch is not None and hasattr(torch, 'get_num_threads'):
        # A thread that never asked for it would run PyTorch's operations on all cores.
        return int(torch.get_num_threads())
    if _limits:
        return _limits[-1]
    asked = os.environ.get('OMP_NUM_THREADS', '').partition(',')[0]
    return int(asked) if asked.isdigit() and int(asked) else len(os.sched_getaffinity(0))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread: for many small operations, each too short to wake another for.

    Threads that wait passively take 0.06 ms to wake; changing their number takes 0.001 ms.
    """
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
