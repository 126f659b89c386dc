"""PnP-RANSAC: poselib's where it is installed, else OpenCV's, behind one contract.

poselib is faster, and its poses are what everything was measured with. It has no wheels for ARM;
OpenCV has. Either way the pose is refined afterwards, so that both end in the same place.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RansacConfig:
    """How long to search.

    Attributes:
        threshold_px: Largest reprojection error of an inlier.
        max_iterations, min_iterations: Most and fewest samples; OpenCV knows no fewest.
        seed: The same input gives the same pose.
    """

    threshold_px: float
    max_iterations: int
    min_iterations: int
    seed: int


#: Takes ideal keypoints (N, 2) px, points (N, 3) in the map, the camera and the options; returns
#: camera_from_map and the inliers (N,) bool, or None.
Solver = Callable[
    [Array, Array, Camera, RansacConfig], 'tuple[RigidTransform, NDArray[np.bool_]] | None'
]


@lru_cache(maxsize=1)
def solver_name() -> str:
    """Return 'poselib' where it is installed, else 'opencv'."""
    return 'opencv' if importlib.util.find_spec('poselib') is None else 'poselib'


def find_pose(
    ideal_keypoints: Array, points_in_map: Array, camera: Camera, config: RansacConfig
) -> tuple[RigidTransform, NDArray[np.bool_]] | None:
    """Return camera_from_map and its inliers (N,) bool; None without four of them.

    Args:
        ideal_keypoints: (N, 2) float64 undistorted px, most reliable first.
        points_in_map: (N, 3) float64.
        camera: Intrinsics; distortion is ignored.
        config: How long to search.
    """
    if len(ideal_keypoints) < 4:
        return None
    found = SOLVERS[solver_name()](ideal_keypoints, points_in_map, camera, config)
    if found is None or found[1].sum() < 4:
        return None
    pose = found[0]
    if not np.isfinite(pose.translation).all() or not np.isfinite(pose.rotation).all():
        return None
    return found


def _by_poselib(
    ideal_keypoints: Array, points_in_map: Array, camera: Camera, config: RansacConfig
) -> tuple[RigidTransform, NDArray[np.bool_]] | None:
    import poselib

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
            'max_reproj_error': config.threshold_px,
            'max_iterations': config.max_iterations,
            'min_iterations': config.min_iterations,
            'progressive_sampling': True,
            'seed': config.seed,
        },
        # Its last refinement is left to ours.
        {'max_iterations': 0},
    )
    if info['num_inliers'] < 4 or not np.isfinite(pose.t).all() or not np.isfinite(pose.q).all():
        return None
    inliers = np.asarray(info['inliers'], dtype=bool)
    return RigidTransform(np.asarray(pose.R), np.asarray(pose.t)), inliers


def _by_opencv(
    ideal_keypoints: Array, points_in_map: Array, camera: Camera, config: RansacConfig
) -> tuple[RigidTransform, NDArray[np.bool_]] | None:
    valid = np.isfinite(ideal_keypoints).all(axis=1) & np.isfinite(points_in_map).all(axis=1)
    if valid.sum() < 4:
        return None
    # It computes in float32: from the middle of the points, not from the origin of the map.
    middle = np.median(points_in_map[valid], axis=0)
    opencv: Any = cv2  # the stubs of some versions lack these
    options = opencv.UsacParams()
    options.confidence = 0.9999
    options.isParallel = False
    # More of it takes ten times as long for the same poses.
    options.loIterations = 5
    options.loMethod = opencv.LOCAL_OPTIM_INNER_LO
    options.loSampleSize = 12
    options.maxIterations = config.max_iterations
    options.randomGeneratorState = config.seed
    # Its PROSAC ends early where the first correspondences agree on a wrong pose.
    options.sampler = opencv.SAMPLING_UNIFORM
    options.score = opencv.SCORE_METHOD_MSAC
    options.threshold = config.threshold_px
    try:
        found, _, rotation, translation, rows = opencv.solvePnPRansac(
            np.ascontiguousarray(points_in_map[valid] - middle),
            np.ascontiguousarray(ideal_keypoints[valid]),
            camera.matrix,
            None,
            params=options,
        )
    except cv2.error:
        # Degenerate input: all points in one place, or on one line.
        return None
    if not found or rows is None:
        return None
    matrix = cv2.Rodrigues(rotation)[0]
    pose = RigidTransform(matrix, np.asarray(translation, np.float64).reshape(3) - matrix @ middle)
    inliers = np.zeros(len(ideal_keypoints), bool)
    inliers[np.flatnonzero(valid)[np.asarray(rows).reshape(-1)]] = True
    # It takes points behind the camera for ones in front of it.
    inliers &= pose.apply(points_in_map)[:, 2] > 0
    return pose, inliers


SOLVERS: dict[str, Solver] = {'poselib': _by_poselib, 'opencv': _by_opencv}
