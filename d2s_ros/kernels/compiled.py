"""The kernels in C: addresses of checked arrays go in, filled arrays come out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from d2s_ros.kernels import checks
from d2s_ros.kernels.compiled_landmarks import candidate_scorer, key_index
from d2s_ros.kernels.interface import (
    CELL,
    REFINEMENT_FLOOR,
    Array,
    Intrinsics,
    Linearised,
    influence_slope,
)
from d2s_ros.kernels.library import address, call

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


def score_map(
    logits: NDArray[np.float32], height: int, width: int, *, threads: int
) -> NDArray[np.float32]:
    """As `Kernels.score_map`."""
    checks.score_map(logits, height, width, threads)
    rows, columns = logits.shape[:2]
    result = np.empty((height, width), np.float32)
    call(
        'd2s_score_map',
        address(logits, np.float32, rows, columns, CELL * CELL + 1),
        rows,
        columns,
        height,
        width,
        threads,
        address(result, np.float32, height, width),
    )
    return result


def strongest_maxima(
    scores: NDArray[np.float32],
    radius: int,
    count: int,
    *,
    border: int,
    threshold: float,
    allowed: NDArray[np.uint8] | None = None,
    threads: int,
) -> NDArray[np.int64]:
    """As `Kernels.strongest_maxima`.

    A pixel never gives way to a weaker one. As soon as the first round of suppression has found
    `count` maxima, the next ones need only look at pixels that are as strong as these, which are
    few. Where they are not, the reference computes.
    """
    checks.maxima(scores, count, border, threshold, allowed, threads)
    found = _NOT_THIS_WAY
    if 0 < count <= scores.size and radius > 0:
        height, width = scores.shape
        result = np.empty(count, np.int64)
        found = call(
            'd2s_strongest_maxima',
            address(scores, np.float32, height, width),
            height,
            width,
            radius,
            border,
            threshold,
            0 if allowed is None else address(allowed, np.uint8, height, width),
            count,
            threads,
            address(result, np.int64, count),
        )
    if found == _NOT_THIS_WAY:
        from d2s_ros.kernels import reference

        return reference.strongest_maxima(
            scores,
            radius,
            count,
            border=border,
            threshold=threshold,
            allowed=allowed,
            threads=threads,
        )
    if found < 0:
        raise MemoryError('no memory to look for keypoints')
    return result


def refine_keypoints(scores: NDArray[np.float32], index: NDArray[np.int64]) -> NDArray[np.float32]:
    """As `Kernels.refine_keypoints`."""
    checks.refinement(scores, index)
    height, width = scores.shape
    result = np.empty((len(index), 2), np.float32)
    call(
        'd2s_refine_keypoints',
        address(scores, np.float32, height, width),
        width,
        address(index, np.int64, len(index)),
        len(index),
        REFINEMENT_FLOOR,
        address(result, np.float32, len(index), 2),
    )
    return result


def cells_around(
    keypoints: NDArray[np.float32], height: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """As `Kernels.cells_around`."""
    checks.cells(keypoints, height, width)
    count = len(keypoints)
    neighbours = np.empty((count, 4), np.int64)
    weights = np.empty((count, 4), np.float32)
    cells = np.empty(min(4 * count, height * width), np.int64)
    found = call(
        'd2s_cells_around',
        address(keypoints, np.float32, count, 2),
        count,
        height,
        width,
        address(neighbours, np.int64, count, 4),
        address(weights, np.float32, count, 4),
        address(cells, np.int64, len(cells)),
    )
    if found < 0:
        raise MemoryError('no memory to describe keypoints')
    return cells[:found], neighbours, weights


def gather_around(
    values: NDArray[np.uint8], cells: NDArray[np.int64], num_rows: int, *, threads: int
) -> NDArray[np.uint8]:
    """As `Kernels.gather_around`."""
    checks.gather(values, cells, num_rows, threads)
    rows, columns, channels = values.shape
    result = np.empty((num_rows, 9 * channels), np.uint8)
    result[len(cells) :] = 0
    call(
        'd2s_gather_around',
        address(values, np.uint8, rows, columns, channels),
        rows,
        columns,
        channels,
        address(cells, np.int64, len(cells)),
        len(cells),
        threads,
        address(result, np.uint8, num_rows, 9 * channels),
    )
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
        count = self._count = len(points)
        whitening = np.zeros((count, 3))
        keypoints, points, variances = (
            np.ascontiguousarray(array, np.float64) for array in (keypoints, points, variances)
        )
        covariances = None
        if point_covariances is not None:
            covariances = np.ascontiguousarray(point_covariances, np.float64)
        # Kept alive: only where they lie is passed on.
        self._arrays = keypoints, points, variances, covariances, whitening
        self._intrinsics, self._scale = intrinsics, cauchy_scale**2
        self._points = address(points, np.float64, count, 3)
        self._noise = (
            0 if covariances is None else address(covariances, np.float64, count, 3, 3),
            address(variances, np.float64, count),
        )
        self._whitening = address(whitening, np.float64, count, 3)
        self._residuals = (
            address(keypoints, np.float64, count, 2), self._points, self._whitening, count,
        )  # fmt: skip

    def whiten(self, rotation: Array, translation: Array) -> None:
        """As `Residuals.whiten`."""
        pose = _packed_pose(rotation, translation)
        call(
            'd2s_whiten',
            self._points,
            *self._noise,
            self._count,
            address(pose, np.float64, 12),
            *self._intrinsics[:2],
            self._whitening,
        )

    def squared(self, rotation: Array, translation: Array) -> Array:
        """As `Residuals.squared`."""
        result = np.empty(self._count)
        pose = _packed_pose(rotation, translation)
        call(
            'd2s_squared_residuals',
            *self._residuals,
            address(pose, np.float64, 12),
            *self._intrinsics,
            address(result, np.float64, self._count),
        )
        return result

    def linearise(
        self, rotation: Array, translation: Array, *, with_focal: bool = False
    ) -> Linearised:
        """As `Residuals.linearise`."""
        parameters = 7 if with_focal else 6
        size = 4 + parameters + parameters**2
        result = np.empty(size)
        pose = _packed_pose(rotation, translation)
        call(
            'd2s_linearise',
            *self._residuals,
            address(pose, np.float64, 12),
            *self._intrinsics,
            self._scale,
            parameters,
            address(result, np.float64, size),
        )
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
        parameters, inverse = len(inverse), np.ascontiguousarray(inverse)
        result = np.empty((parameters, parameters))
        pose = _packed_pose(rotation, translation)
        call(
            'd2s_squared_scores',
            *self._residuals,
            address(pose, np.float64, 12),
            *self._intrinsics,
            self._scale,
            slope,
            address(inverse, np.float64, parameters, parameters),
            parameters,
            address(result, np.float64, parameters, parameters),
        )
        return result


def residuals(
    keypoints: Array,
    points: Array,
    intrinsics: Intrinsics,
    variances: Array,
    point_covariances: Array | None,
    cauchy_scale: float,
) -> CompiledResiduals:
    """As `Kernels.residuals`."""
    return CompiledResiduals(
        keypoints, points, intrinsics, variances, point_covariances, cauchy_scale
    )


def first_close(
    keypoints: Array,
    landmarks: Array,
    landmark_idx: NDArray[np.int64],
    rotation: Array,
    translation: Array,
    intrinsics: Intrinsics,
    radius_px: float,
    *,
    skipped: NDArray[np.bool_] | None = None,
    taken: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """As `Kernels.first_close`."""
    (count, candidates), num_landmarks = landmark_idx.shape, len(landmarks)
    checks.rows(landmark_idx, num_landmarks, 'landmarks')
    choice = np.empty(count, np.int64)
    pose = _packed_pose(rotation, translation)
    call(
        'd2s_first_close',
        address(keypoints, np.float64, count, 2),
        count,
        address(landmarks, np.float64, num_landmarks, 3),
        address(landmark_idx, np.int64, count, candidates),
        candidates,
        address(pose, np.float64, 12),
        *intrinsics,
        radius_px,
        0 if skipped is None else address(skipped, np.bool_, count),
        0 if taken is None else address(taken, np.bool_, num_landmarks),
        address(choice, np.int64, count),
    )
    return choice


def _packed_pose(rotation: Array, translation: Array) -> Array:
    """Return a pose as C takes it, (12,)."""
    return np.concatenate([rotation.reshape(9), translation])
