"""2D-3D correspondences of all cameras of a rig to one pose with one covariance.

The cameras are one problem: PnP-RANSAC over their correspondences together, then the same robust
refinement as for one camera, with the normal equations of each camera brought to the rig. The
pose is that of the rig's frame; where each camera is on it is taken as exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.ransac import CameraOfRig, RansacConfig, find_rig_pose
from d2s_ros.geometry.transforms import RigidTransform, skew
from d2s_ros.kernels.interface import Linearised, Residuals, influence_slope
from d2s_ros.localization.covariance import PoseUncertainty
from d2s_ros.localization.guided_refinement import (
    FEW_INLIERS,
    GUIDED_RADII,
    STANDS_STILL_PX,
    WIDE_RADII,
    close_beyond_chance,
    find_support,
    motion_px,
)
from d2s_ros.localization.hypotheses import Correspondences, PoseSearch
from d2s_ros.localization.intrinsics_fit import with_intrinsics_error
from d2s_ros.localization.pose_solver import (
    PoseEstimate,
    PoseSolverConfig,
    estimate_at,
    minimise,
    residuals_of,
)

Array = NDArray[np.float64]


def tangent_of_camera(camera_from_rig: RigidTransform) -> Array:
    """Return (6, 6): what a small motion of the rig (rotation, translation; its axes) does here."""
    change = np.zeros((6, 6))
    change[:3, :3] = change[3:, 3:] = camera_from_rig.rotation
    change[3:, :3] = skew(camera_from_rig.translation) @ camera_from_rig.rotation
    return change


class RigResiduals:
    """The residuals of all cameras as a function of rig_from_map: `Residuals` of a rig.

    Args:
        parts: Residuals of each camera and camera_from_rig.
        cauchy_scale: Where the loss starts to give way, in sigmas.
    """

    def __init__(
        self, parts: Sequence[tuple[Residuals, RigidTransform]], cauchy_scale: float
    ) -> None:
        self._parts = [(part, place, tangent_of_camera(place)) for part, place in parts]
        self._scale = cauchy_scale

    def whiten(self, rotation: Array, translation: Array) -> None:
        """Fix the weights of all cameras."""
        for part, place, _ in self._parts:
            part.whiten(*_moved(place, rotation, translation))

    def squared(self, rotation: Array, translation: Array) -> Array:
        """Return the squared lengths of all residuals, camera after camera."""
        lengths = [
            part.squared(*_moved(place, rotation, translation)) for part, place, _ in self._parts
        ]
        return np.concatenate(lengths)

    def linearise(
        self, rotation: Array, translation: Array, *, with_focal: bool = False
    ) -> Linearised:
        """Return the cost at a pose and its normal equations by the six parameters of the rig."""
        if with_focal:
            raise ValueError('the cameras of a rig have no common focal length')
        cost, front, gradient, information = 0.0, True, np.zeros(6), np.zeros((6, 6))
        for part, place, change in self._parts:
            at = part.linearise(*_moved(place, rotation, translation))
            cost, front = cost + at.cost, front and at.all_in_front
            gradient += change.T @ at.gradient
            information += change.T @ at.information @ change
        weights = 1.0 / (1.0 + self.squared(rotation, translation) / self._scale**2)
        slope = influence_slope(float(weights.sum()), float(np.square(weights).sum()))
        return Linearised(cost, slope, front, gradient, information)

    def gradient_scatter(
        self, rotation: Array, translation: Array, slope: float, inverse: Array
    ) -> Array:
        """Return the covariance (6, 6) of the cost's gradient, from the residuals."""
        scatter = np.zeros((6, 6))
        for part, place, change in self._parts:
            pose = _moved(place, rotation, translation)
            own = part.gradient_scatter(*pose, slope, change @ inverse @ change.T)
            scatter += change.T @ own @ change
        return scatter


def _moved(place: RigidTransform, rotation: Array, translation: Array) -> tuple[Array, Array]:
    return place.rotation @ rotation, place.rotation @ translation + place.translation


@dataclass(frozen=True, eq=False)
class CameraProblem:
    """What one camera of a rig gives to a pose.

    Attributes:
        search: Its observation.
        used: (K,) keypoints given to the solver, best first.
        camera_from_rig: Where it is.
    """

    search: PoseSearch
    used: NDArray[np.int64]
    camera_from_rig: RigidTransform


@dataclass(frozen=True, eq=False)
class RigEstimate:
    """One pose of several cameras.

    Attributes:
        rig_from_map: The pose.
        uncertainty: Of map_from_rig, see `PoseEstimate.uncertainty`.
        parts: What it says of each camera, with the masks over that camera's `used`; None of a
            camera of which it explains less than four correspondences.
    """

    rig_from_map: RigidTransform
    uncertainty: PoseUncertainty
    parts: tuple[PoseEstimate | None, ...]

    @property
    def counts(self) -> list[int]:
        """Inliers of each camera."""
        return [0 if part is None else int(part.inlier_mask.sum()) for part in self.parts]


def solve_rig(
    problems: Sequence[CameraProblem], config: PoseSolverConfig, *, guided: bool
) -> RigEstimate | None:
    """Estimate rig_from_map from the correspondences of all cameras.

    Args:
        problems: The cameras.
        config: Options.
        guided: Refine on all candidates near their keypoints, where there are candidates.

    Returns:
        None if no pose explains at least four correspondences.
    """
    given = [one.search.correspondences(one.used) for one in problems]
    thresholds = [config.threshold_px(one.search.camera) for one in problems]
    found = find_rig_pose(
        [
            CameraOfRig(
                part.ideal_keypoints,
                part.points_in_map,
                one.search.camera,
                one.camera_from_rig,
                threshold,
            )
            for one, part, threshold in zip(problems, given, thresholds, strict=True)
        ],
        RansacConfig(
            float(np.mean(thresholds)), config.max_iterations, config.min_iterations, config.seed
        ),
    )
    if found is None:
        return None
    pose, masks = found
    chosen = [part.rows(mask) for part, mask in zip(given, masks, strict=True)]
    pose, uncertainty = _refined(problems, chosen, pose, config, 1 if guided else 2)
    parts: list[PoseEstimate | None] = []
    for one, part in zip(problems, given, strict=True):
        estimate = estimate_at(
            one.camera_from_rig @ pose,
            uncertainty,
            part.ideal_keypoints,
            part.points_in_map,
            one.search.camera,
            part.sigmas_px,
            part.covariances,
            config,
        )
        parts.append(None if estimate is None else part.spread_out(estimate))
    if all(part is None for part in parts):
        return None
    result = RigEstimate(pose, uncertainty, tuple(parts))
    return _guided(problems, result, config) if guided else result


def _refined(
    problems: Sequence[CameraProblem],
    chosen: Sequence[Correspondences],
    pose: RigidTransform,
    config: PoseSolverConfig,
    rounds: int,
) -> tuple[RigidTransform, PoseUncertainty]:
    """Refine a pose on correspondences of each camera."""
    parts, count = [], 0
    for one, part in zip(problems, chosen, strict=True):
        if not len(part.ideal_keypoints):
            continue
        count += len(part.ideal_keypoints)
        residuals = residuals_of(
            part.ideal_keypoints,
            part.points_in_map,
            one.search.camera,
            part.sigmas_px,
            part.covariances,
            config,
        )
        parts.append((residuals, one.camera_from_rig))
    return minimise(RigResiduals(parts, config.cauchy_scale), pose, count, config, rounds=rounds)


def _guided(
    problems: Sequence[CameraProblem], result: RigEstimate, config: PoseSolverConfig
) -> RigEstimate:
    """Refine on every candidate that the pose brings close to its keypoint, as `refine_guided`.

    A camera whose close candidates are close by chance is left out (`close_beyond_chance`).
    """
    num_inliers = sum(result.counts)
    pose, uncertainty, parts = result.rig_from_map, result.uncertainty, list(result.parts)
    pairs = [np.empty((0, 2), np.int64) for _ in problems]
    for radius in WIDE_RADII if num_inliers < FEW_INLIERS else GUIDED_RADII:
        close = [
            close_beyond_chance(
                one.search.candidate_matches,
                one.camera_from_rig @ pose,
                radius * config.threshold_px(one.search.camera),
            )
            for one in problems
        ]
        same = all(np.array_equal(new, old) for new, old in zip(close, pairs, strict=True))
        if same or sum(map(len, close)) < num_inliers:
            break
        pairs = close
        chosen = [one.search.named(rows) for one, rows in zip(problems, pairs, strict=True)]
        refined, uncertainty = _refined(problems, chosen, pose, config, 1)
        moved = max(
            motion_px(part, one.camera_from_rig @ refined, one.search.camera)
            for one, part in zip(problems, parts, strict=True)
            if part is not None
        )
        pose = refined
        parts = [
            None
            if part is None
            else replace(
                part,
                camera_from_map=one.camera_from_rig @ pose,
                uncertainty=uncertainty,
                guided_pairs=rows,
            )
            for one, part, rows in zip(problems, parts, pairs, strict=True)
        ]
        if moved < STANDS_STILL_PX:
            break
    for index, (one, part) in enumerate(zip(problems, parts, strict=True)):
        if part is None:
            continue
        inliers = one.used[part.inlier_mask]
        matches = one.search.candidate_matches
        support = find_support(
            part.camera_from_map, matches, inliers, one.search.landmarks_of(inliers), config
        )
        parts[index] = with_intrinsics_error(replace(part, support=support), matches, config)
    return RigEstimate(pose, uncertainty, tuple(parts))
