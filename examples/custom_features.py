"""Compare features of your own with RootSIFT on warped photographs.

python examples/custom_features.py IMAGE...
"""

from __future__ import annotations

import sys

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.features.evaluation import evaluate_warps
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureConfig, LocalFeatures, to_grey


class Sift:
    """OpenCV's SIFT as it is: RootSIFT takes the square root of its histograms first."""

    dim = 128
    weights_hash = 'plain-sift-v1'

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config
        self._sift = cv2.SIFT.create(nfeatures=config.max_keypoints)

    def extract(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None = None
    ) -> LocalFeatures:
        """Detect and describe keypoints; see `FeatureExtractor.extract`."""
        grey = to_grey(image)
        found, descriptors = self._sift.detectAndCompute(grey, mask)
        if len(found) == 0:
            descriptors = np.zeros((0, self.dim), np.float32)
        scores = np.array([keypoint.response for keypoint in found], np.float32)
        best = np.argsort(-scores, kind='stable')[: self.config.max_keypoints]
        lengths = np.linalg.norm(descriptors, axis=1, keepdims=True)
        points = np.array([keypoint.pt for keypoint in found], np.float32).reshape(-1, 2)
        sizes = np.array([keypoint.size for keypoint in found], np.float32)
        return LocalFeatures(
            keypoints=points[best],
            keypoint_scores=scores[best],
            descriptors=(descriptors / np.maximum(lengths, 1e-9))[best].astype(np.float32),
            image_size=(grey.shape[1], grey.shape[0]),
            scales=sizes[best] / 2.0,
        )


def read(path: str) -> NDArray[np.uint8]:
    """Return a grey image."""
    image = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise SystemExit(f'{path} cannot be read as an image')
    return np.asarray(image, np.uint8)


def main(*images: str) -> None:
    """Print how many matches are right, by method and condition."""
    config = FeatureConfig(max_keypoints=512)
    photographs = [read(image) for image in images]
    methods = {'SIFT': Sift(config), 'RootSIFT': create_extractor(config)}
    for method, by_condition in evaluate_warps(photographs, methods).items():
        for condition, figures in by_condition.items():
            print(f'{method} {condition}: {100 * figures["mma"]:.0f} % of the matches are right')


if __name__ == '__main__':
    main(*sys.argv[1:])
