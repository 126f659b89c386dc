"""Posed or unposed mapping images to verified tracks with 3D points.

With known poses, matching is guided by the epipolar geometry and pycolmap triangulates. Without
poses, pycolmap's incremental mapping finds them; scale and frame are then arbitrary. pycolmap sees
ideal (undistorted) pixels and pinhole cameras, so every distortion model of `Camera` works.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from d2s_ros.config import option, validate
from d2s_ros.data.array_log import StageLog
from d2s_ros.errors import D2SError, InputError
from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.pycolmap_import import import_pycolmap
from d2s_ros.reconstruction.matching import fundamental_from_poses, match_guided, match_mutual
from d2s_ros.reconstruction.retrieval import Vlad, nearest_images

_logger = logging.getLogger(__name__)

#: Time between two records of matches: what a kill costs at most.
_KEEP_SECONDS = 0.5


@dataclass(frozen=True)
class ReconstructionConfig:
    """How tracks are made."""

    all_pairs_up_to: int = option(
        48, 'Up to this many images every pair is matched; beyond, only neighbours.', minimum=2
    )
    retrieval_neighbours: int = option(
        10, 'Neighbours of an image by global descriptor.', minimum=1
    )
    pose_neighbours: int = option(6, 'Neighbours of an image by pose.', minimum=0)
    guided_distance_px: float = option(
        2.5, 'Largest epipolar distance of a match with known poses.', unit='px', minimum=0.1
    )
    guided_ratio: float = option(
        0.9, 'Ratio test among epipolar candidates.', minimum=0.1, maximum=1.0
    )
    free_ratio: float = option(0.85, 'Ratio test without known poses.', minimum=0.1, maximum=1.0)
    min_similarity: float = option(0.8, 'Smallest cosine of a match.', minimum=0.0, maximum=1.0)
    min_pair_matches: int = option(15, 'Pairs with fewer matches are dropped.', minimum=1)
    max_reprojection_error_px: float = option(
        3.0, 'Observations further from their point are dropped.', unit='px', minimum=0.1
    )
    min_angle_deg: float = option(
        1.5, 'Points seen under a smaller angle are dropped.', unit='deg', minimum=0.0
    )
    refine_poses: bool = option(
        False, 'The given poses are approximate (odometry): refine them by bundle adjustment.'
    )
    max_reprojection_error_unposed_px: float = option(
        4.0, 'As max_reprojection_error_px, for unposed mapping.', unit='px', minimum=0.1
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, eq=False)
class MappedImage:
    """One mapping image after reconstruction.

    Attributes:
        name, stamp_ns: As in the log.
        camera: Intrinsics at the image's size.
        map_from_camera: Pose of the optical frame.
        features: Local features in px of the image.
        ideal_keypoints: (N, 2) float64 undistorted px of the `camera.ideal` camera, NaN if none.
        point_idx: (N,) int64 index of the keypoint's point, -1 for none.
    """

    name: str
    stamp_ns: int
    camera: Camera
    map_from_camera: RigidTransform
    features: LocalFeatures
    ideal_keypoints: NDArray[np.float64]
    point_idx: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Points with the observations that made them.

    Attributes:
        images: Mapping images with poses.
        points_in_map: (P, 3) float64.
        point_errors_px: (P,) float64 mean reprojection error.
        track_lengths: (P,) int64 number of observing images.
        metric: Whether poses were given (False: scale and frame are arbitrary).
    """

    images: list[MappedImage]
    points_in_map: NDArray[np.float64]
    point_errors_px: NDArray[np.float64]
    track_lengths: NDArray[np.int64]
    metric: bool


@dataclass(frozen=True, eq=False)
class ImageInput:
    """What reconstruction needs of an image; `map_from_camera` may be None for all images."""

    name: str
    stamp_ns: int
    camera: Camera
    map_from_camera: RigidTransform | None
    features: LocalFeatures


def select_pairs(
    images: Sequence[ImageInput], config: ReconstructionConfig
) -> list[tuple[int, int]]:
    """Choose the image pairs to match; their number grows linearly with the images.

    Returns:
        Sorted pairs (i, j), i < j, of indices into `images`.
    """
    n = len(images)
    if n <= config.all_pairs_up_to:
        return [(i, j) for i in range(n) for j in range(i + 1, n)]
    pairs: set[tuple[int, int]] = set()
    vlad = Vlad.fit([image.features.descriptors for image in images])
    described = np.stack([vlad.describe(image.features.descriptors) for image in images])
    neighbours = nearest_images(described, described, config.retrieval_neighbours + 1)
    for i, row in enumerate(neighbours):
        pairs.update((min(i, int(j)), max(i, int(j))) for j in row if j != i)
    poses = [image.map_from_camera for image in images]
    if config.pose_neighbours and all(pose is not None for pose in poses):
        centres = np.stack([pose.translation for pose in poses if pose is not None])
        axes = np.stack([pose.rotation[:, 2] for pose in poses if pose is not None])
        spread = np.median(np.linalg.norm(centres - np.median(centres, axis=0), axis=1)) + 1e-9
        for i in range(n):
            distance = np.linalg.norm(centres - centres[i], axis=1) / spread
            turned = np.arccos(np.clip(axes @ axes[i], -1, 1))
            # A metre per radian, in units of the log's own extent.
            cost = distance + turned
            cost[turned > np.radians(75)] = np.inf
            # Every other neighbour reaches further than the frames just before and after.
            order = np.argsort(cost)[1 : 1 + 2 * config.pose_neighbours : 2]
            pairs.update((min(i, int(j)), max(i, int(j))) for j in order if np.isfinite(cost[j]))
    for i in range(n - 1):
        pairs.add((i, i + 1))
    return sorted(pairs)


def reconstruct(
    images: Sequence[ImageInput],
    config: ReconstructionConfig | None = None,
    *,
    stage: StageLog | None = None,
    progress: bool = False,
) -> Reconstruction:
    """Match, verify and triangulate (posed), or run incremental mapping (unposed).

    Args:
        images: Images with features.
        config: Options.
        stage: Where matches are kept, so that an interrupted run goes on from there.
        progress: Show progress bars.

    Raises:
        InputError: fewer than two images, poses for only some images, or no structure found.
    """
    config = config or ReconstructionConfig()
    if len(images) < 2:
        raise InputError(f'mapping needs at least two images with features, found {len(images)}')
    posed = [image.map_from_camera is not None for image in images]
    if any(posed) and not all(posed):
        raise InputError(
            f'{posed.count(False)} of {len(images)} mapping images have no pose; give poses for '
            'all images or for none'
        )
    metric = all(posed)
    if config.refine_poses and not metric:
        _logger.warning('the images have no poses that could be refined')
    ideal = [image.camera.undistort(image.features.keypoints) for image in images]
    pairs = select_pairs(images, config)
    stage = stage or StageLog(None)
    if metric and config.refine_poses:
        images = _refined(images, ideal, pairs, config, stage, progress)
    matches = match_pairs(images, ideal, pairs, config, stage, guided=metric, progress=progress)
    if not matches:
        raise InputError(
            'no two mapping images match; are they of one place, sharp, and are poses and '
            'calibration right?'
        )
    with tempfile.TemporaryDirectory(prefix='d2s_reconstruct_') as folder:
        return _run_pycolmap(images, ideal, matches, config, metric, Path(folder))


def pack_reconstruction(
    reconstruction: Reconstruction, images: Sequence[ImageInput]
) -> dict[str, NDArray[Any]]:
    """Return a reconstruction of `images` as arrays, without their features."""
    index_of = {image.name: index for index, image in enumerate(images)}
    mapped = reconstruction.images
    return {
        'image_idx': np.array([index_of[image.name] for image in mapped], np.int64),
        'rotations': np.stack([image.map_from_camera.rotation for image in mapped]),
        'translations': np.stack([image.map_from_camera.translation for image in mapped]),
        'counts': np.array([len(image.point_idx) for image in mapped], np.int64),
        'point_idx': np.concatenate([image.point_idx for image in mapped]),
        'points_in_map': reconstruction.points_in_map,
        'point_errors_px': reconstruction.point_errors_px,
        'track_lengths': reconstruction.track_lengths,
        'metric': np.array([reconstruction.metric]),
    }


def unpack_reconstruction(
    arrays: dict[str, NDArray[Any]], images: Sequence[ImageInput]
) -> Reconstruction:
    """Return the reconstruction that `pack_reconstruction` was given, of the same images."""
    point_idx = np.split(arrays['point_idx'], np.cumsum(arrays['counts'])[:-1])
    mapped = []
    for row, index in enumerate(arrays['image_idx'].tolist()):
        image = images[index]
        mapped.append(
            MappedImage(
                image.name,
                image.stamp_ns,
                image.camera,
                RigidTransform(arrays['rotations'][row], arrays['translations'][row]),
                image.features,
                image.camera.undistort(image.features.keypoints),
                point_idx[row],
            )
        )
    return Reconstruction(
        mapped,
        arrays['points_in_map'],
        arrays['point_errors_px'],
        arrays['track_lengths'],
        bool(arrays['metric'][0]),
    )


def triangulate(
    images: Sequence[ImageInput],
    matches: dict[tuple[int, int], NDArray[np.int64]],
    config: ReconstructionConfig | None = None,
) -> Reconstruction:
    """Triangulate given matches of posed images.

    Args:
        images: All with poses.
        matches: (M, 2) keypoint indices for pairs (i, j), i < j, of images.
        config: Limits of reprojection error and angle.

    Raises:
        InputError: no point could be triangulated.
    """
    ideal = [image.camera.undistort(image.features.keypoints) for image in images]
    with tempfile.TemporaryDirectory(prefix='d2s_triangulate_') as folder:
        return _run_pycolmap(
            images, ideal, matches, config or ReconstructionConfig(), True, Path(folder)
        )


def _refined(
    images: Sequence[ImageInput],
    ideal: list[NDArray[np.float64]],
    pairs: list[tuple[int, int]],
    config: ReconstructionConfig,
    stage: StageLog,
    progress: bool,
) -> list[ImageInput]:
    """Return the images with refined poses, from the stage if they are there."""
    from d2s_ros.reconstruction.pose_refinement import refine_poses

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


def match_pairs(
    images: Sequence[ImageInput],
    ideal: list[NDArray[np.float64]],
    pairs: list[tuple[int, int]],
    config: ReconstructionConfig,
    stage: StageLog,
    *,
    guided: bool,
    progress: bool = False,
) -> dict[tuple[int, int], NDArray[np.int64]]:
    """Match pairs of images.

    Args:
        images: Images with features.
        ideal: (N, 2) undistorted px of each.
        pairs: Pairs (i, j), i < j, of images.
        config: Limits.
        stage: Where matches are kept, and found again.
        guided: Only along the epipolar lines of the images' poses.
        progress: Show a progress bar.

    Returns:
        (M, 2) keypoint indices for each pair with enough of them.
    """
    descriptors = [torch.from_numpy(image.features.descriptors) for image in images]
    points = [np.nan_to_num(p, nan=-1e6).astype(np.float32) for p in ideal]
    prefix = 'guided' if guided else 'free'
    done = _read_matches(stage, prefix)
    unsaved: dict[tuple[int, int], NDArray[np.int64]] = {}
    last_kept = time.monotonic()
    for i, j in tqdm(pairs, desc='matching', unit='pair', disable=not progress):
        if (i, j) in done:
            continue
        if time.monotonic() - last_kept > _KEEP_SECONDS:
            _keep_matches(stage, prefix, unsaved)
            unsaved, last_kept = {}, time.monotonic()
        pose_i, pose_j = images[i].map_from_camera, images[j].map_from_camera
        if guided and pose_i is not None and pose_j is not None:
            baseline = np.linalg.norm(pose_i.translation - pose_j.translation)
            if baseline < 1e-9:
                # A camera that did not move shows no depth.
                continue
            fundamental = fundamental_from_poses(
                images[i].camera.ideal, images[j].camera.ideal, pose_i, pose_j
            )
            found, _ = match_guided(
                descriptors[i],
                descriptors[j],
                points[i],
                points[j],
                fundamental,
                max_distance_px=config.guided_distance_px,
                ratio=config.guided_ratio,
                min_similarity=config.min_similarity,
            )
        else:
            found, _ = match_mutual(
                descriptors[i],
                descriptors[j],
                ratio=config.free_ratio,
                min_similarity=config.min_similarity,
            )
        valid = np.isfinite(ideal[i][found[:, 0]]).all(1) & np.isfinite(ideal[j][found[:, 1]]).all(
            1
        )
        done[i, j] = unsaved[i, j] = found[valid]
    _keep_matches(stage, prefix, unsaved)
    # In the order of the pairs, whichever were matched before.
    return {
        pair: done[pair]
        for pair in pairs
        if pair in done and len(done[pair]) >= config.min_pair_matches
    }


def _keep_matches(
    stage: StageLog, prefix: str, matches: dict[tuple[int, int], NDArray[np.int64]]
) -> None:
    if matches:
        arrays = {
            'pairs': np.array(list(matches), np.int32),
            'counts': np.array([len(found) for found in matches.values()], np.int32),
            'matches': np.concatenate(list(matches.values())).astype(np.int32),
        }
        stage.keep(f'{prefix}/{len(stage.keys())}', arrays)


def _read_matches(stage: StageLog, prefix: str) -> dict[tuple[int, int], NDArray[np.int64]]:
    done = {}
    for key, arrays in stage.records():
        if not key.startswith(f'{prefix}/'):
            continue
        ends = np.cumsum(arrays['counts'])
        for (i, j), found in zip(
            arrays['pairs'].tolist(), np.split(arrays['matches'], ends[:-1]), strict=True
        ):
            done[i, j] = found.astype(np.int64)
    return done


def write_database(
    images: Sequence[ImageInput],
    ideal: list[NDArray[np.float64]],
    matches: dict[tuple[int, int], NDArray[np.int64]],
    path: Path,
    *,
    verify: bool,
) -> Any:
    """Write keypoints and matches into a new pycolmap database.

    Args:
        images: Images with features.
        ideal: (N, 2) undistorted px of each.
        matches: (M, 2) keypoint indices for pairs (i, j), i < j, of images.
        path: The database.
        verify: Keep only matches that obey one epipolar geometry; otherwise all are taken as right.

    Returns:
        A pycolmap reconstruction of the posed images, without points.

    Raises:
        D2SError: if the database cannot be written.
    """
    pycolmap = import_pycolmap()

    pycolmap.logging.minloglevel = 2
    try:
        database = pycolmap.Database.open(str(path))
    except RuntimeError as error:
        raise D2SError(
            f'no database can be made in {path.parent}: is the disk full? make room, or set TMPDIR'
        ) from error
    cameras: dict[Camera, int] = {}
    posed_model = pycolmap.Reconstruction()
    try:
        for index, image in enumerate(images):
            if image.camera not in cameras:
                cameras[image.camera] = len(cameras) + 1
                camera = colmap_camera(image.camera, cameras[image.camera])
                database.write_camera(camera, use_camera_id=True)
                rig = pycolmap.Rig(rig_id=cameras[image.camera])
                rig.add_ref_sensor(camera.sensor_id)
                database.write_rig(rig, use_rig_id=True)
                posed_model.add_camera_with_trivial_rig(camera)
            image_id, camera_id = index + 1, cameras[image.camera]
            # Names are made unique and sortable here; COLMAP never opens the files.
            record = pycolmap.Image(
                name=f'{index:06d}',
                keypoints=np.nan_to_num(ideal[index], nan=-1e6) + 0.5,
                camera_id=camera_id,
                image_id=image_id,
            )
            if image.map_from_camera is not None:
                camera_from_map = image.map_from_camera.inverse()
                pose = pycolmap.Rigid3d(camera_from_map.matrix[:3])
                posed_model.add_image_with_trivial_frame(record, pose)
            database.write_image(
                pycolmap.Image(name=f'{index:06d}', camera_id=camera_id, image_id=image_id),
                use_image_id=True,
            )
            frame = pycolmap.Frame(frame_id=image_id, rig_id=camera_id)
            frame.add_data_id(record.data_id)
            database.write_frame(frame, use_frame_id=True)
            keypoints = np.nan_to_num(ideal[index], nan=-1e6) + 0.5
            database.write_keypoints(image_id, keypoints.astype(np.float32))
        for (i, j), found in matches.items():
            pairs = found.astype(np.uint32)
            database.write_matches(i + 1, j + 1, pairs)
            if not verify:
                geometry = pycolmap.TwoViewGeometry()
                geometry.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
                geometry.inlier_matches = pairs
            else:
                geometry = _verify(images, ideal, i, j, found)
                if geometry is None:
                    continue
            database.write_two_view_geometry(i + 1, j + 1, geometry)
    finally:
        database.close()
    return posed_model


def _run_pycolmap(
    images: Sequence[ImageInput],
    ideal: list[NDArray[np.float64]],
    matches: dict[tuple[int, int], NDArray[np.int64]],
    config: ReconstructionConfig,
    metric: bool,
    folder: Path,
) -> Reconstruction:
    pycolmap = import_pycolmap()

    database_path = folder / 'database.db'
    posed_model = write_database(images, ideal, matches, database_path, verify=not metric)
    options = pipeline_options(config.min_angle_deg)
    output = folder / 'model'
    output.mkdir()
    if metric:
        limit_errors(options, config.max_reprojection_error_px)
        model = pycolmap.triangulate_points(
            posed_model, str(database_path), str(folder), str(output), True, options
        )
    else:
        options.mapper.filter_max_reproj_error = config.max_reprojection_error_unposed_px
        models = pycolmap.incremental_mapping(str(database_path), str(folder), str(output), options)
        if not models:
            raise InputError(
                'incremental mapping found no model; give poses, or more overlapping images'
            )
        model = max(models.values(), key=lambda candidate: candidate.num_reg_images())
        _logger.warning(
            'no poses given: incremental mapping registered %d of %d images; scale and frame of '
            'this map are arbitrary',
            model.num_reg_images(),
            len(images),
        )
    return _collect(images, ideal, model, config, metric)


def pipeline_options(min_angle_deg: float) -> Any:
    """Return pycolmap's options of triangulation and mapping with known intrinsics."""
    pycolmap = import_pycolmap()

    options = pycolmap.IncrementalPipelineOptions()
    options.extract_colors = False
    options.random_seed = 0
    options.triangulation.random_seed = 0
    options.mapper.random_seed = 0
    options.triangulation.ignore_two_view_tracks = False
    options.triangulation.min_angle = min_angle_deg
    options.mapper.filter_min_tri_angle = min_angle_deg
    options.ba_refine_focal_length = False
    options.ba_refine_extra_params = False
    options.ba_refine_principal_point = False
    return options


def limit_errors(options: Any, limit_px: float) -> None:
    """Set the largest reprojection error of an observation."""
    options.mapper.filter_max_reproj_error = limit_px
    options.triangulation.complete_max_reproj_error = limit_px
    options.triangulation.merge_max_reproj_error = limit_px


def colmap_camera(camera: Camera, camera_id: int) -> Any:
    """Return pycolmap's camera of the undistorted image; its pixels begin at 0.5."""
    pycolmap = import_pycolmap()

    return pycolmap.Camera(
        camera_id=camera_id,
        model='PINHOLE',
        width=camera.width,
        height=camera.height,
        params=[camera.fx, camera.fy, camera.cx + 0.5, camera.cy + 0.5],
    )


def _verify(
    images: Sequence[ImageInput],
    ideal: list[NDArray[np.float64]],
    i: int,
    j: int,
    found: NDArray[np.int64],
) -> Any:
    pycolmap = import_pycolmap()

    geometry = pycolmap.estimate_calibrated_two_view_geometry(
        colmap_camera(images[i].camera, 1),
        np.nan_to_num(ideal[i], nan=-1e6) + 0.5,
        colmap_camera(images[j].camera, 2),
        np.nan_to_num(ideal[j], nan=-1e6) + 0.5,
        found.astype(np.uint32),
    )
    return geometry if len(geometry.inlier_matches) >= 15 else None


def _collect(
    images: Sequence[ImageInput],
    ideal: list[NDArray[np.float64]],
    model: Any,
    config: ReconstructionConfig,
    metric: bool,
) -> Reconstruction:
    """Turn pycolmap's model into arrays, dropping what the filters refuse."""
    model.update_point_3d_errors()
    point_ids = sorted(model.point3D_ids())
    if not point_ids:
        raise InputError(
            'no 3D point could be triangulated; do poses and calibration fit the images, and does '
            'the camera move sideways?'
        )
    index_of = {point_id: index for index, point_id in enumerate(point_ids)}
    points = np.stack([model.point3D(point_id).xyz for point_id in point_ids])
    errors = np.array([model.point3D(point_id).error for point_id in point_ids])
    mapped: list[MappedImage] = []
    lengths = np.zeros(len(points), np.int64)
    registered = {image.name: image for image in model.images.values() if image.has_pose}
    for index, image in enumerate(images):
        record = registered.get(f'{index:06d}')
        if record is None:
            continue
        point_idx = np.full(len(image.features), -1, np.int64)
        for keypoint_idx, point2d in enumerate(record.points2D):
            if point2d.has_point3D():
                point_idx[keypoint_idx] = index_of[point2d.point3D_id]
        camera_from_map = RigidTransform.from_matrix(record.cam_from_world().matrix())
        seen = point_idx >= 0
        projected = image.camera.ideal.project(camera_from_map.apply(points[point_idx[seen]]))
        limit = (
            config.max_reprojection_error_px if metric else config.max_reprojection_error_unposed_px
        )
        residual = np.linalg.norm(projected - ideal[index][seen], axis=1)
        keep = np.isfinite(residual) & (residual <= limit)
        point_idx[np.flatnonzero(seen)[~keep]] = -1
        lengths += np.bincount(np.unique(point_idx[point_idx >= 0]), minlength=len(points))
        pose = image.map_from_camera if metric else camera_from_map.inverse()
        assert pose is not None
        mapped.append(
            MappedImage(
                image.name,
                image.stamp_ns,
                image.camera,
                pose,
                image.features,
                ideal[index],
                point_idx,
            )
        )
    good = lengths >= 2
    renumber = np.full(len(points), -1, np.int64)
    renumber[good] = np.arange(good.sum())
    for mapped_image in mapped:
        seen = mapped_image.point_idx >= 0
        mapped_image.point_idx[seen] = renumber[mapped_image.point_idx[seen]]
    return Reconstruction(mapped, points[good], errors[good], lengths[good], metric)
