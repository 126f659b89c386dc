"""How many threads numerical libraries use, and how they wait for each other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


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
    """Let PyTorch and OpenCV use `count` CPU threads; 0 leaves one core to others.

    Returns:
        The number of threads.
    """
    import cv2
    import torch

    if count <= 0:
        count = max(1, len(os.sched_getaffinity(0)) - 1)
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    return count


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
