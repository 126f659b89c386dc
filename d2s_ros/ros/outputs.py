"""What the localizer node publishes: pose, status, path, pictures, points and transforms."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import OccupancyGrid, Path
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_msgs.msg import String

from d2s_ros.ros import conversions, debug_view, diagnostics, map_messages
from d2s_ros.ros.frame_pipeline import FrameOutcome
from d2s_ros.ros.frame_resolver import Resolved
from d2s_ros.ros.map_loader import LoadedMap

LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)

#: Pictures of the keypoints: as they are for RViz, as JPEG for slow networks. Drawn when wanted.
PICTURES = ('d2s/debug_image', 'd2s/debug_image/compressed')


class Outputs:
    """The publishers of one configured node.

    Args:
        node: The node.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._publishers: dict[str, Any] = {}
        self._path: deque[PoseStamped] = deque()
        self._path_lock = threading.Lock()
        self._path_changed = False

        def output(name: str, message: Any, qos: Any) -> None:
            self._publishers[name] = node.create_lifecycle_publisher(message, name, qos)

        output('d2s/pose', PoseWithCovarianceStamped, 10)
        output('d2s/status', DiagnosticArray, 10)
        output('d2s/path', Path, 1)
        for name, message in zip(PICTURES, (Image, CompressedImage), strict=True):
            output(name, message, 1)
        output('d2s/scene_points', PointCloud2, 1)
        for name, message in (
            ('d2s/map_version', String),
            ('d2s/state', String),
            ('d2s/map_points', PointCloud2),
            ('d2s/coverage', OccupancyGrid),
        ):
            self._publishers[name] = node.create_publisher(message, name, LATCHED)

    def begin(self, path_length: int) -> None:
        """Start with an empty path of at most `path_length` poses."""
        with self._path_lock:
            self._path = deque(maxlen=path_length)

    def close(self) -> None:
        """Destroy the publishers."""
        for publisher in self._publishers.values():
            if hasattr(publisher, 'on_activate'):
                self._node.destroy_lifecycle_publisher(publisher)
            else:
                self._node.destroy_publisher(publisher)
        self._publishers = {}

    def wanted(self, name: str) -> bool:
        """Return whether somebody listens to a topic."""
        publisher = self._publishers.get(name)
        return publisher is not None and publisher.get_subscription_count() > 0

    @property
    def details_wanted(self) -> bool:
        """Whether somebody listens to what needs the keypoints of images."""
        return any(self.wanted(name) for name in (*PICTURES, 'd2s/scene_points'))

    def subscribers(self) -> dict[str, int]:
        """Return the connected subscribers of the results of images."""
        return {
            name: publisher.get_subscription_count()
            for name, publisher in self._publishers.items()
            if name in ('d2s/pose', 'd2s/status')
        }

    def publish_map(self, loaded: LoadedMap) -> None:
        """Publish which version of the map is in use, its landmarks, and where it localizes."""
        self._publish_latched('d2s/map_version', loaded.version)
        stamp_ns = self._node.get_clock().now().nanoseconds
        if loaded.points_in_map is not None and len(loaded.points_in_map):
            self._publishers['d2s/map_points'].publish(
                map_messages.landmarks_message(loaded.points_in_map, stamp_ns, loaded.map_frame)
            )
        if loaded.coverage is not None:
            self.publish_coverage(loaded.coverage, loaded.map_frame)

    def publish_coverage(self, coverage: map_messages.CoverageGrid, map_frame: str) -> None:
        """Publish where the map localizes."""
        publisher = self._publishers.get('d2s/coverage')
        if publisher is not None:
            stamp_ns = self._node.get_clock().now().nanoseconds
            publisher.publish(map_messages.coverage_message(coverage, stamp_ns, map_frame))

    def publish_state(self, state: str) -> None:
        """Publish whether the robot knows where it is."""
        self._publish_latched('d2s/state', state)

    def _publish_latched(self, name: str, text: str) -> None:
        publisher = self._publishers.get(name)
        if publisher is not None:
            publisher.publish(String(data=text))

    def publish_pose(self, resolved: Resolved, stamp_ns: int, map_frame: str) -> None:
        """Publish a pose, and keep it for the path."""
        message = conversions.pose_with_covariance(
            resolved.map_from_body, resolved.covariance, stamp_ns, map_frame
        )
        self._publishers['d2s/pose'].publish(message)
        with self._path_lock:
            if self._path and self._path[-1].header.frame_id != map_frame:
                # A path is in one frame; that of another place begins anew.
                self._path.clear()
            self._path.append(conversions.pose_stamped(resolved.map_from_body, stamp_ns, map_frame))
            self._path_changed = True

    def publish_status(self, outcome: FrameOutcome, node_name: str, map_frame: str) -> None:
        """Publish the result of an image, if somebody listens."""
        if not self.wanted('d2s/status'):
            return
        status = DiagnosticStatus(
            level=diagnostics.OK if outcome.localized else diagnostics.WARN,
            name=f'{node_name}: frame',
            message=outcome.status,
            hardware_id=outcome.camera_frame,
            values=diagnostics.key_values(diagnostics.frame_values(outcome)),
        )
        self._publishers['d2s/status'].publish(
            DiagnosticArray(header=conversions.header(outcome.stamp_ns, map_frame), status=[status])
        )

    def publish_extras(self, outcome: FrameOutcome, map_frame: str, picture_size: int) -> None:
        """Publish pictures and points where somebody wants them.

        Args:
            outcome: Of the image.
            map_frame: Name of the map frame.
            picture_size: Longest side of the picture, px.
        """
        details = outcome.result.details if outcome.result is not None else None
        if self.wanted('d2s/scene_points') and details is not None:
            chosen = details.reliable
            self._publishers['d2s/scene_points'].publish(
                conversions.point_cloud(
                    details.points_in_map[chosen],
                    details.reliability[chosen],
                    outcome.stamp_ns,
                    map_frame,
                )
            )
        pictures = [name for name in PICTURES if self.wanted(name)]
        if pictures and outcome.image is not None:
            result = outcome.result
            text = outcome.status
            if result is not None:
                text += (
                    f'  inliers {result.num_inliers} of {result.num_reliable} reliable, '
                    f'{result.num_keypoints} keypoints'
                )
            checks = () if result is None else result.checks
            picture = debug_view.draw(
                outcome.image, details, text, outcome.localized, picture_size, checks
            )
            frame = outcome.picture_frame or outcome.camera_frame
            for name in pictures:
                convert = conversions.image_to_msg
                if name.endswith('/compressed'):
                    convert = conversions.compressed_image_to_msg
                self._publishers[name].publish(convert(picture, outcome.stamp_ns, frame))

    def clear_path(self) -> None:
        """Forget the poses of the path."""
        with self._path_lock:
            self._path.clear()
            self._path_changed = True

    def publish_path(self, map_frame: str) -> None:
        """Publish the path where it has changed and somebody listens.

        Args:
            map_frame: Of a path without poses.
        """
        if not self.wanted('d2s/path'):
            return
        with self._path_lock:
            if not self._path_changed:
                return
            poses = list(self._path)
            self._path_changed = False
        stamp_ns = conversions.ns_from_stamp(poses[-1].header.stamp) if poses else 0
        map_frame = poses[-1].header.frame_id if poses else map_frame
        self._publishers['d2s/path'].publish(
            Path(header=conversions.header(stamp_ns, map_frame), poses=poses)
        )
