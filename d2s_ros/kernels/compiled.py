"""The kernels in C: addresses of checked arrays go in, filled arrays come out."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2s_ros.kernels import checks, maxima
from d2s_ros.kernels.compiled_landmarks import candidate_scorer, key_index
from d2s_ros.kernels.interface import (
    REFINEMENT_FLOOR,
    Array,
    Bytes,
    Floats,
    Indices,
    Intrinsics,
    Linearised,
    Mask,
    influence_slope,
)
from d2s_ros.kernels.library import call, passed

__all__ = [
    'candidate_scorer',
    'cells_around',
    'first_close',
    'gather_around',
    'key_index',
    'refine_keypoints',
    'residuals',
    'score_map',
    'strongest_maxima',
]

#: Says that the short way to maxima does not do for a score map.
_NOT_THIS_WAY = -2


def score_map(logits: Floats, height: int, width: int, *, threads: int) -> Floats:
    """As `Kernels.score_map`."""
    checks.score_map(logits, height, width, threads)
    rows, columns = logits.shape[:2]
    result = np.empty((height, width), np.float32)
    call('d2s_score_map', logits, rows, columns, height, width, threads, result)
    return result


def strongest_maxima(
    scores: Floats,
    radius: int,
    count: int,
    border: int,
    threshold: float,
    allowed: Bytes | None,
    threads: int,
) -> Indices:
    """As `Kernels.strongest_maxima`.

    A pixel never gives way to a weaker one. As soon as the first round of suppression has found
    `count` maxima, the next ones need only look at pixels that are as strong as these, which are
    few. Where they are not, the reference computes.
    """
    checks.maxima(scores, radius, count, border, threshold, allowed, threads)
    found = _NOT_THIS_WAY
    if 0 < count <= scores.size and radius > 0:
        height, width = scores.shape
        result = np.empty(count, np.int64)
        # A larger square than the map suppresses no more.
        where = height, width, min(radius, max(height, width)), border, threshold
        found = call('d2s_strongest_maxima', scores, *where, allowed, count, threads, result)
    if found == _NOT_THIS_WAY:
        return maxima.strongest_maxima(scores, radius, count, border, threshold, allowed, threads)
    if found < 0:
        raise MemoryError('no memory to look for keypoints')
    return result


def refine_keypoints(scores: Floats, index: Indices) -> Floats:
    """As `Kernels.refine_keypoints`."""
    checks.refinement(scores, index)
    width, count = scores.shape[1], len(index)
    result = np.empty((count, 2), np.float32)
    call('d2s_refine_keypoints', scores, width, index, count, REFINEMENT_FLOOR, result)
    return result


def cells_around(keypoints: Floats, height: int, width: int) -> tuple[Indices, Indices, Floats]:
    """As `Kernels.cells_around`."""
    checks.cells(keypoints, height, width)
    count = len(keypoints)
    neighbours = np.empty((count, 4), np.int64)
    weights = np.empty((count, 4), np.float32)
    cells = np.empty(min(4 * count, height * width), np.int64)
    given = keypoints, count, height, width
    found = call('d2s_cells_around', *given, neighbours, weights, cells)
    if found < 0:
        raise MemoryError('no memory to describe keypoints')
    return cells[:found], neighbours, weights


def gather_around(values: Bytes, cells: Indices, num_rows: int, *, threads: int) -> Bytes:
    """As `Kernels.gather_around`."""
    checks.gather(values, cells, num_rows, threads)
    rows, columns, channels = values.shape
    result = np.empty((num_rows, 9 * channels), np.uint8)
    result[len(cells) :] = 0
    given = values, rows, columns, channels, cells, len(cells), threads
    call('d2s_gather_around', *given, result)
    return result


class CompiledResiduals:
    """`Residuals`, some twenty times as fast as in NumPy; arguments as for `Kernels.residuals`."""

    def __init__(
        self,
        keypoints: Array,
        points: Array,
        intrinsics: Intrinsics,
        variances: Array,
        point_covariances: Array | None,
        cauchy_scale: float,
    ) -> None:
        # Contiguous ones are as they were given.
        def packed(array: Array, *shape: int) -> Array:
            checks.fits(array, count, *shape)
            return np.ascontiguousarray(array, np.float64)

        count = self._count = len(points)
        self._points, self._variances = packed(points, 3), packed(variances, 3)
        self._covariances = None if point_covariances is None else packed(point_covariances, 3, 3)
        self._intrinsics, self._scale = intrinsics, cauchy_scale**2
        self._whitening = np.zeros((count, 3))
        # Kept alive: these are passed on by every call, so they are checked once.
        self._arrays = packed(keypoints, 2), self._points, self._whitening
        self._residuals = *(passed(np.float64, array) for array in self._arrays), count

    def whiten(self, rotation: Array, translation: Array) -> None:
        """As `Residuals.whiten`."""
        noise = self._points, self._covariances, self._variances, self._count
        pose = _packed_pose(rotation, translation)
        call('d2s_whiten', *noise, pose, *self._intrinsics[:2], self._whitening)

    def _call(self, name: str, rotation: Array, translation: Array, *arguments: Any) -> None:
        pose = _packed_pose(rotation, translation)
        call(name, *self._residuals, pose, *self._intrinsics, *arguments)

    def squared(self, rotation: Array, translation: Array) -> Array:
        """As `Residuals.squared`."""
        result = np.empty(self._count)
        self._call('d2s_squared_residuals', rotation, translation, result)
        return result

    def linearise(
        self, rotation: Array, translation: Array, *, with_focal: bool = False
    ) -> Linearised:
        """As `Residuals.linearise`."""
        parameters = 7 if with_focal else 6
        result = np.empty(4 + parameters + parameters**2)
        self._call('d2s_linearise', rotation, translation, self._scale, parameters, result)
        cost, weights, squared_weights, in_front = result[:4].tolist()
        return Linearised(
            cost,
            influence_slope(weights, squared_weights),
            bool(in_front),
            result[4 : 4 + parameters],
            result[4 + parameters :].reshape(parameters, parameters),
        )

    def gradient_scatter(
        self, rotation: Array, translation: Array, slope: float, inverse: Array
    ) -> Array:
        """As `Residuals.gradient_scatter`."""
        checks.inverse(inverse)
        result = np.empty(inverse.shape)
        given = self._scale, slope, np.ascontiguousarray(inverse), len(inverse)
        self._call('d2s_squared_scores', rotation, translation, *given, result)
        return result


residuals = CompiledResiduals


def first_close(
    keypoints: Array,
    landmarks: Array,
    landmark_idx: Indices,
    rotation: Array,
    translation: Array,
    intrinsics: Intrinsics,
    radius_px: float,
    *,
    skipped: Mask | None = None,
    taken: Mask | None = None,
) -> Indices:
    """As `Kernels.first_close`."""
    checks.close(keypoints, landmarks, landmark_idx, skipped, taken)
    count, candidates = landmark_idx.shape
    choice = np.empty(count, np.int64)
    pose = _packed_pose(rotation, translation)
    given = keypoints, count, landmarks, landmark_idx, candidates, pose, *intrinsics, radius_px
    masks = (None if mask is None else mask.view(np.uint8) for mask in (skipped, taken))
    call('d2s_first_close', *given, *masks, choice)
    return choice


def _packed_pose(rotation: Array, translation: Array) -> Array:
    """Return a pose as C takes it, (12,)."""
    checks.pose(rotation, translation)
    return np.concatenate([rotation.reshape(9), translation])
