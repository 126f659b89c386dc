"""Posed or unposed mapping images to verified tracks with 3D points.

With known poses, matching is guided by the epipolar geometry and pycolmap triangulates. Without,
poses are found first; scale and frame are then arbitrary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.array_log import StageLog
from d2s_ros.errors import InputError
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.reconstruction.pair_matching import match_pairs, select_pairs
from d2s_ros.reconstruction.pose_refinement import refine_poses
from d2s_ros.reconstruction.reconstruction import (
    ImageInput,
    Reconstruction,
    ReconstructionConfig,
)
from d2s_ros.reconstruction.triangulation import triangulate
from d2s_ros.reconstruction.unposed import reconstruct_unposed

_logger = logging.getLogger(__name__)


def reconstruct(
    images: Sequence[ImageInput],
    config: ReconstructionConfig | None = None,
    *,
    calibrated: bool = True,
    stage: StageLog | None = None,
    progress: bool = False,
) -> Reconstruction:
    """Match, verify and triangulate (posed), or run incremental mapping (unposed).

    Args:
        images: Images with features.
        config: Options.
        calibrated: Cameras are right. Otherwise they are first guesses: poses, if any, are not
            used, and the images of the result have the camera that was found.
        stage: Where matches are kept, so that an interrupted run goes on from there.
        progress: Show progress bars.

    Raises:
        InputError: fewer than two images, poses for only some images, or no structure found.
    """
    config = config or ReconstructionConfig()
    if len(images) < 2:
        raise InputError(f'mapping needs at least two images with features, found {len(images)}')
    posed = [image.map_from_camera is not None for image in images]
    if calibrated and any(posed) and not all(posed):
        raise InputError(
            f'{posed.count(False)} of {len(images)} mapping images have no pose; give poses for '
            'all images or for none'
        )
    stage = stage or StageLog(None)
    if not (calibrated and all(posed)):
        if config.refine_poses:
            _logger.warning('the images have no poses that could be refined')
        return reconstruct_unposed(images, config, stage, calibrated=calibrated, progress=progress)
    ideal = [image.camera.undistort(image.features.keypoints) for image in images]
    pairs = select_pairs(images, config)
    if config.refine_poses:
        images = with_refined_poses(images, ideal, pairs, config, stage, progress)
    matches = match_pairs(images, ideal, pairs, config, stage, guided=True, progress=progress)
    if not matches:
        raise InputError(
            'no two mapping images match; are they of one place, sharp, and are poses and '
            'calibration right?'
        )
    return triangulate(images, matches, config)


def with_refined_poses(
    images: Sequence[ImageInput],
    ideal: list[NDArray[np.float64]],
    pairs: list[tuple[int, int]],
    config: ReconstructionConfig,
    stage: StageLog,
    progress: bool,
) -> list[ImageInput]:
    """Return the images with refined poses, from the stage if they are there.

    Args:
        images: With approximate poses.
        ideal: (N, 2) undistorted px of each.
        pairs: Pairs (i, j), i < j, of images that are matched.
        config: Options.
        stage: Where matches and poses are kept.
        progress: Show progress bars.
    """
    kept = stage.get('poses')
    if kept is None:
        matches = match_pairs(images, ideal, pairs, config, stage, guided=False, progress=progress)
        poses = refine_poses(images, ideal, matches, config)
        kept = {
            'rotations': np.stack([pose.rotation for pose in poses]),
            'translations': np.stack([pose.translation for pose in poses]),
        }
        # Guided matches depend on these very poses, and bundle adjustment is not repeatable to the
        # last bit.
        stage.keep('poses', kept)
    return [
        replace(image, map_from_camera=RigidTransform(rotation, translation))
        for image, rotation, translation in zip(
            images, kept['rotations'], kept['translations'], strict=True
        )
    ]
