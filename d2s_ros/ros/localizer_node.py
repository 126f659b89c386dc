"""The localizer node: images and camera_info in, pose of the camera or robot in the map out."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Path
from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import String
from std_srvs.srv import Trigger

from d2s_ros.errors import D2SError, InputError
from d2s_ros.kernels.library import is_available
from d2s_ros.localization.pose_prior import PosePrior
from d2s_ros.memory import keep_freed_memory
from d2s_ros.ros import conversions, debug_view, diagnostics, map_loader, tf
from d2s_ros.ros.frame_pipeline import (
    CameraInfos,
    FrameOutcome,
    FramePipeline,
    NodeRefusal,
    QueuedImage,
    StampCheck,
)
from d2s_ros.ros.frame_resolver import FrameResolver, Resolved
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.map_loader import LoadedMap, LocalizerFactory, MapLoader
from d2s_ros.ros.parameters import ParameterUpdates, declare_from_dataclass, read_dataclass
from d2s_ros.ros.spinning import spin_node
from d2s_ros.ros.worker import LatestSlot, Worker
from d2s_ros.threads import wait_passively
from d2s_ros.tracking.odometry_fusion import OdometryFusion
from d2s_ros.tracking.plausibility import PlausibilityGate

_LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
_TRANSPORT_PERIOD = 0.2
_PATH_PERIOD = 1.0


def _image_qos() -> QoSProfile:
    # The profile is changed by QoS overrides, so each subscription gets its own.
    return QoSProfile(
        depth=1,
        history=qos_profile_sensor_data.history,
        reliability=ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.VOLATILE,
    )


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

        self._loaded: LoadedMap | None = None
        self._loader: MapLoader | None = None
        self._token: str | None = None
        self._map_gone = False
        self._reloads = 0
        self._device = ''
        self._figures = diagnostics.FrameStatistics()
        self._slot: LatestSlot[QueuedImage] = LatestSlot()
        self._worker: Worker[QueuedImage] | None = None
        self._pipeline: FramePipeline | None = None
        self._resolver: FrameResolver | None = None
        self._gate = PlausibilityGate(0.0, 0.0, 0.0)
        self._fusion = OdometryFusion(0.0)
        self._resolved: Resolved | None = None
        self._broadcaster: tf.TransformBroadcaster | None = None
        self._source: tf.TransformSource | None = None
        self._camera_infos = CameraInfos()
        self._transport = ''
        self._transforms_sent = self._transforms_missed = 0
        self._hint: tuple[int, str] | None = None
        self._path: deque[PoseStamped] = deque()
        self._path_lock = threading.Lock()
        self._path_changed = False
        self._active_timers: list[Any] = []
        self._active_subscriptions: list[Any] = []
        self._image_subscriptions: list[Any] = []
        self._outputs: dict[str, Any] = {}
        self._reload_service: Any = None
        self._jump_handle: Any = None

        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._fault_signal = self.create_guard_condition(self._on_fault)
        self._diagnostics_timer: Any = None
        self._start_diagnostics()

    # ---------------------------------------------------------------- parameters

    def _commit(self, config: LocalizerNodeConfig) -> None:
        restart = config.diagnostics_period != self.config.diagnostics_period
        rebuild = config.localizer != self.config.localizer
        self.config = config
        if rebuild and not self._begin_reload():
            # What is being loaded may have the old options; the next check loads again.
            self._token = None
        if restart:
            self._start_diagnostics()
        if self._pipeline is not None:
            self._gate.max_speed = config.max_speed
            self._gate.max_turn_rate = config.max_turn_rate
            self._gate.odometry_drift = config.odometry_drift
            self._fusion.odometry_drift = config.odometry_drift
            self._pipeline.camera_info_timeout = config.camera_info_timeout
            self._pipeline.max_focal_error = config.localizer.max_focal_error
            self._pipeline.hold(config.target_rate)
            self._pipeline.stamps.jump = config.time_jump_threshold
            self._pipeline.stamps.max_future = config.max_future
            self._pipeline.stamps.max_age = config.max_image_age

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
        self._token = map_loader.version_token(config.map)
        self._device = config.device
        self._loaded = self._load()
        self._loader = MapLoader(self._load)
        self._reloads = 0
        self._map_gone = False

        def output(name: str, message: Any, qos: Any) -> None:
            self._outputs[name] = self.create_lifecycle_publisher(message, name, qos)

        output('d2s/pose', PoseWithCovarianceStamped, 10)
        output('d2s/status', DiagnosticArray, 10)
        output('d2s/path', Path, 1)
        output('d2s/debug_image', Image, 1)
        output('d2s/scene_points', PointCloud2, 1)
        self._outputs['d2s/map_version'] = self.create_publisher(
            String, 'd2s/map_version', _LATCHED
        )
        if config.tf_mode != 'none':
            self._broadcaster = tf.create_broadcaster(self)
        if FrameResolver.needs_source(config):
            self._source = tf.create_source(self, config.transform_cache)
        self._resolver = FrameResolver(config, self._source)
        self._reload_service = self.create_service(Trigger, '~/reload_map', self._on_reload)
        self._publish_map_version()
        self._configured = True
        self.get_logger().info(
            f'map {config.map}, version {self._loaded.version}, frame '
            f'{self._loaded.map_frame!r}, device {self._loaded.device}'
        )
        if not is_available():
            self.get_logger().warning(
                'the compiled part of the package is missing: images take longer; install the '
                'package again where there is a C compiler'
            )
        return super().on_configure(state)

    def _load(self) -> LoadedMap:
        try:
            return self._factory(self.config, self._device)
        except Exception as error:
            failed = map_loader.is_device_failure(error)
            if not (failed and self.config.allow_cpu_fallback and self._device != 'cpu'):
                raise
            self.get_logger().error(f'the GPU cannot be used ({error}); continuing on the CPU')
            self._device = 'cpu'
            return self._factory(self.config, 'cpu')

    def _activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        config = self.config
        self._figures = diagnostics.FrameStatistics()
        self._camera_infos.clear()
        self._transforms_sent = self._transforms_missed = 0
        self._resolved = None
        self._gate = PlausibilityGate(config.max_speed, config.max_turn_rate, config.odometry_drift)
        self._fusion = OdometryFusion(config.odometry_drift)
        with self._path_lock:
            self._path = deque(maxlen=config.path_length)
        self._pipeline = FramePipeline(
            self._camera_infos,
            StampCheck(config.time_jump_threshold, config.max_future, config.max_image_age),
            config.info_topic,
            config.rectified,
        )
        self._pipeline.camera_info_timeout = config.camera_info_timeout
        self._pipeline.max_focal_error = config.localizer.max_focal_error
        self._pipeline.hold(config.target_rate)
        self._slot = LatestSlot()
        self._worker = Worker(
            self._slot,
            self._handle,
            self._swap_map,
            failed=self._worker_failed,
            name='localizer_worker',
        )
        self._worker.start()
        result = super().on_activate(state)
        overrides = QoSOverridingOptions.with_default_policies()
        self._active_subscriptions = [
            self.create_subscription(
                CameraInfo,
                config.info_topic,
                self._camera_infos.put,
                QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT),
                callback_group=self.input_group,
                qos_overriding_options=overrides,
            ),
            self.create_subscription(
                PoseWithCovarianceStamped, 'initialpose', self._on_initial_pose, 1
            ),
        ]
        self._transport = ''
        if config.image_transport != 'auto':
            self._subscribe_images(config.image_transport)
        elif config.image_topic.endswith('/compressed'):
            self._subscribe_images('compressed')
        else:
            self._choose_transport()
            self._every(_TRANSPORT_PERIOD, self._choose_transport)
        self.on_inputs_changed()
        self._every(_PATH_PERIOD, self._publish_path)
        if config.map_check_period > 0:
            self._every(config.map_check_period, self._check_map)
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
        self._active_timers.append(self.create_timer(period, callback, clock=self._steady))

    def _deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop_work()
        result = super().on_deactivate(state)
        return TransitionCallbackReturn.ERROR if self._fault else result

    def _stop_work(self, timeout: float = 10.0) -> bool:
        """Stop what `_activate` started; return whether the worker ended in time."""
        self._active = False
        for subscription in (*self._image_subscriptions, *self._active_subscriptions):
            self.destroy_subscription(subscription)
        for timer in self._active_timers:
            self.destroy_timer(timer)
        self._image_subscriptions, self._active_subscriptions = [], []
        self._active_timers = []
        self.on_inputs_changed()
        if self._jump_handle is not None:
            self._jump_handle.unregister()
            self._jump_handle = None
        worker, self._worker = self._worker, None
        ended = worker is None or worker.stop(timeout)
        self._pipeline = None
        return ended

    def _teardown(self, timeout: float = 10.0) -> bool:
        """Release everything that transitions made; may be called in any state, repeatedly."""
        ended = self._stop_work(timeout)
        self._configured = False
        if self._loader is not None:
            self._loader.close(timeout)
            self._loader = None
        for publisher in self._outputs.values():
            if hasattr(publisher, 'on_activate'):
                self.destroy_lifecycle_publisher(publisher)
            else:
                self.destroy_publisher(publisher)
        self._outputs = {}
        if self._reload_service is not None:
            self.destroy_service(self._reload_service)
            self._reload_service = None
        for part in (self._broadcaster, self._source):
            if part is not None:
                part.close()
        self._broadcaster = self._source = self._resolver = None
        self._loaded = None
        return ended

    # ---------------------------------------------------------------- inputs

    def _choose_transport(self) -> None:
        """Subscribe to the transport that is published; change when it ends and another is."""
        topic = self.config.base_image_topic
        published = {
            'raw': self.count_publishers(topic),
            'compressed': self.count_publishers(f'{topic}/compressed'),
        }
        if self._transport and published[self._transport]:
            return
        for transport in ('raw', 'compressed'):
            if published[transport] and transport != self._transport:
                self._subscribe_images(transport)
                return

    def _subscribe_images(self, transport: str) -> None:
        for subscription in self._image_subscriptions:
            self.destroy_subscription(subscription)
        topic = self.config.base_image_topic
        message: Any = Image
        if transport == 'compressed':
            topic, message = f'{topic}/compressed', CompressedImage
        self._image_subscriptions = [
            self.create_subscription(
                message,
                topic,
                self._on_image,
                _image_qos(),
                callback_group=self.input_group,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
        ]
        self.on_inputs_changed()
        self._transport = transport
        self.get_logger().info(f'images from {topic}, calibration from {self.config.info_topic}')

    def _on_image(self, message: Image | CompressedImage) -> None:
        self._figures.arrived()
        now_ns = self.get_clock().now().nanoseconds
        self._slot.put(QueuedImage(message, time.monotonic(), now_ns))
        # Let the worker have the interpreter now, not after the executor's housekeeping.
        time.sleep(6e-4)

    def _on_initial_pose(self, message: PoseWithCovarianceStamped) -> None:
        loaded = self._loaded
        frame = message.header.frame_id.removeprefix('/')
        if loaded is None or frame != loaded.map_frame:
            wanted = loaded.map_frame if loaded else ''
            self.get_logger().warning(
                f'initial pose ignored: its frame is {frame!r}, the map frame is {wanted!r}'
            )
            return
        try:
            pose, _ = conversions.pose_with_covariance_from_msg(message)
        except InputError as error:
            self.get_logger().warning(f'initial pose ignored: {error}')
            return
        x, y, z = pose.translation
        stamp_ns = conversions.ns_from_stamp(message.header.stamp)
        # The robot was moved by hand or by somebody who knows better: believe the next image.
        self._forget_motion()
        self._hint = (stamp_ns, f'x {x:.3f} y {y:.3f} z {z:.3f} at {stamp_ns / 1e9:.3f}')
        self.get_logger().info(f'initial pose noted as a hint: {self._hint[1]}')

    # ---------------------------------------------------------------- map

    def _on_reload(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._begin_reload()
        response.message = (
            f'loading {self.config.map}; d2s/map_version tells when it is in use'
            if response.success
            else 'a map is being loaded already'
        )
        return response

    def _begin_reload(self) -> bool:
        if self._loader is None or self._loader.busy:
            return False
        self._token = map_loader.version_token(self.config.map)
        return self._loader.start()

    def _check_map(self) -> None:
        token = map_loader.version_token(self.config.map)
        self._map_gone = token is None
        if token is not None and token != self._token:
            self.get_logger().info('the map has a new version')
            self._begin_reload()

    def _swap_map(self) -> None:
        """Take a newly loaded map; called by the worker between two frames."""
        loaded = self._loader.take() if self._loader is not None else None
        if loaded is None:
            return
        self._loaded = loaded
        self._reloads += 1
        self._publish_map_version()
        self.get_logger().info(f'map version {loaded.version} is in use')

    def _publish_map_version(self) -> None:
        publisher = self._outputs.get('d2s/map_version')
        if publisher is not None and self._loaded is not None:
            publisher.publish(String(data=self._loaded.version))

    # ---------------------------------------------------------------- worker

    def _handle(self, queued: QueuedImage) -> None:
        """Localize one image and publish what came out; called by the worker."""
        pipeline, loaded = self._pipeline, self._loaded
        if pipeline is None or loaded is None:
            return
        wants_details = self._wanted('d2s/debug_image') or self._wanted('d2s/scene_points')
        try:
            outcome, jumped = pipeline.process(
                queued, loaded, details=wants_details, expected=self._expected_camera
            )
        except Exception as error:
            outcome, jumped = self._failed(queued, error), False
        if jumped:
            self._on_time_jump(outcome.stamp_ns)
        try:
            self._publish(outcome, loaded)
        except Exception as error:
            # Publishers become invalid while the process shuts down.
            if not self.context.ok():
                logging.getLogger(__name__).info('not published while shutting down: %s', error)
                return
            outcome.refuse(NodeRefusal.INTERNAL_ERROR.value, f'{type(error).__name__}: {error}')
            self._figures.finished(outcome)
            raise
        outcome.latency_ms['total'] = 1e3 * (time.monotonic() - queued.received)
        self._figures.finished(outcome)
        self._publish_extras(outcome, loaded)

    def _expected_camera(self, stamp_ns: int, camera_frame: str) -> PosePrior | None:
        """Return where the last proven pose and the motion since lead; called by the worker."""
        resolved, resolver = self._resolved, self._resolver
        seconds = self.config.tracking_seconds
        if resolved is None or resolver is None or not resolved.body or seconds <= 0:
            return None
        body_from_camera, odom_from_body = resolver.motion(
            resolved.body, camera_frame, stamp_ns, 0.0
        )
        before = self._fusion if self.config.fuse_odometry else self._gate
        predicted = before.predict(stamp_ns, odom_from_body, seconds)
        if body_from_camera is None or predicted is None:
            return None
        map_from_body, sigma_m, sigma_deg = predicted
        lever = float(np.linalg.norm(body_from_camera.translation))
        return PosePrior(
            map_from_body @ body_from_camera,
            float(np.hypot(sigma_m, lever * np.radians(sigma_deg))),
            sigma_deg,
        )

    def _worker_failed(self, error: Exception) -> None:
        """Tell the operator what the worker went on after; it has logged the traceback."""
        if self.context.ok():
            self.get_logger().error(
                f'the result of an image could not be given out: {type(error).__name__}: {error}',
                throttle_duration_sec=5.0,
            )

    def _failed(self, queued: QueuedImage, error: Exception) -> FrameOutcome:
        """Turn an exception of the localizer into a refusal, or into a fault of the node."""
        header = queued.message.header
        outcome = FrameOutcome(conversions.ns_from_stamp(header.stamp), header.frame_id, '')
        outcome.refuse(NodeRefusal.INTERNAL_ERROR.value, f'{type(error).__name__}: {error}')
        if not map_loader.is_device_failure(error):
            logging.getLogger(__name__).exception('localizing an image failed')
            self.get_logger().error(
                f'localizing an image failed: {outcome.reason}', throttle_duration_sec=5.0
            )
            return outcome
        if self.config.allow_cpu_fallback and self._device != 'cpu':
            self._device = 'cpu'
            self.get_logger().error(f'the GPU failed ({error}); continuing on the CPU')
            self._begin_reload()
        elif not self._fault and not (self._loader is not None and self._loader.busy):
            self._fault = f'the device failed: {error}; configure and activate again to recover'
            self._fault_signal.trigger()
        return outcome

    def _on_fault(self) -> None:
        """Leave the active state after the device failed; called by the executor."""
        if self._fault and self._active:
            self.get_logger().error(self._fault)
            self.trigger_deactivate()

    def _on_clock_jump(self, jump: Any) -> None:
        """Forget transforms of the future when simulated time starts again."""
        self._forget_motion()
        if self._source is not None:
            self._source.restart_at(self.get_clock().now().nanoseconds)

    def _on_time_jump(self, stamp_ns: int) -> None:
        self._figures.jumped()
        self.get_logger().warning('time jumped back, what depends on it starts again')
        self._forget_motion()
        if self._source is not None:
            self._source.restart_at(stamp_ns)
        with self._path_lock:
            self._path.clear()
            self._path_changed = True

    def _wanted(self, output: str) -> bool:
        publisher = self._outputs.get(output)
        return publisher is not None and publisher.get_subscription_count() > 0

    def _publish(self, outcome: FrameOutcome, loaded: LoadedMap) -> None:
        start = time.monotonic()
        result = outcome.result
        if outcome.localized and result is not None and result.map_from_camera is not None:
            covariance = result.covariance
            if covariance is None:
                raise ValueError('the localizer gave a pose without covariance')
            config = self.config
            assert self._resolver is not None
            resolved = self._resolver.resolve(
                loaded.map_frame,
                outcome.camera_frame,
                outcome.stamp_ns,
                result.map_from_camera,
                covariance,
                tolerance=config.transform_tolerance,
                timeout=config.transform_timeout,
            )
            if self._resolved is not None and self._resolved.body != resolved.body:
                self._forget_motion()
            self._resolved = resolved
            if not resolved.body:
                outcome.refuse(NodeRefusal.NO_EXTRINSIC.value, resolved.problem)
            else:
                resolved, implausible = self._follow(
                    outcome.stamp_ns, resolved, proven=not result.with_prior
                )
                if implausible:
                    outcome.refuse(NodeRefusal.IMPLAUSIBLE.value, implausible)
                else:
                    self._publish_pose(resolved, outcome.stamp_ns, loaded.map_frame)
        outcome.latency_ms['publish'] = 1e3 * (time.monotonic() - start)
        if self._wanted('d2s/status'):
            name = self._diagnostic_name()
            status = DiagnosticStatus(
                level=diagnostics.OK if outcome.localized else diagnostics.WARN,
                name=f'{name}: frame',
                message=outcome.status,
                hardware_id=outcome.camera_frame,
                values=diagnostics.key_values(diagnostics.frame_values(outcome)),
            )
            self._outputs['d2s/status'].publish(
                DiagnosticArray(
                    header=conversions.header(outcome.stamp_ns, loaded.map_frame), status=[status]
                )
            )

    def _follow(self, stamp_ns: int, resolved: Resolved, *, proven: bool) -> tuple[Resolved, str]:
        """Return what to publish after the poses before, and why it is held back or nothing.

        A pose that its image does not prove agrees with where the last one leads, and nothing
        follows it.
        """
        if self.config.fuse_odometry and resolved.odom_from_body is not None:
            fused = self._fusion.fuse(
                stamp_ns,
                resolved.map_from_body,
                resolved.covariance,
                resolved.odom_from_body,
                proven=proven,
            )
            return resolved.corrected(fused.map_from_body, fused.covariance), fused.refusal
        if not proven:
            return resolved, ''
        reason = self._gate.check(
            stamp_ns, resolved.map_from_body, resolved.covariance, resolved.odom_from_body
        )
        return resolved, reason

    def _forget_motion(self) -> None:
        """Believe the next pose, whatever the ones before were."""
        self._gate.reset()
        self._fusion.reset()

    def _publish_pose(self, resolved: Resolved, stamp_ns: int, map_frame: str) -> None:
        message = conversions.pose_with_covariance(
            resolved.map_from_body, resolved.covariance, stamp_ns, map_frame
        )
        self._outputs['d2s/pose'].publish(message)
        if self._broadcaster is not None:
            sent = resolved.broadcast
            if sent is None:
                self._transforms_missed += 1
            else:
                self._broadcaster.send(
                    conversions.transform_to_msg(
                        sent.parent_from_child, sent.stamp_ns, sent.parent, sent.child
                    )
                )
                self._transforms_sent += 1
        with self._path_lock:
            self._path.append(conversions.pose_stamped(resolved.map_from_body, stamp_ns, map_frame))
            self._path_changed = True

    def _publish_extras(self, outcome: FrameOutcome, loaded: LoadedMap) -> None:
        """Publish pictures and points where somebody wants them."""
        details = outcome.result.details if outcome.result is not None else None
        if self._wanted('d2s/scene_points') and details is not None:
            chosen = details.reliable
            self._outputs['d2s/scene_points'].publish(
                conversions.point_cloud(
                    details.points_in_map[chosen],
                    details.reliability[chosen],
                    outcome.stamp_ns,
                    loaded.map_frame,
                )
            )
        if self._wanted('d2s/debug_image') and outcome.image is not None:
            result = outcome.result
            text = outcome.status
            if result is not None:
                text += (
                    f'  inliers {result.num_inliers} of {result.num_reliable} reliable, '
                    f'{result.num_keypoints} keypoints'
                )
            picture = debug_view.draw(
                outcome.image, details, text, outcome.localized, self.config.debug_image_size
            )
            self._outputs['d2s/debug_image'].publish(
                conversions.image_to_msg(picture, outcome.stamp_ns, outcome.camera_frame)
            )

    def _publish_path(self) -> None:
        if not self._wanted('d2s/path') or self._loaded is None:
            return
        with self._path_lock:
            if not self._path_changed:
                return
            poses = list(self._path)
            self._path_changed = False
        stamp_ns = conversions.ns_from_stamp(poses[-1].header.stamp) if poses else 0
        self._outputs['d2s/path'].publish(
            Path(header=conversions.header(stamp_ns, self._loaded.map_frame), poses=poses)
        )

    # ---------------------------------------------------------------- diagnostics

    def _start_diagnostics(self) -> None:
        if self._diagnostics_timer is not None:
            self.destroy_timer(self._diagnostics_timer)
        self._diagnostics_timer = self.create_timer(
            self.config.diagnostics_period, self._publish_diagnostics, clock=self._steady
        )

    def _diagnostic_name(self) -> str:
        return self.get_fully_qualified_name().lstrip('/')

    def _state_label(self) -> str:
        if self._active:
            return 'active'
        return 'inactive' if self._configured else 'unconfigured'

    def facts(self) -> diagnostics.NodeFacts:
        """Return what diagnostics say beside the figures of images."""
        config, loaded, resolved = self.config, self._loaded, self._resolved
        received, dropped = self._slot.counts
        topic = config.base_image_topic
        if self._transport == 'compressed':
            topic += '/compressed'
        pipeline = self._pipeline
        rate = pipeline.rate if pipeline is not None else None
        problem = ''
        if self._map_gone:
            problem = f'{config.map} is gone'
        elif self._loader is not None and self._loader.error:
            problem = self._loader.error
        return diagnostics.NodeFacts(
            state=self._state_label(),
            fault=self._fault,
            image_topic=topic,
            transport=self._transport,
            info_topic=config.info_topic,
            publishers=self.count_publishers(topic) if self._active else 0,
            received=received,
            dropped=dropped,
            map_path=config.map,
            map_version=loaded.version if loaded else '',
            map_frame=loaded.map_frame if loaded else '',
            device=loaded.device if loaded else '',
            map_problem=problem,
            reloading=self._loader is not None and self._loader.busy,
            reloads=self._reloads,
            pose_frame=resolved.body if resolved else '',
            tf_mode=resolved.tf_mode if resolved else config.tf_mode,
            transform_problem=resolved.problem if resolved else '',
            transforms_sent=self._transforms_sent,
            transforms_missed=self._transforms_missed,
            effort=str(rate.budget) if rate and not rate.budget.is_full else '',
            rate_missed=rate is not None and rate.exhausted,
            hint=self._hint[1] if self._hint else '',
            subscribers={
                name: publisher.get_subscription_count()
                for name, publisher in self._outputs.items()
                if name in ('d2s/pose', 'd2s/status')
            },
        )

    def _publish_diagnostics(self) -> None:
        message = DiagnosticArray(
            status=diagnostics.statuses(
                self._diagnostic_name(), self.config, self.facts(), self._figures.snapshot()
            )
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
