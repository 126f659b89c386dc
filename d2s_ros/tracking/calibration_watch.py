"""What the last images of a camera together tell of its calibration."""

from __future__ import annotations

from collections import deque

import numpy as np

from d2s_ros.localization.acceptance import describe_focal_error
from d2s_ros.localization.intrinsics_error import (
    FOCAL_LENGTH,
    IntrinsicsError,
    together,
)
from d2s_ros.localization.result import LocalizationResult, LocalizationStatus

#: Images that are looked at together; the fewest that tell a focal length, and other intrinsics.
_WINDOW, _FEWEST_FOCAL, _FEWEST = 20, 5, 3
#: Systematic error of the focal length that one image tells, in logarithms.
_FOCAL_FLOOR = 0.005
#: Standard deviations by which the average of the focal length must be off, and other intrinsics.
_FOCAL_SIGMAS, _INTRINSICS_SIGMAS = 5.0, 3.0


class CalibrationWatch:
    """Puts together what the last images of a camera say of its intrinsics.

    Single images tell wrong ones only where they see much; together they tell them in any light.
    """

    def __init__(self) -> None:
        self._focal: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._intrinsics: deque[IntrinsicsError] = deque(maxlen=_WINDOW)

    def reset(self) -> None:
        """Forget what was seen: the camera is another one."""
        self._focal.clear()
        self._intrinsics.clear()

    def check(
        self, result: LocalizationResult, max_focal_error: float, max_intrinsics_error: float
    ) -> str:
        """Take in the next image.

        Args:
            result: Of the image. Refusals count only if they were for its calibration.
            max_focal_error: Share by which the focal length may be off.
            max_intrinsics_error: As of `Limits`.

        Returns:
            Empty if the calibration may be right, else why not, for people.
        """
        believed = (LocalizationStatus.LOCALIZED, LocalizationStatus.CALIBRATION_MISMATCH)
        if result.status in believed:
            if np.isfinite(result.focal_error[1]):
                self._focal.append(result.focal_error)
            if result.intrinsics_error is not None:
                self._intrinsics.append(result.intrinsics_error)
        return self._other_intrinsics(max_intrinsics_error) or self._other_focal(max_focal_error)

    def _other_intrinsics(self, max_error: float) -> str:
        if len(self._intrinsics) < _FEWEST:
            return ''
        found = together(self._intrinsics)
        excess = found.excess(max_error, _INTRINSICS_SIGMAS)
        return found.describe(excess) if np.delete(excess, FOCAL_LENGTH).max() > 1.0 else ''

    def _other_focal(self, max_error: float) -> str:
        if len(self._focal) < _FEWEST_FOCAL:
            return ''
        changes, sigmas = np.array(self._focal).T
        weights = 1.0 / (np.square(sigmas) + _FOCAL_FLOOR**2)
        mean = float((weights * changes).sum() / weights.sum())
        # Where images disagree by more than their sigmas, the average is as uncertain.
        excess = float((weights * np.square(changes - mean)).sum()) / (len(changes) - 1)
        sigma = float(np.sqrt(max(1.0, excess) / weights.sum()))
        if abs(mean) <= max(max_error, _FOCAL_SIGMAS * sigma):
            return ''
        return describe_focal_error(mean, sigma)
