"""Write small rosbag2 logs for tests."""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode
from rosbags.typesys import Stores, get_typestore

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform

START_NS = 1_700_000_000 * 10**9
CAMERA = Camera('plumb_bob', 64, 48, 50.0, 51.0, 31.0, 23.5, (-0.1, 0.01, 0.001, -0.002, 0.0))
TYPES = {
    'image': 'sensor_msgs/msg/Image',
    'compressed': 'sensor_msgs/msg/CompressedImage',
    'info': 'sensor_msgs/msg/CameraInfo',
    'pose': 'geometry_msgs/msg/PoseStamped',
    'pose_cov': 'geometry_msgs/msg/PoseWithCovarianceStamped',
    'odom': 'nav_msgs/msg/Odometry',
    'tf': 'tf2_msgs/msg/TFMessage',
    'string': 'std_msgs/msg/String',
}


@functools.cache
def store():
    return get_typestore(Stores.ROS2_JAZZY)


def make(name, *arguments):
    return store().types[name](*arguments)


def header(stamp_ns: int, frame_id: str = 'camera_optical_frame'):
    stamp = make('builtin_interfaces/msg/Time', stamp_ns // 10**9, stamp_ns % 10**9)
    return make('std_msgs/msg/Header', stamp, frame_id)


def picture(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Return a smooth BGR picture that differs for every index."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [
        127 + 100 * np.sin(0.1 * x + index),
        127 + 100 * np.cos(0.13 * y - index),
        127 + 100 * np.sin(0.05 * (x + y) + 2 * index),
    ]
    return np.stack(channels, axis=-1).astype(np.uint8)


def image_message(stamp_ns: int, image: np.ndarray, frame_id: str = 'camera_optical_frame'):
    height, width, channels = image.shape
    return make(
        TYPES['image'],
        header(stamp_ns, frame_id),
        height,
        width,
        'bgr8',
        0,
        width * channels,
        image.reshape(-1),
    )


def depth_message(stamp_ns: int, frame_id: str = 'depth_optical_frame'):
    """Return a depth image as RGB-D cameras send it."""
    data = np.full((48, 64), 1500, np.uint16)
    return make(
        TYPES['image'],
        header(stamp_ns, frame_id),
        48,
        64,
        '16UC1',
        0,
        128,
        data.view(np.uint8).reshape(-1),
    )


def compressed_message(
    stamp_ns: int, data: bytes, format: str = 'jpeg', frame_id: str = 'camera_optical_frame'
):
    return make(
        TYPES['compressed'], header(stamp_ns, frame_id), format, np.frombuffer(data, np.uint8)
    )


def jpeg(image: np.ndarray, quality: int = 90) -> bytes:
    return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def info_message(
    stamp_ns: int,
    camera: Camera = CAMERA,
    roi=(0, 0, 0, 0),
    frame_id: str = 'camera_optical_frame',
    **changes,
):
    values = {
        'height': camera.height,
        'width': camera.width,
        'distortion_model': camera.model,
        'd': np.array(camera.distortion, dtype=np.float64),
        'k': camera.matrix.reshape(-1),
        'p': np.eye(3, 4).reshape(-1),
        **changes,
    }
    region = make('sensor_msgs/msg/RegionOfInterest', *roi, False)
    return make(
        TYPES['info'],
        header(stamp_ns, frame_id),
        values['height'],
        values['width'],
        values['distortion_model'],
        values['d'],
        values['k'],
        np.eye(3).reshape(-1),
        values['p'],
        0,
        0,
        region,
    )


def pose_of(transform: RigidTransform):
    values = transform.to_tum()
    return make(
        'geometry_msgs/msg/Pose',
        make('geometry_msgs/msg/Point', *values[:3]),
        make('geometry_msgs/msg/Quaternion', *values[3:]),
    )


def pose_message(stamp_ns: int, transform: RigidTransform, frame_id: str = 'map'):
    return make(TYPES['pose'], header(stamp_ns, frame_id), pose_of(transform))


def pose_cov_message(stamp_ns: int, transform: RigidTransform, frame_id: str = 'map'):
    pose = make('geometry_msgs/msg/PoseWithCovariance', pose_of(transform), np.zeros(36))
    return make(TYPES['pose_cov'], header(stamp_ns, frame_id), pose)


def odom_message(stamp_ns: int, transform: RigidTransform, child: str = 'base_link'):
    pose = make('geometry_msgs/msg/PoseWithCovariance', pose_of(transform), np.zeros(36))
    zero = make('geometry_msgs/msg/Vector3', 0.0, 0.0, 0.0)
    twist = make(
        'geometry_msgs/msg/TwistWithCovariance',
        make('geometry_msgs/msg/Twist', zero, zero),
        np.zeros(36),
    )
    return make(TYPES['odom'], header(stamp_ns, 'odom'), child, pose, twist)


def tf_message(stamp_ns: int, *edges: tuple[str, str, RigidTransform]):
    transforms = []
    for parent, child, transform in edges:
        values = transform.to_tum()
        body = make(
            'geometry_msgs/msg/Transform',
            make('geometry_msgs/msg/Vector3', *values[:3]),
            make('geometry_msgs/msg/Quaternion', *values[3:]),
        )
        transforms.append(
            make('geometry_msgs/msg/TransformStamped', header(stamp_ns, parent), child, body)
        )
    return make(TYPES['tf'], transforms)


def write_bag(
    path: Path, messages, storage: str = 'sqlite3', compression: str | None = None
) -> Path:
    """Write (topic, kind of TYPES, receive time in ns, message or bytes) in the given order.

    Compression is by 'file', 'message' or 'storage', with zstd.
    """
    plugin = StoragePlugin.MCAP if storage == 'mcap' else StoragePlugin.SQLITE3
    writer = Writer(path, version=9, storage_plugin=plugin)
    if compression is not None:
        writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, kind, stamp_ns, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, TYPES[kind], typestore=store())
            data = message
            if not isinstance(message, bytes):
                data = store().serialize_cdr(message, TYPES[kind])
            writer.write(connections[topic], stamp_ns, data)
    return path


def storage_file(bag: Path) -> Path:
    return next(file for file in bag.iterdir() if '.db3' in file.name or '.mcap' in file.name)


def camera_log(count: int = 5, period_ns: int = 10**8, kind: str = 'compressed'):
    """Return the messages of a simple camera: camera_info and image at each time."""
    messages = []
    for index in range(count):
        stamp = START_NS + index * period_ns
        messages.append(('/camera/camera_info', 'info', stamp, info_message(stamp)))
        if kind == 'compressed':
            image = compressed_message(stamp, jpeg(picture(index)))
            messages.append(('/camera/image_raw/compressed', 'compressed', stamp, image))
        else:
            messages.append(
                ('/camera/image_raw', 'image', stamp, image_message(stamp, picture(index)))
            )
    return messages
