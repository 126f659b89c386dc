"""What several images tell: where the next pose should be, and what to publish after a pose."""

from __future__ import annotations

import numpy as np

from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.localization.pose_prior import PosePrior
from d2s_ros.localization.protection import protection_level
from d2s_ros.localization.result import LocalizationResult, LocalizationStatus
from d2s_ros.ros.frame_pipeline import FrameOutcome, NodeRefusal
from d2s_ros.ros.frame_resolver import FrameResolver, Resolved
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.map_loader import LoadedMap
from d2s_ros.ros.tf import TransformSource
from d2s_ros.tracking.mount_watch import MountWatch
from d2s_ros.tracking.odometry_fusion import OdometryFusion
from d2s_ros.tracking.place_gate import PlaceGate
from d2s_ros.tracking.plausibility import PlausibilityGate


class PoseFollower:
    """Follows the poses of one robot: held back where they cannot follow, fused with odometry.

    Args:
        config: The node's options; `apply` changes them.
        source: Where transforms come from; None where none is needed.

    Attributes:
        resolved: What was last published, or None.
        place_of: Says where the cameras of the robot are, see `FrameResolver.place_of`.
    """

    def __init__(self, config: LocalizerNodeConfig, source: TransformSource | None) -> None:
        self._config = config
        self._source = source
        self._resolver = FrameResolver(config, source)
        self.place_of = self._resolver.place_of
        self.begin()

    def begin(self) -> None:
        """Know nothing of poses before; frames that were found stay known."""
        config = self._config
        self.resolved: Resolved | None = None
        self._place = PlaceGate()
        self._gate = PlausibilityGate(config.max_speed, config.max_turn_rate, config.odometry_drift)
        self._fusion = OdometryFusion(config.odometry_drift)
        self._mount = MountWatch(config.max_camera_turn, config.odometry_drift)

    def apply(self, config: LocalizerNodeConfig) -> None:
        """Take changed options."""
        self._config = config
        self._gate.max_speed = config.max_speed
        self._gate.max_turn_rate = config.max_turn_rate
        self._gate.odometry_drift = config.odometry_drift
        self._fusion.odometry_drift = config.odometry_drift
        self._mount.odometry_drift = config.odometry_drift
        self._mount.max_turn_deg = config.max_camera_turn

    def forget(self) -> None:
        """Believe the next pose, whatever the ones before were."""
        self._place.reset()
        self._gate.reset()
        self._fusion.reset()
        self._mount.reset()

    def restart_at(self, stamp_ns: int) -> None:
        """Forget poses, and transforms of the future, as time jumped back."""
        self.forget()
        if self._source is not None:
            self._source.restart_at(stamp_ns)

    def expected_camera(self, stamp_ns: int, camera_frame: str) -> PosePrior | None:
        """Return where the last proven pose and the motion since lead.

        Args:
            stamp_ns: Stamp of the image.
            camera_frame: frame_id of the image.
        """
        resolved, seconds = self.resolved, self._config.tracking_seconds
        if resolved is None or not resolved.body or seconds <= 0:
            return None
        body_from_camera, odom_from_body = self._resolver.motion(
            resolved.body, camera_frame, stamp_ns, 0.0
        )
        before = self._fusion if self._config.fuse_odometry else self._gate
        predicted = before.predict(stamp_ns, odom_from_body, seconds)
        if body_from_camera is None or predicted is None:
            return None
        map_from_body, sigma_m, sigma_deg = predicted
        lever = float(np.linalg.norm(body_from_camera.translation))
        return PosePrior(
            map_from_body @ body_from_camera,
            float(np.hypot(sigma_m, lever * np.radians(sigma_deg))),
            sigma_deg,
            self._place.place,
        )

    def follow(
        self, outcome: FrameOutcome, loaded: LoadedMap, map_from_camera: RigidTransform
    ) -> Resolved | None:
        """Return what to publish for a localized image; None if the outcome was refused.

        Args:
            outcome: Of the image; refused here where the pose cannot be given out.
            loaded: The map.
            map_from_camera: Its pose.

        Raises:
            ValueError: the localizer gave no covariance.
        """
        result, config = outcome.result, self._config
        assert result is not None
        if result.covariance is None:
            raise ValueError('the localizer gave a pose without covariance')
        resolved = self._resolver.resolve(
            loaded.frame_of(result),
            outcome.camera_frame,
            outcome.stamp_ns,
            map_from_camera,
            result.covariance,
            tolerance=config.transform_tolerance,
            timeout=config.transform_timeout,
            metric=loaded.metric,
        )
        if self.resolved is not None and self.resolved.body != resolved.body:
            self.forget()
        self.resolved = resolved
        if not resolved.body:
            outcome.refuse(NodeRefusal.NO_EXTRINSIC.value, resolved.problem)
            return None
        elsewhere = self._place.check(outcome.stamp_ns, result.place, result.frame)
        if elsewhere:
            outcome.refuse(NodeRefusal.IMPLAUSIBLE.value, elsewhere)
            return None
        if self._place.changed:
            # Nothing that was known in another frame helps here.
            self._gate.reset()
            self._fusion.reset()
        if not loaded.metric:
            # Speeds in metres per second say nothing of a map of unknown scale, nor do limits.
            outcome.protection_level = protection_level(resolved.covariance)
            return resolved
        moved = self._mount_moved(outcome.stamp_ns, resolved, result, map_from_camera)
        if moved:
            outcome.refuse(NodeRefusal.CAMERA_MOVED.value, moved)
            return None
        after, implausible = self._after(outcome.stamp_ns, resolved, proven=not result.with_prior)
        if implausible:
            outcome.refuse(NodeRefusal.IMPLAUSIBLE.value, implausible)
            return None
        level = protection_level(after.covariance)
        if config.alert_limit > 0 and not level <= config.alert_limit:
            outcome.refuse(
                LocalizationStatus.UNCERTAIN.value,
                f'protection level {level:.3f} m, alert limit {config.alert_limit:.3f} m',
            )
            return None
        outcome.protection_level = level
        return after

    def _mount_moved(
        self,
        stamp_ns: int,
        resolved: Resolved,
        result: LocalizationResult,
        map_from_camera: RigidTransform,
    ) -> str:
        """Return why the one camera of a robot may not stand where its transform says, or nothing.

        A rig has a watch of its own, which compares cameras.
        """
        odom_from_body, covariance = resolved.odom_from_body, result.covariance
        if odom_from_body is None or covariance is None or result.with_prior or result.cameras:
            return ''
        body_from_camera = resolved.map_from_body.inverse() @ map_from_camera
        return self._mount.check(
            stamp_ns, map_from_camera, covariance, odom_from_body, body_from_camera
        )

    def _after(self, stamp_ns: int, resolved: Resolved, *, proven: bool) -> tuple[Resolved, str]:
        """Return what to publish after the poses before, and why it is held back or nothing.

        A pose that its image does not prove agrees with where the last one leads, and nothing
        follows it.
        """
        if self._config.fuse_odometry and resolved.odom_from_body is not None:
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
