"""Which of several places an image shows, or that nobody can tell: other places are evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.localization.limits import Limits
from d2s_ros.localization.result import (
    Check,
    LocalizationResult,
    LocalizationStatus,
    first_failure,
)


@dataclass(frozen=True, eq=False)
class Attempt:
    """What the map of one place says of an image.

    Attributes:
        place: Its name.
        frame: Of the pose.
        result: What was found, accepted or not.
        pose: map_from_camera that was found in that frame, accepted or not; None if nothing was.
        covariance: (6, 6) of it.
    """

    place: str
    frame: str
    result: LocalizationResult
    pose: RigidTransform | None = None
    covariance: NDArray[np.float64] | None = None


def choose(attempts: Sequence[Attempt], limits: Limits) -> LocalizationResult:
    """Return the pose of the place that explains an image best, or the reason why there is none.

    Args:
        attempts: Of at least one place, the likeliest first.
        limits: How much another place may explain.
    """
    best = max(attempts, key=lambda one: (one.result.localized, one.result.num_inliers))
    if not best.result.localized:
        return best.result
    check = _rival_check(best, attempts, limits)
    if check is None:
        return replace(best.result, place=best.place, frame=best.frame)
    checks = (*best.result.checks, check)
    if first_failure(checks) is None:
        return replace(best.result, place=best.place, frame=best.frame, checks=checks)
    return replace(
        best.result,
        status=check.status,
        reason=check.reason,
        map_from_camera=None,
        covariance=None,
        checks=checks,
    )


def _rival_check(best: Attempt, attempts: Sequence[Attempt], limits: Limits) -> Check | None:
    """Compare the inliers of a pose with those of the other places; None if no other was asked."""
    others = [one for one in attempts if one is not best and not agree(best, one, limits)]
    if not others:
        return None
    rival = max(others, key=lambda one: one.result.num_inliers)
    own, other = best.result.num_inliers, rival.result.num_inliers
    share = other / max(1, own)
    return Check(
        'rival place',
        share,
        limits.max_rival_share,
        False,
        LocalizationStatus.AMBIGUOUS_PLACE,
        f'{rival.place} explains the image with {other} inliers, {best.place} with {own}: '
        f'{100 * share:.0f} %, {100 * limits.max_rival_share:.0f} % allowed',
    )


def agree(best: Attempt, other: Attempt, limits: Limits) -> bool:
    """Return whether another place gives the same pose: it overlaps, and is no rival."""
    if best.frame != other.frame or best.pose is None or other.pose is None:
        return False
    distance, turn = pose_error(other.pose, best.pose)
    sigmas_m, sigmas_deg = [], []
    for one in (best, other):
        assert one.covariance is not None
        variances = np.clip(np.diag(one.covariance), 0.0, None)
        sigmas_m.append(np.sqrt(variances[:3].max()))
        sigmas_deg.append(np.degrees(np.sqrt(variances[3:].max())))
    return bool(
        distance <= limits.prior_sigmas * np.hypot(*sigmas_m)
        and turn <= limits.prior_sigmas * np.hypot(*sigmas_deg)
    )
