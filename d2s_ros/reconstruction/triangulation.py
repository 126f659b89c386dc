"""Matches of images with poses to points."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError
from d2s_ros.geometry.reprojection import reprojection_residuals
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.pycolmap_import import import_pycolmap
from d2s_ros.reconstruction.colmap_database import limit_errors, pipeline_options, write_database
from d2s_ros.reconstruction.reconstruction import (
    ImageInput,
    MappedImage,
    Reconstruction,
    ReconstructionConfig,
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
    pycolmap = import_pycolmap()
    config = config or ReconstructionConfig()
    with tempfile.TemporaryDirectory(prefix='d2s_triangulate_') as folder:
        database, output = Path(folder) / 'database.db', Path(folder) / 'model'
        posed_model = write_database(images, ideal, matches, database, verify=False)
        output.mkdir()
        options = pipeline_options(config.min_angle_deg)
        limit_errors(options, config.max_reprojection_error_px)
        model = pycolmap.triangulate_points(
            posed_model, str(database), folder, str(output), True, options
        )
        return _collect(images, ideal, model, config.max_reprojection_error_px)


def _collect(
    images: Sequence[ImageInput],
    ideal: list[NDArray[np.float64]],
    model: Any,
    limit_px: float,
) -> Reconstruction:
    """Turn pycolmap's model into arrays, dropping observations beyond the limit."""
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
        in_camera = camera_from_map.apply(points[point_idx[seen]])
        residuals = reprojection_residuals(image.camera, in_camera, ideal[index][seen])
        residual = np.linalg.norm(residuals, axis=1)
        keep = np.isfinite(residual) & (residual <= limit_px)
        point_idx[np.flatnonzero(seen)[~keep]] = -1
        lengths += np.bincount(np.unique(point_idx[point_idx >= 0]), minlength=len(points))
        assert image.map_from_camera is not None
        mapped.append(
            MappedImage(
                image.name,
                image.stamp_ns,
                image.camera,
                image.map_from_camera,
                image.features,
                ideal[index],
                point_idx,
            )
        )
    good = lengths >= 2
    if not good.any():
        raise InputError(
            f'no 3D point is seen by two of the {len(mapped)} images that could be placed, of '
            f'{len(images)}: take more images that overlap, from places side by side'
        )
    renumber = np.full(len(points), -1, np.int64)
    renumber[good] = np.arange(good.sum())
    for mapped_image in mapped:
        seen = mapped_image.point_idx >= 0
        mapped_image.point_idx[seen] = renumber[mapped_image.point_idx[seen]]
    return Reconstruction(mapped, points[good], errors[good], lengths[good], metric=True)
