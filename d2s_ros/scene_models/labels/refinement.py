"""From a rough pose to the one at which points lie where the image shows their labels.

Fisher scoring: the slope of the log-likelihood of the labels, over the information that the image
itself tells of where its labels are. No weights are tuned: flat regions have no information.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.scene_models.labels.field import OUTLIERS, LabelField, LevelField

Array = NDArray[np.float64]

#: Steps of each level.
_STEPS = 12
#: A level ends when a step gains less than this a point, nats.
_SMALL_GAIN = 1e-4
#: Log-likelihood over chance of a point that is not in the image, nats.
_OUTSIDE = float(np.log(OUTLIERS))


@dataclass(frozen=True, eq=False)
class LabelledPoints:
    """Points with their labels.

    Attributes:
        points_in_map: (P, 3) float64.
        labels: (P, L) int64, coarse to fine.
    """

    points_in_map: Array
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.points_in_map)

    def at(self, rows: NDArray[np.int64]) -> LabelledPoints:
        """Return some rows (Q,) of the points."""
        return LabelledPoints(self.points_in_map[rows], self.labels[rows])

    def some(self, count: int) -> LabelledPoints:
        """Return at most `count` of the points, evenly."""
        if len(self) <= count:
            return self
        kept = np.linspace(0, len(self) - 1, count).astype(np.int64)
        return LabelledPoints(self.points_in_map[kept], self.labels[kept])


def refine(
    field: LabelField, points: LabelledPoints, pose: RigidTransform, levels: range
) -> tuple[RigidTransform, float]:
    """Refine camera_from_map on levels of labels, one after the other.

    Returns:
        The pose, and the mean log-likelihood of a point over chance at the last level, nats.
    """
    value = 0.0
    for level in levels:
        pose, value = _refine_level(
            field, field.levels[level], points, points.labels[:, level], pose
        )
    return pose, value


def _refine_level(
    field: LabelField,
    level: LevelField,
    points: LabelledPoints,
    labels: NDArray[np.int64],
    pose: RigidTransform,
) -> tuple[RigidTransform, float]:
    damping = 1e-3
    value, gradient, information = _linearised(field, level, points, labels, pose)
    for _ in range(_STEPS):
        damped = information + damping * np.diag(np.diag(information) + 1e-12)
        try:
            step = np.linalg.solve(damped, gradient)
        except np.linalg.LinAlgError:
            break
        turn = rotation_from_vector(step[:3])
        candidate = RigidTransform(turn @ pose.rotation, turn @ pose.translation + step[3:])
        there = _linearised(field, level, points, labels, candidate)
        if not there[0] > value:
            damping *= 10
            if damping > 1e3:
                break
            continue
        gain = there[0] - value
        pose, (value, gradient, information) = candidate, there
        damping = max(damping / 10, 1e-6)
        if gain < _SMALL_GAIN:
            break
    return pose, value


def _linearised(
    field: LabelField,
    level: LevelField,
    points: LabelledPoints,
    labels: NDArray[np.int64],
    pose: RigidTransform,
) -> tuple[float, Array, Array]:
    """Return mean log-likelihood over chance, its gradient (6,) and information (6, 6)."""
    pixels, in_camera = field.project(pose.rotation, pose.translation, points.points_in_map)
    cells, inside = level.cells(pixels)
    total = max(len(points), 1)
    seen = np.flatnonzero(inside)
    if len(seen) == 0:
        return _OUTSIDE, np.zeros(6), np.eye(6)
    probability, slope = level.interpolated(pixels[seen], labels[seen])
    value = float(np.log(probability * level.num_labels).sum())
    value += _OUTSIDE * (total - len(seen))
    slope = slope / probability[:, None]
    xx, xy, yy = level.information[cells[seen]].T.astype(np.float64)
    jacobian = _jacobian(in_camera[seen], field)
    u, v = jacobian[:, 0], jacobian[:, 1]
    gradient = u.T @ slope[:, 0] + v.T @ slope[:, 1]
    cross = (u * xy[:, None]).T @ v
    information = (u * xx[:, None]).T @ u + (v * yy[:, None]).T @ v + cross + cross.T
    return value / total, gradient, information


def _jacobian(in_camera: Array, field: LabelField) -> Array:
    """Return how pixels move (N, 2, 6) with the left tangent of the pose: rotation, translation."""
    x, y, z = in_camera.T
    inverse = 1.0 / z
    a, b = x * inverse, y * inverse
    zero = np.zeros_like(a)
    fx, fy = field.camera.fx, field.camera.fy
    u = np.stack([-fx * a * b, fx * (1 + a * a), -fx * b, fx * inverse, zero, -fx * a * inverse])
    v = np.stack([-fy * (1 + b * b), fy * a * b, fy * a, zero, fy * inverse, -fy * b * inverse])
    return np.stack([u, v]).transpose(2, 0, 1)
