"""Whether the one camera of a robot still stands on it as its transform says, by odometry.

A camera that is turned on its mount sees the room turn about itself while the wheels stand still or
roll on. So does one on a robot that slips in place. Where the robot drives next tells them apart:
odometry leads it along the axes of its body, and only one of the two has these where the images
say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.statistics import largest_sigma
from d2s_ros.geometry.transforms import RigidTransform, pose_error

#: Standard deviations that two poses may differ by on top of all else.
_SIGMAS = 4.0
#: No mount turns by more and holds its camera: wheels slip so, or odometry starts again, degrees.
_MOST_DEG = 45.0
#: Images and odometry may be stamped this much apart, in seconds.
_LAG = 0.03
#: Two explanations are told apart where they lead to places this many standard deviations apart,
#: and at least so far, in metres.
_APART_SIGMAS, _APART_METRES = 6.0, 0.02
#: A transform to the camera that changes by more than this is another one: metres, degrees.
_OTHER_MOUNT = (1e-3, 0.1)


@dataclass(frozen=True, eq=False)
class _Seen:
    """Where an image has the camera, and where odometry has it."""

    stamp_ns: int
    map_from_camera: RigidTransform
    odom_from_camera: RigidTransform
    sigma_m: float
    sigma_deg: float

    def leads_to(
        self, odom_from_camera: RigidTransform, turned: RigidTransform | None = None
    ) -> RigidTransform:
        """Return where the camera should be by odometry, if it is `turned` on its mount."""
        turned = turned or RigidTransform.identity()
        moved = self.odom_from_camera.inverse() @ odom_from_camera
        return self.map_from_camera @ turned.inverse() @ moved @ turned


class MountWatch:
    """Compares how a camera turns with how odometry says that it does.

    Args:
        max_turn_deg: Turns that odometry does not report are the mount's from here on; 0 for none.
        odometry_drift: Error of odometry as a share of the motion it reports.

    Attributes:
        max_turn_deg, odometry_drift: As given; may be changed.
    """

    def __init__(self, max_turn_deg: float, odometry_drift: float) -> None:
        self.max_turn_deg = max_turn_deg
        self.odometry_drift = odometry_drift
        self.reset()

    def reset(self) -> None:
        """Believe the next pose, and that the camera stands where its transform says."""
        self._good: _Seen | None = None
        self._after: _Seen | None = None
        self._turned = RigidTransform.identity()
        self._fault = ''
        self._body_from_camera: RigidTransform | None = None

    def check(
        self,
        stamp_ns: int,
        map_from_camera: RigidTransform,
        covariance: NDArray[np.float64],
        odom_from_body: RigidTransform,
        body_from_camera: RigidTransform,
    ) -> str:
        """Take in the next pose.

        Args:
            stamp_ns: Of the image.
            map_from_camera: Where the image has the camera.
            covariance: (6, 6) of it, ROS order.
            odom_from_body: Odometry at the stamp.
            body_from_camera: The transform that the camera should stand by.

        Returns:
            Empty if the camera may stand there, else why not, for people.
        """
        if self.max_turn_deg <= 0:
            return ''
        if self._body_from_camera is not None:
            apart = pose_error(self._body_from_camera, body_from_camera)
            if apart[0] > _OTHER_MOUNT[0] or apart[1] > _OTHER_MOUNT[1]:
                self.reset()
        self._body_from_camera = body_from_camera
        new = _Seen(
            stamp_ns,
            map_from_camera,
            odom_from_body @ body_from_camera,
            largest_sigma(covariance[:3, :3]),
            float(np.degrees(largest_sigma(covariance[3:, 3:]))),
        )
        if self._fault:
            return self._fault
        if self._good is None:
            self._good = new
            return ''
        if self._after is not None:
            return self._explained(new, self._after, self._good)
        turned = self._turn_in_place(self._good, new)
        if turned is None:
            # As expected, or somewhere else altogether: nothing that a mount does.
            self._good = new
            return ''
        self._after, self._turned = new, turned
        return self._explained(new, new, self._good)

    def _turn_in_place(self, before: _Seen, new: _Seen) -> RigidTransform | None:
        """Return what turned the camera, where odometry has no such turn and it did not move."""
        seconds = abs(new.stamp_ns - before.stamp_ns) / 1e9
        motion = before.odom_from_camera.inverse() @ new.odom_from_camera
        way, turn = pose_error(motion, RigidTransform.identity())
        lag = min(1.0, _LAG / max(seconds, 1e-3))
        allowed_deg = self.max_turn_deg + _SIGMAS * float(np.hypot(before.sigma_deg, new.sigma_deg))
        allowed_deg += (self.odometry_drift + lag) * turn
        allowed_deg += float(np.degrees(self.odometry_drift * way))
        allowed_m = _SIGMAS * float(np.hypot(before.sigma_m, new.sigma_m))
        allowed_m += (self.odometry_drift + lag) * way
        found = before.leads_to(new.odom_from_camera).inverse() @ new.map_from_camera
        moved, turned = pose_error(found, RigidTransform.identity())
        if not allowed_deg < turned <= _MOST_DEG or moved > allowed_m:
            return None
        return RigidTransform(found.rotation, np.zeros(3))

    def _explained(self, new: _Seen, after: _Seen, good: _Seen) -> str:
        """Return why nothing is published: a turn that is not explained, or that is the mount's."""
        degrees = pose_error(self._turned, RigidTransform.identity())[1]
        back = pose_error(good.leads_to(new.odom_from_camera), new.map_from_camera)
        by_robot = after.leads_to(new.odom_from_camera)
        by_mount = after.leads_to(new.odom_from_camera, self._turned)
        robot_off = pose_error(by_robot, new.map_from_camera)
        mount_off = pose_error(by_mount, new.map_from_camera)
        apart = pose_error(by_robot, by_mount)[0]
        sigma = float(np.hypot(after.sigma_m, new.sigma_m))
        decided = apart > max(_APART_METRES, _APART_SIGMAS * sigma)
        # One wrong pose, a robot that tilted over a step, or one that was carried on.
        other = back[1] < min(robot_off[1], mount_off[1])
        other |= decided and min(robot_off[0], mount_off[0]) > apart
        if other or (decided and robot_off[0] <= mount_off[0]):
            self._good, self._after = new, None
            return ''
        if decided:
            self._fault = (
                f'the camera was turned by {degrees:.1f} degrees on its mount: mend its transform '
                'from the base, or call reinitialize if it is right'
            )
            return self._fault
        return (
            f'the camera has turned by {degrees:.1f} degrees, and odometry reports no such turn: '
            'either it was turned on its mount or the robot slipped, which its next way will show'
        )
