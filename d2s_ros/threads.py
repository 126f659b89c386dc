"""How the threads of numerical libraries wait for each other."""

from __future__ import annotations

import os


def wait_passively() -> None:
    """Let OpenMP threads sleep at barriers instead of spinning; call before torch is imported.

    A spinning thread holds the core that the thread it waits for needs. On a computer shared with
    other processes this slows training by more than ten times (docs/experiments.md); on an idle one
    it costs nothing measurable. Values that are set already are kept.
    """
    os.environ.setdefault('GOMP_SPINCOUNT', '0')
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    os.environ.setdefault('KMP_BLOCKTIME', '0')
