"""The worker that takes the newest image to its pose and gives out what came of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from rclpy.node import Node

from d2s_ros.localization.compute_budget import RateController
from d2s_ros.ros import conversions, map_loader
from d2s_ros.ros.camera_reader import CameraReader, QueuedImage
from d2s_ros.ros.diagnostics import FrameStatistics
from d2s_ros.ros.frame_pipeline import FrameOutcome, FramePipeline, NodeRefusal, StampCheck
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.map_keeper import MapKeeper
from d2s_ros.ros.map_loader import LoadedMap
from d2s_ros.ros.outputs import Outputs
from d2s_ros.ros.pose_follower import PoseFollower
from d2s_ros.ros.transform_sender import TransformSender
from d2s_ros.ros.worker import LatestSlot, Worker


class FrameWorker:
    """Works on one image at a time, in a thread of its own, from its making to `stop`.

    Args:
        node: For its name, its logger and its context.
        config: The node's options; `apply` changes them.
        readers: Of the images of each camera.
        keeper: The map in use.
        follower: Knows the poses before.
        outputs: Where results go.
        sender: Broadcasts transforms; None where none are.
        on_outcome: Called with what became of each image.
        on_fault: Called when the device failed, with the reason.

    Attributes:
        figures: Counts of what became of the images.
    """

    def __init__(
        self,
        node: Node,
        config: LocalizerNodeConfig,
        readers: Sequence[CameraReader],
        keeper: MapKeeper,
        follower: PoseFollower,
        outputs: Outputs,
        sender: TransformSender | None,
        on_outcome: Callable[[FrameOutcome], None],
        on_fault: Callable[[str], None],
    ) -> None:
        self._node = node
        self._config = config
        self._keeper = keeper
        self._follower = follower
        self._outputs = outputs
        self._sender = sender
        self._on_outcome = on_outcome
        self._on_fault = on_fault
        self._name = node.get_fully_qualified_name().lstrip('/')
        self.figures = FrameStatistics()
        self._pipeline = FramePipeline(
            readers, StampCheck(), config.camera_frame, follower.place_of
        )
        self.apply(config)
        self._stopped = False
        self._slot: LatestSlot[tuple[QueuedImage, ...]] = LatestSlot()
        self._worker = Worker(
            self._slot,
            self._handle,
            keeper.swap,
            failed=self._failed_to_publish,
            name='localizer_worker',
        )
        self._worker.start()

    def apply(self, config: LocalizerNodeConfig) -> None:
        """Take changed options."""
        self._config = config
        self._pipeline.apply(config)

    def put(self, queued: tuple[QueuedImage, ...]) -> None:
        """Offer the images of a moment; they replace what is still waiting."""
        self.figures.arrived()
        self._slot.put(queued)

    @property
    def counts(self) -> tuple[int, int]:
        """Images received, and images dropped for newer ones."""
        return self._slot.counts

    @property
    def info_problem(self) -> str:
        """What is suspicious about the calibration, for people; empty if nothing is."""
        return self._pipeline.info_problem

    @property
    def calibration_problem(self) -> str:
        """What the last images say is wrong with the calibration; empty if nothing."""
        return self._pipeline.calibration_problem

    @property
    def rate(self) -> RateController | None:
        """What holds the rate; None where none is held or the work has stopped."""
        return None if self._stopped else self._pipeline.rate

    def stop(self, timeout: float) -> bool:
        """End the thread; return whether it ended in time."""
        self._stopped = True
        return self._worker.stop(timeout)

    # ---------------------------------------------------------------- one image

    def _handle(self, queued: tuple[QueuedImage, ...]) -> None:
        """Localize the images of a moment and publish what came out; called by the worker."""
        try:
            self._process(queued)
        except Exception as error:
            # Publishers and subscriptions become invalid while the process shuts down.
            if self._node.context.ok():
                raise
            logging.getLogger(__name__).info('not published while shutting down: %s', error)

    def _process(self, queued: tuple[QueuedImage, ...]) -> None:
        loaded = self._keeper.loaded
        if self._stopped or loaded is None:
            return
        outputs = self._outputs
        try:
            outcome, jumped = self._pipeline.process(
                queued,
                loaded,
                details=outputs.details_wanted,
                expected=self._follower.expected_camera,
            )
        except Exception as error:
            outcome, jumped = self._failed(queued, error), False
        if jumped:
            self._on_time_jump(outcome.stamp_ns)
        try:
            self._publish(outcome, loaded)
        except Exception as error:
            outcome.refuse(NodeRefusal.INTERNAL_ERROR.value, f'{type(error).__name__}: {error}')
            self._finished(outcome)
            raise
        outcome.latency_ms['total'] = 1e3 * (time.monotonic() - queued[0].received)
        self._finished(outcome)
        frame = loaded.frame_of(outcome.result)
        outputs.publish_extras(outcome, frame, self._config.debug_image_size)

    def _finished(self, outcome: FrameOutcome) -> None:
        self.figures.finished(outcome)
        self._on_outcome(outcome)

    def _publish(self, outcome: FrameOutcome, loaded: LoadedMap) -> None:
        start = time.monotonic()
        result = outcome.result
        if outcome.localized and result is not None and result.map_from_camera is not None:
            resolved = self._follower.follow(outcome, loaded, result.map_from_camera)
            if resolved is not None:
                self._outputs.publish_pose(resolved, outcome.stamp_ns, loaded.frame_of(result))
                if self._sender is not None:
                    self._sender.send(resolved, outcome)
        outcome.latency_ms['publish'] = 1e3 * (time.monotonic() - start)
        self._outputs.publish_status(outcome, self._name, loaded.frame_of(result))

    def _on_time_jump(self, stamp_ns: int) -> None:
        self.figures.jumped()
        self._node.get_logger().warning('time jumped back, what depends on it starts again')
        self._follower.restart_at(stamp_ns)
        if self._sender is not None:
            self._sender.forget()
        self._outputs.clear_path()

    def _failed(self, queued: tuple[QueuedImage, ...], error: Exception) -> FrameOutcome:
        """Turn an exception of the localizer into a refusal, or into a fault of the node."""
        header = queued[0].message.header
        outcome = FrameOutcome(conversions.ns_from_stamp(header.stamp), header.frame_id, '')
        outcome.refuse(NodeRefusal.INTERNAL_ERROR.value, f'{type(error).__name__}: {error}')
        if not map_loader.is_device_failure(error):
            logging.getLogger(__name__).exception('localizing an image failed')
            self._node.get_logger().error(
                f'localizing an image failed: {outcome.reason}', throttle_duration_sec=5.0
            )
        elif not self._keeper.fall_back(error) and not self._keeper.reloading:
            self._on_fault(f'the device failed: {error}; configure and activate again to recover')
        return outcome

    def _failed_to_publish(self, error: Exception) -> None:
        """Tell the operator what the worker went on after; it has logged the traceback."""
        if self._node.context.ok():
            self._node.get_logger().error(
                f'the result of an image could not be given out: {type(error).__name__}: {error}',
                throttle_duration_sec=5.0,
            )
