"""The descriptor network of a map in NumPy: what localizes needs no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.features.types import LocalFeatures
from d2s_ros.reconstruction.reconstruction import Reconstruction


class StoredDescriptorNetwork:
    """What `DescriptorNetwork` computes; without weights nothing is changed.

    Args:
        state: float32 arrays of a `DescriptorNetwork`, by the name of the parameter.
    """

    def __init__(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        self.state = dict(state)
        self._weights = {name: np.ascontiguousarray(value.T) for name, value in state.items()}

    def __call__(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return L2-normalised descriptors (N, D) of those of an image."""
        if not self._weights:
            return descriptors
        weights = self._weights
        scaled = descriptors * np.float32(math.sqrt(descriptors.shape[1]))
        hidden = scaled @ weights['inner.weight']
        hidden += weights['inner.bias']
        np.maximum(hidden, 0, out=hidden)
        moved = hidden @ weights['outer.weight']
        moved += weights['outer.bias']
        moved += scaled
        moved /= np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), np.float32(1e-12))
        return np.asarray(moved, np.float32)

    def of_features(self, features: LocalFeatures) -> LocalFeatures:
        """Return features with other descriptors."""
        if not self._weights:
            return features
        return replace(features, descriptors=self(features.descriptors))

    def of_reconstruction(self, reconstruction: Reconstruction) -> Reconstruction:
        """Return a reconstruction whose images have other descriptors."""
        if not self._weights:
            return reconstruction
        images = [
            replace(image, features=self.of_features(image.features))
            for image in reconstruction.images
        ]
        return replace(reconstruction, images=images)
