"""Poses around a start, tried by the likelihood of the labels they predict.

A cross-entropy search: poses are drawn around the start, the best ones say where the next are
drawn. It looks up labels at single cells and needs no slope, so it crosses what stops a descent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.scene_models.labels.field import OUTLIERS, LabelField, LevelField
from d2s_ros.scene_models.labels.refinement import LabelledPoints

_ROUNDS, _POSES, _POINTS = 6, 250, 250
#: Spread of the first round: rotation in degrees, translation as a share of the depth.
_TURN_DEG, _SHIFT = 12.0, 0.15
#: The next round is drawn around this share of the poses, the best ones.
_ELITE = 0.1
#: A point outside the image counts as worse than chance: looking away gains nothing.
_OUTSIDE = float(np.log(0.5 * OUTLIERS))


def search(
    field: LabelField,
    points: LabelledPoints,
    start: RigidTransform,
    depth: float,
    rng: np.random.Generator,
    *,
    spread: float = 1.0,
) -> tuple[RigidTransform, float]:
    """Look for the pose around a start that explains the coarsest labels best.

    Args:
        field: Of the image.
        points: Those that the start should see.
        start: camera_from_map.
        depth: Distance of the points.
        rng: Draws poses.
        spread: Factor on how far poses are drawn from the start.

    Returns:
        The pose, and the mean log-likelihood of a point over chance, nats.
    """
    points = points.some(_POINTS)
    level = field.levels[0]
    labels = points.labels[:, 0].astype(np.int32)
    in_start = start.apply(points.points_in_map).astype(np.float32)
    mean = np.zeros(6)
    sigma = spread * np.array(3 * [np.radians(_TURN_DEG)] + 3 * [_SHIFT])
    best, best_value = np.zeros(6), -np.inf
    for number in range(_ROUNDS):
        tangents = mean + sigma * rng.standard_normal((_POSES, 6))
        # Where the last round stood, or the start: never lost.
        tangents[0] = best if number else 0.0
        values = _score(field, level, labels, in_start, tangents, depth)
        order = np.argsort(-values)
        if values[order[0]] > best_value:
            best, best_value = tangents[order[0]], float(values[order[0]])
        elite = tangents[order[: max(2, int(_ELITE * _POSES))]]
        mean, sigma = elite.mean(axis=0), elite.std(axis=0) + 0.03 * sigma
    turn = rotation_from_vector(best[:3])
    move = RigidTransform(turn, depth * best[3:])
    return move @ start, best_value


def _score(
    field: LabelField,
    level: LevelField,
    labels: NDArray[np.int32],
    in_start: NDArray[np.float32],
    tangents: NDArray[np.float64],
    depth: float,
) -> NDArray[np.float32]:
    """Return the mean log-likelihood of the points over chance for each tangent (N, 6)."""
    rotations = Rotation.from_rotvec(tangents[:, :3]).as_matrix().astype(np.float32)
    moves = depth * tangents[:, 3:]
    x, y, z = (
        rotations[:, axis] @ in_start.T + moves[:, axis, None].astype(np.float32)
        for axis in range(3)
    )
    camera, stride = field.camera, level.stride
    height, width = level.probability.shape[:2]
    inverse = 1.0 / np.maximum(z, np.float32(1e-9))
    column = x * inverse * np.float32(camera.fx / stride) + np.float32((camera.cx + 0.5) / stride)
    row = y * inverse * np.float32(camera.fy / stride) + np.float32((camera.cy + 0.5) / stride)
    inside = (z > 1e-6) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    # Whatever is outside looks up some cell, and is replaced.
    column = np.clip(column, 0, width - 1).astype(np.int32)
    row = np.clip(row, 0, height - 1).astype(np.int32)
    found = level.log_probability[(row * width + column) * level.num_labels + labels]
    return np.where(inside, found, np.float32(_OUTSIDE)).mean(axis=1)
