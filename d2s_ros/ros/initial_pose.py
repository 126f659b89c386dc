"""Initial poses: a hint that the robot was moved, checked and noted, never a pose of its own."""

from __future__ import annotations

from collections.abc import Callable

from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.node import Node

from d2s_ros.errors import InputError
from d2s_ros.ros import conversions
from d2s_ros.ros.map_keeper import MapKeeper


class InitialPoseHints:
    """Subscribes to `initialpose`.

    Args:
        node: The node.
        keeper: The map in use, whose frame hints must have.
        on_hint: Called with each valid hint, for people.
    """

    def __init__(self, node: Node, keeper: MapKeeper, on_hint: Callable[[str], None]) -> None:
        self._node = node
        self._keeper = keeper
        self._on_hint = on_hint
        self._subscription = node.create_subscription(
            PoseWithCovarianceStamped, 'initialpose', self._on_message, 1
        )

    def _on_message(self, message: PoseWithCovarianceStamped) -> None:
        loaded = self._keeper.loaded
        frame = message.header.frame_id.removeprefix('/')
        known = () if loaded is None else (loaded.map_frame, *loaded.place_frames)
        if frame not in known:
            wanted = ' or '.join(map(repr, known))
            self._ignore(f'its frame is {frame!r}, the map frame is {wanted}')
            return
        try:
            pose, _ = conversions.pose_with_covariance_from_msg(message)
        except InputError as error:
            self._ignore(str(error))
            return
        x, y, z = pose.translation
        seconds = conversions.ns_from_stamp(message.header.stamp) / 1e9
        hint = f'x {x:.3f} y {y:.3f} z {z:.3f} at {seconds:.3f}'
        self._on_hint(hint)
        self._node.get_logger().info(
            f'initial pose noted as a hint: {hint}', throttle_duration_sec=5.0
        )

    def _ignore(self, reason: str) -> None:
        # Any node may send them, at any rate.
        self._node.get_logger().warning(
            f'initial pose ignored: {reason}', throttle_duration_sec=5.0
        )

    def close(self) -> None:
        """Destroy the subscription."""
        self._node.destroy_subscription(self._subscription)
