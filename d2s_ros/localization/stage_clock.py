"""How long the stages of a frame take."""

from __future__ import annotations

import time


class StageClock:
    """Adds up the time of the stages of a frame, from when it is made.

    Args:
        features_ms: Time that the features took before.

    Attributes:
        latency_ms: Stage to milliseconds: features, network, pose, and total, their sum.
    """

    def __init__(self, features_ms: float = 0.0) -> None:
        self.latency_ms = {
            'features': features_ms,
            'network': 0.0,
            'pose': 0.0,
            'total': features_ms,
        }
        self._last = time.perf_counter()

    def end(self, stage: str) -> None:
        """Count the time since the last stage ended as time of this one."""
        now = time.perf_counter()
        self.latency_ms[stage] += 1e3 * (now - self._last)
        self.latency_ms['total'] += 1e3 * (now - self._last)
        self._last = now
