"""Poses of images and the motion between them, fused into one pose.

An error-state Kalman filter whose state is the pose of the body: odometry moves it, images correct
it. It needs no guess to start, and nothing holds it where it is: a pose that does not follow is
held back for one image, and believed where the next one agrees with it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.statistics import largest_sigma
from d2s_ros.geometry.transforms import (
    RigidTransform,
    rotation_from_vector,
    skew,
    vector_from_rotation,
)

Array = NDArray[np.float64]

#: Covariances of image poses count so many times: neighbouring images have errors in common.
_CORRELATED = 1.5
#: Motion after which an image tells something new: distance (unit of the map) or turn (degrees);
#: of images from one place together one counts, or each this share.
_NEW_DISTANCE, _NEW_TURN_DEG, _SAME_VIEW = 0.05, 2.0, 0.04
#: Largest squared Mahalanobis distance of an image's pose from where odometry leads.
_GATE = 13.0
#: Odometry that is off by a share of the way turns by that share of a radian on each unit of it.
_TURN_OF_WAY = 1.0
#: Images whose squared distances, over the six expected, tell how good odometry is, the largest
#: that one image counts for, and what their mean is multiplied by: it is below 1 where all is well.
_WINDOW, _LARGEST_SURPRISE, _EXCESS = 20, 4.0, 1.5
#: Standard deviations of a motion that odometry reports none of: unit of the map, radians.
_REST = (1e-3, 5e-4)


@dataclass(frozen=True, eq=False)
class FusedPose:
    """What is known about the body after an image.

    Attributes:
        map_from_body: The pose.
        covariance: (6, 6) in ROS order, map axes.
        refusal: Why the image's pose was held back; empty if it was not.
    """

    map_from_body: RigidTransform
    covariance: Array
    refusal: str = ''


@dataclass(frozen=True, eq=False)
class _Belief:
    """A pose at a stamp, and how far the body has come since the last image that gave it."""

    stamp_ns: int
    map_from_body: RigidTransform
    covariance: Array
    odom_from_body: RigidTransform
    distance: float = 0.0
    turn: float = 0.0


class OdometryFusion:
    """Fuses the poses of one robot.

    Args:
        odometry_drift: Most that odometry is off by, as a share of the motion it reports; half of
            it is taken for the standard deviation in each direction.
    """

    def __init__(self, odometry_drift: float) -> None:
        self.odometry_drift = odometry_drift
        self._surprises: deque[float] = deque(maxlen=_WINDOW)
        self._belief: _Belief | None = None
        self._held: _Belief | None = None

    def reset(self) -> None:
        """Begin with the next pose, whatever it is."""
        self._belief = self._held = None
        self._surprises.clear()

    def fuse(
        self,
        stamp_ns: int,
        map_from_body: RigidTransform,
        covariance: Array,
        odom_from_body: RigidTransform | None,
        *,
        proven: bool = True,
    ) -> FusedPose:
        """Take in the pose of an image.

        Args:
            stamp_ns: Time of the image.
            map_from_body: Its pose.
            covariance: (6, 6), ROS order, map axes.
            odom_from_body: Odometry at the stamp; without it the image's pose is returned.
            proven: Whether the image proves its pose; what does not is not remembered.
        """
        alone = FusedPose(map_from_body, covariance)
        if odom_from_body is None:
            return alone
        start = _Belief(stamp_ns, map_from_body, _CORRELATED * covariance, odom_from_body)
        if self._belief is None:
            if proven:
                self._belief = start
            return alone
        belief = self._moved(self._belief, stamp_ns, odom_from_body)
        distance, fused = _corrected(belief, map_from_body, covariance)
        if proven:
            self._surprises.append(min(distance / 6.0, _LARGEST_SURPRISE))
        if distance <= _GATE:
            if proven:
                self._belief, self._held = fused, None
            return FusedPose(fused.map_from_body, fused.covariance)
        if proven and self._held is not None:
            held = self._moved(self._held, stamp_ns, odom_from_body)
            agreement, confirmed = _corrected(held, map_from_body, covariance)
            if agreement <= _GATE:
                self._belief, self._held = confirmed, None
                return FusedPose(confirmed.map_from_body, confirmed.covariance)
        if proven:
            # Moved on, but told by no image: `predict` counts from the last that was believed.
            self._belief, self._held = replace(belief, stamp_ns=self._belief.stamp_ns), start
        off = map_from_body.translation - belief.map_from_body.translation
        sigma = float(np.sqrt(np.trace(belief.covariance[:3, :3])))
        refusal = (
            f'{np.linalg.norm(off):.3f} m from where the last poses and odometry lead, which is '
            f'known to {sigma:.3f} m ({np.sqrt(distance):.1f} sigmas)'
        )
        return FusedPose(belief.map_from_body, belief.covariance, refusal)

    def predict(
        self, stamp_ns: int, odom_from_body: RigidTransform | None, max_seconds: float
    ) -> tuple[RigidTransform, float, float] | None:
        """Return where the body should be by the poses before and the motion since.

        Args, returns: As `PlausibilityGate.predict`.
        """
        belief = self._belief
        if belief is None or odom_from_body is None:
            return None
        if not 0 < stamp_ns - belief.stamp_ns <= 1e9 * max_seconds:
            return None
        moved = self._moved(belief, belief.stamp_ns, odom_from_body)
        # The motion counts as it was made, not as the straight line between two poses.
        self._belief = moved
        sigma_m = largest_sigma(moved.covariance[:3, :3])
        sigma_rad = largest_sigma(moved.covariance[3:, 3:])
        return moved.map_from_body, sigma_m, float(np.degrees(sigma_rad))

    def _moved(self, belief: _Belief, stamp_ns: int, odom_from_body: RigidTransform) -> _Belief:
        """Return a belief at the present odometry."""
        motion = belief.odom_from_body.inverse() @ odom_from_body
        distance = float(np.linalg.norm(motion.translation))
        turn = float(np.linalg.norm(vector_from_rotation(motion.rotation)))
        moved = belief.map_from_body @ motion
        # A rotation that is off also moves what lies ahead.
        jacobian = np.eye(6)
        jacobian[:3, 3:] = -skew(moved.translation - belief.map_from_body.translation)
        # Where images disagree with it again and again, it is worse than was said.
        drift = 0.5 * self.odometry_drift * max(1.0, _EXCESS * float(np.mean(self._surprises or 0)))
        noise = np.repeat(
            [
                (drift * distance) ** 2 + _REST[0] ** 2,
                (drift * (turn + _TURN_OF_WAY * distance)) ** 2 + _REST[1] ** 2,
            ],
            3,
        )
        return _Belief(
            stamp_ns,
            moved,
            jacobian @ belief.covariance @ jacobian.T + np.diag(noise),
            odom_from_body,
            belief.distance + distance,
            belief.turn + turn,
        )


def _corrected(
    belief: _Belief, map_from_body: RigidTransform, covariance: Array
) -> tuple[float, _Belief]:
    """Return the squared Mahalanobis distance of an image's pose, and the belief after it."""
    expected = belief.map_from_body
    news = belief.distance / _NEW_DISTANCE + np.degrees(belief.turn) / _NEW_TURN_DEG
    noise = covariance * _CORRELATED / min(1.0, max(float(news), _SAME_VIEW))
    off = np.concatenate(
        [
            map_from_body.translation - expected.translation,
            vector_from_rotation(map_from_body.rotation @ expected.rotation.T),
        ]
    )
    total_inverse = np.linalg.inv(belief.covariance + noise)
    gain = belief.covariance @ total_inverse
    step = gain @ off
    pose = RigidTransform(
        rotation_from_vector(step[3:]) @ expected.rotation, expected.translation + step[:3]
    )
    # Joseph's form stays symmetric and positive.
    rest = np.eye(6) - gain
    after = rest @ belief.covariance @ rest.T + gain @ noise @ gain.T
    distance = float(off @ total_inverse @ off)
    return distance, replace(belief, map_from_body=pose, covariance=after, distance=0.0, turn=0.0)
