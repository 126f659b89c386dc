"""Images without poses: incremental mapping, then everything adjusted together in rounds.

pycolmap's incremental mapping ends with what it has not thrown away on its way. After a poor start
that can be a tenth of the observations, and a bent model. So points are made again from all matches
and adjusted with the poses, first with a wide tolerance. The images are then matched along the
epipolar lines of these poses, as images that came with poses are, and adjusted with these matches.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.array_log import StageLog
from d2s_ros.errors import InputError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.pycolmap_import import import_pycolmap
from d2s_ros.reconstruction.adjustment import (
    adjust_freely,
    focal_of,
    px_at_focal,
    triangulate_again,
)
from d2s_ros.reconstruction.colmap_database import pipeline_options, write_database
from d2s_ros.reconstruction.pair_matching import match_pairs, select_pairs
from d2s_ros.reconstruction.reconstruction import (
    ImageInput,
    Reconstruction,
    ReconstructionConfig,
)
from d2s_ros.reconstruction.self_calibration import focal_sigma_px
from d2s_ros.reconstruction.triangulation import triangulate

_logger = logging.getLogger(__name__)

Matches = dict[tuple[int, int], NDArray[np.int64]]

#: Largest reprojection errors in px at a focal length of 500 px, from round to round: with matches
#: of descriptors alone, and with matches along epipolar lines.
_LIMITS_PX = (12.0, 6.0, 3.0)
_GUIDED_LIMITS_PX = (6.0, 3.0)
#: How much wider than with given poses matches may lie beside their epipolar lines: matches found
#: close to the lines of a bent model would hold it bent.
_WIDER = 2.0
#: Poses of images with fewer observations are not adjusted, and not taken.
_MIN_OBSERVATIONS = 12
#: Share of the points that three images or more see, below which a model is doubtful: two images
#: alone hold each other in no place. 5 % in a hallway that was wrong, a third and more in rooms.
_MIN_SHARED = 0.15


def reconstruct_unposed(
    images: Sequence[ImageInput],
    config: ReconstructionConfig,
    stage: StageLog,
    *,
    calibrated: bool = True,
    progress: bool = False,
) -> Reconstruction:
    """Find poses and points of images without poses, and their camera if it is not known.

    Args:
        images: Images with features; their poses are not used.
        config: Limits.
        stage: Where matches and poses are kept, so that an interrupted run goes on from there.
        calibrated: Cameras are right. Otherwise all have the same one, which is a first guess:
            focal length and two coefficients of radial distortion are found with the poses.
        progress: Show progress bars.

    Returns:
        A reconstruction of arbitrary scale and frame of the images that could be placed. If not
        calibrated, they have the camera that was found, and it has its `focal_sigma_px`.

    Raises:
        InputError: nothing matches, the images are of several unknown cameras, or none could be
            placed.
    """
    if not calibrated and len({image.camera for image in images}) != 1:
        raise InputError(
            f'the images have {len({image.camera for image in images})} sizes; a calibration is '
            'found for images of one camera and size only: give a calibration, or other images'
        )
    images = [replace(image, map_from_camera=None) for image in images]
    placed = place_images(
        images,
        select_pairs(images, config),
        config,
        stage,
        calibrated=calibrated,
        progress=progress,
    )
    ideal = [image.camera.undistort(image.features.keypoints) for image in placed]
    wider = replace(config, guided_distance_px=_WIDER * config.guided_distance_px)
    pairs = select_pairs(placed, config)
    matches = match_pairs(placed, ideal, pairs, wider, stage, guided=True, progress=progress)
    with tempfile.TemporaryDirectory(prefix='d2s_adjust_') as folder:
        database = Path(folder) / 'database.db'
        model = write_database(placed, ideal, matches, database, verify=False)
        model = _adjusted(model, database, focal_of(placed), config, _GUIDED_LIMITS_PX)
    poses = _poses(model)
    found = triangulate(
        [
            replace(image, map_from_camera=poses.get(row, image.map_from_camera))
            for row, image in enumerate(placed)
        ],
        matches,
        config,
    )
    found = replace(found, metric=False)
    shared = float(np.mean(found.track_lengths > 2))
    if shared < _MIN_SHARED:
        _logger.warning(
            'only %.0f %% of the points are seen by three images or more: the reconstruction may '
            'be wrong. For walks through hallways try --next-images 6 --global-mapping; otherwise '
            'take more images that show the same from several sides',
            100 * shared,
        )
    return found if calibrated else replace(found, focal_sigma_px=focal_sigma_px(found))


def place_images(
    images: Sequence[ImageInput],
    pairs: list[tuple[int, int]],
    config: ReconstructionConfig,
    stage: StageLog,
    *,
    calibrated: bool = True,
    progress: bool = False,
) -> list[ImageInput]:
    """Return the images that could be placed, with poses, and with the camera if it was not known.

    Args:
        images: Images with features; if not calibrated, all of one camera.
        pairs: Pairs (i, j), i < j, of images that are matched.
        config: Limits.
        stage: Where matches and poses are kept.
        calibrated: As for `reconstruct_unposed`.
        progress: Show progress bars.

    Raises:
        InputError: no two images match, or none could be placed.
    """
    kept = stage.get('placed')
    if kept is None:
        keypoints = [np.asarray(image.features.keypoints, np.float64) for image in images]
        seen = [
            image.camera.undistort(own) if calibrated else own
            for image, own in zip(images, keypoints, strict=True)
        ]
        matches = match_pairs(images, seen, pairs, config, stage, guided=False, progress=progress)
        if not matches:
            raise InputError(
                'no two mapping images match; are they of one place, sharp, and is the '
                'calibration right?'
            )
        with tempfile.TemporaryDirectory(prefix='d2s_reconstruct_') as folder:
            model = _map(images, seen, matches, config, Path(folder), calibrated)
        poses = _poses(model)
        if not poses:
            raise InputError(
                f'none of {len(images)} images sees {_MIN_OBSERVATIONS} points; give poses, or '
                'more overlapping images'
            )
        order = sorted(poses)
        kept = {
            'image_idx': np.array(order, np.int64),
            'rotations': np.stack([poses[index].rotation for index in order]),
            'translations': np.stack([poses[index].translation for index in order]),
            'radial': np.asarray(next(iter(model.cameras.values())).params, np.float64),
        }
        # Guided matches depend on these very poses, and bundle adjustment is not repeatable to the
        # last bit.
        stage.keep('placed', kept)
    order = kept['image_idx'].tolist()
    if len(order) < len(images):
        _logger.warning(
            '%d of %d images could not be placed: what they show is not in the map. Use more '
            'images (--max-images), or record again, more slowly and without jumps',
            len(images) - len(order),
            len(images),
        )
    camera = images[0].camera
    if not calibrated:
        camera = Camera.from_colmap('RADIAL', camera.width, camera.height, kept['radial'])
    return [
        replace(
            images[index],
            map_from_camera=RigidTransform(rotation, translation),
            camera=images[index].camera if calibrated else camera,
        )
        for index, rotation, translation in zip(
            order, kept['rotations'], kept['translations'], strict=True
        )
    ]


def _map(
    images: Sequence[ImageInput],
    seen: list[NDArray[np.float64]],
    matches: Matches,
    config: ReconstructionConfig,
    folder: Path,
    calibrated: bool,
) -> Any:
    """Return pycolmap's adjusted model of the images that it could place."""
    database, output = folder / 'database.db', folder / 'model'
    write_database(images, seen, matches, database, verify=True, calibrated=calibrated)
    output.mkdir()
    options = pipeline_options(config.min_angle_deg)
    options.ba_refine_focal_length = options.ba_refine_extra_params = not calibrated
    options.mapper.filter_max_reproj_error = config.max_reprojection_error_unposed_px
    pycolmap = import_pycolmap()
    if config.global_mapping:
        at_once = pycolmap.GlobalPipelineOptions()
        at_once.random_seed = 0
        adjustment = at_once.mapper.bundle_adjustment
        adjustment.refine_focal_length = adjustment.refine_extra_params = not calibrated
        models = pycolmap.global_mapping(str(database), str(folder), str(output), at_once)
    else:
        models = pycolmap.incremental_mapping(str(database), str(folder), str(output), options)
    if not models:
        raise InputError('mapping found no model; give poses, or more overlapping images')
    model = max(models.values(), key=lambda candidate: candidate.num_reg_images())
    focal = focal_of(images)
    if not calibrated:
        focal = float(next(iter(model.cameras.values())).mean_focal_length())
    return _adjusted(model, database, focal, config, _LIMITS_PX, intrinsics=not calibrated)


def _adjusted(
    model: Any,
    database: Path,
    focal: float,
    config: ReconstructionConfig,
    limits_px: Sequence[float],
    *,
    intrinsics: bool = False,
) -> Any:
    """Return the model after rounds of triangulation and adjustment."""
    for limit in limits_px:
        model = triangulate_again(
            model, database, database.parent, limit, focal, config.min_angle_deg
        )
        adjust_freely(
            model,
            px_at_focal(0.25 * limit, focal),
            min_observations=_MIN_OBSERVATIONS,
            intrinsics=intrinsics,
        )
    return model


def _poses(model: Any) -> dict[int, RigidTransform]:
    """Return map_from_camera by the image's index, of images with enough observations."""
    return {
        int(record.name): RigidTransform.from_matrix(record.cam_from_world().matrix()).inverse()
        for record in model.images.values()
        if record.has_pose and record.num_points3D >= _MIN_OBSERVATIONS
    }
