"""From an image message to the outcome of one frame: stamps, calibration, decoding, localizing."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from d2s_ros.data.calibration import CameraInfoValues, rectification_problem
from d2s_ros.errors import CalibrationError, D2SError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.compute_budget import FULL, RateController
from d2s_ros.localization.limits import Limits
from d2s_ros.localization.pose_prior import PosePrior, PriorSource
from d2s_ros.localization.result import LocalizationResult, LocalizationStatus
from d2s_ros.ros.conversions import image_from_msg, ns_from_stamp
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.map_loader import LoadedMap
from d2s_ros.tracking.plausibility import FocalWatch


class NodeRefusal(str, Enum):
    """Why the node itself publishes no pose for an image, beside `LocalizationStatus`."""

    DUPLICATE_STAMP = 'duplicate_stamp'
    OUT_OF_ORDER = 'out_of_order'
    FUTURE_STAMP = 'future_stamp'
    TOO_OLD = 'too_old'
    NO_STAMP = 'no_stamp'
    NO_EXTRINSIC = 'no_extrinsic'
    IMPLAUSIBLE = 'implausible'
    INTERNAL_ERROR = 'internal_error'


@dataclass(eq=False)
class QueuedImage:
    """An image message on its way to the worker.

    Attributes:
        message: As received.
        received: time.monotonic() of the reception.
        now_ns: ROS time of the reception; 0 if the clock has not started.
        topic: Where it came from.
    """

    message: Image | CompressedImage
    received: float
    now_ns: int
    topic: str = ''


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
    """

    stamp_ns: int
    camera_frame: str
    status: str
    reason: str = ''
    result: LocalizationResult | None = None
    image: NDArray[np.uint8] | None = None
    latency_ms: dict[str, float] = field(default_factory=dict)
    age_ms: float = float('nan')

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


class CameraInfos:
    """Keeps the last camera_info messages and finds the one that belongs to an image."""

    def __init__(self, capacity: int = 64) -> None:
        self._condition = threading.Condition()
        self._by_stamp: OrderedDict[int, CameraInfo] = OrderedDict()
        self._latest: CameraInfo | None = None
        self._capacity = capacity
        self._synchronized = False

    def put(self, message: CameraInfo) -> None:
        """Add a message."""
        with self._condition:
            self._latest = message
            self._by_stamp[ns_from_stamp(message.header.stamp)] = message
            while len(self._by_stamp) > self._capacity:
                self._by_stamp.popitem(last=False)
            self._condition.notify_all()

    def find(self, stamp_ns: int, timeout: float) -> CameraInfo | None:
        """Return the message of the image's stamp, or else the latest one.

        Waits up to `timeout` seconds where the same stamp can be expected: as long as no message
        came at all, and where earlier images found theirs.
        """
        with self._condition:
            if stamp_ns not in self._by_stamp and (self._synchronized or self._latest is None):
                self._condition.wait_for(lambda: stamp_ns in self._by_stamp, timeout)
            message = self._by_stamp.get(stamp_ns)
            self._synchronized = message is not None
            return message or self._latest

    def clear(self) -> None:
        """Forget all messages."""
        with self._condition:
            self._by_stamp.clear()
            self._latest = None
            self._synchronized = False


def _other_frame(image_frame: str, info_frame: str) -> str:
    """Return that a calibration is of another frame than the image, for people, or nothing."""
    image_frame, info_frame = image_frame.removeprefix('/'), info_frame.removeprefix('/')
    if not image_frame or not info_frame or image_frame == info_frame:
        return ''
    return (
        f'camera_info is of the frame {info_frame!r}, the images are of {image_frame!r}: '
        'is it the calibration of another camera?'
    )


class FramePipeline:
    """Runs the stages on one image message.

    Args:
        camera_infos: Where calibrations come from.
        stamps: Decides by stamp.
        info_topic: For messages to people.
        rectified: The images are rectified.
    """

    def __init__(
        self, camera_infos: CameraInfos, stamps: StampCheck, info_topic: str, rectified: bool
    ) -> None:
        self._camera_infos = camera_infos
        self.stamps = stamps
        self._info_topic = info_topic
        self._rectified = rectified
        self._camera_key: tuple[CameraInfoValues, tuple[int, int]] | None = None
        self._camera: Camera | None = None
        self._unrectified_problem = ''
        #: What is suspicious about the calibration of the last image, for people; empty if nothing.
        self.info_problem = ''
        self._focal_watch = FocalWatch()
        #: Share by which the focal length of several images may be off.
        self.max_focal_error = Limits.max_focal_error
        #: Wait for a camera_info of the same stamp, in seconds.
        self.camera_info_timeout = 0.1
        #: Lowers the compute budget to hold a rate; None always does all.
        self.rate: RateController | None = None

    def apply(self, config: LocalizerNodeConfig) -> None:
        """Take changed options of the node."""
        self.camera_info_timeout = config.camera_info_timeout
        self.max_focal_error = config.localizer.max_focal_error
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
        queued: QueuedImage,
        loaded: LoadedMap,
        *,
        details: bool = False,
        expected: Callable[[int, str], PosePrior | None] | None = None,
    ) -> tuple[FrameOutcome, bool]:
        """Return the outcome, and whether time jumped back before this image.

        Args:
            queued: The image.
            loaded: The map.
            details: Also keep per-keypoint results.
            expected: Says from a stamp and a frame_id where the camera should be.

        Raises:
            Exception: only from the localizer, where the device failed (`is_device_failure`).
        """
        start = time.monotonic()
        message = queued.message
        stamp_ns = ns_from_stamp(message.header.stamp)
        outcome = FrameOutcome(stamp_ns, message.header.frame_id, '')
        outcome.latency_ms['queue'] = 1e3 * (start - queued.received)
        if queued.now_ns > 0:
            outcome.age_ms = (queued.now_ns - stamp_ns) / 1e6
        refusal, reason, jumped = self.stamps.check(stamp_ns, queued.now_ns)
        if refusal is not None:
            outcome.refuse(refusal.value, reason)
        else:
            prior: PriorSource | None = None
            if expected is not None and not jumped:
                prior = partial(expected, stamp_ns, outcome.camera_frame)
            self._localize(queued, loaded, outcome, details, prior)
        outcome.latency_ms['total'] = 1e3 * (time.monotonic() - queued.received)
        return outcome, jumped

    def _localize(
        self,
        queued: QueuedImage,
        loaded: LoadedMap,
        outcome: FrameOutcome,
        details: bool,
        prior: PriorSource | None,
    ) -> None:
        start = time.monotonic()
        try:
            outcome.image = image_from_msg(queued.message)
        except D2SError as error:
            outcome.refuse(LocalizationStatus.BAD_IMAGE.value, str(error))
            return
        decoded = time.monotonic()
        outcome.latency_ms['decode'] = 1e3 * (decoded - start)
        info = self._camera_infos.find(outcome.stamp_ns, self.camera_info_timeout)
        if info is None:
            outcome.refuse(
                LocalizationStatus.NO_CALIBRATION.value, f'no camera_info on {self._info_topic}'
            )
            return
        self.info_problem = _other_frame(outcome.camera_frame, info.header.frame_id)
        height, width = outcome.image.shape[:2]
        try:
            camera = self._camera_of(info, (width, height), queued.topic)
        except CalibrationError as error:
            same_size = (info.width, info.height) in ((0, 0), (width, height))
            status = (
                LocalizationStatus.NO_CALIBRATION
                if same_size
                else LocalizationStatus.CALIBRATION_MISMATCH
            )
            outcome.refuse(status.value, str(error))
            return
        if self._unrectified_problem:
            outcome.refuse(LocalizationStatus.CALIBRATION_MISMATCH.value, self._unrectified_problem)
            return
        outcome.latency_ms['camera_info'] = 1e3 * (time.monotonic() - decoded)
        controller = self.rate
        budget = FULL if controller is None else controller.budget
        result = loaded.localizer.localize(
            outcome.image, camera, details=details, budget=budget, prior=prior
        )
        if controller is not None:
            controller.record(1e3 * (time.monotonic() - start))
        outcome.result = result
        outcome.status, outcome.reason = result.status.value, result.reason
        problem = self._focal_watch.check(result, self.max_focal_error)
        if problem and result.localized:
            outcome.refuse(LocalizationStatus.CALIBRATION_MISMATCH.value, problem)
        for stage in ('features', 'network', 'pose'):
            if stage in result.latency_ms:
                outcome.latency_ms[stage] = result.latency_ms[stage]

    def _camera_of(self, info: CameraInfo, size: tuple[int, int], topic: str) -> Camera:
        """Convert a camera_info, once per content."""
        key = (CameraInfoValues.from_message(info), size)
        if self._camera is None or key != self._camera_key:
            self._camera = key[0].camera(*size, self._rectified)
            self._camera_key = key
            self._unrectified_problem = (
                '' if self._rectified else rectification_problem(topic, key[0])
            )
            self._focal_watch.reset()
        return self._camera
