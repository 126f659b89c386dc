"""A lifecycle node whose transitions never fail without a word."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from d2s_ros.errors import D2SError


class GuardedLifecycleNode(LifecycleNode):
    """Runs the transitions that a node implements, and tells what they raise.

    Attributes:
        fault: Why the node cannot work; empty if it can.
    """

    def __init__(self, name: str, **arguments: Any) -> None:
        super().__init__(name, **arguments)
        self.fault = ''
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)

    # What a node implements.

    def configure(self) -> None:
        """Load what is needed and make publishers."""
        raise NotImplementedError

    def activate(self) -> None:
        """Subscribe and start to work; publishers are active."""
        raise NotImplementedError

    def stop_work(self, timeout: float = 10.0) -> bool:
        """Undo `activate`, in any state; return whether all threads ended in time."""
        raise NotImplementedError

    def teardown(self, timeout: float = 10.0) -> bool:
        """Undo `activate` and `configure`, in any state; return as `stop_work`."""
        raise NotImplementedError

    # Transitions.

    def start(self) -> bool:
        """Configure and activate; return whether both succeeded."""
        for name, transition in (
            ('configure', self.trigger_configure),
            ('activate', self.trigger_activate),
        ):
            if transition() != TransitionCallbackReturn.SUCCESS:
                if not self.fault:
                    self.get_logger().error(f'cannot {name}: see above')
                return False
        return True

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Configure."""
        self.fault = ''

        def end() -> TransitionCallbackReturn:
            return super(GuardedLifecycleNode, self).on_configure(state)

        return self._guarded('configure', self.configure, end)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Activate the publishers, then the node."""
        result = super().on_activate(state)
        return self._guarded('activate', self.activate, lambda: result)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the work; an error where a fault made it stop."""

        def end() -> TransitionCallbackReturn:
            result = super(GuardedLifecycleNode, self).on_deactivate(state)
            return TransitionCallbackReturn.ERROR if self.fault else result

        return self._guarded('deactivate', self.stop_work, end)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything."""
        self.teardown()
        self.fault = ''
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything."""
        self.teardown()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything; the node can be configured again."""
        self.teardown()
        return TransitionCallbackReturn.SUCCESS

    def _guarded(
        self,
        name: str,
        action: Callable[[], Any],
        end: Callable[[], TransitionCallbackReturn],
    ) -> TransitionCallbackReturn:
        """Run a transition; rclpy would swallow what it raises without a word."""
        try:
            action()
            return end()
        except D2SError as error:
            self.fault = str(error)
            self.get_logger().error(f'cannot {name}: {error}')
            self.teardown()
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            self.fault = f'{type(error).__name__}: {error}'
            logging.getLogger(__name__).exception('cannot %s', name)
            self.get_logger().error(f'cannot {name}: {self.fault}')
            return TransitionCallbackReturn.ERROR

    # Timers.

    def every(self, period: float, callback: Callable[[], None]) -> Any:
        """Call back again and again, in steady time: a paused simulation stops no housekeeping.

        What the callback raises is told, and ends neither the timer nor the node.
        """

        def guarded() -> None:
            try:
                callback()
            except Exception as error:
                # Publishers become invalid while the process shuts down.
                if not self.context.ok():
                    return
                logging.getLogger(__name__).exception('a timer of the node failed')
                self.get_logger().error(
                    f'a timer of the node failed: {type(error).__name__}: {error}',
                    throttle_duration_sec=5.0,
                )

        return self.create_timer(period, guarded, clock=self._steady)
