"""What the last images of each camera together tell of its calibration."""

from __future__ import annotations

from collections import deque

import numpy as np

from d2s_ros.localization.acceptance import describe_focal_error
from d2s_ros.localization.intrinsics_error import (
    FOCAL_LENGTH,
    IntrinsicsError,
    together,
)
from d2s_ros.localization.result import TELLS_INTRINSICS, CameraShare, LocalizationResult

#: Images that are looked at together; the fewest that tell a focal length, and other intrinsics.
_WINDOW, _FEWEST_FOCAL, _FEWEST = 20, 5, 3
#: Systematic error of the focal length that one image tells, in logarithms.
_FOCAL_FLOOR = 0.005
#: Standard deviations by which the average of the focal length must be off, and other intrinsics.
_FOCAL_SIGMAS, _INTRINSICS_SIGMAS = 5.0, 3.0


class CalibrationWatch:
    """Puts together what the last images of each camera say of its intrinsics.

    Single images tell wrong ones only where they see much; together they tell them in any light.

    Attributes:
        accused: Cameras whose calibration is wrong; '' is the only camera of results without names.
    """

    def __init__(self) -> None:
        self.accused: set[str] = set()
        self._cameras: dict[str, _LastImages] = {}

    def reset(self) -> None:
        """Forget what was seen: the cameras are other ones."""
        self.accused.clear()
        self._cameras.clear()

    def check(
        self, result: LocalizationResult, max_focal_error: float, max_intrinsics_error: float
    ) -> str:
        """Take in the next result, of one camera or of a rig.

        Args:
            result: Of the images. Refusals count only if they were for a calibration.
            max_focal_error: Share by which the focal length may be off.
            max_intrinsics_error: As of `Limits`.

        Returns:
            Empty if all calibrations may be right, else what is wrong, for people; of rigs with the
            name of the camera.
        """
        if result.status in TELLS_INTRINSICS:
            for one in result.cameras or (result,):
                name = one.name if isinstance(one, CameraShare) else ''
                images = self._cameras.setdefault(name, _LastImages())
                images.take(one.focal_error, one.intrinsics_error)
        found = {
            name: images.problem(max_focal_error, max_intrinsics_error)
            for name, images in self._cameras.items()
        }
        self.accused = {name for name, problem in found.items() if problem}
        return '; '.join(
            f'{name}: {problem}' if name else problem for name, problem in found.items() if problem
        )

    def accuses(self, result: LocalizationResult) -> bool:
        """Return whether an accused camera has part in the pose of a result."""
        if not result.cameras:
            return bool(self.accused)
        return any(share.num_inliers and share.name in self.accused for share in result.cameras)


class _LastImages:
    """What the last images of one camera say."""

    def __init__(self) -> None:
        self._focal: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._intrinsics: deque[IntrinsicsError] = deque(maxlen=_WINDOW)

    def take(
        self, focal_error: tuple[float, float], intrinsics_error: IntrinsicsError | None
    ) -> None:
        """Take in the next image."""
        if np.isfinite(focal_error[1]):
            self._focal.append(focal_error)
        if intrinsics_error is not None:
            self._intrinsics.append(intrinsics_error)

    def problem(self, max_focal_error: float, max_intrinsics_error: float) -> str:
        """Return what is wrong, empty if all may be right; arguments of `CalibrationWatch`."""
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
