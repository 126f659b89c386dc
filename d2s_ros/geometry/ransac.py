"""PnP-RANSAC: poselib's where it is installed, else OpenCV's, behind one contract.

poselib is faster, and its poses are what everything was measured with. It has no wheels for ARM;
OpenCV has. Either way the pose is refined afterwards, so that both end in the same place.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.reprojection import reprojection_residuals
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


class CameraOfRig(NamedTuple):
    """The correspondences of one camera of a rig.

    Attributes:
        ideal_keypoints: (N, 2) float64 undistorted px, most reliable first.
        points_in_map: (N, 3) float64.
        camera: Intrinsics; distortion is ignored.
        camera_from_rig: Where the camera is on the rig.
        threshold_px: Largest reprojection error of an inlier.
    """

    ideal_keypoints: Array
    points_in_map: Array
    camera: Camera
    camera_from_rig: RigidTransform
    threshold_px: float


def find_rig_pose(
    cameras: Sequence[CameraOfRig], config: RansacConfig
) -> tuple[RigidTransform, list[NDArray[np.bool_]]] | None:
    """Return rig_from_map and the inliers of each camera; None without four of them.

    poselib takes its samples from all cameras together (generalized PnP); OpenCV looks for the pose
    of one camera at a time, and the one that most correspondences of all agree with is taken.

    Args:
        cameras: The correspondences.
        config: How long to search; the threshold is that of a camera of the mean focal length.
    """
    usable = [len(one.ideal_keypoints) >= 4 for one in cameras]
    if sum(usable) == 1 or solver_name() == 'opencv':
        starts = []
        for one in (one for one, enough in zip(cameras, usable, strict=True) if enough):
            found = find_pose(one.ideal_keypoints, one.points_in_map, one.camera, config)
            if found is not None:
                starts.append(one.camera_from_rig.inverse() @ found[0])
    else:
        starts = _by_generalized_pnp(cameras, config)
    best, most = None, 3
    for start in starts:
        inliers = [_agree(start, one) for one in cameras]
        count = sum(int(part.sum()) for part in inliers)
        if count > most:
            best, most = (start, inliers), count
    return best


def _by_generalized_pnp(
    cameras: Sequence[CameraOfRig], config: RansacConfig
) -> list[RigidTransform]:
    import poselib

    placed = []
    for one in cameras:
        pose = poselib.CameraPose()
        pose.R, pose.t = one.camera_from_rig.rotation, one.camera_from_rig.translation
        placed.append(pose)
    if sum(len(one.ideal_keypoints) for one in cameras) < 4:
        return []
    pose, info = poselib.estimate_generalized_absolute_pose(
        [one.ideal_keypoints for one in cameras],
        [one.points_in_map for one in cameras],
        placed,
        [
            {
                'model': 'PINHOLE',
                'width': one.camera.width,
                'height': one.camera.height,
                'params': [one.camera.fx, one.camera.fy, one.camera.cx, one.camera.cy],
            }
            for one in cameras
        ],
        {
            'max_reproj_error': config.threshold_px,
            'max_iterations': config.max_iterations,
            'min_iterations': config.min_iterations,
            'seed': config.seed,
        },
        {'max_iterations': 0},
    )
    if info['num_inliers'] < 4 or not np.isfinite(pose.t).all() or not np.isfinite(pose.q).all():
        return []
    return [RigidTransform(np.asarray(pose.R), np.asarray(pose.t))]


def _agree(rig_from_map: RigidTransform, one: CameraOfRig) -> NDArray[np.bool_]:
    """Return which correspondences (N,) of a camera a pose of its rig explains."""
    in_camera = (one.camera_from_rig @ rig_from_map).apply(one.points_in_map)
    residuals = reprojection_residuals(one.camera, in_camera, one.ideal_keypoints)
    # Points behind the camera have none: NaN agrees with nothing.
    return np.asarray(np.linalg.norm(residuals, axis=1) <= one.threshold_px)
