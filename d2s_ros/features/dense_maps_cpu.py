"""Reading keypoints from SuperPoint's dense maps on a CPU.

By the compiled part where it is there, else by OpenCV and PyTorch; results are those of
`dense_maps` but for rounding.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2s_ros.features import dense_maps
from d2s_ros.kernels import keypoints as compiled
from d2s_ros.kernels.library import is_available
from d2s_ros.threads import one_thread


def score_map(logits: Tensor, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Turn logits (1, 65, h, w) into keypoint probabilities of an image of a size, (H, W)."""
    if is_available():
        # As the networks give them: channels last.
        cells = logits[0].permute(1, 2, 0).float().contiguous().numpy()
        return compiled.score_map(cells, size[0], size[1], threads=torch.get_num_threads())
    return dense_maps.score_map(logits)[0, : size[0], : size[1]].contiguous().numpy()


def local_maxima(scores: NDArray[np.float32], radius: int) -> NDArray[np.bool_]:
    """Return where `suppress_non_maxima` keeps (H, W) scores; by OpenCV, on the CPU."""
    if radius <= 0:
        return np.ones(scores.shape, bool)
    square = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    kept = scores == cv2.dilate(scores, square)
    for _ in range(2):
        # 1 where no maximum is near: the only pixels that are copied, the others are zero.
        free = 1 - cv2.dilate(kept.view(np.uint8), square)
        rest = cv2.copyTo(scores, free)
        kept = kept | ((rest == cv2.dilate(rest, square)) & free.view(bool))
    return np.asarray(kept)


def strongest_maxima(
    scores: NDArray[np.float32],
    radius: int,
    count: int,
    *,
    border: int,
    threshold: float,
    allowed: NDArray[np.uint8] | None = None,
) -> NDArray[np.int64]:
    """Return the strongest of the maxima that `local_maxima` finds: flat indices, best first.

    Of equal scores the first is best. A pixel never gives way to a weaker one. So as soon as the
    first round of suppression has found `count` maxima, the next ones need only look at pixels that
    are as strong as these, which are few: that is what the compiled part does.

    Args:
        scores: (H, W).
        radius: As for `local_maxima`.
        count: Most maxima.
        border: Those that are closer to the edge do not count, but suppress their neighbours alike.
        threshold: Those that are not stronger do not count; at least 0.
        allowed: (H, W) zero where they do not count.
    """
    if is_available():
        found = compiled.strongest_maxima(
            scores,
            radius,
            count,
            border=border,
            threshold=threshold,
            allowed=allowed,
            threads=torch.get_num_threads(),
        )
        if found is not None:
            return found
    counts = local_maxima(scores, radius) & (scores > threshold)
    if allowed is not None:
        counts &= allowed > 0
    inner = np.zeros(scores.shape, bool)
    height, width = scores.shape
    inner[border : height - border, border : width - border] = True
    return _strongest_first(scores.reshape(-1), np.flatnonzero(counts & inner), count)


def _strongest_first(
    scores: NDArray[np.float32], index: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Return the `count` places of the highest of positive scores, of equal ones the first."""
    # As integers, positive numbers are ordered alike.
    last = np.uint64(len(scores) - 1)
    order = scores[index].view(np.uint32).astype(np.uint64) << np.uint64(32)
    order |= last - index.astype(np.uint64)
    count = min(count, len(order))
    order = np.sort(np.partition(order, len(order) - count)[len(order) - count :])[::-1]
    return np.asarray(last - (order & np.uint64(0xFFFFFFFF))).astype(np.int64)


def refine_keypoints(scores: NDArray[np.float32], index: NDArray[np.int64]) -> NDArray[np.float32]:
    """Move keypoints (K,), flat indices off the edge of (H, W), below the pixel: (K, 2) x, y."""
    if is_available():
        return compiled.refine_keypoints(scores, index, dense_maps.REFINEMENT_FLOOR)
    pixels = torch.from_numpy(pixels_of(index, scores.shape[1]))
    with one_thread():
        return dense_maps.refine_keypoints(torch.from_numpy(scores), pixels).numpy()


def pixels_of(index: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Return x, y (K, 2) of flat indices (K,) into an image of a width."""
    rows, columns = np.divmod(index, width)
    return np.stack([columns, rows], axis=1)


def cells_around(
    keypoints: NDArray[np.float32], height: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return which of (height, width) cells are around keypoints.

    Args:
        keypoints: (K, 2) px.
        height, width: Of the map of cells.

    Returns:
        The cells (M,), ascending, the four of each keypoint as places among them (K, 4), and their
        weights (K, 4).
    """
    if is_available():
        return compiled.cells_around(np.ascontiguousarray(keypoints), height, width)
    with one_thread():
        rows, weights = dense_maps.neighbouring_cells(torch.from_numpy(keypoints), height, width)
        used = torch.zeros(height * width, dtype=torch.bool)
        used[rows.flatten()] = True
        places = used.cumsum(0) - 1
        return used.nonzero()[:, 0].numpy(), places[rows].numpy(), weights.numpy()
