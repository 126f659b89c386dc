"""What is done to an image before the network of features, and to its keypoints after it.

No PyTorch: SuperPoint also runs without.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import UnsupportedImageError
from d2s_ros.features.types import FeatureConfig, LocalFeatures, to_grey
from d2s_ros.kernels.interface import CELL


class NetworkImages(ABC):
    """The part of an extractor that all networks of keypoints share.

    Attributes:
        config: Number of keypoints and image size.
        smoothing: Sigma of a Gaussian that the resized image is blurred with first, px; 0: none.
    """

    config: FeatureConfig
    smoothing: float

    @abstractmethod
    def _run(
        self, grey: NDArray[np.uint8], allowed: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
        """Return keypoints (K, 2) in px of `grey`, scores (K,) and descriptors (K, D)."""

    def extract(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None = None
    ) -> LocalFeatures:
        """Detect and describe keypoints; see `FeatureExtractor.extract`."""
        grey = to_grey(image)
        height, width = grey.shape
        if mask is not None and mask.shape[:2] != grey.shape:
            raise UnsupportedImageError(
                f'the mask is {mask.shape[1]}x{mask.shape[0]}, the image {width}x{height}'
            )
        resized, factor = self.prepared(grey)
        allowed = None
        if mask is not None:
            allowed = np.asarray(
                cv2.resize(
                    (mask.reshape(height, width, -1)[:, :, 0] > 0).astype(np.uint8),
                    (resized.shape[1], resized.shape[0]),
                    interpolation=cv2.INTER_NEAREST,
                ),
                np.uint8,
            )
        keypoints, scores, descriptors = self._run(resized, allowed)
        keypoints = (keypoints + 0.5) * factor - 0.5
        if mask is not None:
            # Resizing and refinement may move a keypoint by a fraction of a pixel into the mask.
            pixel = np.rint(keypoints).astype(np.int64)
            pixel = np.clip(pixel, 0, [width - 1, height - 1])
            keep = mask.reshape(height, width, -1)[pixel[:, 1], pixel[:, 0], 0] > 0
            keypoints, scores, descriptors = keypoints[keep], scores[keep], descriptors[keep]
        return LocalFeatures(
            keypoints=keypoints.astype(np.float32),
            keypoint_scores=scores,
            descriptors=descriptors,
            image_size=(width, height),
            scales=np.ones(len(keypoints), dtype=np.float32),
        )

    def prepared(self, grey: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Return what the network sees of (H, W), and how many px of it one of that is, x and y."""
        height, width = grey.shape
        resized = resize_to_fit(grey, self.config.max_size, self.config.min_size)
        factor = np.array([width / resized.shape[1], height / resized.shape[0]])
        if self.smoothing > 0:
            resized = np.asarray(cv2.GaussianBlur(resized, (0, 0), self.smoothing), np.uint8)
        return resized, factor


def pad_to_cells(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pad (H, W) on the right and below to multiples of 8: coordinates stay as they are."""
    height, width = grey.shape
    if height % CELL == 0 and width % CELL == 0:
        return np.ascontiguousarray(grey)
    return np.pad(grey, ((0, -height % CELL), (0, -width % CELL)), mode='edge')


def resize_to_fit(grey: NDArray[np.uint8], max_size: int, min_size: int = 0) -> NDArray[np.uint8]:
    """Shrink or enlarge an image.

    Args:
        grey: (H, W).
        max_size: Its longest side is at most this; 0 keeps it.
        min_size: Its longest side is at least this where twice its size and `max_size` allow it:
            networks place keypoints of small images more exactly in enlarged ones.
    """
    height, width = grey.shape
    longest = max(height, width)
    wanted = max(longest, min(min_size, 2 * longest))
    if max_size > 0:
        wanted = min(wanted, max_size)
    if wanted == longest:
        return grey
    size = (max(1, round(width * wanted / longest)), max(1, round(height * wanted / longest)))
    how = cv2.INTER_AREA if wanted < longest else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(grey, size, interpolation=how), dtype=np.uint8)
