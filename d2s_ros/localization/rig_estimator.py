"""From what a scene model says of the images of a rig to one pose that is accepted, or why not.

A pose that all cameras agree on is accepted by what they show together. A camera whose image says
clearly that it stands elsewhere is left out and told: its extrinsic or its calibration is wrong, or
it was moved. Where the cameras prove nothing together each is tried alone, as without a rig, so
that a blind or wrong camera never costs a pose that another one has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.statistics import extent_of, median_of
from d2s_ros.geometry.transforms import RigidTransform, covariance_of_body
from d2s_ros.localization.acceptance import PoseEvidence, checks
from d2s_ros.localization.covariance import COVERAGE_MARGIN, covariance_scale
from d2s_ros.localization.estimator import Outcome, PoseEstimator
from d2s_ros.localization.hypotheses import Hypothesis
from d2s_ros.localization.intrinsics_error import IntrinsicsError
from d2s_ros.localization.moved_object import InlierView, check_moved_object
from d2s_ros.localization.pose_prior import PosePrior, PriorSource
from d2s_ros.localization.pose_solver import PoseEstimate, Support
from d2s_ros.localization.result import (
    TELLS_INTRINSICS,
    CameraShare,
    Check,
    LocalizationResult,
    LocalizationStatus,
    first_failure,
)
from d2s_ros.localization.rig_agreement import (
    Agreement,
    CameraOnRig,
    RigMember,
    agree,
    spread_of,
)
from d2s_ros.localization.rig_solver import RigEstimate

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Pooled(PoseEstimate):
    """The estimates of several cameras as one, over the correspondences of all.

    Attributes:
        total_spread: Sum of what the inliers of each camera cover of its image.
    """

    total_spread: float = 0.0

    def spread(self, camera: Camera) -> float:
        """Return the spread in all images, in parts of one image."""
        return self.total_spread


@dataclass(frozen=True, eq=False)
class RigOutcome:
    """What was found, and whether it is accepted.

    Attributes:
        shares: What each camera gave.
        made: What decided.
        map_from_rig, covariance: The pose, accepted or not; None if there is none.
        best: Index of the camera that shows most of the pose, among those that saw something.
        found: What that camera gave.
        num_used: Correspondences given to the solver.
        error_px: Median over the inliers.
        with_prior: The images alone would have been refused.
    """

    shares: tuple[CameraShare, ...]
    made: tuple[Check, ...]
    map_from_rig: RigidTransform | None
    covariance: Array | None
    best: int
    found: Hypothesis
    num_used: int
    error_px: float = float('nan')
    with_prior: bool = False

    def result(
        self, features: LocalFeatures, latency_ms: dict[str, float], *, details: bool
    ) -> LocalizationResult:
        """Return the result; `features` are those of the best camera."""
        failure = first_failure(self.made)
        accepted = failure is None and self.map_from_rig is not None
        covariance = None
        if accepted and self.covariance is not None:
            covariance = self.covariance * COVERAGE_MARGIN
        return LocalizationResult(
            LocalizationStatus.LOCALIZED if failure is None else failure.status,
            '' if failure is None else failure.reason,
            self.map_from_rig if accepted else None,
            covariance,
            sum(share.num_keypoints for share in self.shares),
            sum(share.num_reliable for share in self.shares),
            sum(share.num_inliers for share in self.shares),
            self.error_px,
            latency_ms,
            self.found.details(features) if details else None,
            self.num_used,
            with_prior=self.with_prior,
            checks=self.made,
            cameras=self.shares,
        )


class RigEstimator:
    """Finds the pose of a rig and decides whether it is accepted.

    Args:
        estimator: Of single cameras: its calibration, options and decisions.
    """

    def __init__(self, estimator: PoseEstimator) -> None:
        self._single = estimator
        self._calibration, self._config = estimator.calibration, estimator.config

    def estimate(
        self, cameras: Sequence[CameraOnRig], prior: PriorSource | None = None
    ) -> RigOutcome:
        """Find the pose of at least one camera that saw something.

        Args:
            cameras: What they saw.
            prior: Says where the rig should be; asked where the images alone would be refused.
        """
        members = [RigMember.of(seen, self._single) for seen in cameras]
        agreed = agree(members, self._single)
        refused = None
        if len(agreed.members) > 1 and agreed.estimate is not None:
            together = self._together(members, agreed, agreed.estimate)
            if first_failure(together.made) is None:
                return together
            refused = together
        return self._alone(members, agreed, prior, refused)

    # ---------------------------------------------------------------- all together

    def _together(
        self, members: Sequence[RigMember], agreed: Agreement, estimate: RigEstimate
    ) -> RigOutcome:
        """Decide about the pose that several cameras agree on by what they show together."""
        calibration, inside = self._calibration, agreed.members
        scale = covariance_scale(
            calibration.covariance_scale,
            calibration.reliable_share,
            sum(member.num_reliable for member in inside)
            / max(1, sum(len(member.seen.observation.view.features) for member in inside)),
        )
        counts = estimate.counts
        best = int(np.argmax(counts))
        pooled = self._pooled(inside, estimate, best).scaled(scale)
        camera = inside[best].seen.observation.view.camera
        evidence = PoseEvidence(
            camera,
            pooled,
            sum(len(member.problem.used) for member in inside),
            self._single.threshold_px(camera),
            sum(member.num_reliable for member in inside),
            sum(member.expected_inliers for member in inside),
            calibration.chance_evidence,
            calibration.chance_scale,
            calibration.scene_depth,
        )
        made = checks(evidence, self._config.limits)
        if first_failure(made) is None:
            made = (*made, *self._moved_object(inside, estimate, best, pooled.extent))
        share = dict(zip((member.seen.name for member in inside), counts, strict=True))
        known = _of_intrinsics(agreed.alone) | {
            member.seen.name: part.scaled(scale)
            for member, part in zip(inside, estimate.parts, strict=True)
            if part is not None
        }
        hypothesis = Hypothesis(
            inside[best].problem.search.coordinates,
            inside[best].problem.used,
            estimate.parts[best],
        )
        return RigOutcome(
            tuple(self._share(member, agreed, share, known) for member in members),
            made,
            estimate.rig_from_map.inverse(),
            pooled.covariance,
            [member.seen.name for member in members].index(inside[best].seen.name),
            hypothesis,
            evidence.num_used,
            median_of(pooled.reprojection_errors_px[pooled.inlier_mask]),
        )

    def _pooled(self, inside: Sequence[RigMember], estimate: RigEstimate, best: int) -> _Pooled:
        points, masks, errors, depths, focal = [], [], [], [], (0.0, float('inf'))
        intrinsics: list[IntrinsicsError] = []
        support: list[Support] = []
        for member, part in zip(inside, estimate.parts, strict=True):
            count = len(member.problem.used)
            if part is None:
                masks.append(np.zeros(count, bool))
                errors.append(np.full(count, np.inf))
                continue
            masks.append(part.inlier_mask)
            errors.append(part.reprojection_errors_px)
            inliers = member.problem.used[part.inlier_mask]
            points.append(member.problem.search.coordinates.points_in_map[inliers])
            depths.append(np.full(len(inliers), part.median_depth))
            if part.support is not None:
                support.append(part.support)
            change, sigma = part.focal_error
            if abs(change) / sigma > abs(focal[0]) / focal[1]:
                focal = part.focal_error
            if part.intrinsics_error is not None:
                intrinsics.append(part.intrinsics_error)
        main = estimate.parts[best]
        assert main is not None
        extent = extent_of(np.concatenate(points))
        return _Pooled(
            main.camera_from_map,
            estimate.uncertainty,
            np.concatenate(masks),
            np.concatenate(errors),
            median_of(np.concatenate(depths)),
            main.inlier_scatter_px,
            extent,
            main.guided_pairs,
            Support(
                np.concatenate([one.keypoints for one in support]),
                sum(one.spread for one in support),
                max(extent, *(one.extent for one in support)),
            )
            if support
            else None,
            focal,
            max(intrinsics, key=IntrinsicsError.significance, default=None),
            total_spread=spread_of(inside, estimate),
        )

    def _moved_object(
        self, inside: Sequence[RigMember], estimate: RigEstimate, best: int, extent: float
    ) -> list[Check]:
        """Check what is missing around the inliers of the best camera, if no other shows more."""
        observation, part = inside[best].seen.observation, estimate.parts[best]
        if observation.candidates is None or self._calibration.scene_depth <= 0 or part is None:
            return []
        points = [
            member.problem.search.coordinates.points_in_map[member.problem.used[one.inlier_mask]]
            for member, one in zip(inside, estimate.parts, strict=True)
            if one is not None
        ]
        used = inside[best].problem.used[part.inlier_mask]
        view = InlierView(
            observation.view.ideal_keypoints[used],
            np.concatenate(points),
            observation.candidates.points_in_map,
        )
        return [
            check_moved_object(
                replace(part, extent=extent),
                view,
                observation.view.camera,
                self._calibration.scene_depth,
                self._config.limits,
            )
        ]

    def _share(
        self,
        member: RigMember,
        agreed: Agreement,
        inliers: dict[str, int],
        known: Mapping[str, PoseEstimate],
    ) -> CameraShare:
        """Return what a camera gave; `known`: poses that say something of the intrinsics."""
        name, status, reason = member.seen.name, 'used', ''
        disagreement = agreed.left_out.get(name)
        if disagreement is not None:
            status = 'left_out'
            reason = (
                f'its image puts it {disagreement.distance:.3f} m and '
                f'{disagreement.degrees:.1f} degrees from where its transform says'
            )
        elif not inliers.get(name):
            status = LocalizationStatus.TOO_FEW_INLIERS.value
            reason = 'nothing of what it sees agrees with the pose'
        return CameraShare(
            name,
            status,
            reason,
            len(member.seen.observation.view.features),
            member.num_reliable,
            inliers.get(name, 0),
            disagreement or agreed.known.get(name),
            *((known[name].focal_error, known[name].intrinsics_error) if name in known else ()),
        )

    # ---------------------------------------------------------------- one camera alone

    def _alone(
        self,
        members: Sequence[RigMember],
        agreed: Agreement,
        prior: PriorSource | None,
        refused: RigOutcome | None,
    ) -> RigOutcome:
        """Return the pose of the first camera that proves one alone; those that agree first."""
        inside = {member.seen.name for member in agreed.members}
        order = sorted(
            range(len(members)),
            key=lambda i: (members[i].seen.name not in inside, -members[i].num_reliable),
        )
        outcomes: list[tuple[int, Outcome]] = []
        for source in (None, prior) if prior is not None else (None,):
            for index in order:
                seen = members[index].seen
                outcome = self._single.estimate(
                    seen.observation, _prior_of(source, seen.camera_from_rig)
                )
                outcomes.append((index, outcome))
                if outcome.status is LocalizationStatus.LOCALIZED:
                    return self._of_one(members, agreed, outcomes, index, outcome)
        if refused is not None:
            return refused
        index, outcome = outcomes[0]
        return self._of_one(members, agreed, outcomes, index, outcome)

    def _of_one(
        self,
        members: Sequence[RigMember],
        agreed: Agreement,
        tried: Sequence[tuple[int, Outcome]],
        index: int,
        outcome: Outcome,
    ) -> RigOutcome:
        seen, estimate = members[index].seen, outcome.found.estimate
        pose = covariance = None
        error_px = float('nan')
        if estimate is not None:
            map_from_camera = estimate.camera_from_map.inverse()
            pose = map_from_camera @ seen.camera_from_rig
            covariance = covariance_of_body(
                estimate.covariance, map_from_camera, seen.camera_from_rig
            )
            error_px = median_of(estimate.reprojection_errors_px[estimate.inlier_mask])
        if seen.name in agreed.left_out:
            agreed.left_out.pop(seen.name)
        share = {seen.name: len(outcome.found.inliers)}
        # A camera that was refused for its calibration tells of it, whoever has the pose.
        known = _of_intrinsics(agreed.alone | {members[i].seen.name: one for i, one in tried})
        return RigOutcome(
            tuple(self._share(member, agreed, share, known) for member in members),
            outcome.checks,
            pose,
            covariance,
            index,
            outcome.found,
            len(outcome.found.used),
            error_px,
            outcome.with_prior,
        )


def _of_intrinsics(alone: Mapping[str, Outcome]) -> dict[str, PoseEstimate]:
    """Return the poses of cameras by themselves that say something of the intrinsics."""
    return {
        name: one.found.estimate
        for name, one in alone.items()
        if one.status in TELLS_INTRINSICS and one.found.estimate is not None
    }


def _prior_of(prior: PriorSource | None, camera_from_rig: RigidTransform) -> PriorSource | None:
    """Return a source that says where a camera should be, from one that says it of its rig."""
    if prior is None:
        return None

    def of_camera() -> PosePrior | None:
        known = prior()
        if known is None:
            return None
        rig_from_camera = camera_from_rig.inverse()
        lever = float(np.linalg.norm(rig_from_camera.translation))
        return PosePrior(
            known.map_from_camera @ rig_from_camera,
            float(np.hypot(known.sigma_m, lever * np.radians(known.sigma_deg))),
            known.sigma_deg,
        )

    return of_camera
