"""Executors that share one node: each serves some of its callback groups."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.callback_groups import CallbackGroup
from rclpy.exceptions import InvalidHandle
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node


class GroupExecutor(SingleThreadedExecutor):
    """Serves the callbacks of one node whose group is asked for.

    An executor looks at all that it serves, in Python, before each callback: what is few is served
    soon.

    Args:
        node: The node; not added to the executor, as a node is added to one only.
        serves: Whether the callbacks of a group are served.
    """

    def __init__(self, node: Node, serves: Callable[[CallbackGroup], bool]) -> None:
        super().__init__(context=node.context)
        self._served_node, self._serves = node, serves

    def get_nodes(self) -> list[Node]:
        """Return the node."""
        return [self._served_node]

    def can_execute(self, entity: Any) -> bool:
        """Return whether an entity is served here, and free."""
        return self._serves(entity.callback_group) and super().can_execute(entity)

    def wait_for_ready_callbacks(self, *args: Any, **arguments: Any) -> Any:
        """Wait as rclpy does; what another thread destroys meanwhile is left out."""
        while True:
            try:
                return super().wait_for_ready_callbacks(*args, **arguments)
            except InvalidHandle:
                # The events of a subscription are looked at before rclpy knows that it is gone.
                continue


class GroupThread:
    """Serves one callback group of a node in a thread of its own.

    Args:
        node: The node.
        group: The group; no other executor may serve it.

    Attributes:
        error: What a callback raised. That ends the thread and shuts the context down, as an error
            in the main thread ends the process.
    """

    def __init__(self, node: Node, group: CallbackGroup) -> None:
        self.error: Exception | None = None
        self._executor = GroupExecutor(node, lambda other: other is group)
        self._context = node.context
        self._thread = threading.Thread(target=self._run, name='inputs', daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look again at what there is to serve."""
        self._executor.wake()

    def stop(self, timeout: float = 1.0) -> bool:
        """End the thread; return whether it ended in time."""
        self._executor.shutdown(timeout)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass
        except Exception as error:
            # Publishers and subscriptions become invalid while the process shuts down.
            if not self._context.ok():
                logging.getLogger(__name__).info('while shutting down: %s', error)
                return
            self.error = error
            rclpy.try_shutdown(context=self._context)
