"""What the correspondences of a pose tell of the intrinsics of the camera.

A pose may hide most of a wrong principal point, ratio of focal lengths or distortion: it turns and
moves until the middle of the image fits, and what lies further out is taken for outliers. So pose
and intrinsics are found together, from all candidates that what was found so far brings close.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera, projection_jacobian
from d2s_ros.geometry.noise import ideal_variances
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.kernels.interface import influence_slope
from d2s_ros.localization.covariance import blended_scatter, inverse_of
from d2s_ros.localization.focal_length import focal_error
from d2s_ros.localization.guided_refinement import (
    CandidateMatches,
    most_similar_close,
)
from d2s_ros.localization.intrinsics_error import PRIOR, IntrinsicsError
from d2s_ros.localization.pose_solver import PoseEstimate, PoseSolverConfig

Array = NDArray[np.float64]

#: Steps that change nothing by more than this are the last.
_SMALL = np.array([0.02, 0.01, 0.01, 0.01, 0.02])
#: After each step candidates within so many inlier thresholds are chosen: what a wrong calibration
#: took for outliers comes in first.
_RADII = (4.5, 2.25, 1.5, 1.5, 1.5, 1.5, 1.5)
#: Fewer pairs than this tell nothing beside their pose.
_FEWEST_PAIRS = 12
#: A step is no longer than this share of the prior, and one of fewer sigmas the last.
_LONGEST_STEP, _LAST_STEP = 0.5, 0.2
#: Reweighting alone goes a share of the way; steps are made longer by at most the inverse of this.
_MIN_STEP_SLOPE = 0.5
#: Distortion is that of this radius further out, in focal lengths: polynomials run away there.
_FULL_RADIUS = 1.0


class _Linearised(NamedTuple):
    """Normal equations of pose and intrinsics, eleven unknowns, and how uncertain they are.

    `explained` is how much more likely residuals are than outliers, natural logarithm.
    """

    information: Array
    gradient: Array
    scatter: Array
    slope: float
    explained: float


def with_intrinsics_error(
    estimate: PoseEstimate, matches: CandidateMatches, config: PoseSolverConfig
) -> PoseEstimate:
    """Return the estimate with what its guided pairs say of focal length and intrinsics.

    The focal length is found alone as well: with one unknown more than the pose it is told from
    images that could not tell which of five is wrong.
    """
    pose, pairs = estimate.camera_from_map, estimate.guided_pairs
    if not len(pairs):
        return estimate
    few = len(pairs) < _FEWEST_PAIRS
    return replace(
        estimate,
        focal_error=focal_error(pose, *matches.correspondences(pairs), config),
        intrinsics_error=None if few else intrinsics_error(pose, pairs, matches, config),
    )


def intrinsics_error(
    camera_from_map: RigidTransform,
    pairs: NDArray[np.int64],
    matches: CandidateMatches,
    config: PoseSolverConfig,
) -> IntrinsicsError | None:
    """Return what an image tells of its intrinsics; None where that cannot be computed.

    Args:
        camera_from_map: A pose that is optimal for the intrinsics given.
        pairs: (K, 2) keypoints and landmarks that it was refined on.
        matches: Candidates of all keypoints.
        config: Options.
    """
    pose, change, given = camera_from_map, np.zeros(5), matches
    threshold = config.threshold_px(matches.camera)
    prior = np.zeros((11, 11))
    prior[6:, 6:] = np.diag(1.0 / np.square(PRIOR))
    explained, found = [], []
    for radius in (*_RADII, None):
        at = _linearise(pose, pairs, matches, prior, config)
        information = at.information + prior
        gradient = at.gradient.copy()
        gradient[6:] += change / np.square(PRIOR)
        inverse = inverse_of(information)
        step = -inverse @ gradient / max(at.slope, _MIN_STEP_SLOPE)
        covariance = (inverse @ at.scatter @ inverse)[6:, 6:]
        if not np.isfinite(step).all():
            break
        step *= min(1.0, _LONGEST_STEP / float(np.max(np.abs(step[6:]) / PRIOR)))
        turn = rotation_from_vector(step[:3])
        pose = RigidTransform(turn @ pose.rotation, turn @ pose.translation + step[3:6])
        change = change + step[6:]
        explained.append(at.explained)
        found.append((at, change))
        small = np.abs(step[6:]) < _SMALL
        noise = covariance + np.diag(np.square(0.1 * _SMALL))
        sigmas = float(step[6:] @ np.linalg.solve(noise, step[6:])) ** 0.5
        if radius is None or small.all() or sigmas < _LAST_STEP:
            break
        matches = replace(given, ideal_keypoints=_as_given(given, change))
        pairs = most_similar_close(matches, pose, radius * threshold)
        if len(pairs) < _FEWEST_PAIRS:
            break
    if not found:
        return None
    best = int(np.argmax(explained))
    return _without_pose(*found[best], explained[best] - explained[0], given.camera)


def _without_pose(at: _Linearised, change: Array, gain: float, camera: Camera) -> IntrinsicsError:
    """Return what is known of the intrinsics, whatever the pose is."""
    by_pose = at.information[6:, :6] @ inverse_of(at.information[:6, :6])
    information = at.information[6:, 6:] - by_pose @ at.information[:6, 6:]
    reduced = np.hstack([-by_pose, np.eye(5)])
    # Nothing is known where nothing was observed: neither information nor scatter.
    scatter = reduced @ at.scatter @ reduced.T + np.diag(1e-3 / np.square(PRIOR))
    weighted = np.linalg.solve(scatter, information).T
    # The change is the optimum under the prior.
    pulled = information @ change + change / np.square(PRIOR)
    focal_px = 0.5 * (camera.fx + camera.fy)
    return IntrinsicsError(weighted @ information, weighted @ pulled, focal_px, gain)


def _as_given(matches: CandidateMatches, change: Array) -> Array:
    """Return where keypoints (N, 2) would lie if the intrinsics given were right and these are."""
    camera = matches.camera
    focal, center = _pinhole(camera)
    scale = focal * np.exp(change[0] + 0.5 * change[1] * np.array([1.0, -1.0]))
    bent = (matches.ideal_keypoints - center - focal.mean() * change[2:4]) / scale
    radius = np.hypot(*bent.T)
    straight = radius.copy()
    k1 = max(change[4], -0.3)
    for _ in range(3):
        slope = 1.0 + 3.0 * k1 * np.square(straight)
        straight -= (straight * (1.0 + k1 * np.square(straight)) - radius) / slope
        straight = np.clip(straight, 0.0, _FULL_RADIUS)
    growth = np.where(radius < 1.0 + k1, straight / np.maximum(radius, 1e-12), 1.0 / (1.0 + k1))
    return np.asarray(bent * growth[:, None] * focal + center)


def _pinhole(camera: Camera) -> tuple[Array, Array]:
    return np.array([camera.fx, camera.fy]), np.array([camera.cx, camera.cy])


def _linearise(
    pose: RigidTransform,
    pairs: NDArray[np.int64],
    matches: CandidateMatches,
    prior: Array,
    config: PoseSolverConfig,
) -> _Linearised:
    """Return the normal equations at a pose, at no change of the intrinsics."""
    keypoints, points, camera, sigmas_px, covariances = matches.correspondences(pairs)
    in_camera = pose.apply(points)
    jacobian, error = _residuals(in_camera, keypoints, camera)
    by_map = projection_jacobian(in_camera, camera) @ pose.rotation
    noise = by_map @ covariances @ by_map.transpose(0, 2, 1)
    uu, uv, vv = ideal_variances(np.square(sigmas_px) + config.min_sigma_px**2, keypoints, camera).T
    # Rounded covariances of points may have negative directions: no noise is below the keypoint's.
    first = 1.0 / np.sqrt(np.maximum(noise[:, 0, 0], 0.0) + uu)
    mixed = (noise[:, 0, 1] + uv) * first
    second = 1.0 / np.sqrt(np.maximum(noise[:, 1, 1] + vv - np.square(mixed), vv - uv * uv / uu))
    for values in (jacobian, error):
        values[0] *= first[:, None]
        values[1] = (values[1] - values[0] * mixed[:, None]) * second[:, None]
    weight = 1.0 / (1.0 + np.square(error).sum(axis=(0, 2)) / config.cauchy_scale**2)
    slope = influence_slope(float(weight.sum()), float(weight @ weight))
    weighted = jacobian * weight[:, None]
    information = weighted.reshape(-1, 11).T @ jacobian.reshape(-1, 11)
    scores = (weighted * error).sum(axis=0)
    gradient = scores.sum(axis=0)
    share = ((weighted @ inverse_of(information + prior)) * jacobian).sum(axis=(0, 2))
    scores /= (np.maximum(1.0 - share, 0.5) * slope)[:, None]
    scatter = blended_scatter(scores.T @ scores, information, len(pairs), config.cauchy_scale)
    outlier = np.log1p(np.square(config.inlier_sigmas / config.cauchy_scale))
    explained = float(np.maximum(outlier + np.log(weight), 0.0).sum())
    return _Linearised(information, gradient, scatter, slope, explained)


def _residuals(in_camera: Array, keypoints: Array, camera: Camera) -> tuple[Array, Array]:
    """Return the derivatives (2, N, 11) of the errors by pose and intrinsics, and these (2, N, 1).

    The tangent of the pose is a rotation and translation applied on its left (camera axes).
    """
    x, y, z = in_camera.T
    focal, center = _pinhole(camera)
    along = in_camera[:, :2] / np.maximum(z, 1e-6)[:, None]
    by_point = projection_jacobian(in_camera, camera).transpose(1, 0, 2)
    jacobian = np.empty((2, len(in_camera), 11))
    jacobian[:, :, 0] = by_point[:, :, 2] * y - by_point[:, :, 1] * z
    jacobian[:, :, 1] = by_point[:, :, 0] * z - by_point[:, :, 2] * x
    jacobian[:, :, 2] = by_point[:, :, 1] * x - by_point[:, :, 0] * y
    jacobian[:, :, 3:6] = by_point
    offset = (along * focal).T
    jacobian[:, :, 6] = offset
    jacobian[:, :, 7] = offset * np.array([[0.5], [-0.5]])
    jacobian[:, :, 8:10] = focal.mean() * np.eye(2)[:, None]
    jacobian[:, :, 10] = offset * np.minimum(np.square(along).sum(axis=1), _FULL_RADIUS**2)
    error = offset + center[:, None] - keypoints.T
    return jacobian, error[:, :, None]
