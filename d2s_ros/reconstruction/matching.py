"""Descriptor matching between images, free or guided by known epipolar geometry."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, skew


def fundamental_from_poses(
    camera_1: Camera,
    camera_2: Camera,
    map_from_camera_1: RigidTransform,
    map_from_camera_2: RigidTransform,
) -> NDArray[np.float64]:
    """Return F (3, 3) with x2^T F x1 = 0 for ideal (undistorted) pixels x1, x2."""
    camera_2_from_camera_1 = map_from_camera_2.inverse() @ map_from_camera_1
    essential = skew(camera_2_from_camera_1.translation) @ camera_2_from_camera_1.rotation
    fundamental: NDArray[np.float64] = (
        np.linalg.inv(camera_2.matrix).T @ essential @ np.linalg.inv(camera_1.matrix)
    )
    norm = np.linalg.norm(fundamental)
    return fundamental / norm if norm > 0 else fundamental


def epipolar_distances(
    fundamental: NDArray[np.float64], points_1: NDArray[np.float32], points_2: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the epipolar distances (N,) in px of point pairs (N, 2) and (N, 2), ideal pixels.

    Each is the larger of the two distances of a point to the other's epipolar line.
    """
    matrix = fundamental.astype(np.float32)
    lines_2 = points_1 @ matrix[:, :2].T + matrix[:, 2]
    lines_1 = points_2 @ matrix[:2] + matrix[2]
    residual = np.abs((lines_2[:, :2] * points_2).sum(1) + lines_2[:, 2])
    normal = np.minimum(np.square(lines_2[:, :2]).sum(1), np.square(lines_1[:, :2]).sum(1))
    return np.asarray(residual / np.sqrt(np.maximum(normal, 1e-24)), dtype=np.float32)


def match_mutual(
    descriptors_1: torch.Tensor,
    descriptors_2: torch.Tensor,
    *,
    ratio: float = 0.9,
    min_similarity: float = 0.0,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Match mutual nearest neighbours that pass Lowe's ratio test in both directions.

    Args:
        descriptors_1, descriptors_2: (N1, D), (N2, D) float32, L2-normalised.
        ratio: Largest accepted ratio of the best to the second best distance; 1 switches it off.
        min_similarity: Smallest accepted cosine.

    Returns:
        (M, 2) int64 indices and (M,) float32 cosines.
    """
    if len(descriptors_1) == 0 or len(descriptors_2) == 0:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    similarity = descriptors_1 @ descriptors_2.T
    best_12, index_12 = similarity.max(dim=1)
    # The largest of a column is enough to know who is mutual; its index along dim 0 is slow.
    best_21 = similarity.amax(dim=0)
    keep = (best_12 >= best_21[index_12]) & (best_12 > min_similarity)
    rows = torch.nonzero(keep).flatten()
    columns = index_12[rows]
    if ratio < 1.0 and len(rows):
        # The runner-up is only needed for rows and columns that survived so far.
        index = torch.arange(len(rows))
        row_similarity = similarity[rows]
        row_similarity[index, columns] = -1.0
        column_similarity = similarity[:, columns]
        column_similarity[rows, index] = -1.0
        second = torch.maximum(row_similarity.amax(dim=1), column_similarity.amax(dim=0))
        passed = (1 - best_12[rows]) <= ratio * ratio * (1 - second)
        rows, columns = rows[passed], columns[passed]
    pairs = torch.stack([rows, columns], dim=1).numpy()
    return pairs, best_12[rows].numpy()


def match_guided(
    descriptors_1: torch.Tensor,
    descriptors_2: torch.Tensor,
    points_1: NDArray[np.float32],
    points_2: NDArray[np.float32],
    fundamental: NDArray[np.float64],
    *,
    max_distance_px: float,
    ratio: float,
    min_similarity: float,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Match mutual nearest neighbours among the pairs that obey the epipolar geometry.

    Args:
        descriptors_1, descriptors_2: (N1, D), (N2, D) float32, L2-normalised.
        points_1, points_2: (N1, 2), (N2, 2) float32 ideal pixels.
        fundamental: (3, 3) with x2^T F x1 = 0.
        max_distance_px: Largest epipolar distance.
        ratio: As in `match_mutual`, among the candidates of a keypoint; both images.
        min_similarity: Smallest accepted cosine.

    Returns:
        (M, 2) int64 indices and (M,) float32 cosines.
    """
    if len(descriptors_1) == 0 or len(descriptors_2) == 0:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    similarity = descriptors_1 @ descriptors_2.T
    # Dense and one-sided first (two matrix products), exact and symmetric on what is left.
    matrix = fundamental.astype(np.float32)
    lines = points_1 @ matrix[:, :2].T + matrix[:, 2]
    lines /= np.maximum(np.hypot(lines[:, 0], lines[:, 1]), 1e-12)[:, None]
    homogeneous = np.pad(points_2, ((0, 0), (0, 1)), constant_values=1.0)
    distance = torch.from_numpy(lines) @ torch.from_numpy(homogeneous).T
    candidate = (distance.abs_() <= max_distance_px).logical_and_(similarity > min_similarity)
    flat = np.flatnonzero(candidate.numpy().ravel())
    rows, columns = np.divmod(flat, similarity.shape[1])
    near = epipolar_distances(fundamental, points_1[rows], points_2[columns]) <= max_distance_px
    rows, columns = rows[near], columns[near]
    values = similarity.numpy()[rows, columns]
    return _mutual(rows, columns, values, (len(points_1), len(points_2)), ratio)


def match_near(
    descriptors_1: torch.Tensor,
    descriptors_2: torch.Tensor,
    points_1: NDArray[np.float32],
    points_2: NDArray[np.float32],
    *,
    max_distance_px: float,
    ratio: float,
    min_similarity: float,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Match mutual nearest neighbours among the pairs that lie close to each other.

    Args:
        descriptors_1, descriptors_2: (N1, D), (N2, D) float32, L2-normalised.
        points_1, points_2: (N1, 2), (N2, 2) float32 px of the same image; NaN matches nothing.
        max_distance_px: Largest distance of a pair.
        ratio: As in `match_mutual`, among the candidates of a keypoint; both images.
        min_similarity: Smallest accepted cosine.

    Returns:
        (M, 2) int64 indices and (M,) float32 cosines.
    """
    here, there = (np.isfinite(p).all(axis=1) for p in (points_1, points_2))
    first, second = np.flatnonzero(here), np.flatnonzero(there)
    if len(first) == 0 or len(second) == 0:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    distance = torch.cdist(torch.from_numpy(points_1[first]), torch.from_numpy(points_2[second]))
    flat = np.flatnonzero((distance <= max_distance_px).numpy().ravel())
    rows, columns = first[flat // len(second)], second[flat % len(second)]
    similarity = (descriptors_1[rows] * descriptors_2[columns]).sum(dim=1).numpy()
    keep = similarity > min_similarity
    rows, columns, similarity = rows[keep], columns[keep], similarity[keep]
    return _mutual(rows, columns, similarity, (len(points_1), len(points_2)), ratio)


def _mutual(
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    values: NDArray[np.float32],
    shape: tuple[int, int],
    ratio: float,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the pairs among candidates (K,) that are best on both sides and pass the ratio."""
    if len(rows) == 0:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    best_rows, second_rows = _best_two(rows, values, shape[0])
    best_columns, second_columns = _best_two(columns, values, shape[1])
    keep = (values >= best_rows[rows]) & (values >= best_columns[columns])
    second = np.maximum(second_rows[rows], second_columns[columns])
    keep &= (1 - values) <= ratio * ratio * (1 - second)
    return np.stack([rows[keep], columns[keep]], axis=1), values[keep]


def _best_two(
    groups: NDArray[np.int64], values: NDArray[np.float32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the two largest values, each (count,), of every group; -1 where there is none."""
    order = np.lexsort((-values, groups))
    groups, values = groups[order], values[order]
    first = np.r_[True, groups[1:] != groups[:-1]]
    best = np.full(count, -1.0, np.float32)
    best[groups[first]] = values[first]
    runner_up = np.r_[False, first[:-1]] & ~first
    second = np.full(count, -1.0, np.float32)
    second[groups[runner_up]] = values[runner_up]
    return best, second
