"""The bond by which Nav2's lifecycle manager watches a node: heartbeats in both directions.

Both sides publish bond/msg/Status on `bond` with the name of the node as the id, and each
listens to the other. A side that ends says so; one that dies falls silent. The manager then takes
all of its nodes down, which is what supervision is for; this side only tells that it is gone.
"""

from __future__ import annotations

import importlib
import time
import uuid
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile

#: Silence after which the other side counts as dead, in seconds, as Nav2's nodes have it.
HEARTBEAT_TIMEOUT = 4.0


def message_type() -> Any | None:
    """Return bond/msg/Status; None where it is not installed."""
    try:
        return importlib.import_module('bond.msg').Status
    except (ImportError, AttributeError):
        return None


class Bond:
    """One end of a bond, from its making to `close`.

    Args:
        node: The node; its name is the id.
        message: `message_type`.
        period: Of the heartbeats, in seconds.
        every: Makes a timer of steady time from a period and a callback.
        timeout: Longest silence of the other side, in seconds.

    Attributes:
        formed: Whether the other side lives.
    """

    def __init__(
        self,
        node: Node,
        message: Any,
        period: float,
        every: Callable[[float, Callable[[], None]], Any],
        *,
        timeout: float = HEARTBEAT_TIMEOUT,
    ) -> None:
        self._node = node
        self._message = message
        self._period = period
        self._timeout = timeout
        self._instance = str(uuid.uuid4())
        self._sister = ''
        self._heard = 0.0
        self.formed = False
        self._publisher = node.create_publisher(message, 'bond', QoSProfile(depth=5))
        self._subscription = node.create_subscription(
            message, 'bond', self._on_status, QoSProfile(depth=30)
        )
        self._timer = every(period, self._beat)

    def _on_status(self, status: Any) -> None:
        if status.id != self._node.get_name() or status.instance_id == self._instance:
            return
        if self._sister and status.instance_id != self._sister:
            # A manager that died and came back, or a second one: the first counts while it lives.
            return
        if status.active:
            self._sister, self._heard = status.instance_id, time.monotonic()
            if not self.formed:
                self.formed = True
                self._node.get_logger().info('bond with the lifecycle manager')
        elif self.formed:
            self._break('it ended the bond')

    def _beat(self) -> None:
        if self.formed and time.monotonic() - self._heard > self._timeout:
            self._break(f'no heartbeat for {self._timeout:g} s')
        self._publish(active=True)

    def _break(self, why: str) -> None:
        """Tell that the other side is gone, and be ready for another one."""
        self._publish(active=False)
        self.formed, self._sister, self._instance = False, '', str(uuid.uuid4())
        self._node.get_logger().warning(f'the lifecycle manager is gone: {why}; the node goes on')

    def _publish(self, *, active: bool) -> None:
        status = self._message(
            id=self._node.get_name(),
            instance_id=self._instance,
            active=active,
            heartbeat_timeout=self._timeout,
            heartbeat_period=self._period,
        )
        status.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(status)

    def close(self) -> None:
        """End the bond: the other side is told, and does not wait for the timeout."""
        self._node.destroy_timer(self._timer)
        self._publish(active=False)
        self._node.destroy_subscription(self._subscription)
        self._node.destroy_publisher(self._publisher)
