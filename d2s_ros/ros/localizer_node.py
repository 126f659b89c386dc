"""The localizer node: images and camera_info in, pose of the camera or robot in the map out."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger

from d2s_ros import kernels
from d2s_ros.errors import D2SError
from d2s_ros.memory import keep_freed_memory
from d2s_ros.ros import diagnostics, map_loader, tf
from d2s_ros.ros.frame_pipeline import CameraInfos, QueuedImage
from d2s_ros.ros.frame_resolver import FrameResolver
from d2s_ros.ros.frame_worker import FrameWorker
from d2s_ros.ros.image_inputs import TRANSPORT_PERIOD, ImageInputs
from d2s_ros.ros.initial_pose import InitialPoseHints
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.map_keeper import MapKeeper
from d2s_ros.ros.map_loader import LocalizerFactory
from d2s_ros.ros.outputs import Outputs
from d2s_ros.ros.parameters import ParameterUpdates, declare_from_dataclass, read_dataclass
from d2s_ros.ros.pose_follower import PoseFollower
from d2s_ros.ros.spinning import spin_node
from d2s_ros.threads import wait_passively

_PATH_PERIOD = 1.0


class LocalizerNode(LifecycleNode):
    """Localizes camera images in a D2S map.

    A lifecycle node: configure loads the map, activate subscribes to images. One worker thread
    does the work; the newest image wins.

    Args:
        localizer_factory: Makes the localizer; by default from the map folder.
        arguments: Passed on to rclpy's node (context, namespace, parameter_overrides, ...).

    Raises:
        ConfigError: a parameter has a wrong type or value.
    """

    def __init__(
        self, *, localizer_factory: LocalizerFactory = map_loader.load_map, **arguments: Any
    ) -> None:
        super().__init__('localizer', **arguments)
        #: Images and calibrations: `spin_node` serves them in a thread of their own.
        self.input_group: CallbackGroup | None = MutuallyExclusiveCallbackGroup()
        self.on_inputs_changed: Callable[[], None] = lambda: None
        self._factory = localizer_factory
        self._configured = False
        self._active = False
        self._fault = ''
        declare_from_dataclass(self, LocalizerNodeConfig)
        self.config = read_dataclass(self, LocalizerNodeConfig)
        self._updates = ParameterUpdates(
            self, LocalizerNodeConfig, lambda: self._configured, self._commit
        )
        # What configuring makes; the last ones are still told of after a cleanup.
        self._keeper: MapKeeper | None = None
        self._outputs: Outputs | None = None
        self._source: tf.TransformSource | None = None
        self._follower: PoseFollower | None = None
        self._reload_service: Any = None
        # What activating makes.
        self._work: FrameWorker | None = None
        self._inputs: ImageInputs | None = None
        self._hints: InitialPoseHints | None = None
        self._hint = ''
        self._timers_of_activity: list[Any] = []
        self._jump_handle: Any = None

        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._fault_signal = self.create_guard_condition(self._on_fault)
        self._diagnostics_timer: Any = None
        self._start_diagnostics()

    # ---------------------------------------------------------------- parameters

    def _commit(self, config: LocalizerNodeConfig) -> None:
        restart = config.diagnostics_period != self.config.diagnostics_period
        self.config = config
        for part in (self._keeper, self._follower, self._work):
            if part is not None:
                part.apply(config)
        if restart:
            self._start_diagnostics()

    # ---------------------------------------------------------------- transitions

    def start(self) -> bool:
        """Configure and activate; return whether both succeeded."""
        for name, transition in (
            ('configure', self.trigger_configure),
            ('activate', self.trigger_activate),
        ):
            if transition() != TransitionCallbackReturn.SUCCESS:
                self.get_logger().error(f'cannot {name}: {self._fault or "see above"}')
                return False
        return True

    def begin(self) -> bool:
        """Start unless a manager will; return whether that succeeded."""
        return self.start() if self.config.autostart else True

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the map and make the publishers."""
        return self._guarded('configure', self._configure, state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the worker and subscribe."""
        return self._guarded('activate', self._activate, state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and stop the worker."""
        return self._guarded('deactivate', self._deactivate, state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the map and the publishers."""
        self._teardown()
        self._fault = ''
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything."""
        self._teardown()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything; the node can be configured again."""
        self._teardown()
        return TransitionCallbackReturn.SUCCESS

    def _guarded(self, name: str, action: Any, state: LifecycleState) -> TransitionCallbackReturn:
        """Run a transition; rclpy would swallow what it raises without a word."""
        try:
            result: TransitionCallbackReturn = action(state)
            return result
        except D2SError as error:
            self._fault = str(error)
            self.get_logger().error(f'cannot {name}: {error}')
            self._teardown()
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            self._fault = f'{type(error).__name__}: {error}'
            logging.getLogger(__name__).exception('cannot %s', name)
            self.get_logger().error(f'cannot {name}: {self._fault}')
            return TransitionCallbackReturn.ERROR

    def _configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._fault = ''
        config = self.config = read_dataclass(self, LocalizerNodeConfig)
        keeper = MapKeeper(self._factory, config, self.get_logger(), self._publish_map_version)
        self._keeper = keeper
        loaded = keeper.loaded
        assert loaded is not None
        self._outputs = Outputs(self, broadcasts=config.tf_mode != 'none')
        if FrameResolver.needs_source(config):
            self._source = tf.create_source(self, config.transform_cache)
        self._follower = PoseFollower(config, self._source)
        self._reload_service = self.create_service(Trigger, '~/reload_map', self._on_reload)
        self._publish_map_version()
        self._configured = True
        self.get_logger().info(
            f'map {config.map}, version {loaded.version}, frame {loaded.map_frame!r}, '
            f'device {loaded.device}'
        )
        if warning := kernels.fallback_warning():
            self.get_logger().warning(warning)
        return super().on_configure(state)

    def _activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        config = self.config
        keeper, follower, outputs = self._keeper, self._follower, self._outputs
        assert keeper is not None
        assert follower is not None
        assert outputs is not None
        outputs.begin(config.path_length)
        follower.begin()
        infos = CameraInfos()
        self._work = FrameWorker(
            self, config, infos, keeper, follower, outputs, self._on_device_failure
        )
        result = super().on_activate(state)
        self._hints = InitialPoseHints(self, keeper, self._on_hint)
        self._inputs = ImageInputs(
            self,
            config,
            self.input_group,
            infos,
            self._on_image,
            lambda: self.on_inputs_changed(),
        )
        if self._inputs.searches:
            self._every(TRANSPORT_PERIOD, self._inputs.look)
        self._every(_PATH_PERIOD, self._publish_path)
        if config.map_check_period > 0:
            self._every(config.map_check_period, keeper.check)
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(
                min_forward=None,
                min_backward=Duration(seconds=-max(1e-3, config.time_jump_threshold)),
                on_clock_change=False,
            ),
            post_callback=self._on_clock_jump,
        )
        self._active = True
        return result

    def _every(self, period: float, callback: Any) -> None:
        # Steady time: a paused simulation must not stop the node's housekeeping.
        self._timers_of_activity.append(self.create_timer(period, callback, clock=self._steady))

    def _deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop_work()
        result = super().on_deactivate(state)
        return TransitionCallbackReturn.ERROR if self._fault else result

    def _stop_work(self, timeout: float = 10.0) -> bool:
        """Stop what `_activate` started; return whether the worker ended in time."""
        self._active = False
        for part in (self._inputs, self._hints):
            if part is not None:
                part.close()
        self._inputs = self._hints = None
        for timer in self._timers_of_activity:
            self.destroy_timer(timer)
        self._timers_of_activity = []
        if self._jump_handle is not None:
            self._jump_handle.unregister()
            self._jump_handle = None
        return self._work is None or self._work.stop(timeout)

    def _teardown(self, timeout: float = 10.0) -> bool:
        """Release everything that transitions made; may be called in any state, repeatedly."""
        ended = self._stop_work(timeout)
        self._configured = False
        if self._keeper is not None:
            self._keeper.close(timeout)
        if self._outputs is not None:
            self._outputs.close()
        if self._reload_service is not None:
            self.destroy_service(self._reload_service)
            self._reload_service = None
        if self._source is not None:
            self._source.close()
            self._source = None
        return ended

    # ---------------------------------------------------------------- callbacks

    def _on_image(self, message: Image | CompressedImage) -> None:
        if self._work is None:
            return
        now_ns = self.get_clock().now().nanoseconds
        self._work.put(QueuedImage(message, time.monotonic(), now_ns))
        # Let the worker have the interpreter now, not after the executor's housekeeping.
        time.sleep(6e-4)

    def _on_hint(self, hint: str) -> None:
        # The robot was moved by hand or by somebody who knows better: believe the next image.
        self._hint = hint
        if self._follower is not None:
            self._follower.forget()

    def _on_reload(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._keeper is not None and self._keeper.reload()
        response.message = (
            f'loading {self.config.map}; d2s/map_version tells when it is in use'
            if response.success
            else 'a map is being loaded already'
        )
        return response

    def _publish_map_version(self) -> None:
        if self._outputs is not None and self._keeper is not None and self._keeper.loaded:
            self._outputs.publish_map_version(self._keeper.loaded.version)

    def _publish_path(self) -> None:
        if self._outputs is not None and self._keeper is not None and self._keeper.loaded:
            self._outputs.publish_path(self._keeper.loaded.map_frame)

    def _on_device_failure(self, reason: str) -> None:
        """Ask the executor to leave the active state; called by the worker."""
        if not self._fault:
            self._fault = reason
            self._fault_signal.trigger()

    def _on_fault(self) -> None:
        """Leave the active state after the device failed; called by the executor."""
        if self._fault and self._active:
            self.get_logger().error(self._fault)
            self.trigger_deactivate()

    def _on_clock_jump(self, jump: Any) -> None:
        """Forget transforms of the future when simulated time starts again."""
        if self._follower is not None:
            self._follower.restart_at(self.get_clock().now().nanoseconds)

    # ---------------------------------------------------------------- diagnostics

    def _start_diagnostics(self) -> None:
        if self._diagnostics_timer is not None:
            self.destroy_timer(self._diagnostics_timer)
        self._diagnostics_timer = self.create_timer(
            self.config.diagnostics_period, self._publish_diagnostics, clock=self._steady
        )

    def _state_label(self) -> str:
        if self._active:
            return 'active'
        return 'inactive' if self._configured else 'unconfigured'

    def facts(self) -> diagnostics.NodeFacts:
        """Return what diagnostics say beside the figures of images."""
        config, keeper, inputs, work = self.config, self._keeper, self._inputs, self._work
        facts = diagnostics.NodeFacts(
            state=self._state_label(),
            fault=self._fault,
            image_topic=config.base_image_topic,
            info_topic=config.info_topic,
            map_path=config.map,
            tf_mode=config.tf_mode,
            hint=self._hint,
        )
        if inputs is not None:
            facts.image_topic, facts.transport = inputs.topic, inputs.transport
            facts.publishers = self.count_publishers(inputs.topic)
        if work is not None:
            facts.received, facts.dropped = work.counts
            if work.rate is not None:
                facts.effort = '' if work.rate.effort.is_full else str(work.rate.effort)
                facts.rate_missed = work.rate.exhausted
        if keeper is not None:
            facts.map_problem, facts.reloading = keeper.problem, keeper.reloading
            facts.reloads = keeper.reloads
            if keeper.loaded is not None:
                facts.map_version = keeper.loaded.version
                facts.map_frame = keeper.loaded.map_frame
                facts.device = keeper.loaded.device
        if self._follower is not None and self._follower.resolved is not None:
            resolved = self._follower.resolved
            facts.pose_frame, facts.tf_mode = resolved.body, resolved.tf_mode
            facts.transform_problem = resolved.problem
        if self._outputs is not None:
            facts.transforms_sent = self._outputs.transforms_sent
            facts.transforms_missed = self._outputs.transforms_missed
            facts.subscribers = self._outputs.subscribers()
        return facts

    def figures(self) -> diagnostics.Snapshot:
        """Return what became of the images since the node was activated."""
        return self._work.figures.snapshot() if self._work is not None else diagnostics.Snapshot()

    def _publish_diagnostics(self) -> None:
        name = self.get_fully_qualified_name().lstrip('/')
        message = DiagnosticArray(
            status=diagnostics.statuses(name, self.config, self.facts(), self.figures())
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def close(self, timeout: float = 1.0) -> bool:
        """Release everything before the node is destroyed; return whether all threads ended."""
        ended = self._teardown(timeout)
        self.destroy_timer(self._diagnostics_timer)
        return ended


def main(
    args: list[str] | None = None, *, localizer_factory: LocalizerFactory = map_loader.load_map
) -> int:
    """Run the node until it is told to stop; return the exit status."""
    wait_passively()
    keep_freed_memory()
    return spin_node(
        lambda: LocalizerNode(localizer_factory=localizer_factory), args, end_in_time=True
    )


if __name__ == '__main__':
    sys.exit(main())
