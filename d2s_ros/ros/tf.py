"""Broadcasting and looking up transforms, with tf2_ros where it is installed.

Without it, TFMessage on /tf and /tf_static is published and read directly; the type support comes
from the ROS distribution or from `d2s_ros.ros.message_support`.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.time import Time

from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.ros.conversions import ns_from_stamp, transform_from_msg
from d2s_ros.ros.transform_buffer import Lookup, TransformBuffer, is_usable

logger = logging.getLogger(__name__)

TF_QOS = QoSProfile(
    depth=100,
    history=HistoryPolicy.KEEP_LAST,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.VOLATILE,
)
TF_STATIC_QOS = QoSProfile(
    depth=100,
    history=HistoryPolicy.KEEP_LAST,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


class TransformBroadcaster(Protocol):
    """Publishes transforms."""

    def send(self, transform: TransformStamped) -> None:
        """Broadcast one transform."""

    def close(self) -> None:
        """Release the publisher."""


class TransformSource(Protocol):
    """Answers where frames were."""

    def lookup(
        self, target: str, source: str, stamp_ns: int | None, timeout: float = 0.0
    ) -> Lookup:
        """Find target_from_source at a stamp (None: newest), waiting up to `timeout` seconds."""
        ...

    def newest_stamp(self, target: str, source: str) -> int | None:
        """Return up to which stamp target_from_source is known, in ns; None if it is not."""
        ...

    def watch(self, seen: Callable[[str, str, int], None]) -> None:
        """Call back with parent, child and stamp of each transform that comes on /tf."""

    def restart_at(self, stamp_ns: int) -> None:
        """Forget what belongs to the time before a jump back to `stamp_ns`."""

    def close(self) -> None:
        """Release the subscriptions."""


def has_tf2_ros() -> bool:
    """Return whether tf2_ros is installed and can be imported."""
    if importlib.util.find_spec('tf2_ros') is None:
        return False
    try:
        importlib.import_module('tf2_ros')
    except Exception as error:
        logger.warning('tf2_ros is installed but cannot be imported (%s); using /tf', error)
        return False
    return True


def create_broadcaster(node: Node, *, use_tf2_ros: bool | None = None) -> TransformBroadcaster:
    """Return a broadcaster; tf2_ros where it is installed unless told otherwise."""
    if has_tf2_ros() if use_tf2_ros is None else use_tf2_ros:
        return _Tf2RosBroadcaster(node)
    return TopicBroadcaster(node)


def create_source(
    node: Node, cache_seconds: float, *, use_tf2_ros: bool | None = None
) -> TransformSource:
    """Return a source of transforms; tf2_ros where it is installed unless told otherwise."""
    if has_tf2_ros() if use_tf2_ros is None else use_tf2_ros:
        return _Tf2RosSource(node, cache_seconds)
    return TopicSource(node, cache_seconds)


class TopicBroadcaster:
    """Publishes TFMessage on /tf."""

    def __init__(self, node: Node) -> None:
        from tf2_msgs.msg import TFMessage

        self._message = TFMessage
        self._node = node
        self._publisher = node.create_publisher(TFMessage, '/tf', TF_QOS)

    def send(self, transform: TransformStamped) -> None:
        """Broadcast one transform."""
        self._publisher.publish(self._message(transforms=[transform]))

    def close(self) -> None:
        """Release the publisher."""
        self._node.destroy_publisher(self._publisher)


class TopicSource:
    """Fills a `TransformBuffer` from /tf and /tf_static."""

    def __init__(self, node: Node, cache_seconds: float) -> None:
        from tf2_msgs.msg import TFMessage

        self.buffer = TransformBuffer(cache_ns=int(cache_seconds * 1e9))
        self._node = node
        self._seen: Callable[[str, str, int], None] | None = None
        self._subscriptions = [
            node.create_subscription(TFMessage, '/tf', self._on_tf, TF_QOS),
            node.create_subscription(TFMessage, '/tf_static', self._on_tf_static, TF_STATIC_QOS),
        ]

    def _on_tf(self, message: Any) -> None:
        self._insert(message, static=False)

    def _on_tf_static(self, message: Any) -> None:
        self._insert(message, static=True)

    def _insert(self, message: Any, *, static: bool) -> None:
        for transform in message.transforms:
            parent, child = transform.header.frame_id, transform.child_frame_id
            stamp_ns = ns_from_stamp(transform.header.stamp)
            values = transform_from_msg(transform.transform)
            self.buffer.insert(parent, child, stamp_ns, values, static=static)
            if self._seen is not None and not static:
                self._seen(parent.removeprefix('/'), child.removeprefix('/'), stamp_ns)

    def watch(self, seen: Callable[[str, str, int], None]) -> None:
        """Call back with parent, child and stamp of each transform that comes on /tf."""
        self._seen = seen

    def newest_stamp(self, target: str, source: str) -> int | None:
        """Return up to which stamp target_from_source is known, in ns; None if it is not."""
        return self.buffer.newest_stamp(target, source)

    def lookup(
        self, target: str, source: str, stamp_ns: int | None, timeout: float = 0.0
    ) -> Lookup:
        """Find target_from_source at a stamp (None: newest), waiting up to `timeout` seconds."""
        return self.buffer.lookup(target, source, stamp_ns, timeout)

    def restart_at(self, stamp_ns: int) -> None:
        """Forget what belongs to the time before a jump back to `stamp_ns`."""
        self.buffer.restart_at(stamp_ns)

    def close(self) -> None:
        """Release the subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []


class _Tf2RosBroadcaster:
    """tf2_ros.TransformBroadcaster behind the small interface."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._broadcaster = importlib.import_module('tf2_ros').TransformBroadcaster(node)

    def send(self, transform: TransformStamped) -> None:
        self._broadcaster.sendTransform(transform)

    def close(self) -> None:
        publisher = getattr(self._broadcaster, 'pub_tf', None)
        if publisher is not None:
            self._node.destroy_publisher(publisher)


class _Tf2RosSource:
    """tf2_ros.Buffer and TransformListener behind the small interface."""

    def __init__(self, node: Node, cache_seconds: float) -> None:
        self._tf2 = importlib.import_module('tf2_ros')
        self._node = node
        self._buffer = self._tf2.Buffer(cache_time=Duration(seconds=cache_seconds))
        self._seen: Callable[[str, str, int], None] | None = None
        self._listener = self._listen()

    def _listen(self) -> Any:
        def seen(message: Any) -> None:
            if self._seen is None:
                return
            for transform in message.transforms:
                self._seen(
                    transform.header.frame_id.removeprefix('/'),
                    transform.child_frame_id.removeprefix('/'),
                    ns_from_stamp(transform.header.stamp),
                )

        class Listener(self._tf2.TransformListener):  # type: ignore[misc, name-defined]
            def callback(self, data: Any) -> None:
                super().callback(data)
                seen(data)

        # The node's own executor feeds the buffer, so no thread is spun here.
        return Listener(self._buffer, self._node, spin_thread=False)

    def watch(self, seen: Callable[[str, str, int], None]) -> None:
        self._seen = seen

    def newest_stamp(self, target: str, source: str) -> int | None:
        try:
            message = self._buffer.lookup_transform(target, source, Time())
        except self._tf2.TransformException:
            return None
        return ns_from_stamp(message.header.stamp)

    def lookup(
        self, target: str, source: str, stamp_ns: int | None, timeout: float = 0.0
    ) -> Lookup:
        stamp = Time() if stamp_ns is None else Time(nanoseconds=stamp_ns)
        deadline = time.monotonic() + timeout
        while True:
            try:
                message = self._buffer.lookup_transform(
                    target.removeprefix('/'), source.removeprefix('/'), stamp
                )
            except self._tf2.ExtrapolationException as error:
                if time.monotonic() >= deadline:
                    return Lookup(None, str(error), True)
            except self._tf2.TransformException as error:
                return Lookup(None, str(error))
            else:
                values = transform_from_msg(message.transform)
                if not is_usable(values):
                    return Lookup(None, f'the transform from {source!r} to {target!r} is absurd')
                return Lookup(RigidTransform.from_tum(values))
            # Called from the worker thread, so waiting does not starve the executor.
            time.sleep(0.002)

    def restart_at(self, stamp_ns: int) -> None:
        # tf2 drops static transforms too; they are latched, so listening again brings them back.
        self._listener.unregister()
        self._buffer.clear()
        self._listener = self._listen()

    def close(self) -> None:
        self._listener.unregister()
