"""Points of a reconstruction that has grown: how they are seen, and which are one point."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.reprojection import reprojection_residuals
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction


def make_reconstruction(
    images: list[MappedImage], points_in_map: NDArray[np.float64], metric: bool
) -> Reconstruction:
    """Return a reconstruction; errors of points are measured, track lengths counted."""
    count = len(points_in_map)
    lengths = np.zeros(count, np.int64)
    errors, observations = np.zeros(count), np.zeros(count)
    for image in images:
        seen = np.flatnonzero(image.point_idx >= 0)
        points = image.point_idx[seen]
        lengths += np.bincount(np.unique(points), minlength=count)
        camera_from_map = image.map_from_camera.inverse()
        residuals = reprojection_residuals(
            image.camera, camera_from_map.apply(points_in_map[points]), image.ideal_keypoints[seen]
        )
        residual = np.linalg.norm(residuals, axis=1)
        good = np.isfinite(residual)
        np.add.at(errors, points[good], residual[good])
        np.add.at(observations, points[good], 1)
    return Reconstruction(
        images, points_in_map, errors / np.maximum(observations, 1), lengths, metric
    )


def point_groups(points_in_map: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each point (P,) the number of its place; prototypes of one point share it."""
    _, groups = np.unique(points_in_map.astype(np.float32), axis=0, return_inverse=True)
    return np.asarray(groups, np.int64).reshape(-1)
