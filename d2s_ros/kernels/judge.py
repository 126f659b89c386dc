"""The network that judges candidate landmarks, where it has no attention layers."""

from __future__ import annotations

from ctypes import c_double, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2s_ros.kernels.library import address, function, note_arithmetic

#: Columns of the product are a multiple of this.
LANES = 16
_EVIDENCE = 4


@dataclass(frozen=True, eq=False)
class JudgeWeights:
    """What is the same for all images; see `Network` in judge.c.

    Attributes:
        frequencies: Of the place, F.
        product: (D + 4 C + 3 + 4 F, S) float32, S the width and 2, rounded up to LANES.
        bias: (S,) float32.
        of_best, of_second: (M, S) bfloat16 as uint16.
        of_any: (M, width) bfloat16 as uint16.
        by_evidence: (4, width) float32.
        gain: Of the cosine below that of the best candidate.
    """

    frequencies: int
    product: NDArray[np.float32]
    bias: NDArray[np.float32]
    of_best: NDArray[np.uint16]
    of_second: NDArray[np.uint16]
    of_any: NDArray[np.uint16]
    by_evidence: NDArray[np.float32]
    gain: float


def judge(
    weights: JudgeWeights,
    descriptors: NDArray[np.float32],
    landmark_idx: NDArray[np.int64],
    similarity: NDArray[np.float32],
    best_of_landmark: NDArray[np.float32],
    places: NDArray[np.float32],
    log_scales: NDArray[np.float32],
    *,
    threads: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the reliability (N,) of the likeliest candidate of each keypoint, and its column.

    Args:
        weights: Of the network.
        descriptors: (N, D), L2-normalised.
        landmark_idx: (N, C) rows of the tables; not checked.
        similarity, best_of_landmark: (N, C).
        places: (N, 2) undistorted image-plane coordinates x/z, y/z.
        log_scales: (N,).
        threads: To compute with.
    """
    (rows, dim), candidates = descriptors.shape, landmark_idx.shape[1]
    num_landmarks, width = weights.of_any.shape
    num_inputs, stride = weights.product.shape
    if (
        num_inputs != dim + _EVIDENCE * candidates + 3 + 4 * weights.frequencies
        or stride % LANES
        or stride < width + 2
        or not candidates
    ):
        raise ValueError(f'{dim} numbers and {candidates} candidates do not fit the weights')
    reliability, choice = np.empty(rows, np.float32), np.empty(rows, np.int64)
    array = c_void_p
    call = function(
        'd2s_judge', *[array] * 6, *[c_int64] * 6, *[array] * 6, c_double, c_int32, array, array
    )
    failed = call(
        address(descriptors, np.float32, rows, dim),
        address(landmark_idx, np.int64, rows, candidates),
        address(similarity, np.float32, rows, candidates),
        address(best_of_landmark, np.float32, rows, candidates),
        address(places, np.float32, rows, 2),
        address(log_scales, np.float32, rows),
        rows,
        dim,
        candidates,
        weights.frequencies,
        width,
        stride,
        address(weights.product, np.float32, num_inputs, stride),
        address(weights.bias, np.float32, stride),
        address(weights.of_best, np.uint16, num_landmarks, stride),
        address(weights.of_second, np.uint16, num_landmarks, stride),
        address(weights.of_any, np.uint16, num_landmarks, width),
        address(weights.by_evidence, np.float32, _EVIDENCE, width),
        weights.gain,
        threads,
        address(reliability, np.float32, rows),
        address(choice, np.int64, rows),
    )
    if failed:
        raise MemoryError('no memory to judge candidates')
    note_arithmetic(2 * rows * (num_inputs * stride + candidates * width * (_EVIDENCE + 1)))
    return reliability, choice
