"""From the image messages of one moment to the outcome: stamps, calibration, localizing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.localization.compute_budget import FULL, ComputeBudget, RateController
from d2s_ros.localization.limits import Limits
from d2s_ros.localization.pose_prior import PosePrior, PriorSource
from d2s_ros.localization.result import CameraShare, LocalizationResult, LocalizationStatus
from d2s_ros.localization.rig_shot import RigShot
from d2s_ros.ros.camera_reader import CameraReader, QueuedImage, ReadImage
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.map_loader import LoadedMap
from d2s_ros.tracking.calibration_watch import CalibrationWatch
from d2s_ros.tracking.extrinsic_watch import ExtrinsicWatch


class NodeRefusal(str, Enum):
    """Why the node itself publishes no pose for an image, beside `LocalizationStatus`."""

    DUPLICATE_STAMP = 'duplicate_stamp'
    OUT_OF_ORDER = 'out_of_order'
    FUTURE_STAMP = 'future_stamp'
    TOO_OLD = 'too_old'
    NO_STAMP = 'no_stamp'
    NO_EXTRINSIC = 'no_extrinsic'
    IMPLAUSIBLE = 'implausible'
    CAMERA_MOVED = 'camera_moved'
    INTERNAL_ERROR = 'internal_error'


@dataclass(eq=False)
class FrameOutcome:
    """What became of one image.

    Attributes:
        stamp_ns: Stamp of the image.
        camera_frame: frame_id of the image.
        status: A `LocalizationStatus` or `NodeRefusal` value.
        reason: One line for people, empty when localized.
        result: What the localizer returned, if it was asked.
        image: The decoded image, if it could be decoded.
        latency_ms: Stage name to milliseconds; total counts from the reception.
        age_ms: ROS time at reception minus stamp.
        picture_frame: Frame that `image` was taken in, where it is not `camera_frame`.
        protection_level: Of the body's pose to publish, unit of the map; NaN without one.
    """

    stamp_ns: int
    camera_frame: str
    status: str
    reason: str = ''
    result: LocalizationResult | None = None
    image: NDArray[np.uint8] | None = None
    latency_ms: dict[str, float] = field(default_factory=dict)
    age_ms: float = float('nan')
    picture_frame: str = ''
    protection_level: float = float('nan')

    @property
    def localized(self) -> bool:
        """Whether there is a pose to publish."""
        return self.status == LocalizationStatus.LOCALIZED.value

    def refuse(self, status: str, reason: str) -> None:
        """Turn the outcome into a refusal."""
        self.status, self.reason = status, reason


class StampCheck:
    """Decides from its stamp whether an image is processed.

    Args:
        jump: A step back of more than this many seconds is a jump of time, not disorder.
        max_future: Furthest an image may be ahead of ROS time, in seconds; 0 for any.
        max_age: Oldest an image may be, in seconds; 0 for any.
    """

    def __init__(self, jump: float = 1.0, max_future: float = 0.0, max_age: float = 0.0) -> None:
        self.jump = jump
        self.max_future = max_future
        self.max_age = max_age
        self._last_ns: int | None = None

    def check(self, stamp_ns: int, now_ns: int) -> tuple[NodeRefusal | None, str, bool]:
        """Return the refusal with its reason (or None), and whether time jumped back.

        Args:
            stamp_ns: Stamp of the image.
            now_ns: ROS time; 0 if the clock has not started.
        """
        if stamp_ns == 0:
            return (
                NodeRefusal.NO_STAMP,
                'the stamp is zero: the driver must set header.stamp to the time of the exposure',
                False,
            )
        age = (now_ns - stamp_ns) / 1e9 if now_ns > 0 else 0.0
        if self.max_future > 0 and age < -self.max_future:
            return (
                NodeRefusal.FUTURE_STAMP,
                f'the stamp is {-age:.3f} s in the future; are the clocks synchronized?',
                False,
            )
        if self.max_age > 0 and age > self.max_age:
            return NodeRefusal.TOO_OLD, f'the image is {age:.3f} s old', False
        if self._last_ns is not None:
            step = (stamp_ns - self._last_ns) / 1e9
            if stamp_ns == self._last_ns:
                return NodeRefusal.DUPLICATE_STAMP, 'the stamp is that of the last image', False
            if -self.jump <= step < 0:
                return NodeRefusal.OUT_OF_ORDER, f'the image is {-step:.3f} s late', False
            if step < 0:
                self._last_ns = stamp_ns
                return None, '', True
        self._last_ns = stamp_ns
        return None, '', False

    def reset(self) -> None:
        """Accept any stamp next."""
        self._last_ns = None


#: Says where a camera is in the frame of another: both frames and the stamps of their images; a
#: reason instead if it is not known.
PlaceOf = Callable[[str, str, int, int], 'tuple[RigidTransform | None, str]']


class FramePipeline:
    """Runs the stages on the images of one moment.

    Args:
        readers: Of each camera of the robot.
        stamps: Decides by stamp.
        camera_frame: Of the first camera; empty: what its images say.
        place: Says where cameras are; of use with several.
    """

    def __init__(
        self,
        readers: Sequence[CameraReader],
        stamps: StampCheck,
        camera_frame: str = '',
        place: PlaceOf | None = None,
    ) -> None:
        self._readers = list(readers)
        self.stamps = stamps
        self._place = place
        self._given_frame = camera_frame if len(self._readers) > 1 else ''
        self._frames = {0: self._given_frame} if self._given_frame else {}
        self._changes = 0
        self._calibration_watch = CalibrationWatch()
        #: What the last images say is wrong with the calibration; empty if nothing.
        self.calibration_problem = ''
        self._extrinsic_watch = ExtrinsicWatch()
        self._extrinsic_problem = ''
        #: Share by which the focal length of several images may be off.
        self.max_focal_error = Limits.max_focal_error
        #: The same of other intrinsics, see `Limits`.
        self.max_intrinsics_error = Limits.max_intrinsics_error
        #: Wait for a camera_info of the same stamp, in seconds.
        self.camera_info_timeout = 0.1
        #: Lowers the compute budget to hold a rate; None always does all.
        self.rate: RateController | None = None

    @property
    def info_problem(self) -> str:
        """What is suspicious about calibrations and extrinsics, for people; empty if nothing."""
        problems = [reader.problem for reader in self._readers] + [self._extrinsic_problem]
        return '; '.join(problem for problem in problems if problem)

    def apply(self, config: LocalizerNodeConfig) -> None:
        """Take changed options of the node."""
        self.camera_info_timeout = config.camera_info_timeout
        self.max_focal_error = config.localizer.max_focal_error
        self.max_intrinsics_error = config.localizer.max_intrinsics_error
        self.stamps.jump = config.time_jump_threshold
        self.stamps.max_future = config.max_future
        self.stamps.max_age = config.max_image_age
        self.set_target_rate(config.target_rate)

    def set_target_rate(self, rate: float) -> None:
        """Hold a rate in Hz from now on; 0 for none."""
        if rate <= 0:
            self.rate = None
        elif self.rate is None or self.rate.rate != rate:
            self.rate = RateController(rate)

    def process(
        self,
        queued: tuple[QueuedImage, ...],
        loaded: LoadedMap,
        *,
        details: bool = False,
        expected: Callable[[int, str], PosePrior | None] | None = None,
    ) -> tuple[FrameOutcome, bool]:
        """Return the outcome, and whether time jumped back before these images.

        Args:
            queued: At most one image of each camera, the first camera first.
            loaded: The map.
            details: Also keep per-keypoint results.
            expected: Says from a stamp and a frame_id where the camera should be.

        Raises:
            Exception: only from the localizer, where the device failed (`is_device_failure`).
        """
        start = time.monotonic()
        first = queued[0]
        stamp_ns, now_ns = first.stamp_ns, first.now_ns
        outcome = FrameOutcome(stamp_ns, self._reference(queued), '')
        outcome.latency_ms['queue'] = 1e3 * (start - first.received)
        if now_ns > 0:
            outcome.age_ms = (now_ns - stamp_ns) / 1e6
        refusal, reason, jumped = self.stamps.check(stamp_ns, now_ns)
        if refusal is not None:
            outcome.refuse(refusal.value, reason)
        else:
            prior: PriorSource | None = None
            if expected is not None and not jumped:
                prior = partial(expected, stamp_ns, outcome.camera_frame)
            self._localize(queued, loaded, outcome, details, prior)
        outcome.latency_ms['total'] = 1e3 * (time.monotonic() - first.received)
        return outcome, jumped

    def _reference(self, queued: tuple[QueuedImage, ...]) -> str:
        """Return the frame whose pose is asked for: of the first camera that was ever seen."""
        for one in queued:
            if one.camera or not self._given_frame:
                self._frames[one.camera] = one.frame_id
        return self._frames[min(self._frames)]

    def _localize(
        self,
        queued: tuple[QueuedImage, ...],
        loaded: LoadedMap,
        outcome: FrameOutcome,
        details: bool,
        prior: PriorSource | None,
    ) -> None:
        start = time.monotonic()
        images = [self._readers[one.camera].read(one, self.camera_info_timeout) for one in queued]
        outcome.image = images[0].image
        if any(found.decode_ms for found in images):
            outcome.latency_ms['decode'] = sum(found.decode_ms for found in images)
        if all(found.status for found in images):
            outcome.refuse(images[0].status, images[0].reason)
            return
        outcome.latency_ms['camera_info'] = sum(found.info_ms for found in images)
        changes = sum(reader.changes for reader in self._readers)
        if changes != self._changes:
            self._changes = changes
            self._calibration_watch.reset()
            self.calibration_problem = ''
            self._extrinsic_watch.reset()
        controller = self.rate
        budget = FULL if controller is None else controller.budget
        if len(self._readers) == 1:
            image, camera = images[0].image, images[0].camera
            assert image is not None
            assert camera is not None
            result: LocalizationResult | None = loaded.localizer.localize(
                image, camera, details=details, budget=budget, prior=prior
            )
        else:
            result = self._localize_rig(
                queued, images, loaded, outcome, details=details, budget=budget, prior=prior
            )
        if result is None:
            return
        if controller is not None:
            controller.record(1e3 * (time.monotonic() - start))
        outcome.result = result
        outcome.status, outcome.reason = result.status.value, result.reason
        self.calibration_problem = self._calibration_watch.check(
            result, self.max_focal_error, self.max_intrinsics_error
        )
        if result.localized and self._calibration_watch.accuses(result):
            outcome.refuse(LocalizationStatus.CALIBRATION_MISMATCH.value, self.calibration_problem)
        for stage in ('features', 'network', 'pose'):
            if stage in result.latency_ms:
                outcome.latency_ms[stage] = result.latency_ms[stage]

    def _localize_rig(
        self,
        queued: tuple[QueuedImage, ...],
        images: list[ReadImage],
        loaded: LoadedMap,
        outcome: FrameOutcome,
        *,
        details: bool,
        budget: ComputeBudget,
        prior: PriorSource | None,
    ) -> LocalizationResult | None:
        """Localize several cameras together; None where the place of none is known."""
        assert self._place is not None
        shots, shares = [], []
        for one, found in zip(queued, images, strict=True):
            name = one.topic.removesuffix('/compressed')
            status, reason, place = found.status, found.reason, None
            if not status and name in self._extrinsic_watch.distrusted:
                status, reason = 'left_out', 'its transform is wrong, by many images'
            if not status and name in self._calibration_watch.accused:
                status = LocalizationStatus.CALIBRATION_MISMATCH.value
                reason = 'its calibration is wrong, by many images'
            if not status:
                frame = self._frames[one.camera]
                place, reason = self._place(
                    outcome.camera_frame, frame, outcome.stamp_ns, one.stamp_ns
                )
                status = '' if place is not None else NodeRefusal.NO_EXTRINSIC.value
            if place is None:
                shares.append(CameraShare(name, status, reason))
            else:
                shots.append(RigShot(name, found.image, found.camera, place))
        if not shots:
            first = shares[0]
            outcome.refuse(first.status, first.reason)
            return None
        result = loaded.localizer.localize_rig(shots, details=details, budget=budget, prior=prior)
        shown = max(result.cameras, key=lambda share: share.num_inliers, default=None)
        for one, found in zip(queued, images, strict=True):
            if shown is not None and one.topic.removesuffix('/compressed') == shown.name:
                outcome.image, outcome.picture_frame = found.image, one.frame_id
        self._extrinsic_problem = self._extrinsic_watch.check(result)
        return replace(result, cameras=(*result.cameras, *shares))
