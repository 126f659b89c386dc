"""Broadcasts the transform of each pose, and map -> odom again while images are refused.

REP-105 lets map -> odom change in jumps only, and navigation looks it up at the present: it must
go on where odometry does, also while no image is localized. It ends after `transform_hold`: what
odometry alone leads to is worth less the longer it takes.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import replace

from rclpy.node import Node

from d2s_ros.ros import conversions, tf
from d2s_ros.ros.frame_pipeline import FrameOutcome
from d2s_ros.ros.frame_resolver import Broadcast, Resolved
from d2s_ros.ros.localizer_config import LocalizerNodeConfig

#: Most that stamps of images may differ from the clock where transforms are sent by the clock;
#: a log that is played without its clock is further off.
_CLOCKS_AGREE_MS = 5000.0
#: Odometry has stopped when its newest transform is so old, in seconds.
_ODOMETRY_SILENCE = 2.0
#: How long a transform of somebody else is remembered, in seconds, and own ones that are known.
_FOREIGN_SECONDS, _OWN_KEPT = 10.0, 400


class TransformSender:
    """Sends what the poses of one node give to TF.

    Args:
        node: The node.
        config: Names, rates and durations; `apply` changes them.
        source: Tells the transforms that others send; None where none are looked up.

    Attributes:
        sent, missed: Transforms of images that were sent, and that could not be, since `begin`.
        resent: Transforms sent between images.
        ended: Why map -> odom is not sent any more; empty while it is, or never was.
    """

    def __init__(
        self, node: Node, config: LocalizerNodeConfig, source: tf.TransformSource | None
    ) -> None:
        self._node = node
        self._config = config
        self._source = source
        self._lock = threading.Lock()
        self._broadcaster = tf.create_broadcaster(node)
        self._own: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._foreign: tuple[str, str, float] | None = None
        if source is not None:
            source.watch(self._saw)
        self.begin()

    def begin(self) -> None:
        """Count from zero and hold nothing."""
        self.sent = self.missed = self.resent = 0
        self._child = ''
        self.forget()

    def apply(self, config: LocalizerNodeConfig) -> None:
        """Take changed options."""
        self._config = config

    def forget(self) -> None:
        """Send nothing before the next pose."""
        with self._lock:
            self._held: Broadcast | None = None
            self._held_at_ns = self._last_ns = 0
            self.ended = ''

    def close(self) -> None:
        """Release the publisher."""
        self._broadcaster.close()

    def send(self, resolved: Resolved, outcome: FrameOutcome) -> None:
        """Send the transform of a pose.

        Args:
            resolved: The pose.
            outcome: Of its image.
        """
        transform = resolved.broadcast
        if transform is None:
            self.missed += 1
            return
        with self._lock:
            holds = resolved.tf_mode == 'map_to_odom' and abs(outcome.age_ms) <= _CLOCKS_AGREE_MS
            if holds and self._held is not None:
                # Behind one that was sent between images it would be interpolated away.
                stamp_ns = max(transform.stamp_ns, self._last_ns + 1)
                transform = replace(transform, stamp_ns=stamp_ns)
            self._held = transform if holds else None
            self._held_at_ns = self._node.get_clock().now().nanoseconds
            self.ended = ''
            self._broadcast(transform)
        self.sent += 1

    def resend(self) -> None:
        """Send map -> odom of the last pose again, if it holds; called at `transform_rate`."""
        config = self._config
        now_ns = self._node.get_clock().now().nanoseconds
        with self._lock:
            held = self._held
            if held is None:
                return
            if now_ns - self._held_at_ns > 1e9 * config.transform_hold:
                self._held = None
                self.ended = (
                    f'{held.parent} -> {held.child} is not sent any more: no image was localized '
                    f'for {config.transform_hold:g} s'
                )
                return
            silence = self._odometry_silence(now_ns)
            if silence > _ODOMETRY_SILENCE:
                self.ended = (
                    f'{held.parent} -> {held.child} is not sent any more: the transform '
                    f'{config.odom} -> {config.base} ended {silence:.1f} s ago'
                )
                return
            self.ended = ''
            stamp_ns = now_ns + int(1e9 * config.transform_tolerance)
            if stamp_ns > self._last_ns:
                self._broadcast(replace(held, stamp_ns=stamp_ns))
                self.resent += 1

    def _odometry_silence(self, now_ns: int) -> float:
        """Return how old the newest odometry is, in seconds."""
        if self._source is None:
            return float('inf')
        newest = self._source.newest_stamp(self._config.odom, self._config.base)
        return float('inf') if newest is None else (now_ns - newest) / 1e9

    def _broadcast(self, transform: Broadcast) -> None:
        self._child, self._last_ns = transform.child, transform.stamp_ns
        self._own[transform.child, transform.stamp_ns] = None
        while len(self._own) > _OWN_KEPT:
            self._own.popitem(last=False)
        self._broadcaster.send(
            conversions.transform_to_msg(
                transform.parent_from_child, transform.stamp_ns, transform.parent, transform.child
            )
        )

    # ---------------------------------------------------------------- what others send

    def _saw(self, parent: str, child: str, stamp_ns: int) -> None:
        """Note a transform on /tf that gives the same frame a parent, and is not an own one."""
        if child == self._child:
            with self._lock:
                own = (child, stamp_ns) in self._own
            if not own:
                self._foreign = (parent, child, time.monotonic())

    @property
    def conflict(self) -> str:
        """Who else sends what this node sends, for people; empty if nobody does."""
        foreign = self._foreign
        if foreign is None or time.monotonic() - foreign[2] > _FOREIGN_SECONDS:
            return ''
        topic = self._node.resolve_topic_name('/tf')
        own = (self._node.get_name(), self._node.get_namespace())
        nodes = sorted(
            {
                info.node_name
                for info in self._node.get_publishers_info_by_topic(topic)
                if (info.node_name, info.node_namespace) != own
            }
        )
        return (
            f'another node also publishes {foreign[0]} -> {foreign[1]}, so the robot jumps between '
            f'two places; publishers of {topic} beside this one: {", ".join(nodes) or "unknown"}. '
            'Stop the other one, or set tf_mode to none here'
        )
