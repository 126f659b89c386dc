"""The localizer node: images and camera_info in, pose of the camera or robot in the map out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from sensor_msgs.msg import CompressedImage, Image

from d2s_ros import kernels
from d2s_ros.memory import tune_malloc
from d2s_ros.ros import bond, diagnostics, map_loader, node_facts, tf
from d2s_ros.ros.camera_reader import CameraInfos, CameraReader, QueuedImage
from d2s_ros.ros.frame_pipeline import FrameOutcome
from d2s_ros.ros.frame_resolver import FrameResolver
from d2s_ros.ros.frame_worker import FrameWorker
from d2s_ros.ros.guarded_lifecycle import GuardedLifecycleNode
from d2s_ros.ros.image_inputs import LOOK_PERIOD, CameraTopics, ImageInputs
from d2s_ros.ros.initial_pose import InitialPoseHints
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.map_keeper import MapKeeper
from d2s_ros.ros.map_loader import LocalizerFactory
from d2s_ros.ros.outputs import PICTURES, Outputs
from d2s_ros.ros.parameters import (
    ParameterUpdates,
    declare_from_dataclass,
    read_dataclass,
    unknown_overrides,
)
from d2s_ros.ros.pose_follower import PoseFollower
from d2s_ros.ros.rig_collector import RigCollector
from d2s_ros.ros.services import LocalizerServices
from d2s_ros.ros.spinning import spin_node
from d2s_ros.ros.state_reporter import StateReporter
from d2s_ros.ros.transform_sender import TransformSender
from d2s_ros.threads import set_passive_omp_wait

_PATH_PERIOD = _REPORT_PERIOD = 1.0


class LocalizerNode(GuardedLifecycleNode):
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
        self._sender: TransformSender | None = None
        self._callable: LocalizerServices | None = None
        # What activating makes.
        self._reporter: StateReporter | None = None
        self._work: FrameWorker | None = None
        self._inputs: list[ImageInputs] = []
        self._collector: RigCollector | None = None
        self._hints: InitialPoseHints | None = None
        self._bond: bond.Bond | None = None
        self._hint = ''
        self._timers_of_activity: list[Any] = []
        self._jump_handle: Any = None

        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._fault_signal = self.create_guard_condition(self._on_fault)
        self._diagnostics_timer: Any = None
        self._start_diagnostics()

    # ---------------------------------------------------------------- parameters

    def _commit(self, config: LocalizerNodeConfig) -> None:
        restart = config.diagnostics_period != self.config.diagnostics_period
        self.config = config
        for part in (self._keeper, self._follower, self._sender, self._reporter, self._work):
            if part is not None:
                part.apply(config)
        if restart:
            self._start_diagnostics()

    # ---------------------------------------------------------------- transitions

    def begin(self) -> bool:
        """Start unless a manager will; return whether that succeeded."""
        return self.start() if self.config.autostart else True

    def configure(self) -> None:
        """Load the map and make the publishers."""
        config = self.config = read_dataclass(self, LocalizerNodeConfig)
        keeper = MapKeeper(self._factory, config, self.get_logger(), self._on_swap)
        self._keeper = keeper
        loaded = keeper.loaded
        assert loaded is not None
        self._outputs = Outputs(self)
        if FrameResolver.needs_source(config):
            self._source = tf.create_source(self, config.transform_cache)
        self._follower = PoseFollower(config, self._source)
        if config.tf_mode != 'none':
            self._sender = TransformSender(self, config, self._source)
        self._callable = LocalizerServices(
            self, keeper, self.every, self._forget, lambda: self._active
        )
        self._publish_map_version()
        self._configured = True
        self.get_logger().info(
            f'map {config.map}, version {loaded.version}, frame {loaded.map_frame!r}, '
            f'device {loaded.device}'
        )
        for sentence in unknown_overrides(self):
            self.get_logger().warning(sentence)
        if not loaded.metric:
            self.get_logger().warning('the scale of the map is arbitrary: poses are not in metres')
        if warning := kernels.fallback_warning():
            self.get_logger().warning(warning)

    def activate(self) -> None:
        """Start the worker and subscribe."""
        config = self.config
        keeper, follower, outputs, services = (
            self._keeper,
            self._follower,
            self._outputs,
            self._callable,
        )
        assert keeper is not None
        assert follower is not None
        assert outputs is not None
        assert services is not None
        outputs.begin(config.path_length)
        follower.begin()
        if self._sender is not None:
            self._sender.begin()
        reporter = self._reporter = StateReporter(
            self.get_logger(), config, outputs.publish_state, self._image_topics
        )

        def on_outcome(outcome: FrameOutcome) -> None:
            reporter.frame(outcome)
            services.outcome(outcome)

        topics = [CameraTopics.resolve(self, names) for names in config.cameras]
        infos = [CameraInfos() for _ in topics]
        self._work = FrameWorker(
            self,
            config,
            [
                CameraReader(of_camera, names.info, config.rectified)
                for of_camera, names in zip(infos, topics, strict=True)
            ],
            keeper,
            follower,
            outputs,
            self._sender,
            on_outcome,
            self._on_device_failure,
        )
        self._hints = InitialPoseHints(self, keeper, self._on_hint)
        collector = self._collector = RigCollector(
            len(topics), config.rig_tolerance, config.rig_wait, self._work.put
        )
        for index, (names, of_camera) in enumerate(zip(topics, infos, strict=True)):
            self._inputs.append(
                ImageInputs(
                    self,
                    config.image_transport,
                    names,
                    self.input_group,
                    of_camera,
                    partial(self._on_image, index),
                    lambda: self.on_inputs_changed(),
                )
            )
        for inputs in self._inputs:
            self._every(LOOK_PERIOD, inputs.look)
        if len(topics) > 1:
            self._every(max(0.005, config.rig_wait / 4), collector.look)
        self._every(_PATH_PERIOD, self._publish_path)
        self._every(_REPORT_PERIOD, lambda: reporter.look(self.facts(), self.figures()))
        if config.map_check_period > 0:
            self._every(config.map_check_period, partial(keeper.check, outputs.publish_coverage))
        if self._sender is not None and config.transform_rate > 0:
            self._every(1.0 / config.transform_rate, self._sender.resend)
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(
                min_forward=None,
                min_backward=Duration(seconds=-max(1e-3, config.time_jump_threshold)),
                on_clock_change=False,
            ),
            post_callback=self._on_clock_jump,
        )
        self._open_bond()
        self._active = True

    def _open_bond(self) -> None:
        """Let a lifecycle manager watch the node; nobody would without one."""
        period = self.config.bond_heartbeat_period
        if self.config.autostart or period <= 0:
            return
        message = bond.message_type()
        if message is None:
            self.get_logger().warning(
                'the package bond is missing, so a lifecycle manager cannot watch this node: '
                'install ros-$ROS_DISTRO-bond, or set bond_timeout of the manager to 0.0'
            )
            return
        self._bond = bond.Bond(self, message, period, self.every)

    def _every(self, period: float, callback: Callable[[], None]) -> None:
        self._timers_of_activity.append(self.every(period, callback))

    def stop_work(self, timeout: float = 10.0) -> bool:
        """Stop what `activate` started; return whether the worker ended in time."""
        self._active = False
        if self._bond is not None:
            self._bond.close()
            self._bond = None
        for part in self._inputs:
            part.close()
        if self._hints is not None:
            self._hints.close()
        self._inputs, self._hints, self._collector = [], None, None
        for timer in self._timers_of_activity:
            self.destroy_timer(timer)
        self._timers_of_activity = []
        if self._jump_handle is not None:
            self._jump_handle.unregister()
            self._jump_handle = None
        return self._work is None or self._work.stop(timeout)

    def teardown(self, timeout: float = 10.0) -> bool:
        """Release everything that transitions made; may be called in any state, repeatedly."""
        ended = self.stop_work(timeout)
        self._configured = False
        if self._keeper is not None:
            self._keeper.close(timeout)
        for part in (self._callable, self._outputs, self._sender, self._source):
            if part is not None:
                part.close()
        self._callable = self._outputs = self._sender = self._source = None
        return ended

    # ---------------------------------------------------------------- callbacks

    def _on_image(self, camera: int, message: Image | CompressedImage, topic: str) -> None:
        collector = self._collector
        if collector is None:
            return
        now_ns = self.get_clock().now().nanoseconds
        collector.put(QueuedImage(message, time.monotonic(), now_ns, topic, camera))
        # Let the worker have the interpreter now, not after the executor's housekeeping.
        time.sleep(6e-4)

    def _on_hint(self, hint: str) -> None:
        # The robot was moved by hand or by somebody who knows better: believe the next image.
        self._hint = hint
        if self._follower is not None:
            self._follower.forget()

    def _forget(self) -> None:
        """Know nothing of where the robot was."""
        for part in (self._follower, self._sender, self._reporter):
            if part is not None:
                part.forget()
        self._hint = ''

    def _image_topics(self) -> list[str]:
        """Return the topics of images that somebody publishes."""
        kinds = {'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'}
        own = {self.resolve_topic_name(name) for name in PICTURES}
        return sorted(
            name
            for name, types in self.get_topic_names_and_types()
            if kinds & set(types) and name not in own and self.count_publishers(name)
        )

    def _on_swap(self, rescaled: bool) -> None:
        if rescaled:
            self._forget()
            if self._outputs is not None:
                self._outputs.clear_path()
        self._publish_map_version()

    def _publish_map_version(self) -> None:
        if self._outputs is not None and self._keeper is not None and self._keeper.loaded:
            self._outputs.publish_map(self._keeper.loaded)

    def _publish_path(self) -> None:
        if self._outputs is not None and self._keeper is not None and self._keeper.loaded:
            self._outputs.publish_path(self._keeper.loaded.map_frame)

    def _on_device_failure(self, reason: str) -> None:
        """Ask the executor to leave the active state; called by the worker."""
        if not self.fault:
            self.fault = reason
            self._fault_signal.trigger()

    def _on_fault(self) -> None:
        """Leave the active state after the device failed; called by the executor."""
        if self.fault and self._active:
            self.get_logger().error(self.fault)
            self.trigger_deactivate()

    def _on_clock_jump(self, jump: Any) -> None:
        """Forget transforms of the future when simulated time starts again."""
        if self._follower is not None:
            self._follower.restart_at(self.get_clock().now().nanoseconds)
        if self._sender is not None:
            self._sender.forget()

    # ---------------------------------------------------------------- diagnostics

    def _start_diagnostics(self) -> None:
        if self._diagnostics_timer is not None:
            self.destroy_timer(self._diagnostics_timer)
        period = self.config.diagnostics_period
        self._diagnostics_timer = self.every(period, self._publish_diagnostics)

    def facts(self) -> diagnostics.NodeFacts:
        """Return what diagnostics say beside the figures of images."""
        facts = node_facts.gather(
            self.config,
            keeper=self._keeper,
            inputs=self._inputs,
            work=self._work,
            follower=self._follower,
            outputs=self._outputs,
            sender=self._sender,
        )
        facts.fault, facts.hint = self.fault, self._hint
        facts.state = 'inactive' if self._configured else 'unconfigured'
        if self._active:
            facts.state = 'active'
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
        ended = self.teardown(timeout)
        self.destroy_timer(self._diagnostics_timer)
        return ended


def main(
    args: list[str] | None = None, *, localizer_factory: LocalizerFactory = map_loader.load_map
) -> int:
    """Run the node until it is told to stop; return the exit status."""
    set_passive_omp_wait()
    tune_malloc()
    return spin_node(
        lambda: LocalizerNode(localizer_factory=localizer_factory), args, end_in_time=True
    )


if __name__ == '__main__':
    sys.exit(main())
