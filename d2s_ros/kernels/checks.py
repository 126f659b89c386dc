"""What both implementations refuse, before an array is read or written beyond its end."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.kernels.interface import (
    CELL,
    Array,
    Bytes,
    Floats,
    Indices,
    Mask,
    ScorerInputs,
    ScorerParts,
)

#: More threads than any computer has cores for; OpenMP ends the process where it gets none.
_MOST_THREADS = 1024
#: Cells to a side: beyond any image, and exact in float32.
_MOST_CELLS = 2**20


def enough_threads(threads: int) -> None:
    """Raise ValueError for less than one thread, or more than a computer has."""
    if not 1 <= threads <= _MOST_THREADS:
        raise ValueError(f'{threads} threads are asked for; 1 to {_MOST_THREADS} can compute')


def dimensions(array: NDArray[Any], count: int, what: str) -> None:
    """Raise ValueError for an array of another number of dimensions."""
    if array.ndim != count:
        raise ValueError(f'expected {what} of {count} dimensions, found {array.shape}')


def pose(rotation: Array, translation: Array) -> None:
    """Raise ValueError for what is no pose."""
    fits(rotation, 3, 3)
    fits(translation, 3)


def fits(array: NDArray[Any], *shape: int) -> None:
    """Raise ValueError for an array of another shape."""
    if array.shape != shape:
        raise ValueError(f'expected an array {shape}, found {array.shape}')


def rows(index: Indices, count: int, what: str) -> None:
    """Raise ValueError where rows (any shape) are not among `count` of something."""
    if index.dtype.kind not in 'iu':
        raise ValueError(f'expected rows of {what}, found {index.dtype}')
    if index.size and not 0 <= index.min() <= index.max() < count:
        raise ValueError(f'{what} {index.min()} to {index.max()} are asked for, there are {count}')


def score_map(logits: Floats, height: int, width: int, threads: int) -> None:
    """Check the arguments of `Kernels.score_map`."""
    enough_threads(threads)
    if logits.ndim != 3 or logits.shape[2] != CELL * CELL + 1:
        raise ValueError(f'expected logits (h, w, {CELL * CELL + 1}), found {logits.shape}')
    rows, columns = logits.shape[:2]
    if not (0 < height <= rows * CELL and 0 < width <= columns * CELL):
        raise ValueError(f'{columns}x{rows} cells do not cover {width}x{height}')


def maxima(
    scores: Floats,
    radius: int,
    count: int,
    border: int,
    threshold: float,
    allowed: Bytes | None,
    threads: int,
) -> None:
    """Check the arguments of `Kernels.strongest_maxima`."""
    enough_threads(threads)
    if scores.ndim != 2 or not 0 < scores.size < 2**31:
        raise ValueError(f'expected scores (H, W), found {scores.shape}')
    if min(radius, count, border) < 0 or not threshold >= 0:
        raise ValueError(
            f'radius {radius}, count {count}, border {border} and threshold {threshold} are at '
            'least 0'
        )
    if allowed is not None and allowed.shape != scores.shape:
        raise ValueError(f'allowed is {allowed.shape}, scores are {scores.shape}')


def refinement(scores: Floats, index: Indices) -> None:
    """Check the arguments of `Kernels.refine_keypoints`."""
    dimensions(scores, 2, 'scores')
    dimensions(index, 1, 'pixels')
    width = scores.shape[1]
    if len(index) and not width < index.min() <= index.max() < scores.size - width - 1:
        raise ValueError('keypoints on the edge cannot be refined')


def cells(keypoints: Floats, height: int, width: int) -> None:
    """Check the arguments of `Kernels.cells_around`."""
    if not (1 <= height <= _MOST_CELLS and 1 <= width <= _MOST_CELLS and height * width < 2**31):
        raise ValueError(f'there are no cells in {width}x{height}, or too many')
    fits(keypoints, len(keypoints), 2)
    if not np.isfinite(keypoints).all():
        raise ValueError('keypoints are not finite')


def gather(values: Bytes, cells: Indices, num_rows: int, threads: int) -> None:
    """Check the arguments of `Kernels.gather_around`."""
    enough_threads(threads)
    dimensions(values, 3, 'values')
    dimensions(cells, 1, 'cells')
    rows(cells, values.shape[0] * values.shape[1], 'cells')
    if num_rows < len(cells):
        raise ValueError(f'{num_rows} rows have no room for {len(cells)} cells')


def scores(
    inputs: ScorerInputs, num_inputs: int, num_landmarks: int, num_frequencies: int, threads: int
) -> None:
    """Check the arguments of a `CandidateScorer` of that shape."""
    enough_threads(threads)
    dimensions(inputs.landmark_idx, 2, 'candidates')
    dimensions(inputs.descriptors, 2, 'descriptors')
    num, candidates = inputs.landmark_idx.shape
    dim = inputs.descriptors.shape[1]
    if not candidates or num_inputs != dim + 4 * candidates + 3 + 4 * num_frequencies:
        raise ValueError(f'{dim} numbers and {candidates} candidates do not fit the weights')
    for array in inputs[1:4]:
        fits(array, num, candidates)
    fits(inputs.descriptors, num, dim)
    fits(inputs.normalized_points, num, 2)
    fits(inputs.log_scales, num)
    rows(inputs.landmark_idx, num_landmarks, 'landmarks')


def scorer(parts: ScorerParts) -> None:
    """Check the weights of a `CandidateScorer`."""
    for array in parts[:6]:
        if array.dtype != np.float32:
            raise ValueError(f'expected weights of float32, found {array.dtype}')
    dimensions(parts.input_weight, 2, 'weights')
    width = len(parts.input_weight)
    fits(parts.input_bias, width)
    fits(parts.final_weight, width + 2, width)
    fits(parts.final_bias, width + 2)
    dimensions(parts.of_points, 3, 'what landmarks add')
    fits(parts.of_points, 3, parts.of_points.shape[1], width)
    fits(parts.evidence_weight, 4, width)
    if not 0 <= parts.num_frequencies <= parts.input_weight.shape[1]:
        raise ValueError(f'{parts.num_frequencies} frequencies do not fit the weights')


def search(count: int, num_keys: int, threads: int) -> None:
    """Check the arguments of `KeyIndex.search`."""
    enough_threads(threads)
    if not 0 < count <= num_keys:
        raise ValueError(f'{count} of {num_keys} keys are too many or none')


def close(
    keypoints: Array,
    landmarks: Array,
    landmark_idx: Indices,
    skipped: Mask | None,
    taken: Mask | None,
) -> None:
    """Check the arguments of `Kernels.first_close`."""
    dimensions(landmark_idx, 2, 'candidates')
    fits(keypoints, len(landmark_idx), 2)
    fits(landmarks, len(landmarks), 3)
    if skipped is not None:
        fits(skipped, len(landmark_idx))
    if taken is not None:
        fits(taken, len(landmarks))
    rows(landmark_idx, len(landmarks), 'landmarks')


def inverse(inverse: Array) -> None:
    """Check an argument of `Residuals.gradient_scatter`."""
    if inverse.shape not in ((6, 6), (7, 7)):
        raise ValueError(f'expected the inverse of 6 or 7 parameters, found {inverse.shape}')
