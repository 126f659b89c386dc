"""Write camera logs as rosbag2 folders: whole or not at all.

The log is written under a temporary name beside its place, synced, and renamed at the end, so a
killed writer never leaves a folder that looks like a log.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from d2s_ros.errors import InputError, UsageError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform

#: Metadata version that ROS 2 Humble reads as well as Jazzy.
_BAG_VERSION: Literal[8] = 8
TUM_HEADER = '# stamp tx ty tz qx qy qz qw (map_from_camera, metres)\n'


class LogWriter:
    """Writes one rosbag2 folder; a context manager.

    Leaving the context normally puts the log in place; leaving it by an exception removes what
    was written.
    """

    def __init__(self, path: str | os.PathLike[str], storage: str = 'sqlite3') -> None:
        """Check that `path` is free.

        Args:
            path: The folder to make; it may exist if it is empty.
            storage: 'sqlite3' or 'mcap'.

        Raises:
            UsageError: if something is there already or the storage is unknown.
        """
        self._path = Path(path)
        if storage not in ('sqlite3', 'mcap'):
            raise UsageError(f'storage is {storage!r}, it must be sqlite3 or mcap')
        self._plugin = StoragePlugin.MCAP if storage == 'mcap' else StoragePlugin.SQLITE3
        self._types: dict[str, Any] = {}
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._connections: dict[str, Any] = {}
        self._temporary: Path | None = None
        self._writer: Writer | None = None
        check_free(self._path)

    def __enter__(self) -> LogWriter:
        parent = self._path.absolute().parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self._temporary = Path(
                tempfile.mkdtemp(prefix=f'.{self._path.name}.partial-', dir=parent)
            )
        except OSError as error:
            raise InputError(f'cannot write to {parent}: {error.strerror}') from error
        # The storage file is named after its folder, so that has the final name already.
        self._writer = Writer(self.folder, version=_BAG_VERSION, storage_plugin=self._plugin)
        self._writer.open()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._writer is not None
        assert self._temporary is not None
        try:
            self._writer.close()
            if exception_type is None:
                check_free(self._path)
                for file in (*self.folder.iterdir(), self.folder):
                    _sync(file)
                if self._path.exists():
                    self._path.rmdir()
                self.folder.rename(self._path)
                _sync(self._path.absolute().parent)
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def folder(self) -> Path:
        """Where the log is being written; further files put here belong to it."""
        assert self._temporary is not None
        return self._temporary / self._path.name

    def write(self, topic: str, stamp_ns: int, message: Any) -> None:
        """Write a message made by one of the functions below, received at its stamp."""
        assert self._writer is not None
        name = message.__msgtype__
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, name, typestore=self._store, offered_qos_profiles=[_qos(topic)]
            )
        data = self._store.serialize_cdr(message, name)
        self._writer.write(self._connections[topic], stamp_ns, data)

    # -- messages ----------------------------------------------------------------------------

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        """Return a std_msgs/Header."""
        seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
        time = self._type('builtin_interfaces/msg/Time')(sec=seconds, nanosec=nanoseconds)
        return self._type('std_msgs/msg/Header')(stamp=time, frame_id=frame_id)

    def image(self, stamp_ns: int, frame_id: str, image: NDArray[np.uint8]) -> Any:
        """Return a raw sensor_msgs/Image: mono8 of (H, W), bgr8 of (H, W, 3)."""
        height, width = image.shape[:2]
        channels = 1 if image.ndim == 2 else 3
        return self._type('sensor_msgs/msg/Image')(
            header=self.header(stamp_ns, frame_id),
            height=height,
            width=width,
            encoding='mono8' if channels == 1 else 'bgr8',
            is_bigendian=0,
            step=width * channels,
            data=np.ascontiguousarray(image).reshape(-1),
        )

    def depth_image(self, stamp_ns: int, frame_id: str, depth: NDArray[np.float32]) -> Any:
        """Return a sensor_msgs/Image 16UC1, mm, of depth (H, W) m; 0 where there is none."""
        millimetres = np.where(np.isfinite(depth), np.rint(1e3 * depth), 0).clip(0, 65535)
        return self._type('sensor_msgs/msg/Image')(
            header=self.header(stamp_ns, frame_id),
            height=depth.shape[0],
            width=depth.shape[1],
            encoding='16UC1',
            is_bigendian=0,
            step=2 * depth.shape[1],
            data=millimetres.astype('<u2').view(np.uint8).reshape(-1),
        )

    def compressed_image(
        self, stamp_ns: int, frame_id: str, image: NDArray[np.uint8], quality: int = 92
    ) -> Any:
        """Return a JPEG sensor_msgs/CompressedImage of (H, W) grey or (H, W, 3) BGR."""
        good, data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if not good:
            raise InputError(f'an image of shape {image.shape} cannot be encoded as JPEG')
        return self._type('sensor_msgs/msg/CompressedImage')(
            header=self.header(stamp_ns, frame_id),
            format='jpeg',
            data=np.asarray(data, dtype=np.uint8).reshape(-1),
        )

    def camera_info(self, stamp_ns: int, frame_id: str, camera: Camera) -> Any:
        """Return a sensor_msgs/CameraInfo; a pinhole is plumb_bob with zero coefficients."""
        model, coefficients = camera.model, camera.distortion
        if model == 'pinhole':
            model, coefficients = 'plumb_bob', (0.0,) * 5
        projection = np.zeros((3, 4))
        projection[:, :3] = camera.matrix
        region = self._type('sensor_msgs/msg/RegionOfInterest')(
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        return self._type('sensor_msgs/msg/CameraInfo')(
            header=self.header(stamp_ns, frame_id),
            height=camera.height,
            width=camera.width,
            distortion_model=model,
            d=np.array(coefficients, dtype=np.float64),
            k=camera.matrix.reshape(-1),
            r=np.eye(3).reshape(-1),
            p=projection.reshape(-1),
            binning_x=0,
            binning_y=0,
            roi=region,
        )

    def pose_stamped(self, stamp_ns: int, frame_id: str, pose: RigidTransform) -> Any:
        """Return a geometry_msgs/PoseStamped: `pose` maps from the posed thing to `frame_id`."""
        return self._type('geometry_msgs/msg/PoseStamped')(
            header=self.header(stamp_ns, frame_id), pose=self._pose(pose)
        )

    def odometry(
        self,
        stamp_ns: int,
        frame_id: str,
        child_frame_id: str,
        odom_from_base: RigidTransform,
        twist: NDArray[np.float64],
    ) -> Any:
        """Return a nav_msgs/Odometry; twist (6,) linear and angular velocity in the child."""
        linear, angular = (self._vector(part) for part in (twist[:3], twist[3:]))
        return self._type('nav_msgs/msg/Odometry')(
            header=self.header(stamp_ns, frame_id),
            child_frame_id=child_frame_id,
            pose=self._type('geometry_msgs/msg/PoseWithCovariance')(
                pose=self._pose(odom_from_base), covariance=np.eye(6).reshape(-1) * 1e-3
            ),
            twist=self._type('geometry_msgs/msg/TwistWithCovariance')(
                twist=self._type('geometry_msgs/msg/Twist')(linear=linear, angular=angular),
                covariance=np.eye(6).reshape(-1) * 1e-3,
            ),
        )

    def transforms(self, stamp_ns: int, entries: Sequence[tuple[str, str, RigidTransform]]) -> Any:
        """Return a tf2_msgs/TFMessage of (parent, child, parent_from_child)."""
        stamped = []
        for parent, child, transform in entries:
            x, y, z, w = (float(value) for value in transform.quaternion)
            stamped.append(
                self._type('geometry_msgs/msg/TransformStamped')(
                    header=self.header(stamp_ns, parent),
                    child_frame_id=child,
                    transform=self._type('geometry_msgs/msg/Transform')(
                        translation=self._vector(transform.translation),
                        rotation=self._type('geometry_msgs/msg/Quaternion')(x=x, y=y, z=z, w=w),
                    ),
                )
            )
        return self._type('tf2_msgs/msg/TFMessage')(transforms=stamped)

    def _type(self, name: str) -> Any:
        return self._store.types[name]

    def _vector(self, values: NDArray[np.float64]) -> Any:
        x, y, z = (float(value) for value in values)
        return self._type('geometry_msgs/msg/Vector3')(x=x, y=y, z=z)

    def _pose(self, transform: RigidTransform) -> Any:
        x, y, z = (float(value) for value in transform.translation)
        qx, qy, qz, qw = (float(value) for value in transform.quaternion)
        return self._type('geometry_msgs/msg/Pose')(
            position=self._type('geometry_msgs/msg/Point')(x=x, y=y, z=z),
            orientation=self._type('geometry_msgs/msg/Quaternion')(x=qx, y=qy, z=qz, w=qw),
        )


def check_free(path: Path) -> None:
    """Raise UsageError if something other than an empty folder is at `path`."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UsageError(f'{path} exists and is not a folder; choose another output folder')
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f'{path} exists and is not empty; remove it or choose another folder')


def tum_line(stamp_ns: int, pose: RigidTransform) -> str:
    """Return one line of a TUM trajectory; the stamp keeps its nanoseconds."""
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    values = ' '.join(f'{value:.9f}' for value in pose.to_tum())
    return f'{seconds}.{nanoseconds:09d} {values}\n'


def _qos(topic: str) -> Qos:
    """What a driver offers: reliable; static transforms are kept for late subscribers."""
    endless = QosTime(sec=2147483647, nsec=4294967295)
    static = topic == '/tf_static'
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=1 if static else 10,
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.TRANSIENT_LOCAL if static else QosDurability.VOLATILE,
        deadline=endless,
        lifespan=endless,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=endless,
        avoid_ros_namespace_conventions=False,
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
