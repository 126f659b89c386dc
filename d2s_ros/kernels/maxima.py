"""Strongest maxima of a score map by OpenCV; the compiled kernels fall back on it."""

from __future__ import annotations

import cv2
import numpy as np

from d2s_ros.kernels import checks
from d2s_ros.kernels.interface import Bytes, Floats, Indices, Mask


def strongest_maxima(
    scores: Floats,
    radius: int,
    count: int,
    border: int,
    threshold: float,
    allowed: Bytes | None,
    threads: int,
) -> Indices:
    """As `Kernels.strongest_maxima`."""
    checks.maxima(scores, radius, count, border, threshold, allowed, threads)
    # A larger square than the map suppresses no more.
    counts = _local_maxima(scores, min(radius, max(scores.shape))) & (scores > threshold)
    if allowed is not None:
        counts &= allowed > 0
    inner = np.zeros(scores.shape, bool)
    height, width = scores.shape
    inner[border : max(height - border, 0), border : max(width - border, 0)] = True
    index = np.flatnonzero(counts & inner)
    # As integers, positive numbers are ordered alike.
    last = np.uint64(scores.size - 1)
    order = scores.reshape(-1)[index].view(np.uint32).astype(np.uint64) << np.uint64(32)
    order |= last - index.astype(np.uint64)
    count = min(count, len(order))
    order = np.sort(np.partition(order, len(order) - count)[len(order) - count :])[::-1]
    return np.asarray(last - (order & np.uint64(0xFFFFFFFF))).astype(np.int64)


def _local_maxima(scores: Floats, radius: int) -> Mask:
    """Return what `tensors.suppress_non_maxima` keeps of (H, W); by OpenCV, far faster on a CPU."""
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
