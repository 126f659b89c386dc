"""2D-3D correspondences to a camera pose with covariance.

PnP-RANSAC is poselib's. The pose is then refined on whitened reprojection errors: each keypoint
weighs by its own detection noise and by the uncertainty of its scene coordinate, under a robust
Cauchy loss. The covariance is that of the robust estimate under the noise which the residuals of
the image show (the sandwich estimator), drawn towards the noise of the given size where they are
few.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import poselib
from numpy.typing import NDArray

from d2s_ros.config import option, validate
from d2s_ros.geometry.cameras import Camera, projection_jacobian
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector

Array = NDArray[np.float64]

#: Correspondences that the noise of the given size counts for beside what the residuals show.
_PRIOR_COUNT = 50
#: Where most residuals are outliers the robust loss is flat: the covariance ends here.
_MIN_SLOPE = 0.1


@dataclass(frozen=True)
class PoseSolverConfig:
    """Options of PnP-RANSAC and of the refinement."""

    max_reprojection_error_px: float = option(
        8.0, 'RANSAC inlier threshold at 1000 px focal length.', unit='px', minimum=0.5
    )
    max_iterations: int = option(10_000, 'Most RANSAC iterations.', minimum=10)
    min_iterations: int = option(100, 'Fewest RANSAC iterations.', minimum=10)
    refine_iterations: int = option(10, 'Most iterations of the refinement.', minimum=0)
    inlier_sigmas: float = option(
        4.0, 'Correspondences within this many sigmas are inliers.', minimum=1.0
    )
    cauchy_scale: float = option(
        1.5, 'Where the robust loss starts to give way, in sigmas.', minimum=0.1
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
class PoseEstimate:
    """A pose found by `solve_pose`.

    Attributes:
        camera_from_map: The pose.
        covariance: (6, 6) float64 of map_from_camera in ROS order: translation of the camera
            centre along the map axes, then rotation about the fixed map axes (m^2, rad^2).
        inlier_mask: (N,) bool over the given correspondences.
        reprojection_errors_px: (N,) float64, infinite behind the camera.
        rank_deficient: The geometry leaves at least one direction undetermined.
        median_depth: Median distance of the inliers along the optical axis.
        inlier_scatter_px: (2, 2) float64 second moment of the inliers' ideal pixels.
        extent: Width of the inliers' points, two sigma to both sides, in the second widest
            direction; unit of the map.
    """

    camera_from_map: RigidTransform
    covariance: Array
    inlier_mask: NDArray[np.bool_]
    reprojection_errors_px: Array
    rank_deficient: bool
    median_depth: float
    inlier_scatter_px: Array
    extent: float

    def spread(self, camera: Camera) -> float:
        """Return the area of the inliers' two-sigma ellipse over that of the image."""
        determinant = float(np.linalg.det(self.inlier_scatter_px))
        return float(4 * np.pi * np.sqrt(max(determinant, 0.0)) / (camera.width * camera.height))


def solve_pose(
    ideal_keypoints: Array,
    points_in_map: Array,
    camera: Camera,
    *,
    sigmas_px: Array,
    point_covariances: Array | None = None,
    config: PoseSolverConfig | None = None,
) -> PoseEstimate | None:
    """Estimate camera_from_map from correspondences, most reliable first.

    Args:
        ideal_keypoints: (N, 2) float64 undistorted px of `camera.ideal`.
        points_in_map: (N, 3) float64 scene coordinates.
        camera: Intrinsics; distortion is ignored here.
        sigmas_px: (N,) standard deviation of each keypoint in px.
        point_covariances: (N, 3, 3) covariance of each scene coordinate, or None for exact ones.
        config: Options.

    Returns:
        None if no pose explains at least four correspondences.
    """
    config = config or PoseSolverConfig()
    if len(ideal_keypoints) < 4:
        return None
    threshold = config.threshold_px(camera)
    pose, info = poselib.estimate_absolute_pose(
        ideal_keypoints,
        points_in_map,
        {
            'model': 'PINHOLE',
            'width': camera.width,
            'height': camera.height,
            'params': [camera.fx, camera.fy, camera.cx, camera.cy],
        },
        {
            'max_reproj_error': threshold,
            'max_iterations': config.max_iterations,
            'min_iterations': config.min_iterations,
            'progressive_sampling': True,
            'seed': config.seed,
        },
        {'loss_type': 'CAUCHY', 'loss_scale': 1.0},
    )
    if info['num_inliers'] < 4 or not np.isfinite(pose.t).all() or not np.isfinite(pose.q).all():
        return None
    start = RigidTransform(np.asarray(pose.R), np.asarray(pose.t))
    candidates = np.asarray(info['inliers'], dtype=bool)
    refined, information, scatter = refine_pose(
        start,
        ideal_keypoints,
        points_in_map,
        camera,
        sigmas_px,
        point_covariances,
        candidates,
        config,
    )
    errors, in_camera = reprojection_errors(refined, ideal_keypoints, points_in_map, camera)
    sigmas = np.hypot(sigmas_px, config.min_sigma_px)
    whitening, _ = _whitening(refined, in_camera, camera, sigmas, point_covariances)
    residuals = _project(in_camera, camera) - ideal_keypoints
    squared = np.square(np.einsum('nij,nj->ni', whitening, residuals)).sum(axis=1)
    inliers = (in_camera[:, 2] > 1e-6) & (squared <= config.inlier_sigmas**2)
    inliers &= errors <= threshold
    if inliers.sum() < 4:
        return None
    covariance, rank_deficient = covariance_of_pose(refined, information, scatter)
    return PoseEstimate(
        refined,
        covariance,
        inliers,
        errors,
        rank_deficient,
        float(np.median(in_camera[inliers, 2])),
        np.cov(ideal_keypoints[inliers].T),
        _extent(points_in_map[inliers]),
    )


def _extent(points: Array) -> float:
    variances = np.linalg.eigvalsh(np.cov(points.T))
    return float(4.0 * np.sqrt(max(variances[1], 0.0)))


def refine_guided(
    estimate: PoseEstimate,
    ideal_keypoints: Array,
    points_in_map: Array,
    similarity: Array,
    landmark_idx: NDArray[np.int64],
    camera: Camera,
    *,
    sigmas_px: Array,
    point_covariances: Array,
    min_similarity: float,
    config: PoseSolverConfig,
) -> PoseEstimate:
    """Refine a pose on every candidate landmark that it brings close to its keypoint.

    The pose knows better than descriptors which candidates are right, so it is given many more
    correspondences than RANSAC was. Inliers and spread stay those of RANSAC: matches chosen by a
    pose are no evidence for it.

    Args:
        estimate: From `solve_pose`.
        ideal_keypoints: (N, 2) float64 undistorted px of `camera.ideal`, NaN if none.
        points_in_map: (M, 3) float64 landmarks.
        similarity: (N, C) cosines of each keypoint's candidates, best first.
        landmark_idx: (N, C) rows of `points_in_map`.
        camera: Intrinsics; distortion is ignored here.
        sigmas_px: (N,) standard deviation of each keypoint.
        point_covariances: (M, 3, 3).
        min_similarity: Candidates below are not used.
        config: Options.

    Returns:
        The refined estimate, or the given one if the candidates are fewer than its inliers.
    """
    shape = landmark_idx.shape
    in_camera = estimate.camera_from_map.apply(points_in_map[landmark_idx.reshape(-1)])
    projected = _project(in_camera, camera).reshape(*shape, 2)
    error = np.linalg.norm(projected - ideal_keypoints[:, None], axis=-1)
    with np.errstate(invalid='ignore'):
        close = error <= 1.5 * config.threshold_px(camera)
    close &= (similarity >= min_similarity) & (in_camera[:, 2] > 1e-6).reshape(shape)
    # The most similar of those that are close, and each landmark's most similar keypoint.
    keypoint_idx = np.flatnonzero(close.any(axis=1))
    choice = close[keypoint_idx].argmax(axis=1)
    landmarks = landmark_idx[keypoint_idx, choice]
    order = np.argsort(-similarity[keypoint_idx, choice], kind='stable')
    _, first = np.unique(landmarks[order], return_index=True)
    chosen = order[first]
    if len(chosen) < estimate.inlier_mask.sum():
        return estimate
    keypoint_idx, landmarks = keypoint_idx[chosen], landmarks[chosen]
    refined, information, scatter = refine_pose(
        estimate.camera_from_map,
        ideal_keypoints[keypoint_idx],
        points_in_map[landmarks],
        camera,
        sigmas_px[keypoint_idx],
        point_covariances[landmarks],
        np.ones(len(landmarks), bool),
        config,
    )
    covariance, rank_deficient = covariance_of_pose(refined, information, scatter)
    return replace(
        estimate,
        camera_from_map=refined,
        covariance=covariance,
        rank_deficient=rank_deficient,
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


def _whitening(
    camera_from_map: RigidTransform,
    in_camera: Array,
    camera: Camera,
    sigmas_px: Array,
    point_covariances: Array | None,
) -> tuple[Array, Array]:
    """Return W (N, 2, 2) with W S W^T = I for each residual's covariance S, and the Jacobians."""
    jacobian = projection_jacobian(in_camera, camera)
    covariance = np.square(sigmas_px)[:, None, None] * np.eye(2)
    if point_covariances is not None:
        by_point = jacobian @ camera_from_map.rotation
        covariance = covariance + by_point @ point_covariances @ by_point.transpose(0, 2, 1)
    # Closed form of the inverse of a 2x2 Cholesky factor.
    a, b, c = covariance[:, 0, 0], covariance[:, 0, 1], covariance[:, 1, 1]
    l11 = np.sqrt(np.maximum(a, 1e-12))
    l21 = b / l11
    l22 = np.sqrt(np.maximum(c - l21**2, 1e-12))
    whitening = np.zeros_like(covariance)
    whitening[:, 0, 0] = 1 / l11
    whitening[:, 1, 1] = 1 / l22
    whitening[:, 1, 0] = -l21 / (l11 * l22)
    return whitening, jacobian


def refine_pose(
    camera_from_map: RigidTransform,
    ideal_keypoints: Array,
    points_in_map: Array,
    camera: Camera,
    sigmas_px: Array,
    point_covariances: Array | None,
    mask: NDArray[np.bool_],
    config: PoseSolverConfig,
) -> tuple[RigidTransform, Array, Array]:
    """Minimise the Cauchy loss of whitened residuals by iteratively reweighted Gauss-Newton.

    The tangent is a rotation and translation applied on the left of camera_from_map (camera axes).

    Returns:
        The pose, the information matrix (6, 6), rotation first, at the optimum, and the scatter
        (6, 6) of the gradient there: see `covariance_of_pose`.
    """
    keypoints, points = ideal_keypoints[mask], points_in_map[mask]
    sigmas = np.hypot(sigmas_px[mask], config.min_sigma_px)
    covariances = None if point_covariances is None else point_covariances[mask]
    pose = camera_from_map
    in_camera = pose.apply(points)
    # Whitening depends weakly on the pose: it is fixed at the start of each of two rounds.
    information = np.zeros((6, 6))
    scores, slopes = np.zeros((0, 6)), np.zeros(0)
    scale = config.cauchy_scale**2
    for _ in range(2):
        whitening, _ = _whitening(pose, in_camera, camera, sigmas, covariances)
        damping, cost = 1e-6, np.inf
        for _ in range(max(1, config.refine_iterations // 2)):
            residual = np.einsum('nij,nj->ni', whitening, _project(in_camera, camera) - keypoints)
            squared = np.square(residual).sum(axis=1)
            weight = 1.0 / (1.0 + squared / scale)
            cost = float((scale * np.log1p(squared / scale)).sum())
            by_point = projection_jacobian(in_camera, camera)
            jacobian = np.concatenate([-by_point @ _skews(in_camera), by_point], axis=2)
            jacobian = whitening @ jacobian
            flat = (jacobian * np.sqrt(weight)[:, None, None]).reshape(-1, 6)
            information = flat.T @ flat
            scores = np.einsum('nij,ni->nj', jacobian, residual * weight[:, None])
            slopes = weight * (1.0 - weight * squared / scale)
            gradient = scores.sum(axis=0)
            if config.refine_iterations == 0:
                break
            step = -np.linalg.lstsq(
                information + damping * np.diag(np.diag(information)), gradient, rcond=None
            )[0]
            rotation = rotation_from_vector(step[:3])
            candidate = RigidTransform(
                rotation @ pose.rotation, rotation @ pose.translation + step[3:]
            )
            moved = candidate.apply(points)
            new_residual = np.einsum('nij,nj->ni', whitening, _project(moved, camera) - keypoints)
            new_cost = float((scale * np.log1p(np.square(new_residual).sum(axis=1) / scale)).sum())
            if new_cost > cost or (moved[:, 2] <= 0).any():
                damping = max(damping, 1e-4) * 10
                if damping > 1e3:
                    break
                continue
            pose, in_camera = candidate, moved
            damping = max(damping / 10, 1e-9)
            if cost - new_cost < 1e-6 * cost:
                break
    # An M-estimator has the covariance E[psi psi^T] / E[dpsi / dr]^2 (J^T J)^-1 for its influence
    # psi = w r; the information is E[w] J^T J. Both expectations are taken from the residuals.
    count = len(scores)
    slope = max(float(slopes.mean() / max(weight.mean(), 1e-12)), _MIN_SLOPE)
    observed = scores.T @ scores * (count / max(1, count - 6)) / slope**2
    expected = information * robust_inflation(config.cauchy_scale)
    scatter = (count * observed + _PRIOR_COUNT * expected) / (count + _PRIOR_COUNT)
    return pose, information, scatter


def _skews(vectors: Array) -> Array:
    zero = np.zeros(len(vectors))
    x, y, z = vectors.T
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)


@lru_cache(maxsize=16)
def robust_inflation(cauchy_scale: float) -> float:
    """Return the covariance of a Cauchy estimate over the inverse of its weighted information.

    With whitened residuals r of two normal components, s = |r|^2, weights w = 1 / (1 + s / c^2)
    and psi = w r, an M-estimator has the covariance E[psi psi^T] / E[dpsi / dr]^2 (J^T J)^-1, while
    the weighted information is E[w] J^T J.
    """
    # s / 2 is exponentially distributed: the midpoint rule over its quantiles.
    squared = -2.0 * np.log1p(-(np.arange(100_000) + 0.5) / 100_000)
    weight = 1.0 / (1.0 + squared / cauchy_scale**2)
    spread = float(np.mean(squared * weight**2))
    slope = float(np.mean(weight)) - spread / cauchy_scale**2
    return 0.5 * spread / slope**2 * float(np.mean(weight))


def covariance_of_pose(
    camera_from_map: RigidTransform, information: Array, scatter: Array | None = None
) -> tuple[Array, bool]:
    """Turn the information of the left tangent into the covariance of map_from_camera.

    Args:
        camera_from_map: The pose at the optimum.
        information: (6, 6) in the left tangent (rotation, translation; camera axes).
        scatter: (6, 6) covariance of the cost's gradient there; without, the information itself,
            as it is for normal noise of the given size.

    Returns:
        (6, 6) covariance in ROS order (centre along map axes, rotation about fixed map axes), and
        whether the information was rank deficient (the covariance is then huge, never small).
    """
    # Units differ between rotation and translation: scale to a unit diagonal before judging rank.
    diagonal = np.diag(information)
    diagonal = np.sqrt(np.maximum(diagonal, max(1e-18 * diagonal.max(), 1e-30)))
    values, vectors = np.linalg.eigh(information / np.outer(diagonal, diagonal))
    floor = 1e-10
    rank_deficient = bool(values[0] < floor)
    inverse = (vectors / np.maximum(values, floor)) @ vectors.T / np.outer(diagonal, diagonal)
    if scatter is not None and not rank_deficient:
        # The scatter knows nothing of directions that nothing was observed in.
        inverse = inverse @ scatter @ inverse
    # With x_camera = Exp(w) (R x_map + t) + v the camera's centre -R^T t moves by -R^T v, and its
    # axes turn about the fixed axes of the map by -R^T w, to first order.
    transport = np.zeros((6, 6))
    transport[:3, 3:] = -camera_from_map.rotation.T
    transport[3:, :3] = -camera_from_map.rotation.T
    covariance = transport @ inverse @ transport.T
    return 0.5 * (covariance + covariance.T), rank_deficient
