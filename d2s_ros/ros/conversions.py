"""ROS messages to core types and back; pure functions, no node."""

from __future__ import annotations

import array

import cv2
import numpy as np
from builtin_interfaces.msg import Time as TimeMsg
from geometry_msgs.msg import (
    Pose,
    PoseStamped,
    PoseWithCovarianceStamped,
    Transform,
    TransformStamped,
)
from numpy.typing import ArrayLike, NDArray
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from d2s_ros.data.image_codec import decode_compressed, decode_image
from d2s_ros.errors import InputError
from d2s_ros.geometry.transforms import RigidTransform

Array = NDArray[np.float64]
#: Nearer than this, rounding to float32 moves a coordinate by less than a millimetre.
_FLOAT32_METRES = 2.0**14
#: Circles of two pixels are told apart.
_JPEG_QUALITY = 80


def ns_from_stamp(stamp: TimeMsg) -> int:
    """Return a message's time in nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def stamp_from_ns(stamp_ns: int) -> TimeMsg:
    """Return nanoseconds as a message's time."""
    return TimeMsg(sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)


def header(stamp_ns: int, frame_id: str) -> Header:
    """Return a header."""
    return Header(stamp=stamp_from_ns(stamp_ns), frame_id=frame_id)


def image_from_msg(message: Image | CompressedImage) -> NDArray[np.uint8]:
    """Decode an image message.

    Returns:
        (H, W) uint8 grey or (H, W, 3) uint8 BGR.

    Raises:
        UnsupportedImageError: an unknown encoding, broken data or wrong sizes.
    """
    data = np.frombuffer(message.data, dtype=np.uint8)
    if isinstance(message, CompressedImage):
        return decode_compressed(data, message.format)
    return decode_image(
        message.encoding,
        message.height,
        message.width,
        message.step,
        bool(message.is_bigendian),
        data,
    )


def image_to_msg(image: NDArray[np.uint8], stamp_ns: int, frame_id: str) -> Image:
    """Return (H, W) grey or (H, W, 3) BGR uint8 as a mono8 or bgr8 image message."""
    height, width = image.shape[:2]
    channels = 1 if image.ndim == 2 else image.shape[2]
    return Image(
        header=header(stamp_ns, frame_id),
        height=height,
        width=width,
        encoding='mono8' if channels == 1 else 'bgr8',
        is_bigendian=0,
        step=width * channels,
        data=array.array('B', np.ascontiguousarray(image).tobytes()),
    )


def compressed_image_to_msg(
    image: NDArray[np.uint8], stamp_ns: int, frame_id: str
) -> CompressedImage:
    """Return (H, W, 3) BGR uint8 as a JPEG, with the format that image_transport writes."""
    _, encoded = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return CompressedImage(
        header=header(stamp_ns, frame_id),
        format='bgr8; jpeg compressed bgr8',
        data=array.array('B', encoded.tobytes()),
    )


def transform_from_msg(message: Transform) -> tuple[float, ...]:
    """Return tx ty tz qx qy qz qw of a transform message."""
    t, q = message.translation, message.rotation
    return (t.x, t.y, t.z, q.x, q.y, q.z, q.w)


def transform_to_msg(
    parent_from_child: RigidTransform, stamp_ns: int, parent: str, child: str
) -> TransformStamped:
    """Return a stamped transform: the pose of `child` in `parent`."""
    message = TransformStamped(header=header(stamp_ns, parent), child_frame_id=child)
    values = parent_from_child.to_tum()
    t, q = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z, q.x, q.y, q.z, q.w = values
    return message


def pose_to_msg(map_from_body: RigidTransform) -> Pose:
    """Return a pose message."""
    message = Pose()
    p, q = message.position, message.orientation
    p.x, p.y, p.z, q.x, q.y, q.z, q.w = map_from_body.to_tum()
    return message


def pose_stamped(map_from_body: RigidTransform, stamp_ns: int, frame_id: str) -> PoseStamped:
    """Return a stamped pose message."""
    return PoseStamped(header=header(stamp_ns, frame_id), pose=pose_to_msg(map_from_body))


def pose_from_msg(message: Pose) -> RigidTransform:
    """Return the transform frame_from_body of a pose message.

    Raises:
        InputError: values that are not finite, or a quaternion without unit norm.
    """
    p, q = message.position, message.orientation
    values = np.array([p.x, p.y, p.z, q.x, q.y, q.z, q.w])
    if not np.isfinite(values).all():
        raise InputError('the pose has values that are not finite')
    norm = float(np.linalg.norm(values[3:]))
    if abs(norm - 1) > 1e-2:
        raise InputError(f'the orientation of the pose has norm {norm:.3f}, it must be 1')
    return RigidTransform.from_tum(values)


def pose_with_covariance(
    map_from_body: RigidTransform, covariance: ArrayLike, stamp_ns: int, map_frame: str
) -> PoseWithCovarianceStamped:
    """Return a stamped pose with its (6, 6) covariance in ROS order about the map's axes."""
    message = PoseWithCovarianceStamped(header=header(stamp_ns, map_frame))
    message.pose.pose = pose_to_msg(map_from_body)
    message.pose.covariance = np.asarray(covariance, dtype=np.float64).reshape(36)
    return message


def pose_with_covariance_from_msg(
    message: PoseWithCovarianceStamped,
) -> tuple[RigidTransform, Array]:
    """Return the pose and its (6, 6) covariance.

    Raises:
        InputError: not finite, a quaternion without unit norm, a covariance that is none.
    """
    pose = pose_from_msg(message.pose.pose)
    covariance = np.array(message.pose.covariance, dtype=np.float64).reshape(6, 6)
    if not np.isfinite(covariance).all():
        raise InputError('the covariance of the pose has values that are not finite')
    if not np.allclose(covariance, covariance.T, atol=1e-6 + 1e-6 * np.abs(covariance).max()):
        raise InputError('the covariance of the pose is not symmetric')
    if np.linalg.eigvalsh(covariance).min() < -1e-6 * max(1.0, float(np.abs(covariance).max())):
        raise InputError('the covariance of the pose has negative variances')
    return pose, covariance


def point_cloud(
    points_in_map: ArrayLike, intensity: ArrayLike, stamp_ns: int, frame_id: str
) -> PointCloud2:
    """Return points (N, 3) with one intensity (N,) each as an unordered cloud.

    Coordinates are float32, which is what viewers read, or float64 where float32 would move points
    by more than a millimetre.
    """
    points = np.asarray(points_in_map, dtype=np.float64).reshape(-1, 3)
    far = len(points) > 0 and np.nanmax(np.abs(points), initial=0.0) > _FLOAT32_METRES
    kind, datatype = ('<f8', PointField.FLOAT64) if far else ('<f4', PointField.FLOAT32)
    size = np.dtype(kind).itemsize
    packed = np.empty(len(points), [('x', kind), ('y', kind), ('z', kind), ('intensity', '<f4')])
    packed['x'], packed['y'], packed['z'] = points.T
    packed['intensity'] = np.asarray(intensity, dtype=np.float32).reshape(-1)
    fields = [
        PointField(name=name, offset=size * index, datatype=datatype, count=1)
        for index, name in enumerate('xyz')
    ]
    fields.append(
        PointField(name='intensity', offset=3 * size, datatype=PointField.FLOAT32, count=1)
    )
    return PointCloud2(
        header=header(stamp_ns, frame_id),
        height=1,
        width=len(points),
        fields=fields,
        is_bigendian=False,
        point_step=packed.itemsize,
        row_step=packed.nbytes,
        data=array.array('B', packed.tobytes()),
        is_dense=bool(np.isfinite(points).all() and np.isfinite(packed['intensity']).all()),
    )
