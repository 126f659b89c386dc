"""Which cameras of a rig agree on a pose, and which one stands elsewhere than it is said to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.transforms import (
    RigidTransform,
    covariance_of_body,
    rotation_from_vector,
    vector_from_rotation,
)
from d2s_ros.kernels.interface import Linearised
from d2s_ros.localization.covariance import inverse_of, robust_inflation
from d2s_ros.localization.estimator import Outcome, PoseEstimator
from d2s_ros.localization.hypotheses import MAX_HYPOTHESES, PoseSearch
from d2s_ros.localization.pose_solver import residuals_of
from d2s_ros.localization.result import Disagreement, LocalizationStatus
from d2s_ros.localization.rig_solver import (
    CameraProblem,
    RigEstimate,
    solve_rig,
    tangent_of_camera,
)
from d2s_ros.scene_models.base import Observation

#: A camera is left out where it disagrees by so many sigmas, and by so much of a turn in degrees
#: or of the depth of what it sees: what maps are bent by stays below.
_CLEAR_SIGMAS, _CLEAR_DEGREES, _CLEAR_SHARE = 4.0, 0.5, 0.01
#: Guided pairs of a camera from which its own pose is asked.
_FEWEST_PAIRS = 40
#: A camera with fewer inliers of its reliable keypoints may stand elsewhere.
_FEW_OF_RELIABLE = 0.25


@dataclass(frozen=True, eq=False)
class CameraOnRig:
    """One camera that saw something.

    Attributes:
        name: For people.
        observation: What the scene model says of its image.
        camera_from_rig: Where it is.
    """

    name: str
    observation: Observation
    camera_from_rig: RigidTransform


@dataclass(frozen=True, eq=False)
class RigMember:
    """A camera with what it gives to a pose.

    Attributes:
        seen: What it saw.
        problem: What is given to the solver.
        num_reliable: Its reliable keypoints.
    """

    seen: CameraOnRig
    problem: CameraProblem
    num_reliable: int

    @property
    def expected_inliers(self) -> float:
        """The sum of the reliabilities."""
        return float(self.problem.search.coordinates.reliability[self.problem.used].sum())

    @classmethod
    def of(cls, seen: CameraOnRig, estimator: PoseEstimator) -> RigMember:
        """Choose what a camera gives to the solver, as for one alone."""
        calibration, config = estimator.calibration, estimator.config
        search = PoseSearch(seen.observation, calibration.sigma_px, config, estimator.solver)
        used, num_reliable = search.select(
            config.reliability_threshold or calibration.reliability_threshold
        )
        return cls(seen, CameraProblem(search, used, seen.camera_from_rig), num_reliable)

    def without(self, mask: NDArray[np.bool_]) -> RigMember:
        """Return the camera without some of what was given to the solver (K,)."""
        return replace(self, problem=replace(self.problem, used=self.problem.used[~mask]))


@dataclass(eq=False)
class Agreement:
    """The cameras that agree on a pose, and what is known of the others.

    Attributes:
        members: Those that agree.
        estimate: Their pose.
        left_out: Who is off, and how far.
        known: The same of the members.
        alone: What those left out find by themselves.
    """

    members: list[RigMember]
    estimate: RigEstimate | None = None
    left_out: dict[str, Disagreement] = field(default_factory=dict)
    known: dict[str, Disagreement] = field(default_factory=dict)
    alone: dict[str, Outcome] = field(default_factory=dict)


def best_pose(
    members: Sequence[RigMember], estimator: PoseEstimator
) -> tuple[list[RigMember], RigEstimate | None]:
    """Return the pose whose inliers cover most of the images, as `PoseSearch.best`.

    Returns:
        The members, with what the pose was found from, and the pose; None if there is none.
    """
    limits, tried = estimator.config.limits, list(members)
    best: tuple[list[RigMember], RigEstimate | None] = tried, None
    most = 0.0
    guided = all(member.problem.search.guided for member in members)
    for _ in range(MAX_HYPOTHESES):
        estimate = solve_rig([member.problem for member in tried], estimator.solver, guided=guided)
        if best[1] is None:
            best = tried, estimate
        if estimate is None or sum(estimate.counts) < limits.min_inliers:
            break
        spread = spread_of(tried, estimate)
        if spread > most:
            best, most = (tried, estimate), spread
        if spread >= limits.doubtful_spread:
            break
        tried = [
            member if part is None else member.without(part.inlier_mask)
            for member, part in zip(tried, estimate.parts, strict=True)
        ]
    return best


def agree(members: Sequence[RigMember], estimator: PoseEstimator) -> Agreement:
    """Find the pose that most cameras agree on, and leave out who clearly does not."""
    agreed, left = Agreement(list(members)), list(members)
    while len(left) > 1:
        agreed.members, agreed.estimate = best_pose(left, estimator)
        worst = _look_for_disagreement(agreed, estimator)
        if worst is None:
            return agreed
        left = [member for member in left if member.seen.name != worst]
    agreed.members, agreed.estimate = left, None
    return agreed


def _look_for_disagreement(agreed: Agreement, estimator: PoseEstimator) -> str | None:
    """Return the camera to leave out, and note what is known of all; None: they agree."""
    estimate, members = agreed.estimate, agreed.members
    agreed.known = {}
    if estimate is None:
        return None
    elsewhere = _elsewhere(agreed, estimate, estimator)
    if elsewhere is not None:
        return elsewhere
    found = _small_disagreements(members, estimate, estimator)
    agreed.known = {
        member.seen.name: one for member, one in zip(members, found, strict=True) if one is not None
    }
    clear = {
        index: confirmed
        for index in _clear_ones(found, estimate)
        if (confirmed := _confirmed(index, members, estimator)) is not None
    }
    if not clear:
        return None
    index = _odd_one_out(clear, estimator)
    name = members[index].seen.name
    agreed.left_out[name], agreed.alone[name] = clear[index].disagreement, clear[index].alone
    return name


@dataclass(frozen=True, eq=False)
class _Apart:
    """A camera whose own pose is clearly not that of the others.

    Attributes:
        disagreement: How far it is off.
        alone: What it finds by itself.
        others: The other cameras.
        rest: Their pose.
    """

    disagreement: Disagreement
    alone: Outcome
    others: list[RigMember]
    rest: RigEstimate


def _clear_ones(found: Sequence[Disagreement | None], estimate: RigEstimate) -> list[int]:
    return [
        index
        for index, (one, part) in enumerate(zip(found, estimate.parts, strict=True))
        if one is not None and part is not None and _is_clear(one, part.median_depth)
    ]


def _confirmed(index: int, members: Sequence[RigMember], estimator: PoseEstimator) -> _Apart | None:
    """Return how far a camera's own pose is from that of the others, if that is clear as well.

    To first order a camera that shows few things or a flat one may seem far off though its own
    optimum is near: poses found without each other say it.
    """
    alone = estimator.estimate(members[index].seen.observation)
    own = alone.found.estimate
    others = [member for place, member in enumerate(members) if place != index]
    others, rest = best_pose(others, estimator)
    if own is None or rest is None:
        return None
    camera_from_rig = members[index].seen.camera_from_rig
    expected = camera_from_rig @ rest.rig_from_map
    found, there = own.camera_from_map.inverse(), expected.inverse()
    turn = vector_from_rotation(found.rotation @ there.rotation.T)
    offset = np.concatenate([found.translation - there.translation, turn])
    of_rest = covariance_of_body(
        rest.uncertainty.found[0], rest.rig_from_map.inverse(), camera_from_rig.inverse()
    )
    scale = estimator.calibration.covariance_scale
    covariance = own.covariance + scale * of_rest
    sigmas = float(np.sqrt(offset @ inverse_of(covariance) @ offset / 6.0))
    disagreement = Disagreement(own.camera_from_map @ expected.inverse(), sigmas)
    clear = _is_clear(disagreement, own.median_depth)
    return _Apart(disagreement, alone, others, rest) if clear else None


def _odd_one_out(clear: dict[int, _Apart], estimator: PoseEstimator) -> int:
    """Return which of the cameras that clearly disagree is to be left out.

    The one without which the others agree; of several such, the one without which most is seen:
    where two cameras contradict each other, each is as far from the other, and the one that shows
    less is more often wrong. If there is none, the one that is furthest off.
    """
    without = [
        (sum(one.rest.counts), -index)
        for index, one in clear.items()
        if not _clear_ones(_small_disagreements(one.others, one.rest, estimator), one.rest)
    ]
    if without:
        return -max(without)[1]
    return max(clear, key=lambda index: clear[index].disagreement.sigmas)


def _elsewhere(agreed: Agreement, estimate: RigEstimate, estimator: PoseEstimator) -> str | None:
    """Return a camera that has a pose of its own far from that of the rig."""
    for member, count in zip(agreed.members, estimate.counts, strict=True):
        enough = member.num_reliable >= estimator.config.limits.min_inliers
        if not enough or count >= _FEW_OF_RELIABLE * member.num_reliable:
            continue
        alone = estimator.estimate(member.seen.observation)
        own = alone.found.estimate
        if alone.status is not LocalizationStatus.LOCALIZED or own is None:
            continue
        expected = member.seen.camera_from_rig @ estimate.rig_from_map
        moved = own.camera_from_map @ expected.inverse()
        disagreement = Disagreement(moved, float('inf'))
        if _is_clear(disagreement, own.median_depth):
            agreed.left_out[member.seen.name] = disagreement
            agreed.alone[member.seen.name] = alone
            return member.seen.name
    return None


def _small_disagreements(
    members: Sequence[RigMember], estimate: RigEstimate, estimator: PoseEstimator
) -> list[Disagreement | None]:
    """Return by how much each camera's own pairs move its pose from that of the others.

    The gradients of all cameras add up to nothing at the common pose, so that of one tells how
    far it is from the others, to first order.
    """
    inflation = robust_inflation(estimator.solver.cauchy_scale)
    inflation *= estimator.calibration.covariance_scale
    parts: list[Linearised | None] = []
    for member, part in zip(members, estimate.parts, strict=True):
        if part is None or len(part.guided_pairs) < _FEWEST_PAIRS:
            parts.append(None)
            continue
        given = member.problem.search.named(part.guided_pairs)
        problem = residuals_of(
            given.ideal_keypoints,
            given.points_in_map,
            member.problem.search.camera,
            given.sigmas_px,
            given.covariances,
            estimator.solver,
        )
        pose = part.camera_from_map
        problem.whiten(pose.rotation, pose.translation)
        parts.append(problem.linearise(pose.rotation, pose.translation))
    if sum(at is not None for at in parts) < 2:
        return [None] * len(parts)
    changes = [tangent_of_camera(member.seen.camera_from_rig) for member in members]
    known = [(at, change) for at, change in zip(parts, changes, strict=True) if at is not None]
    total = np.sum([change.T @ at.information @ change for at, change in known], axis=0)
    found: list[Disagreement | None] = []
    for at, change in zip(parts, changes, strict=True):
        if at is None:
            found.append(None)
            continue
        others = total - change.T @ at.information @ change
        covariance = inverse_of(at.information) + change @ inverse_of(others) @ change.T
        step = -covariance @ at.gradient / at.slope
        sigmas = float(np.sqrt(step @ inverse_of(inflation * covariance) @ step / 6.0))
        found.append(Disagreement(RigidTransform(rotation_from_vector(step[:3]), step[3:]), sigmas))
    return found


def spread_of(members: Sequence[RigMember], estimate: RigEstimate) -> float:
    """Return what the inliers cover of all images, in parts of one image."""
    return sum(
        part.spread(member.problem.search.camera)
        for member, part in zip(members, estimate.parts, strict=True)
        if part is not None
    )


def _is_clear(disagreement: Disagreement, depth: float) -> bool:
    return disagreement.sigmas >= _CLEAR_SIGMAS and (
        disagreement.degrees >= _CLEAR_DEGREES or disagreement.distance >= _CLEAR_SHARE * depth
    )
