"""What every feature extractor returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError


@dataclass(frozen=True, eq=False)
class LocalFeatures:
    """Keypoints of one image, strongest first.

    Attributes:
        keypoints: (N, 2) float32 x, y in px of the given image, (0, 0) = centre of first pixel.
        keypoint_scores: (N,) float32, higher is more repeatable.
        descriptors: (N, D) float32, L2-normalised rows.
        image_size: (width, height) px.
        scales: (N,) float32 px, the keypoints' scale relative to the sharpest scale (1.0).
    """

    keypoints: NDArray[np.float32]
    keypoint_scores: NDArray[np.float32]
    descriptors: NDArray[np.float32]
    image_size: tuple[int, int]
    scales: NDArray[np.float32]

    def __post_init__(self) -> None:
        n = len(self.keypoints)
        shapes_fit = (
            self.keypoints.shape == (n, 2)
            and self.keypoint_scores.shape == (n,)
            and self.descriptors.ndim == 2
            and len(self.descriptors) == n
            and self.scales.shape == (n,)
        )
        if not shapes_fit:
            raise InputError(
                f'features do not fit together: keypoints {self.keypoints.shape}, scores '
                f'{self.keypoint_scores.shape}, descriptors {self.descriptors.shape}, scales '
                f'{self.scales.shape}'
            )

    def __len__(self) -> int:
        return len(self.keypoints)

    def strongest(self, count: int) -> LocalFeatures:
        """Return the first `count` keypoints."""
        if count >= len(self):
            return self
        return LocalFeatures(
            self.keypoints[:count],
            self.keypoint_scores[:count],
            self.descriptors[:count],
            self.image_size,
            self.scales[:count],
        )
