"""Whether a pose can follow the last one.

A comparison with the last pose can only hold back a pose, never change one. A held pose that the
next one agrees with is believed, so a robot that was carried away is found again with its second
good image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.statistics import largest_sigma
from d2s_ros.geometry.transforms import RigidTransform, pose_error

Array = NDArray[np.float64]

#: Standard deviations that two poses may differ by on top of the motion.
_SIGMAS = 4.0


@dataclass(frozen=True, eq=False)
class _Reference:
    stamp_ns: int
    map_from_body: RigidTransform
    covariance: Array
    odom_from_body: RigidTransform | None


class PlausibilityGate:
    """Compares each pose with the last accepted one.

    Args:
        max_speed: Fastest the body moves, unit of the map per second; 0 accepts every pose.
        max_turn_rate: Fastest it turns, degrees per second.
        odometry_drift: Error of odometry as a share of the motion it reports; used instead of the
            speeds where odometry is known.
    """

    def __init__(self, max_speed: float, max_turn_rate: float, odometry_drift: float) -> None:
        self.max_speed = max_speed
        self.max_turn_rate = max_turn_rate
        self.odometry_drift = odometry_drift
        self._accepted: _Reference | None = None
        self._held: _Reference | None = None

    def reset(self) -> None:
        """Believe the next pose, whatever it is."""
        self._accepted = self._held = None

    def check(
        self,
        stamp_ns: int,
        map_from_body: RigidTransform,
        covariance: Array,
        odom_from_body: RigidTransform | None = None,
    ) -> str:
        """Accept or hold back a pose.

        Args:
            stamp_ns: Time of the pose.
            map_from_body: The pose.
            covariance: (6, 6), ROS order, map axes.
            odom_from_body: Odometry at the stamp, if known.

        Returns:
            Empty if the pose is accepted, else why it is not, for people.
        """
        new = _Reference(stamp_ns, map_from_body, np.asarray(covariance), odom_from_body)
        if self.max_speed <= 0:
            self._accepted = new
            return ''
        reason = self._compare(self._accepted, new)
        if reason and self._held is not None and not self._compare(self._held, new):
            reason = ''
        if reason:
            self._held = new
            return reason
        self._accepted, self._held = new, None
        return ''

    def predict(
        self, stamp_ns: int, odom_from_body: RigidTransform | None, max_seconds: float
    ) -> tuple[RigidTransform, float, float] | None:
        """Return where the body should be by the last accepted pose and the motion since.

        Args:
            stamp_ns: Time of the prediction.
            odom_from_body: Odometry then, if known; else the largest speeds bound the motion.
            max_seconds: Longest time since that pose.

        Returns:
            map_from_body and the standard deviations of position (unit of the map) and rotation
            (degrees); None where nothing is known.
        """
        reference = self._accepted
        if reference is None or not 0 < stamp_ns - reference.stamp_ns <= 1e9 * max_seconds:
            return None
        has_odometry = reference.odom_from_body is not None and odom_from_body is not None
        if not has_odometry and self.max_speed <= 0:
            return None
        predicted, moved, turned = self._expected(reference, stamp_ns, odom_from_body)
        # What the motion may be off by at most is taken for two standard deviations.
        parts = (slice(0, 3), slice(3, 6))
        sigma_m, sigma = (largest_sigma(reference.covariance[part, part]) for part in parts)
        return (
            predicted,
            float(np.hypot(sigma_m, 0.5 * moved)),
            float(np.hypot(np.degrees(sigma), 0.5 * turned)),
        )

    def _expected(
        self, reference: _Reference, stamp_ns: int, odom_from_body: RigidTransform | None
    ) -> tuple[RigidTransform, float, float]:
        """Return a pose moved on, and by how much (unit of the map, degrees) it may be off."""
        if reference.odom_from_body is not None and odom_from_body is not None:
            motion = reference.odom_from_body.inverse() @ odom_from_body
            distance, turn = pose_error(motion, RigidTransform.identity())
            drift = self.odometry_drift
            # A turn of the odometry that is wrong also moves what lies ahead.
            return reference.map_from_body @ motion, drift * distance, drift * turn
        seconds = abs(stamp_ns - reference.stamp_ns) / 1e9
        return reference.map_from_body, self.max_speed * seconds, self.max_turn_rate * seconds

    def _compare(self, reference: _Reference | None, new: _Reference) -> str:
        if reference is None:
            return ''
        predicted, allowed, allowed_turn = self._expected(
            reference, new.stamp_ns, new.odom_from_body
        )
        sigmas = [
            largest_sigma(item.covariance[part, part])
            for item in (reference, new)
            for part in (slice(0, 3), slice(3, 6))
        ]
        allowed += _SIGMAS * float(np.hypot(sigmas[0], sigmas[2]))
        allowed_turn += _SIGMAS * float(np.degrees(np.hypot(sigmas[1], sigmas[3])))
        distance, turn = pose_error(new.map_from_body, predicted)
        if distance > allowed:
            return f'{distance:.3f} m from where the last pose leads, {allowed:.3f} m allowed'
        if turn > min(allowed_turn, 180.0):
            return f'{turn:.1f} degrees from the last pose, {allowed_turn:.1f} allowed'
        return ''
