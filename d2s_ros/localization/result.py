"""What localizing one image returns: a pose with covariance, or a reason why not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.localization.intrinsics_error import IntrinsicsError
from d2s_ros.localization.pose_solver import PoseEstimate
from d2s_ros.localization.protection import protection_level


class LocalizationStatus(str, Enum):
    """Outcome of one frame. Everything but LOCALIZED is a refusal: no pose is given."""

    LOCALIZED = 'localized'
    BAD_IMAGE = 'bad_image'
    NO_CALIBRATION = 'no_calibration'
    CALIBRATION_MISMATCH = 'calibration_mismatch'
    TOO_FEW_KEYPOINTS = 'too_few_keypoints'
    TOO_FEW_RELIABLE = 'too_few_reliable'
    NO_POSE = 'no_pose'
    TOO_FEW_INLIERS = 'too_few_inliers'
    LOW_INLIER_SHARE = 'low_inlier_share'
    POOR_SPREAD = 'poor_spread'
    MOVED_OBJECT = 'moved_thing'
    UNCERTAIN = 'uncertain'
    AMBIGUOUS_PLACE = 'ambiguous_place'


#: Of images whose pose is good enough to say something of the intrinsics.
TELLS_INTRINSICS = (LocalizationStatus.LOCALIZED, LocalizationStatus.CALIBRATION_MISMATCH)


@dataclass(frozen=True)
class Check:
    """One comparison that decided whether a pose is accepted.

    Attributes:
        name: What was compared, such as 'inliers'.
        value: What the image has.
        limit: What it was compared with: the number that applied to this image.
        at_least: Whether the value must be at least the limit; else it must be at most that.
        status: Of the image if this check fails and none before it.
        reason: One line for people: value and limit, and why this limit applied.
    """

    name: str
    value: float
    limit: float
    at_least: bool
    status: LocalizationStatus
    reason: str

    @property
    def passed(self) -> bool:
        """Whether the value keeps the limit; what is not a number does not."""
        return bool(self.value >= self.limit if self.at_least else self.value <= self.limit)

    @property
    def comparison(self) -> str:
        """Value and limit in a few characters, such as '25 >= 14' or '0.9 > 0.5 failed'."""
        signs = ('>=', '<') if self.at_least else ('<=', '>')
        text = f'{self.value:.4g} {signs[not self.passed]} {self.limit:.4g}'
        return text if self.passed else f'{text} failed'

    def to_report(self) -> dict[str, Any]:
        """Return the check as JSON types."""
        return {
            'name': self.name,
            'value': self.value if isfinite(self.value) else None,
            'limit': self.limit if isfinite(self.limit) else None,
            'at_least': self.at_least,
            'passed': self.passed,
            'status': self.status.value,
            'reason': self.reason,
        }


def first_failure(checks: Iterable[Check]) -> Check | None:
    """Return the first check that failed: it gives the status; None if all passed."""
    return next((check for check in checks if not check.passed), None)


@dataclass(frozen=True, eq=False)
class FrameDetails:
    """Per-keypoint results, for pictures and point clouds.

    Attributes:
        keypoints: (N, 2) float32 px in the input image.
        reliability: (N,) float32 in [0, 1].
        reliable: (N,) bool, given to the pose solver.
        inlier: (N,) bool, agrees with the pose (all False without one).
        points_in_map: (N, 3) predicted scene coordinates in the map frame; float32, or float64 in
            maps with an origin.
        estimate: What the solver found, accepted or not, relative to the map's origin; for studies,
            never to be acted on. None if it found nothing.
    """

    keypoints: NDArray[np.float32]
    reliability: NDArray[np.float32]
    reliable: NDArray[np.bool_]
    inlier: NDArray[np.bool_]
    points_in_map: NDArray[np.floating[Any]]
    estimate: PoseEstimate | None = None


@dataclass(frozen=True, eq=False)
class Disagreement:
    """How far the pose of one camera alone is from that of the others.

    Attributes:
        camera_moved: What must be applied to the camera where it is said to be, to have it where
            its image puts it; camera axes.
        sigmas: How many standard deviations that is, over the six directions.
    """

    camera_moved: RigidTransform
    sigmas: float

    @property
    def distance(self) -> float:
        """Of the positions, unit of the map."""
        return float(np.linalg.norm(self.camera_moved.translation))

    @property
    def degrees(self) -> float:
        """Of the rotations."""
        turn = (float(np.trace(self.camera_moved.rotation)) - 1.0) / 2.0
        return float(np.degrees(np.arccos(np.clip(turn, -1.0, 1.0))))


@dataclass(frozen=True, eq=False)
class CameraShare:
    """What one camera of a rig gave to a pose.

    Attributes:
        name: Of the camera.
        status: 'used', 'left_out' where it disagrees with the others, or a refusal.
        reason: One line for people; empty where it was used.
        num_keypoints, num_reliable, num_inliers: Counts.
        disagreement: With the other cameras; None where nothing is known of it.
        focal_error, intrinsics_error: What its image says of its intrinsics, as of the result of
            one camera.
    """

    name: str
    status: str
    reason: str = ''
    num_keypoints: int = 0
    num_reliable: int = 0
    num_inliers: int = 0
    disagreement: Disagreement | None = None
    focal_error: tuple[float, float] = (0.0, float('inf'))
    intrinsics_error: IntrinsicsError | None = None

    def __str__(self) -> str:
        """Return the share in a few words."""
        counts = f'{self.num_inliers} inliers of {self.num_reliable} reliable'
        return f'{self.status}: {self.reason}' if self.reason else f'{self.status}, {counts}'


@dataclass(frozen=True, eq=False)
class LocalizationResult:
    """The outcome of one frame, of one camera or of all cameras of a rig.

    Attributes:
        status: LOCALIZED or the reason of the refusal.
        reason: One line for people; empty when localized.
        map_from_camera: Pose of the optical frame; None unless localized.
        covariance: (6, 6) float64 in ROS order (x y z, rotation about x y z), about the fixed
            axes of the map frame, m^2 and rad^2; None unless localized.
        num_keypoints, num_reliable, num_inliers: Counts.
        reprojection_error_px: Median over inliers; NaN without a pose.
        latency_ms: Stage name to milliseconds: features, network, pose, total.
        details: Per-keypoint results if asked for.
        num_used: Correspondences given to the pose solver.
        focal_error: Logarithm of the focal length that fits best over the one given, and its
            standard deviation; 0 and infinity if nothing is known.
        intrinsics_error: What the image says of the intrinsics; None if nothing is known.
        with_prior: The image alone would have been refused: it was known where to look.
        checks: What decided the status, in order; with a prior those of the pose found with it.
            Empty if the image was refused before any. Checks that cost time are made only where the
            ones before them passed, and one of which nothing is known is not made.
        cameras: What each camera of a rig gave; empty for one camera. The pose and its covariance
            are then those of the rig's frame, counts those of all cameras together.
        place: Of an area, the place that the pose is in; empty without a pose, and of a single map.
        frame: Of an area, the frame that the pose is in; empty likewise.
    """

    status: LocalizationStatus
    reason: str = ''
    map_from_camera: RigidTransform | None = None
    covariance: NDArray[np.float64] | None = None
    num_keypoints: int = 0
    num_reliable: int = 0
    num_inliers: int = 0
    reprojection_error_px: float = float('nan')
    latency_ms: dict[str, float] = field(default_factory=dict)
    details: FrameDetails | None = None
    num_used: int = 0
    focal_error: tuple[float, float] = (0.0, float('inf'))
    intrinsics_error: IntrinsicsError | None = None
    with_prior: bool = False
    checks: tuple[Check, ...] = ()
    cameras: tuple[CameraShare, ...] = ()
    place: str = ''
    frame: str = ''

    @classmethod
    def of_too_few(
        cls, check: Check, num_keypoints: int, latency_ms: dict[str, float] | None = None
    ) -> LocalizationResult:
        """Return the refusal of an image by the check of its keypoints."""
        return cls(
            check.status,
            check.reason,
            num_keypoints=num_keypoints,
            latency_ms=latency_ms or {},
            checks=(check,),
        )

    def moved(self, offset: NDArray[np.float64]) -> LocalizationResult:
        """Return the result with its pose and points moved by an offset (3,) of the map frame."""
        if not offset.any():
            return self
        pose, details = self.map_from_camera, self.details
        if details is not None:
            details = replace(details, points_in_map=details.points_in_map + offset)
        return replace(
            self,
            map_from_camera=None if pose is None else pose.moved(offset),
            details=details,
        )

    def transformed(self, target_from_map: RigidTransform) -> LocalizationResult:
        """Return the result with pose, covariance and points in another frame than the map's."""
        pose, covariance, details = self.map_from_camera, self.covariance, self.details
        if details is not None:
            points = target_from_map.apply(details.points_in_map)
            details = replace(details, points_in_map=points)
        if covariance is not None:
            turn = np.kron(np.eye(2), target_from_map.rotation)
            covariance = turn @ covariance @ turn.T
        return replace(
            self,
            map_from_camera=None if pose is None else target_from_map @ pose,
            covariance=covariance,
            details=details,
        )

    @property
    def localized(self) -> bool:
        """Whether there is a pose."""
        return self.status is LocalizationStatus.LOCALIZED

    @property
    def protection_level(self) -> float | None:
        """Radius that holds the true position (`protection`), unit of the map; None: no pose."""
        return None if self.covariance is None else protection_level(self.covariance)

    def to_report(self, name: str, stamp_ns: int) -> dict[str, Any]:
        """Return the frame's entry in the report of `d2s localize` (JSON types)."""
        error = self.reprojection_error_px
        return {
            'name': name,
            'stamp': stamp_ns / 1e9,
            'status': self.status.value,
            'reason': self.reason,
            'map_from_camera': self.map_from_camera.to_tum() if self.map_from_camera else None,
            'covariance': None if self.covariance is None else self.covariance.tolist(),
            'protection_level': self.protection_level,
            'num_keypoints': self.num_keypoints,
            'num_reliable': self.num_reliable,
            'num_inliers': self.num_inliers,
            'reprojection_error_px': float(error) if np.isfinite(error) else None,
            'latency_ms': dict(self.latency_ms),
            'with_prior': self.with_prior,
            'checks': [check.to_report() for check in self.checks],
            'place': self.place or None,
            'frame': self.frame or None,
        }
