"""2D-3D correspondences to a camera pose with covariance.

The pose of PnP-RANSAC (`ransac`) is refined on whitened reprojection errors: each keypoint
weighs by its own detection noise and by the uncertainty of its scene coordinate, under a robust
Cauchy loss. The covariance is that of the robust estimate under the noise which the residuals of
the image show (the sandwich estimator), drawn towards the noise of the given size where they are
few.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros import kernels
from d2s_ros.config import option, validate
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.noise import ideal_variances
from d2s_ros.geometry.ransac import RansacConfig, find_pose
from d2s_ros.geometry.statistics import ellipse_area, extent_of, median_of, scatter_of
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.kernels.interface import Residuals
from d2s_ros.localization.covariance import (
    PoseUncertainty,
    covariance_of_pose,
    gradient_scatter,
    inverse_of,
)
from d2s_ros.localization.intrinsics_error import IntrinsicsError

Array = NDArray[np.float64]

#: The refinement ends when a step gains less than this share of the cost.
_SMALL_GAIN = 1e-4
#: Its steps are made longer by at most the inverse of this.
_MIN_STEP_SLOPE = 0.5


@dataclass(frozen=True)
class PoseSolverConfig:
    """Options of PnP-RANSAC and of the refinement."""

    max_reprojection_error_px: float = option(
        8.0, 'RANSAC inlier threshold at 1000 px focal length.', unit='px', minimum=0.5
    )
    max_iterations: int = option(10_000, 'Most RANSAC iterations.', minimum=10)
    min_iterations: int = option(20, 'Fewest RANSAC iterations.', minimum=10)
    refine_iterations: int = option(10, 'Most iterations of the refinement.', minimum=0)
    inlier_sigmas: float = option(
        4.0, 'Correspondences within this many sigmas are inliers.', minimum=1.0
    )
    cauchy_scale: float = option(
        1.0, 'Where the robust loss starts to give way, in sigmas.', minimum=0.1
    )
    min_sigma_px: float = option(
        0.2, 'Noise added to that of each keypoint: no detection is exact.', unit='px', minimum=0.0
    )
    seed: int = option(0, 'Seed of RANSAC: the same input gives the same pose.', minimum=0)

    def __post_init__(self) -> None:
        validate(self)

    def threshold_px(self, camera: Camera) -> float:
        """Return the RANSAC inlier threshold for images of a camera, px."""
        return max(self.max_reprojection_error_px * 0.5 * (camera.fx + camera.fy) / 1000.0, 3.0)


@dataclass(frozen=True, eq=False)
class Support:
    """Landmarks that a pose finds at keypoints which RANSAC was not given, or took for outliers.

    Attributes:
        keypoints: (S, 2) float64 ideal px.
        spread: Area of the two-sigma ellipse of these keypoints and the inliers over the image's.
        extent: Width of these landmarks and the inliers', as `PoseEstimate.extent`.
    """

    keypoints: Array
    spread: float
    extent: float

    @property
    def count(self) -> int:
        """Return how many there are."""
        return len(self.keypoints)


@dataclass(frozen=True, eq=False)
class PoseEstimate:
    """A pose found by `solve_pose`.

    Attributes:
        camera_from_map: The pose.
        uncertainty: What `covariance` and `rank_deficient` are taken from.
        inlier_mask: (N,) bool over the given correspondences.
        reprojection_errors_px: (N,) float64, infinite behind the camera.
        median_depth: Median distance of the inliers along the optical axis.
        inlier_scatter_px: (2, 2) float64 second moment of the inliers' ideal pixels.
        extent: Width of the inliers' points, two sigma to both sides, in the second widest
            direction; unit of the map.
        guided_pairs: (K, 2) keypoints and landmarks that `refine_guided` refined it on.
        support: What the pose found beside its inliers, if it was asked to.
        focal_error: What `focal_error` gives for the guided pairs; nothing known: 0 and infinity.
        intrinsics_error: What `intrinsics_error` gives for them; None if nothing is known.
        covariance_factor: What the solver's covariance is multiplied by.
    """

    camera_from_map: RigidTransform
    uncertainty: PoseUncertainty
    inlier_mask: NDArray[np.bool_]
    reprojection_errors_px: Array
    median_depth: float
    inlier_scatter_px: Array
    extent: float
    guided_pairs: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    support: Support | None = None
    focal_error: tuple[float, float] = (0.0, float('inf'))
    intrinsics_error: IntrinsicsError | None = None
    covariance_factor: float = 1.0

    @property
    def covariance(self) -> Array:
        """(6, 6) float64 of map_from_camera in ROS order.

        Translation of the camera centre along the map axes, then rotation about the fixed map axes
        (m^2, rad^2).
        """
        return self.uncertainty.found[0] * self.covariance_factor

    @property
    def rank_deficient(self) -> bool:
        """Whether the geometry leaves at least one direction undetermined."""
        return self.uncertainty.found[1]

    def spread(self, camera: Camera) -> float:
        """Return the area of the inliers' two-sigma ellipse over that of the image."""
        return ellipse_area(self.inlier_scatter_px) / (camera.width * camera.height)

    def scaled(self, factor: float) -> PoseEstimate:
        """Return the estimate with its covariances multiplied by a factor."""
        change, sigma = self.focal_error
        intrinsics = self.intrinsics_error
        return replace(
            self,
            covariance_factor=self.covariance_factor * factor,
            focal_error=(change, sigma * factor**0.5),
            intrinsics_error=None if intrinsics is None else intrinsics.scaled(factor),
        )


def solve_pose(
    ideal_keypoints: Array,
    points_in_map: Array,
    camera: Camera,
    *,
    sigmas_px: Array,
    point_covariances: Array | None = None,
    config: PoseSolverConfig | None = None,
    rounds: int = 2,
) -> PoseEstimate | None:
    """Estimate camera_from_map from correspondences, most reliable first.

    Args:
        ideal_keypoints: (N, 2) float64 undistorted px of `camera.ideal`.
        points_in_map: (N, 3) float64 scene coordinates.
        camera: Intrinsics; distortion tells how the noise of keypoints is stretched.
        sigmas_px: (N,) standard deviation of each keypoint in px of the image.
        point_covariances: (N, 3, 3) covariance of each scene coordinate, or None for exact ones.
        config: Options.
        rounds: Of the refinement; one will do where `refine_guided` follows.

    Returns:
        None if no pose explains at least four correspondences.
    """
    config = config or PoseSolverConfig()
    if len(ideal_keypoints) < 4:
        return None
    threshold = config.threshold_px(camera)
    search = RansacConfig(threshold, config.max_iterations, config.min_iterations, config.seed)
    found = find_pose(ideal_keypoints, points_in_map, camera, search)
    if found is None:
        return None
    start, candidates = found
    refined, uncertainty = refine_pose(
        start,
        ideal_keypoints,
        points_in_map,
        camera,
        sigmas_px,
        point_covariances,
        candidates,
        config,
        rounds=rounds,
    )
    return estimate_at(
        refined,
        uncertainty,
        ideal_keypoints,
        points_in_map,
        camera,
        sigmas_px,
        point_covariances,
        config,
    )


def estimate_at(
    camera_from_map: RigidTransform,
    uncertainty: PoseUncertainty,
    ideal_keypoints: Array,
    points_in_map: Array,
    camera: Camera,
    sigmas_px: Array,
    point_covariances: Array | None,
    config: PoseSolverConfig,
) -> PoseEstimate | None:
    """Return what a refined pose says of its correspondences; None if it explains less than four.

    Args:
        camera_from_map, uncertainty: The pose.
        ideal_keypoints, points_in_map, camera, sigmas_px, point_covariances, config: As for
            `solve_pose`.
    """
    errors, in_camera = reprojection_errors(camera_from_map, ideal_keypoints, points_in_map, camera)
    problem = residuals_of(
        ideal_keypoints, points_in_map, camera, sigmas_px, point_covariances, config
    )
    problem.whiten(camera_from_map.rotation, camera_from_map.translation)
    squared = problem.squared(camera_from_map.rotation, camera_from_map.translation)
    inliers = (in_camera[:, 2] > 1e-6) & (squared <= config.inlier_sigmas**2)
    inliers &= errors <= config.threshold_px(camera)
    if inliers.sum() < 4:
        return None
    return PoseEstimate(
        camera_from_map,
        uncertainty,
        inliers,
        errors,
        median_of(in_camera[inliers, 2]),
        scatter_of(ideal_keypoints[inliers]),
        extent_of(points_in_map[inliers]),
    )


def reprojection_errors(
    camera_from_map: RigidTransform, ideal_keypoints: Array, points_in_map: Array, camera: Camera
) -> tuple[Array, Array]:
    """Return errors (N,) in px (infinite behind the camera) and points in the camera (N, 3)."""
    in_camera = camera_from_map.apply(points_in_map)
    errors = np.linalg.norm(_project(in_camera, camera) - ideal_keypoints, axis=1)
    errors[in_camera[:, 2] <= 1e-6] = np.inf
    return errors, in_camera


def _project(in_camera: Array, camera: Camera) -> Array:
    depth = np.where(in_camera[:, 2:] > 1e-6, in_camera[:, 2:], 1e-6)
    return in_camera[:, :2] / depth * [camera.fx, camera.fy] + [camera.cx, camera.cy]


def residuals_of(
    keypoints: Array,
    points: Array,
    camera: Camera,
    sigmas_px: Array,
    point_covariances: Array | None,
    config: PoseSolverConfig,
) -> Residuals:
    """Return the residuals of correspondences, each with its own noise (`refine_pose`)."""
    variances = ideal_variances(np.square(sigmas_px) + config.min_sigma_px**2, keypoints, camera)
    return kernels.active().residuals(
        keypoints,
        points,
        (camera.fx, camera.fy, camera.cx, camera.cy),
        variances,
        point_covariances,
        config.cauchy_scale,
    )


def refine_pose(
    camera_from_map: RigidTransform,
    ideal_keypoints: Array,
    points_in_map: Array,
    camera: Camera,
    sigmas_px: Array,
    point_covariances: Array | None,
    mask: NDArray[np.bool_],
    config: PoseSolverConfig,
    *,
    rounds: int = 2,
) -> tuple[RigidTransform, PoseUncertainty]:
    """Minimise the Cauchy loss of whitened residuals, see `minimise`, over those in a mask (N,)."""
    problem = residuals_of(
        ideal_keypoints[mask],
        points_in_map[mask],
        camera,
        sigmas_px[mask],
        None if point_covariances is None else point_covariances[mask],
        config,
    )
    return minimise(problem, camera_from_map, int(np.count_nonzero(mask)), config, rounds=rounds)


def minimise(
    problem: Residuals,
    camera_from_map: RigidTransform,
    count: int,
    config: PoseSolverConfig,
    *,
    rounds: int,
) -> tuple[RigidTransform, PoseUncertainty]:
    """Minimise the Cauchy loss of whitened residuals by iteratively reweighted Gauss-Newton.

    The tangent is a rotation and translation applied on the left of camera_from_map (camera axes).
    Residuals are whitened at the start of each of `rounds` rounds, which share the iterations:
    the weights depend weakly on the pose.

    Args:
        problem: The residuals.
        camera_from_map: Where to start.
        count: Number of residuals.
        config: Options.
        rounds: Times that the residuals are whitened.

    Returns:
        The pose and its covariance at the optimum.
    """
    rotation, translation = camera_from_map.rotation, camera_from_map.translation
    for _ in range(rounds):
        problem.whiten(rotation, translation)
        damping = 1e-6
        at = problem.linearise(rotation, translation)
        for _ in range(config.refine_iterations // rounds):
            step = damped_step(at.information, at.gradient, damping)
            if damping < 1e-4:
                # Reweighting alone goes the slope's share of the way.
                step /= max(at.slope, _MIN_STEP_SLOPE)
            turn = rotation_from_vector(step[:3])
            candidate = turn @ rotation, turn @ translation + step[3:]
            there = problem.linearise(*candidate)
            # A cost that is not a number is no better either.
            if not there.cost <= at.cost or not there.all_in_front:
                damping = max(damping, 1e-4) * 10
                if damping > 1e3:
                    break
                continue
            gain, cost = at.cost - there.cost, at.cost
            (rotation, translation), at = candidate, there
            damping = max(damping / 10, 1e-9)
            if gain < _SMALL_GAIN * cost:
                break
    pose = RigidTransform(rotation, translation)

    def covariance() -> tuple[Array, bool]:
        scatter = gradient_scatter(
            problem, pose, at, inverse_of(at.information), count, config.cauchy_scale
        )
        return covariance_of_pose(pose, at.information, scatter)

    return pose, PoseUncertainty(covariance)


def damped_step(information: Array, gradient: Array, damping: float) -> Array:
    """Return the step of Levenberg and Marquardt, (6,)."""
    damped = information.copy()
    damped.flat[:: len(information) + 1] *= 1.0 + damping
    try:
        return np.asarray(-np.linalg.solve(damped, gradient))
    except np.linalg.LinAlgError:
        # Something has no influence at all, as the depth of points that lie infinitely far away.
        return np.asarray(-np.linalg.lstsq(damped, gradient, rcond=None)[0])
