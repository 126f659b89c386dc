"""What `d2s view --live` shows: the frames of a running localizer node, as they come."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from numpy.typing import NDArray
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage

from d2s_ros.evaluation.view_page import view_frame
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.ros.conversions import ns_from_stamp

_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
#: Frames that are kept for a page that is opened later.
_KEPT = 3000
#: The same of pictures, which are far larger.
_KEPT_PICTURES = 300
#: z of a body frame points up, that of a camera ahead.
_UP = 0.8


class LiveFrames:
    """Hears a localizer node in a thread of its own, between `with` and its end.

    Args:
        namespace: Of the node, such as '/robot1'.
        origin: (3,) of the map.
    """

    def __init__(self, namespace: str, origin: NDArray[np.float64]) -> None:
        self._origin = origin
        self._lock = threading.Lock()
        self._frames: list[dict[str, Any]] = []
        self._first = 0
        self._counts = {'localized': 0, 'refused': 0}
        #: Pose or status of an image whose other half has not come.
        self._poses: dict[int, RigidTransform] = {}
        self._waiting: dict[int, dict[str, Any]] = {}
        #: By the name of the frame, JPEG.
        self._pictures: dict[str, bytes] = {}
        self._context = Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node('d2s_view', context=self._context)
        prefix = namespace.rstrip('/')
        self._node.create_subscription(
            PoseWithCovarianceStamped, f'{prefix}/d2s/pose', self._on_pose, _QOS
        )
        self._node.create_subscription(
            DiagnosticArray, f'{prefix}/d2s/status', self._on_status, _QOS
        )
        # The node draws it for whoever listens: keypoints are in no other topic.
        self._node.create_subscription(
            CompressedImage,
            f'{prefix}/d2s/debug_image/compressed',
            self._on_picture,
            _QOS,
        )
        self._thread = threading.Thread(target=self._spin, daemon=True)

    def __enter__(self) -> LiveFrames:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._context.try_shutdown()
        self._thread.join()
        self._node.destroy_node()

    def since(self, number: int) -> dict[str, Any]:
        """Return the frames from a number on, for the page, and the number of the next."""
        with self._lock:
            return {
                'frames': self._frames[max(0, number - self._first) :],
                'next': self._first + len(self._frames),
                **self._counts,
            }

    def picture(self, name: str) -> bytes | None:
        """Return the picture that the node drew of a frame, JPEG; None if none is kept."""
        with self._lock:
            return self._pictures.get(name)

    def _spin(self) -> None:
        executor = SingleThreadedExecutor(context=self._context)
        executor.add_node(self._node)
        try:
            executor.spin()
        except ExternalShutdownException:
            return

    def _on_pose(self, message: PoseWithCovarianceStamped) -> None:
        stamp = ns_from_stamp(message.header.stamp)
        p, q = message.pose.pose.position, message.pose.pose.orientation
        pose = RigidTransform.from_tum([p.x, p.y, p.z, q.x, q.y, q.z, q.w])
        with self._lock:
            self._poses[stamp] = _camera_like(pose)
            self._add_if_whole(stamp)

    def _on_picture(self, message: CompressedImage) -> None:
        with self._lock:
            self._pictures[_name_of(ns_from_stamp(message.header.stamp))] = bytes(message.data)
            while len(self._pictures) > _KEPT_PICTURES:
                del self._pictures[next(iter(self._pictures))]

    def _on_status(self, message: DiagnosticArray) -> None:
        stamp = ns_from_stamp(message.header.stamp)
        for status in message.status:
            values = {item.key: item.value for item in status.values}
            with self._lock:
                self._waiting[stamp] = {
                    'name': _name_of(stamp),
                    'status': status.message,
                    'reason': values.get('reason', ''),
                    'num_inliers': values.get('inliers'),
                    'num_reliable': values.get('reliable'),
                    'num_keypoints': values.get('keypoints'),
                }
                self._add_if_whole(stamp)

    def _add_if_whole(self, stamp: int) -> None:
        entry = self._waiting.get(stamp)
        if entry is None or (entry['status'] == 'localized' and stamp not in self._poses):
            return
        del self._waiting[stamp]
        pose = self._poses.pop(stamp, None)
        frame = view_frame(
            {**entry, 'map_from_camera': None if pose is None else pose.to_tum()}, self._origin
        )
        frame['drawn'] = True
        self._counts[frame['kind']] += 1
        self._frames.append(frame)
        for half in (self._poses, self._waiting):
            # What never became whole is forgotten.
            while len(half) > 100:
                del half[next(iter(half))]
        if len(self._frames) > _KEPT:
            self._first += len(self._frames) - _KEPT
            del self._frames[:-_KEPT]


def _name_of(stamp_ns: int) -> str:
    return f'{stamp_ns / 1e9:.3f}'


def _camera_like(pose: RigidTransform) -> RigidTransform:
    """Return a pose whose z axis looks ahead: bodies have x ahead and z up, cameras z ahead."""
    if pose.rotation[2, 2] < _UP:
        return pose
    return RigidTransform(pose.rotation[:, [1, 2, 0]], pose.translation)
