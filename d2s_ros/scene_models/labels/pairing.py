"""Which points keypoints may show, near a pose that labels have found."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.scene_models.base import Candidates, SceneCoordinates, View
from d2s_ros.scene_models.labels.field import LabelField
from d2s_ros.scene_models.labels.matching import keypoint_pixels
from d2s_ros.scene_models.labels.table import LabelTable

#: How far from its projection a point is looked for, px at 1000 px focal length.
_RADIUS_PX = 12.0
#: Points offered to a keypoint.
_CANDIDATES = 6
#: Log of the chance that the point nearest to a keypoint is the one it shows, before labels.
_LOG_PRIOR = -1.5


def pair_keypoints(
    view: View,
    field: LabelField,
    table: LabelTable,
    covariances: NDArray[np.float64],
    pose: RigidTransform,
    visible: NDArray[np.int64],
) -> tuple[SceneCoordinates, Candidates]:
    """Return the likeliest point of each keypoint, and others that it may show.

    Args:
        view: Keypoints.
        field: Labels at every place of the same image.
        table: Of the map.
        covariances: (M, 3, 3) of its points.
        pose: camera_from_map.
        visible: Points that may be seen.
    """
    keypoints, camera = view.ideal_keypoints, view.ideal_camera
    points = table.points.at(visible)
    projected = camera.project(pose.apply(points.points_in_map))
    usable = np.flatnonzero(np.isfinite(projected).all(axis=1))
    count, offered = len(keypoints), min(_CANDIDATES, max(len(usable), 1))
    landmark_idx = np.zeros((count, _CANDIDATES), np.int64)
    similarity = np.full((count, _CANDIDATES), -1.0, np.float32)
    seen = np.flatnonzero(np.isfinite(keypoints).all(axis=1))
    if len(usable) and len(seen):
        radius = _RADIUS_PX * max(0.5 * (camera.fx + camera.fy) / 1000.0, 0.3)
        tree = cKDTree(projected[usable])
        distance, nearest = tree.query(keypoints[seen], k=offered, distance_upper_bound=radius)
        distance, nearest = distance.reshape(len(seen), -1), nearest.reshape(len(seen), -1)
        there = np.isfinite(distance)
        rows = usable[np.where(there, nearest, 0)]
        score = _label_scores(field, view, seen, points.labels[rows])
        score += _LOG_PRIOR - 0.5 * np.square(np.where(there, distance, 0.0) / (0.5 * radius))
        probability = np.where(there, 1.0 / (1.0 + np.exp(-score)), -1.0)
        order = np.argsort(-probability, axis=1, kind='stable')
        landmark_idx[seen, :offered] = visible[np.take_along_axis(rows, order, axis=1)]
        similarity[seen, :offered] = np.take_along_axis(probability, order, axis=1)
    best = landmark_idx[:, 0]
    everything = table.points.points_in_map
    coordinates = SceneCoordinates(
        everything[best],
        np.maximum(similarity[:, 0], 0.0).astype(np.float32),
        covariances[best],
        best,
    )
    return coordinates, Candidates(landmark_idx, similarity, everything, covariances)


def _label_scores(
    field: LabelField, view: View, keypoint_idx: NDArray[np.int64], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return log(p / chance) of labels (N, C, L) at keypoints (N,), summed over levels."""
    pixels = keypoint_pixels(field, view)[keypoint_idx]
    total = np.zeros(labels.shape[:2])
    for number, level in enumerate(field.levels):
        cells, inside = level.cells(pixels)
        found = level.log_probability[cells[:, None] * level.num_labels + labels[:, :, number]]
        total += np.where(inside[:, None], found, 0.0)
    return total
