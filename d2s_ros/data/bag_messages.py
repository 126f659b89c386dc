"""The messages of a rosbag2 log that are read here, from CDR bytes to plain values."""

from __future__ import annotations

import functools
import logging
import struct
from typing import Any

from d2s_ros.errors import InputError
from d2s_ros.geometry.transforms import RigidTransform

_logger = logging.getLogger(__name__)

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
POSE = 'geometry_msgs/msg/PoseStamped'
POSE_WITH_COVARIANCE = 'geometry_msgs/msg/PoseWithCovarianceStamped'
ODOMETRY = 'nav_msgs/msg/Odometry'
TF = 'tf2_msgs/msg/TFMessage'


def deserialize(data: bytes, message_type: str) -> Any:
    """Return the message, None if its bytes are damaged."""
    try:
        return _typestore().deserialize_cdr(data, message_type)
    except Exception as error:  # a parser on damaged bytes fails in any way
        _logger.warning('a %s cannot be read: %s', message_type, error)
        return None


def stamp_ns(header: Any) -> int:
    """Return the time of a header in nanoseconds; zero where the driver set none."""
    return int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)


def peek_stamp_ns(data: bytes) -> int:
    """Return the time of a message that begins with a header, without reading the rest."""
    if len(data) < 12:
        return 0
    order = '<' if data[1] & 1 else '>'
    seconds, nanoseconds = struct.unpack_from(f'{order}iI', data, 4)
    return int(seconds) * 10**9 + int(nanoseconds)


def clean_frame(frame_id: object) -> str:
    """Return a frame as tf2 names it: without the leading slash of old drivers."""
    return str(frame_id).lstrip('/')


def rigid(translation: Any, rotation: Any) -> RigidTransform | None:
    """Return the transform, None for a quaternion of zeros or values that are not finite."""
    try:
        return RigidTransform.from_quaternion(
            [rotation.x, rotation.y, rotation.z, rotation.w],
            [translation.x, translation.y, translation.z],
        )
    except InputError:
        return None


@functools.cache
def _typestore() -> Any:
    from rosbags.typesys import Stores, get_typestore

    # The messages read here have not changed since Humble, so one type store serves all.
    return get_typestore(Stores.ROS2_JAZZY)
