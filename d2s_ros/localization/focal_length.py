"""What the correspondences of a pose tell of the focal length of the camera."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.localization.covariance import gradient_scatter, inverse_of
from d2s_ros.localization.pose_solver import PoseSolverConfig, damped_step, residuals_of

Array = NDArray[np.float64]

#: Standard deviation of focal lengths that are wrong, in logarithms; most steps to find one, and
#: the sigmas below which none is looked for.
_FOCAL_PRIOR, _FOCAL_ROUNDS, _FOCAL_CLEAR_SIGMAS = 0.1, 8, 4.0


def focal_error(
    camera_from_map: RigidTransform,
    ideal_keypoints: Array,
    points_in_map: Array,
    camera: Camera,
    sigmas_px: Array,
    point_covariances: Array | None,
    config: PoseSolverConfig,
) -> tuple[float, float]:
    """Return how far the focal length is from the one that fits best, and the standard deviation.

    Both are logarithms: 0.1 says that the image was taken with a focal length 10 % longer than
    `camera` has. Found by Gauss-Newton over pose and focal length, from a pose that is optimal for
    the focal length given. Where that fits, one step tells it.

    Args:
        camera_from_map: The pose.
        ideal_keypoints, points_in_map, camera, sigmas_px, point_covariances, config: As for
            `refine_pose`, without what is not used.
    """
    pose, found, sigma = camera_from_map, 0.0, float('inf')
    for _ in range(_FOCAL_ROUNDS):
        factor = float(np.exp(found))
        zoomed = replace(camera, fx=camera.fx * factor, fy=camera.fy * factor)
        problem = residuals_of(
            ideal_keypoints, points_in_map, zoomed, sigmas_px, point_covariances, config
        )
        problem.whiten(pose.rotation, pose.translation)
        at = problem.linearise(pose.rotation, pose.translation, with_focal=True)
        information, gradient = at.information, at.gradient
        # No lens is off by more than some tens of per cent; some views tell nothing about it.
        information[6, 6] += 1.0 / _FOCAL_PRIOR**2
        gradient[6] += found / _FOCAL_PRIOR**2
        step = damped_step(information, gradient, 1e-6)
        inverse = inverse_of(information)
        scatter = gradient_scatter(
            problem, pose, at, inverse, len(points_in_map), config.cauchy_scale
        )
        sigma = float(np.sqrt(max((inverse @ scatter @ inverse)[6, 6], 0.0)))
        # A step of reweighting is shorter than the way by the slope of the influence.
        whole = float(step[6]) / at.slope
        if abs(found + whole) < _FOCAL_CLEAR_SIGMAS * sigma or abs(whole) < 0.1 * sigma:
            return found + whole, sigma
        step *= min(1.0, _FOCAL_PRIOR / abs(step[6]))
        rotation = rotation_from_vector(step[:3])
        pose = RigidTransform(rotation @ pose.rotation, rotation @ pose.translation + step[3:6])
        found += float(step[6])
    return found, sigma
