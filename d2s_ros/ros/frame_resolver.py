"""Which body's pose is published and which transform is broadcast, by REP-105."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.transforms import RigidTransform, covariance_of_body
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.tf import TransformSource

Array = NDArray[np.float64]

#: Stamps of images and odometry further apart than this come from clocks that differ, in seconds.
_CLOCKS_APART = 5.0


@dataclass(frozen=True, eq=False)
class Broadcast:
    """A transform to broadcast: the pose of `child` in `parent`."""

    parent: str
    child: str
    stamp_ns: int
    parent_from_child: RigidTransform


@dataclass(frozen=True, eq=False)
class Resolved:
    """What to publish for a localized image.

    Attributes:
        body: Frame whose pose is published; empty if none can be.
        map_from_body: Its pose.
        covariance: (6, 6) of the pose, ROS order, map axes.
        broadcast: Transform to send, None if there is none.
        problem: Why a wanted transform or body is missing; empty if none is.
        tf_mode: The mode in effect, where `auto` has been decided.
        odom_from_body: Odometry of the body at the stamp, None if it is not known.
    """

    body: str
    map_from_body: RigidTransform
    covariance: Array
    broadcast: Broadcast | None
    problem: str
    tf_mode: str
    odom_from_body: RigidTransform | None = None

    def corrected(self, map_from_body: RigidTransform, covariance: Array) -> Resolved:
        """Return the same with another pose of the body; a correction of odometry follows it."""
        broadcast = self.broadcast
        if broadcast is not None and self.tf_mode == 'map_to_odom':
            assert self.odom_from_body is not None
            map_from_odom = map_from_body @ self.odom_from_body.inverse()
            broadcast = replace(broadcast, parent_from_child=map_from_odom)
        return replace(
            self, map_from_body=map_from_body, covariance=covariance, broadcast=broadcast
        )


class FrameResolver:
    """Keeps what is known about the frames of one robot.

    Args:
        config: Frame names, modes and the extrinsic, if given.
        source: Where transforms come from; None where none is needed.
    """

    def __init__(self, config: LocalizerNodeConfig, source: TransformSource | None) -> None:
        self._config = config
        self._source = source
        self._has_odometry = False
        self._first = True
        self._extrinsic: tuple[str, RigidTransform] | None = None
        self._extrinsics_between: dict[tuple[str, str], RigidTransform] = {}
        self._given = (
            RigidTransform.from_tum(config.base_from_camera) if config.base_from_camera else None
        )
        self._wants_odometry = self._needs_odometry(config)

    @staticmethod
    def _needs_odometry(config: LocalizerNodeConfig) -> bool:
        return config.tf_mode in ('auto', 'map_to_odom') or config.fuse_odometry

    @staticmethod
    def needs_source(config: LocalizerNodeConfig) -> bool:
        """Return whether transforms must be looked up."""
        if FrameResolver._needs_odometry(config) or config.rig_image_topics:
            return True
        wants_base = config.tf_mode == 'map_to_base' or config.pose_frame != 'camera'
        return wants_base and not config.base_from_camera

    def resolve(
        self,
        map_frame: str,
        camera_frame: str,
        stamp_ns: int,
        map_from_camera: RigidTransform,
        covariance: Array,
        *,
        tolerance: float = 0.0,
        timeout: float = 0.0,
        metric: bool = True,
    ) -> Resolved:
        """Decide what to publish.

        Args:
            map_frame: Name of the map frame.
            camera_frame: frame_id of the image.
            stamp_ns: Stamp of the image.
            map_from_camera, covariance: The camera's pose.
            tolerance: Seconds that map->odom is stamped into the future.
            timeout: Seconds to wait for transforms of the stamp.
            metric: Whether the map is in metres: nothing in metres is put together with others.
        """
        config = self._config
        camera_frame = (config.camera_frame or camera_frame).removeprefix('/')
        if not metric:
            self._has_odometry = False
            mode = 'none' if config.tf_mode == 'none' else 'map_to_camera'
            broadcast = None
            if mode == 'map_to_camera' and camera_frame:
                broadcast = Broadcast(map_frame, camera_frame, stamp_ns, map_from_camera)
            return Resolved(camera_frame, map_from_camera, covariance, broadcast, '', mode)
        if self._first:
            # Latched transforms may come in just after the first image.
            self._first = False
            self._wait_for_frames(camera_frame, timeout)
        base_from_camera, base_problem = self._base_from_camera(camera_frame, stamp_ns, timeout)
        map_from_base = None
        if base_from_camera is not None:
            map_from_base = map_from_camera @ base_from_camera.inverse()

        mode = config.tf_mode
        odom_from_base, odom_problem = None, ''
        if self._wants_odometry and map_from_base is not None:
            odom_from_base, odom_problem = self._odom_from_base(stamp_ns, timeout)
        if mode == 'auto':
            if self._has_odometry and base_from_camera is not None:
                mode = 'map_to_odom'
            else:
                mode = 'map_to_camera' if map_from_base is None else 'map_to_base'

        broadcast, problem = None, ''
        if mode == 'map_to_camera':
            if camera_frame:
                broadcast = Broadcast(map_frame, camera_frame, stamp_ns, map_from_camera)
            else:
                problem = 'the images have no frame_id; set the parameter camera_frame'
        elif mode == 'map_to_base':
            if map_from_base is not None:
                broadcast = Broadcast(map_frame, config.base, stamp_ns, map_from_base)
            else:
                problem = base_problem
        elif mode == 'map_to_odom':
            if map_from_base is not None and odom_from_base is not None:
                map_from_odom = map_from_base @ odom_from_base.inverse()
                ahead = stamp_ns + int(tolerance * 1e9)
                broadcast = Broadcast(map_frame, config.odom, ahead, map_from_odom)
            else:
                problem = base_problem or odom_problem

        if config.fuse_odometry and odom_from_base is None and not problem:
            problem = f'odometry is not fused: {base_problem or odom_problem}'

        wants_base = config.pose_frame == 'base' or (
            config.pose_frame == 'auto' and config.tf_mode in ('map_to_base', 'map_to_odom')
        )
        if config.pose_frame == 'camera' or (map_from_base is None and not wants_base):
            return Resolved(camera_frame, map_from_camera, covariance, broadcast, problem, mode)
        if map_from_base is None or base_from_camera is None:
            return Resolved('', map_from_camera, covariance, None, base_problem, mode)
        moved = covariance_of_body(covariance, map_from_camera, base_from_camera.inverse())
        return Resolved(config.base, map_from_base, moved, broadcast, problem, mode, odom_from_base)

    def motion(
        self, body: str, camera_frame: str, stamp_ns: int, timeout: float
    ) -> tuple[RigidTransform | None, RigidTransform | None]:
        """Return body_from_camera, and odom_from_body at a stamp; None each if it is not known.

        Args:
            body: Frame whose pose is published, see `Resolved`.
            camera_frame: frame_id of the image.
            stamp_ns: Stamp of the image.
            timeout: Seconds to wait for transforms of the stamp.
        """
        camera_frame = (self._config.camera_frame or camera_frame).removeprefix('/')
        if body == camera_frame:
            return RigidTransform.identity(), None
        base_from_camera, _ = self._base_from_camera(camera_frame, stamp_ns, timeout)
        odom_from_base = None
        if self._has_odometry:
            odom_from_base, _ = self._odom_from_base(stamp_ns, timeout)
        return base_from_camera, odom_from_base

    def place_of(
        self, reference: str, frame: str, reference_ns: int, stamp_ns: int
    ) -> tuple[RigidTransform | None, str]:
        """Return where a camera was, in the frame of another one at another stamp.

        What the robot moved between the two stamps is taken from odometry, where that is known.

        Args:
            reference, frame: The camera that counts, and the one that is asked for.
            reference_ns, stamp_ns: Stamps of their images.

        Returns:
            The pose of `frame` in `reference`, or None and why it is not known.
        """
        reference, frame = reference.removeprefix('/'), frame.removeprefix('/')
        if reference == frame:
            return None if self._source is None else RigidTransform.identity(), ''
        if self._source is None or not reference or not frame:
            return None, 'the images have no frame_id'
        found = self._source.lookup(reference, frame, stamp_ns)
        place = found.target_from_source
        if place is None:
            # As for the extrinsic: a restart of the static broadcaster changes nothing.
            place = self._extrinsics_between.get((reference, frame))
            return (place, '') if place is not None else (None, found.reason)
        self._extrinsics_between[reference, frame] = place
        if stamp_ns != reference_ns and self._has_odometry:
            base, odom = self._config.base, self._config.odom
            to_base = self._source.lookup(reference, base, None).target_from_source
            before = self._source.lookup(odom, base, reference_ns).target_from_source
            after = self._source.lookup(odom, base, stamp_ns).target_from_source
            if to_base is not None and before is not None and after is not None:
                moved = before.inverse() @ after
                place = to_base @ moved @ to_base.inverse() @ place
        return place, ''

    def _wait_for_frames(self, camera_frame: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        pairs = []
        if self._source is not None and self._given is None and camera_frame:
            pairs.append((self._config.base, camera_frame))
        if self._source is not None and self._wants_odometry:
            pairs.append((self._config.odom, self._config.base))
        for target, source in pairs:
            while time.monotonic() < deadline:
                assert self._source is not None
                if self._source.lookup(target, source, None).target_from_source is not None:
                    break
                time.sleep(0.005)

    def _base_from_camera(
        self, camera_frame: str, stamp_ns: int, timeout: float
    ) -> tuple[RigidTransform | None, str]:
        if self._given is not None:
            return self._given, ''
        if self._source is None or not camera_frame:
            return None, 'the images have no frame_id; set the parameter camera_frame'
        found = self._source.lookup(self._config.base, camera_frame, stamp_ns, timeout)
        if found.target_from_source is not None:
            self._extrinsic = (camera_frame, found.target_from_source)
            return found.target_from_source, ''
        if not found.may_arrive and self._extrinsic and self._extrinsic[0] == camera_frame:
            # A restart of the static broadcaster must not turn the base's pose into the camera's.
            return self._extrinsic[1], ''
        return None, found.reason

    def _odom_from_base(self, stamp_ns: int, timeout: float) -> tuple[RigidTransform | None, str]:
        if self._source is None:
            return None, 'transforms are not looked up'
        config = self._config
        found = self._source.lookup(config.odom, config.base, stamp_ns, timeout)
        if found.target_from_source is not None:
            self._has_odometry = True
            return found.target_from_source, ''
        newest = self._source.newest_stamp(config.odom, config.base)
        if newest is None:
            return None, found.reason
        # Odometry that does not reach the stamp is odometry all the same: without it the base
        # would get a second parent.
        self._has_odometry = True
        apart = (stamp_ns - newest) / 1e9
        if abs(apart) <= _CLOCKS_APART:
            return None, found.reason
        return None, (
            f'the images are stamped {abs(apart):.1f} s {"before" if apart < 0 else "after"} the '
            f'newest transform from {config.odom!r} to {config.base!r}: do the clocks of the '
            'camera and of the odometry agree?'
        )
