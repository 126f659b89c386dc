"""Whether a pose is accepted: what is known of it, compared with `Limits` check by check.

Three things can make a pose wrong that has inliers. Chance: some of many wrong correspondences
agree. An object that stands elsewhere as well, or was moved: many inliers agree, and all lie on it.
Geometry that leaves the pose uncertain. Each has its checks; the first that fails gives the status.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.statistics import largest_sigma
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.intrinsics_error import FOCAL_LENGTH
from d2s_ros.localization.limits import Limits
from d2s_ros.localization.moved_object import InlierView, check_moved_object
from d2s_ros.localization.pose_prior import PosePrior
from d2s_ros.localization.pose_solver import PoseEstimate
from d2s_ros.localization.result import Check, LocalizationStatus, first_failure
from d2s_ros.scene_models.base import PlaceEvidence

_Status = LocalizationStatus

#: Correspondences that make a pose: they agree with it always.
_MINIMAL = 3
#: Largest chance that a wrong correspondence is an inlier, for which the bound still is one.
_MAX_CHANCE = 0.5


@dataclass(frozen=True, eq=False)
class PoseEvidence:
    """What is known of a pose, and of the image it was found in.

    A check of which nothing is known is not made: of the extent and of moved objects without a
    scene depth, of chance without a scale of it, of the focal length without an estimate of it.

    Attributes:
        camera: Of the image.
        estimate: What the solver found; None if nothing.
        num_used: Correspondences that were given to the solver.
        threshold_px: How close inliers are, px; of use with `chance_scale`.
        num_reliable: Reliable keypoints, those of other hypotheses included; 0 if unknown.
        expected_inliers: Inliers expected of the correspondences: the sum of their reliabilities.
            Far fewer are a sign of wrong intrinsics. Infinite if unknown: then all of them.
        chance_median, chance_scale: Evidence that poses by chance have in this map, and the scale
            of the exponential tail above it; 0 if unknown.
        scene_depth: Of the map; 0 if unknown.
        view: Inliers and landmarks; None in maps without landmarks.
        prior: Where the pose was looked for; None for one that the image gives alone.
        place: What the scene model says of the place; None for models that tell by keypoints alone.
    """

    camera: Camera
    estimate: PoseEstimate | None
    num_used: int
    threshold_px: float = 0.0
    num_reliable: int = 0
    expected_inliers: float = float('inf')
    chance_median: float = 0.0
    chance_scale: float = 0.0
    scene_depth: float = 0.0
    view: InlierView | None = None
    prior: PosePrior | None = None
    place: PlaceEvidence | None = None


def check_keypoints(count: int, limits: Limits) -> Check:
    """Return whether an image has enough keypoints to be worked on."""
    needed = limits.min_keypoints
    reason = _with_hint(
        f'{count} keypoints, {needed} needed', count >= needed, 'dark, blurred or empty view'
    )
    return Check('keypoints', float(count), float(needed), True, _Status.TOO_FEW_KEYPOINTS, reason)


def checks(evidence: PoseEvidence, limits: Limits) -> tuple[Check, ...]:
    """Compare a pose with the limits; the first check that fails is why it is refused.

    Stages follow each other from cheap to expensive. After one with a failure the later ones are
    not evaluated, so their checks are absent.
    """
    made: list[Check] = []
    if evidence.prior is None:
        made += _correspondences(evidence, limits)
    if evidence.estimate is not None and first_failure(made) is None:
        for stage in _STAGES:
            made += stage(evidence, evidence.estimate, limits)
            if first_failure(made) is not None:
                break
    return tuple(made)


def _correspondences(evidence: PoseEvidence, limits: Limits) -> list[Check]:
    used, needed = evidence.num_used, limits.min_inliers
    enough, found = used >= needed, evidence.estimate is not None
    reason = _with_hint(
        f'{used} usable correspondences, {needed} needed',
        enough,
        'another place, or changed too much',
    )
    made = [
        Check('correspondences', float(used), float(needed), True, _Status.TOO_FEW_RELIABLE, reason)
    ]
    if enough:
        reason = 'a pose explains the correspondences'
        if not found:
            reason = 'no pose explains the correspondences (another place?)'
        made.append(Check('pose', float(found), 1.0, True, _Status.NO_POSE, reason))
    return made


def _place(evidence: PoseEvidence, estimate: PoseEstimate, limits: Limits) -> list[Check]:
    """Check that the place looks as the scene model says, keypoint or not."""
    place = evidence.place
    if place is None:
        return []
    chance = needed_evidence(place.chance_median, place.chance_scale, limits.false_accept_rate)
    least = max(chance, place.least)
    reason = _with_hint(
        f'the place is as expected by {place.found:.1f}, {least:.1f} needed',
        place.found >= least,
        'another place, or changed too much',
    )
    return [Check('place', place.found, least, True, _Status.NO_POSE, reason)]


def _inliers(evidence: PoseEvidence, estimate: PoseEstimate, limits: Limits) -> list[Check]:
    """Check that the inliers are more than chance, and no small part of what should agree."""
    count = int(estimate.inlier_mask.sum())
    needed, why = _inliers_needed(evidence, estimate, limits)
    made = [
        Check(
            'inliers',
            float(count),
            float(needed),
            True,
            _Status.TOO_FEW_INLIERS,
            f'{count} inliers, {needed} needed{why}',
        )
    ]
    if evidence.prior is not None:
        return made
    min_share = limits.min_inlier_share
    if _has_support(estimate, limits):
        min_share = limits.min_inlier_share_with_support
    expected = min(float(evidence.num_used), evidence.expected_inliers)
    shares = [('inlier share', 'the expected inliers', count / max(1.0, expected), min_share)]
    if evidence.num_reliable > 0:
        share = count / evidence.num_reliable
        divided = min_share / limits.hypotheses_divisor
        shares.append(('share of reliable', 'the reliable keypoints', share, divided))
    for name, of, share, limit in shares:
        reason = _with_hint(
            f'{100 * share:.0f} % of {of}, {100 * limit:.0f} % needed',
            share >= limit,
            'another place, or a wrong camera_info',
        )
        made.append(Check(name, share, limit, True, _Status.LOW_INLIER_SHARE, reason))
    if evidence.chance_scale > 0:
        found = inlier_evidence(count, evidence.num_used, evidence.camera, evidence.threshold_px)
        least = needed_evidence(
            evidence.chance_median, evidence.chance_scale, limits.false_accept_rate
        )
        reason = f'{count} inliers of {evidence.num_used} correspondences '
        reason += 'are no chance' if found >= least else 'may be chance'
        made.append(Check('chance', found, least, True, _Status.TOO_FEW_INLIERS, reason))
    return made


def _inliers_needed(
    evidence: PoseEvidence, estimate: PoseEstimate, limits: Limits
) -> tuple[int, str]:
    """Return how many inliers a pose needs, and why so many."""
    if evidence.prior is not None:
        return limits.min_inliers_with_prior, ' where a prior says what is seen'
    if estimate.support is None:
        return limits.min_inliers, ''
    count = estimate.support.count
    why = f' with {count} landmarks found beside them'
    if count >= limits.ample_support:
        return limits.min_inliers_with_ample_support, why
    if _has_support(estimate, limits):
        return limits.min_inliers, why
    return limits.min_inliers_without_support, why


def _has_support(estimate: PoseEstimate, limits: Limits) -> bool:
    return estimate.support is not None and estimate.support.count >= limits.min_support


def inlier_evidence(count: int, num_used: int, camera: Camera, threshold_px: float) -> float:
    """Return how unlikely so many inliers are by chance: minus a bound of log10 of the probability.

    A wrong correspondence is an inlier if its point happens to fall into the circle around its
    keypoint; the number of those is at most binomial (Chernoff bound).
    """
    trials, hits = num_used - _MINIMAL, count - _MINIMAL
    if hits <= 0 or trials <= 0:
        return 0.0
    chance = min(np.pi * threshold_px**2 / (camera.width * camera.height), _MAX_CHANCE)
    share = min(hits / trials, 1.0)
    if share <= chance:
        return 0.0
    divergence = share * np.log(share / chance)
    if share < 1.0:
        divergence += (1.0 - share) * np.log((1.0 - share) / (1.0 - chance))
    return float(trials * divergence / np.log(10.0))


def needed_evidence(median: float, scale: float, false_accept_rate: float) -> float:
    """Return the evidence that chance reaches at a given rate: the tail is taken as exponential."""
    # Half of all poses by chance are above the median.
    return float(median + scale * np.log(0.5 / min(false_accept_rate, 0.5)))


def _geometry(evidence: PoseEvidence, estimate: PoseEstimate, limits: Limits) -> list[Check]:
    """Check that the inliers show more than a small object."""
    spread, depth = estimate.spread(evidence.camera), evidence.scene_depth
    made = []
    min_spread, why = limits.min_spread, ''
    if _support_shows_enough(estimate, depth, limits):
        min_spread, why = 0.0, ': support makes up for inliers that lie close together'
    elif depth > 0:
        extent = estimate.extent / depth
        made.append(
            Check(
                'extent',
                extent,
                limits.min_extent,
                True,
                _Status.POOR_SPREAD,
                f'inliers show an object of {100 * extent:.1f} % of the depth of the scene, '
                f'{100 * limits.min_extent:.1f} % needed',
            )
        )
        beside = estimate.support
        if extent >= limits.safe_extent and (
            beside is None or beside.spread >= limits.min_spread_with_support
        ):
            min_spread, why = limits.min_spread_of_safe_extent, ' of an object that large'
    made.append(
        Check(
            'spread',
            spread,
            min_spread,
            True,
            _Status.POOR_SPREAD,
            f'inliers cover {100 * spread:.2f} % of the image, {100 * min_spread:.2f} % '
            f'needed{why}',
        )
    )
    return made


def _support_shows_enough(estimate: PoseEstimate, scene_depth: float, limits: Limits) -> bool:
    """Return whether inliers and support together show more than a small object."""
    return (
        estimate.support is not None
        and _has_support(estimate, limits)
        and scene_depth > 0
        and estimate.support.spread >= limits.support_spread
        and estimate.support.extent >= limits.support_extent * scene_depth
    )


def _certainty(evidence: PoseEvidence, estimate: PoseEstimate, limits: Limits) -> list[Check]:
    """Check the standard deviations of the pose, which are computed here."""
    determined = not estimate.rank_deficient
    reason = 'the geometry determines the pose'
    if not determined:
        reason = 'the geometry leaves the pose undetermined'
    made = [Check('determined', float(determined), 1.0, True, _Status.UNCERTAIN, reason)]
    if not determined:
        return made
    sigma_m = largest_sigma(estimate.covariance[:3, :3])
    sigma_deg = float(np.degrees(largest_sigma(estimate.covariance[3:, 3:])))
    relative = sigma_m / max(estimate.median_depth, 1e-9)
    max_deg, max_relative = limits.max_rotation_sigma_deg, limits.max_relative_translation_sigma
    made += [
        Check(
            'rotation sigma',
            sigma_deg,
            max_deg,
            False,
            _Status.UNCERTAIN,
            f'rotation uncertain by {sigma_deg:.1f} deg, {max_deg:.1f} allowed',
        ),
        Check(
            'translation sigma',
            relative,
            max_relative,
            False,
            _Status.UNCERTAIN,
            f'position uncertain by {100 * relative:.1f} % of the scene depth, '
            f'{100 * max_relative:.1f} % allowed',
        ),
    ]
    if evidence.prior is not None:
        made += _agreement(estimate, evidence.prior, sigma_m, sigma_deg, limits)
    return made


def _agreement(
    estimate: PoseEstimate, prior: PosePrior, sigma_m: float, sigma_deg: float, limits: Limits
) -> list[Check]:
    """Check that a pose is where its prior expects it, and tells more than the prior does."""
    distance, turn = pose_error(estimate.camera_from_map.inverse(), prior.map_from_camera)
    allowed = limits.prior_sigmas * float(np.hypot(sigma_m, prior.sigma_m))
    allowed_turn = limits.prior_sigmas * float(np.hypot(sigma_deg, prior.sigma_deg))
    compared = (
        ('sigma over prior', sigma_m, prior.sigma_m, 'm of uncertainty'),
        ('distance to prior', distance, allowed, 'm from where it was expected'),
        ('turn from prior', turn, allowed_turn, 'degrees from what was expected'),
    )
    return [
        Check(
            name, value, limit, False, _Status.UNCERTAIN, f'{value:.3f} {what}, {limit:.3f} allowed'
        )
        for name, value, limit, what in compared
    ]


def _scene(evidence: PoseEvidence, estimate: PoseEstimate, limits: Limits) -> list[Check]:
    """Check what is missing around the inliers, and the intrinsics that fit them."""
    made = []
    if evidence.view is not None and evidence.scene_depth > 0:
        made.append(
            check_moved_object(
                estimate, evidence.view, evidence.camera, evidence.scene_depth, limits
            )
        )
    if estimate.intrinsics_error is not None:
        found = estimate.intrinsics_error
        excess = found.excess(limits.max_intrinsics_error, limits.intrinsics_sigmas)
        if found.gain < limits.min_intrinsics_gain:
            # As of something that was moved: explained instead of the rest, not beside it.
            excess = np.minimum(excess, 1.0)
        others = float(np.delete(excess, FOCAL_LENGTH).max())
        made.append(
            Check(
                'intrinsics',
                others,
                1.0,
                False,
                _Status.CALIBRATION_MISMATCH,
                found.describe(excess if others > 1.0 else np.zeros(len(excess))),
            )
        )
    change, sigma = estimate.focal_error
    if np.isfinite(sigma):
        allowed = max(limits.max_focal_error, limits.focal_sigmas * sigma)
        made.append(
            Check(
                'focal length',
                abs(change),
                allowed,
                False,
                _Status.CALIBRATION_MISMATCH,
                describe_focal_error(change, sigma, wrong=abs(change) > allowed),
            )
        )
        # Where no camera has such an error, the pose has it: one that lies between what objects
        # say that moved apart fits better if the image is stretched.
        bearable = max(limits.max_pose_focal_error, limits.pose_focal_sigmas * sigma)
        reason = _with_hint(
            describe_focal_error(change, sigma, wrong=False),
            abs(change) <= bearable,
            'objects that moved apart, or a wrong camera_info',
        )
        made.append(
            Check('stretch', abs(change), bearable, False, _Status.UNCERTAIN, reason),
        )
    return made


def describe_focal_error(change: float, sigma: float, *, wrong: bool = True) -> str:
    """Return one line for people about the focal length that fits, given as logarithms."""
    percent = 100 * (np.exp(change) - 1)
    text = f'the image fits a focal length {percent:+.1f} % off (sigma {100 * sigma:.1f} %)'
    return f'{text}: check camera_info, or calibrate the camera' if wrong else text


def _with_hint(text: str, passed: bool, hint: str) -> str:
    """Return a reason, with what may be behind a failure."""
    return text if passed else f'{text} ({hint})'


_STAGES: tuple[Callable[[PoseEvidence, PoseEstimate, Limits], list[Check]], ...] = (
    _place,
    _inliers,
    _geometry,
    _certainty,
    _scene,
)
