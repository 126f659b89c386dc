"""From the image message of one camera to its pixels and its calibration."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from d2s_ros.data.calibration import CameraInfoValues, rectification_problem
from d2s_ros.errors import CalibrationError, D2SError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.result import LocalizationStatus
from d2s_ros.ros.conversions import image_from_msg, ns_from_stamp


@dataclass(eq=False)
class QueuedImage:
    """An image message on its way to the worker.

    Attributes:
        message: As received.
        received: time.monotonic() of the reception.
        now_ns: ROS time of the reception; 0 if the clock has not started.
        topic: Where it came from.
        camera: Which camera of the robot it is of.
    """

    message: Image | CompressedImage
    received: float
    now_ns: int
    topic: str = ''
    camera: int = 0

    @property
    def stamp_ns(self) -> int:
        """Its stamp."""
        return ns_from_stamp(self.message.header.stamp)

    @property
    def frame_id(self) -> str:
        """The frame that it says it was taken in."""
        return str(self.message.header.frame_id)


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


@dataclass(eq=False)
class ReadImage:
    """One image with its calibration, or why it cannot be used.

    Attributes:
        image: The pixels, if they could be decoded.
        camera: The calibration, if there is a valid one.
        status, reason: A refusal for people; empty where there is none.
        decode_ms, info_ms: What decoding and the calibration took.
    """

    image: NDArray[np.uint8] | None = None
    camera: Camera | None = None
    status: str = ''
    reason: str = ''
    decode_ms: float = 0.0
    info_ms: float = 0.0

    def refused(self, status: LocalizationStatus, reason: str) -> ReadImage:
        """Note a refusal."""
        self.status, self.reason = status.value, reason
        return self


def _other_frame(image_frame: str, info_frame: str) -> str:
    """Return that a calibration is of another frame than the image, for people, or nothing."""
    image_frame, info_frame = image_frame.removeprefix('/'), info_frame.removeprefix('/')
    if not image_frame or not info_frame or image_frame == info_frame:
        return ''
    return (
        f'camera_info is of the frame {info_frame!r}, the images are of {image_frame!r}: '
        'is it the calibration of another camera?'
    )


class CameraReader:
    """Reads the images of one camera.

    Args:
        infos: Where calibrations come from.
        info_topic: For messages to people.
        rectified: The images are rectified.

    Attributes:
        changes: How often the calibration changed.
        problem: What is suspicious about the calibration, for people; empty if nothing is.
    """

    def __init__(self, infos: CameraInfos, info_topic: str, rectified: bool) -> None:
        self._infos = infos
        self._info_topic = info_topic
        self._rectified = rectified
        self._key: tuple[CameraInfoValues, tuple[int, int]] | None = None
        self._camera: Camera | None = None
        self._unrectified_problem = ''
        self.problem = ''
        self.changes = 0

    def read(self, queued: QueuedImage, info_timeout: float) -> ReadImage:
        """Decode an image and find its calibration.

        Args:
            queued: The image.
            info_timeout: How long to wait for a camera_info of the same stamp, in seconds.
        """
        start = time.monotonic()
        found = ReadImage()
        try:
            found.image = image_from_msg(queued.message)
        except D2SError as error:
            return found.refused(LocalizationStatus.BAD_IMAGE, str(error))
        decoded = time.monotonic()
        found.decode_ms = 1e3 * (decoded - start)
        info = self._infos.find(queued.stamp_ns, info_timeout)
        if info is None:
            return found.refused(
                LocalizationStatus.NO_CALIBRATION, f'no camera_info on {self._info_topic}'
            )
        self.problem = _other_frame(queued.frame_id, info.header.frame_id)
        height, width = found.image.shape[:2]
        try:
            camera = self._camera_of(info, (width, height), queued.topic)
        except CalibrationError as error:
            same_size = (info.width, info.height) in ((0, 0), (width, height))
            status = (
                LocalizationStatus.NO_CALIBRATION
                if same_size
                else LocalizationStatus.CALIBRATION_MISMATCH
            )
            return found.refused(status, str(error))
        if self._unrectified_problem:
            return found.refused(LocalizationStatus.CALIBRATION_MISMATCH, self._unrectified_problem)
        found.camera = camera
        found.info_ms = 1e3 * (time.monotonic() - decoded)
        return found

    def _camera_of(self, info: CameraInfo, size: tuple[int, int], topic: str) -> Camera:
        """Convert a camera_info, once per content."""
        key = (CameraInfoValues.from_message(info), size)
        if self._camera is None or key != self._key:
            self._camera = key[0].camera(*size, self._rectified)
            self._key = key
            self._unrectified_problem = (
                '' if self._rectified else rectification_problem(topic, key[0])
            )
            self.changes += 1
        return self._camera
