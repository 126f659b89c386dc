"""From the score map of a detector to its keypoints, and to the cells that describe them.

The contracts are those of `d2s_ros.features.superpoint_cpu`.
"""

from __future__ import annotations

from ctypes import c_float, c_int32, c_int64, c_void_p

import numpy as np
from numpy.typing import NDArray

from d2s_ros.kernels.library import address, function

_CELL = 8
#: Says that the short way does not do for a score map.
_NOT_THIS_WAY = -2


def score_map(
    logits: NDArray[np.float32], height: int, width: int, *, threads: int
) -> NDArray[np.float32]:
    """Return the probabilities (height, width) of logits (h, w, 65)."""
    rows, columns = logits.shape[:2]
    if height > rows * _CELL or width > columns * _CELL:
        raise ValueError(f'{columns}x{rows} cells do not cover {width}x{height}')
    result = np.empty((height, width), np.float32)
    function('d2s_score_map', c_void_p, *[c_int64] * 4, c_int32, c_void_p)(
        address(logits, np.float32, rows, columns, _CELL * _CELL + 1),
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
    allowed: NDArray[np.uint8] | None,
    threads: int,
) -> NDArray[np.int64] | None:
    """Return the flat indices (count,) of the strongest maxima; None where the short way fails.

    Args:
        scores: (H, W).
        radius: Of the suppression, positive.
        count: Maxima, positive.
        border: None is closer to the edge.
        threshold: Scores are larger, at least 0.
        allowed: (H, W) non-zero where maxima count.
        threads: To compute with.
    """
    height, width = scores.shape
    if not 0 < count <= scores.size or radius <= 0 or threshold < 0:
        return None
    result = np.empty(count, np.int64)
    call = function(
        'd2s_strongest_maxima', c_void_p, *[c_int64] * 4, c_float, c_void_p, c_int32, c_int32,
        c_void_p,
    )  # fmt: skip
    found = call(
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
        return None
    if found < 0:
        raise MemoryError('no memory to look for keypoints')
    return result


def refine_keypoints(
    scores: NDArray[np.float32], index: NDArray[np.int64], floor: float
) -> NDArray[np.float32]:
    """Return keypoints (K, 2) below the pixel, of flat indices (K,) off the edge of (H, W)."""
    height, width = scores.shape
    if len(index) and not width < index.min() <= index.max() < scores.size - width - 1:
        raise ValueError('keypoints on the edge cannot be refined')
    result = np.empty((len(index), 2), np.float32)
    function('d2s_refine_keypoints', c_void_p, c_int64, c_void_p, c_int64, c_float, c_void_p)(
        address(scores, np.float32, height, width),
        width,
        address(index, np.int64, len(index)),
        len(index),
        floor,
        address(result, np.float32, len(index), 2),
    )
    return result


def cells_around(
    keypoints: NDArray[np.float32], rows: int, columns: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return the cells around keypoints (K, 2), places among them and weights, (K, 4) both."""
    count = len(keypoints)
    neighbours = np.empty((count, 4), np.int64)
    weights = np.empty((count, 4), np.float32)
    cells = np.empty(min(4 * count, rows * columns), np.int64)
    found = function('d2s_cells_around', c_void_p, *[c_int64] * 3, *[c_void_p] * 3)(
        address(keypoints, np.float32, count, 2),
        count,
        rows,
        columns,
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
    """Return the nine cells around each of some cells of a map, zeros beyond its edge.

    Args:
        values: (h, w, C).
        cells: (M,) row after row.
        num_rows: At least M; rows beyond M are zeros.
        threads: To compute with.

    Returns:
        (num_rows, 9 C).
    """
    rows, columns, channels = values.shape
    if len(cells) and not 0 <= cells.min() <= cells.max() < rows * columns:
        raise ValueError('there are no such cells')
    result = np.empty((num_rows, 9 * channels), np.uint8)
    result[len(cells) :] = 0
    array = c_void_p
    function('d2s_gather_around', array, *[c_int64] * 3, array, c_int64, c_int32, array)(
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
