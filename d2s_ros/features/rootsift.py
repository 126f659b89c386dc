"""RootSIFT: OpenCV's SIFT with square-rooted descriptors. Needs no weights.

Source: R. Arandjelovic and A. Zisserman, Three things everyone should know to improve object
retrieval, CVPR 2012.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.features.types import FeatureConfig, LocalFeatures, to_grey

#: Low enough that dim and smooth places still give keypoints; the strongest are kept.
_CONTRAST_THRESHOLD = 0.005
#: SIFT's first scale (sigma 1.6 px, reported as a diameter).
_SHARPEST_DIAMETER = 1.6


class RootSift:
    """Difference-of-Gaussian keypoints with RootSIFT descriptors, on the CPU."""

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config
        self.dim = 128
        self.weights_hash = f'rootsift-v1-contrast{_CONTRAST_THRESHOLD}'
        # Without precise upscaling OpenCV's keypoints are off by a quarter of a pixel.
        self._sift = cv2.SIFT_create(  # type: ignore[attr-defined]
            nfeatures=config.max_keypoints,
            contrastThreshold=_CONTRAST_THRESHOLD,
            enable_precise_upscale=True,
        )

    def extract(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None = None
    ) -> LocalFeatures:
        """Detect and describe keypoints; see `FeatureExtractor.extract`."""
        grey = to_grey(image)
        height, width = grey.shape
        limit = self.config.max_size
        scale = 1.0
        if limit and max(height, width) > limit:
            scale = limit / max(height, width)
            size = (round(width * scale), round(height * scale))
            grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
            if mask is not None:
                mask = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), np.uint8)
        keypoints, descriptors = self._sift.detectAndCompute(grey, mask)
        if len(keypoints) == 0:
            return LocalFeatures(
                np.zeros((0, 2), np.float32),
                np.zeros(0, np.float32),
                np.zeros((0, self.dim), np.float32),
                (width, height),
                np.zeros(0, np.float32),
            )
        points = np.array([keypoint.pt for keypoint in keypoints], dtype=np.float64)
        scores = np.array([keypoint.response for keypoint in keypoints], dtype=np.float32)
        scales = np.array([keypoint.size for keypoint in keypoints], dtype=np.float32)
        # A full sort with the position as tie-break makes the order independent of threads.
        order = np.lexsort((points[:, 1], points[:, 0], -scores))[: self.config.max_keypoints]
        points = points[order]
        if scale != 1.0:
            ratio = np.array([width / grey.shape[1], height / grey.shape[0]])
            points = (points + 0.5) * ratio - 0.5
        root = np.sqrt(descriptors[order] / (descriptors[order].sum(1, keepdims=True) + 1e-7))
        root /= np.linalg.norm(root, axis=1, keepdims=True) + 1e-12
        return LocalFeatures(
            points.astype(np.float32),
            scores[order],
            root.astype(np.float32),
            (width, height),
            (scales[order] / _SHARPEST_DIAMETER / scale).astype(np.float32),
        )
