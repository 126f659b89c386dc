"""The life of a node's process: made, spun, closed, whatever ends it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

import rclpy
from rclpy.callback_groups import CallbackGroup
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

from d2s_ros.errors import D2SError
from d2s_ros.ros.group_executor import GroupExecutor, GroupThread

#: From the shutdown to the end of the process, whatever hangs.
_EXIT_SECONDS = 1.2


class SpunNode(Protocol):
    """What `spin_node` asks of a node, beside what rclpy asks.

    Attributes:
        input_group: Callbacks that must not wait for the node's other ones; None for none.
        on_inputs_changed: Called by the node after it made or destroyed one of these.
    """

    input_group: CallbackGroup | None
    on_inputs_changed: Callable[[], None]

    def begin(self) -> bool:
        """Start the work; return whether there is anything to spin for."""

    def close(self) -> bool:
        """Stop the work; return whether it has ended."""

    def destroy_node(self) -> Any:
        """As of rclpy's nodes."""


def spin_node(
    make_node: Callable[[], SpunNode], args: list[str] | None = None, *, end_in_time: bool = False
) -> int:
    """Spin a node until it is told to stop; return the exit status of the process.

    Args:
        make_node: Called when rclpy is initialised.
        args: Command line.
        end_in_time: End the process soon after the shutdown, whatever a stage of the work is at.
    """
    logging.basicConfig(level=logging.WARNING)
    rclpy.init(args=args)
    if end_in_time:
        _end_in_time(rclpy.get_default_context(), 0)
    node: SpunNode | None = None
    inputs: GroupThread | None = None
    code = 0
    try:
        node = make_node()
        group = node.input_group
        executor = GroupExecutor(
            cast(Node, node), lambda other: group is None or other is not group
        )
        executor.add_node(cast(Node, node))
        if node.begin():
            if group is not None:
                inputs = GroupThread(cast(Node, node), group)
                node.on_inputs_changed = inputs.wake
            executor.spin()
        else:
            code = 0 if not rclpy.ok() else D2SError.exit_code
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except D2SError as error:
        sys.stderr.write(f'error: {error}\n')
        code = error.exit_code
    except Exception as error:
        # A callback that was running when the signal came finds its publishers gone.
        if rclpy.ok():
            raise
        logging.getLogger(__name__).warning('while shutting down: %s', error)
    finally:
        ended = True
        with contextlib.suppress(KeyboardInterrupt):
            if node is not None:
                ended = node.close()
                if inputs is not None:
                    ended = inputs.stop() and ended
                node.destroy_node()
            rclpy.try_shutdown()
        if inputs is not None and inputs.error is not None:
            raise inputs.error
        if not ended:
            # A stage that does not return must not keep the process.
            sys.stderr.flush()
            os._exit(code)
    return code


def _end_in_time(context: Any, code: int) -> None:
    """End the process soon after its context was shut down, whatever hangs."""

    def watch() -> None:
        while context.ok():
            time.sleep(0.05)
        time.sleep(_EXIT_SECONDS)
        sys.stderr.flush()
        os._exit(code)

    threading.Thread(target=watch, name='exit_watch', daemon=True).start()
