"""How much work a frame gets, and the controller that holds a rate by giving less.

Keypoints cost in the network and the pose solver, pixels in the features. The steps take keypoints
first: an image of full size with fewer keypoints is localized better than a small one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ComputeBudget:
    """Work for one frame.

    Attributes:
        keypoints: Share of the map's number of keypoints, the strongest.
        scale: Side of the image that features are computed on over that of the image.
    """

    keypoints: float = 1.0
    scale: float = 1.0

    @property
    def is_full(self) -> bool:
        """Whether nothing is left out."""
        return self.keypoints >= 1.0 and self.scale >= 1.0

    def shrunken(self, grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return an image (H, W) at the size that features are computed on."""
        size = self.size(grey.shape[1], grey.shape[0])
        if size == grey.shape[1::-1]:
            return grey
        return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size of a shrunken image of the same aspect, at least 64 px wide and high."""
        scale = min(1.0, max(self.scale, 64 / max(1, min(width, height))))
        return max(1, round(width * scale)), max(1, round(height * scale))

    def __str__(self) -> str:
        return f'{100 * self.keypoints:.0f} % of the keypoints, {100 * self.scale:.0f} % image size'


FULL = ComputeBudget()
#: From all to least.
STEPS = (
    FULL,
    ComputeBudget(0.7),
    ComputeBudget(0.5),
    ComputeBudget(0.5, 0.8),
    ComputeBudget(0.4, 0.65),
    ComputeBudget(0.3, 0.5),
)


class RateController:
    """Chooses the budget such that frames take no longer than the period of a rate.

    One step down when the median of some frames is too long; one step up when a step was held for a
    while, as a try. Each try in vain doubles the time to the next.

    Args:
        rate: Frames per second to hold.
        steps: Budgets, full first.
        window: Frames whose times are looked at together.
        margin: Share of the period that a frame may take.
    """

    def __init__(
        self,
        rate: float,
        steps: Sequence[ComputeBudget] = STEPS,
        *,
        window: int = 5,
        margin: float = 0.9,
    ) -> None:
        self.rate = rate
        self._steps = tuple(steps)
        self._window = window
        self._limit_ms = margin * 1e3 / rate
        self._step = 0
        self._times: list[float] = []
        self._patience = 4
        self._held_windows = 0
        self._trying = False
        #: Median of the last window of frames, ms; NaN before.
        self.median_ms = math.nan

    @property
    def budget(self) -> ComputeBudget:
        """Budget of the next frame."""
        return self._steps[self._step]

    @property
    def holds(self) -> bool:
        """Whether the last window of frames was fast enough, or there was none yet."""
        return not self.median_ms > self._limit_ms

    @property
    def exhausted(self) -> bool:
        """Whether even the least budget takes too long."""
        return self._step == len(self._steps) - 1 and not self.holds

    def record(self, frame_ms: float) -> None:
        """Take note of what a frame with the present budget took."""
        self._times.append(frame_ms)
        if len(self._times) < self._window:
            return
        self.median_ms = float(np.median(self._times))
        self._times.clear()
        if self.median_ms > self._limit_ms:
            if self._trying:
                self._patience = min(2 * self._patience, 256)
            self._move(1)
        elif self._step > 0:
            self._held_windows += 1
            if self._trying and self._held_windows > 1:
                self._trying, self._patience = False, 4
            if self._held_windows >= self._patience:
                self._move(-1)
                self._trying = True

    def _move(self, by: int) -> None:
        self._step = min(max(0, self._step + by), len(self._steps) - 1)
        self._held_windows = 0
        if by > 0:
            self._trying = False
