"""The calibrations of a log over time."""

from __future__ import annotations

import bisect
from typing import Any

from d2s_ros.data.bag_messages import CAMERA_INFO, deserialize, stamp_ns
from d2s_ros.data.bag_storage import Log
from d2s_ros.data.calibration import CameraInfoValues, rectification_problem
from d2s_ros.errors import CalibrationError
from d2s_ros.geometry.cameras import Camera


class CameraInfos:
    """Calibrations over time; equal messages are kept once."""

    def __init__(self, log: Log, topic: str | None, rectified: bool) -> None:
        """Read a topic of camera_info; None gives no calibration."""
        self._rectified = rectified
        self._cameras: dict[Any, tuple[Camera | None, str]] = {}
        entries: list[tuple[int, CameraInfoValues]] = []
        for _topic, received_ns, data in log.messages([topic]) if topic is not None else ():
            message = deserialize(data, CAMERA_INFO)
            if message is None:
                continue
            values = CameraInfoValues.from_message(message)
            if not entries or values != entries[-1][1]:
                entries.append((stamp_ns(message.header) or received_ns, values))
        entries.sort(key=lambda entry: entry[0])
        self._stamps = [stamp for stamp, _values in entries]
        self._values = [values for _stamp, values in entries]

    def at(self, stamp_ns: int, width: int, height: int) -> tuple[Camera | None, str]:
        """Return the camera of an image, or None and the reason why there is none.

        The latest calibration up to the image's time counts, the first one for images before it.
        """
        if not self._values:
            return None, 'the log has no camera_info for the images'
        values = self._values[max(0, bisect.bisect_right(self._stamps, stamp_ns) - 1)]
        key = (values, width, height)
        if key not in self._cameras:
            try:
                self._cameras[key] = values.camera(width, height, self._rectified), ''
            except CalibrationError as error:
                self._cameras[key] = None, str(error)
        return self._cameras[key]

    def rectification_problem(self, image_topic: str) -> str:
        """Return why the calibration cannot be that of the images; empty if nothing is wrong."""
        if self._rectified:
            return ''
        problems = (rectification_problem(image_topic, values) for values in self._values)
        return next((problem for problem in problems if problem), '')
