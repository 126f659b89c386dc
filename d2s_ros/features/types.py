"""The contract of feature extractors: their options, what they return, what images they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from d2s_ros.config import option, validate
from d2s_ros.errors import InputError, UnsupportedImageError, UsageError

#: What `FeatureConfig.name` may be.
FEATURES = ('rootsift', 'superpoint', 'aliked', 'xfeat')


@dataclass(frozen=True)
class FeatureConfig:
    """Which features a map uses; stored in its manifest and used unchanged by the localizer."""

    name: str = option('rootsift', 'Feature type.', choices=FEATURES)
    max_keypoints: int = option(2048, 'Strongest keypoints kept per image.', minimum=64)
    max_size: int = option(
        1024,
        'Longest image side that features are computed at; 0 keeps the size.',
        unit='px',
        minimum=0,
    )

    min_size: int = option(
        640,
        'Smaller images are enlarged to this for networks of features, at most twice: they find '
        'keypoints more exactly there; 0 enlarges none.',
        unit='px',
        minimum=0,
    )

    def __post_init__(self) -> None:
        validate(self)


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


class FeatureExtractor(Protocol):
    """Turns an image into local features. Deterministic: the same image, the same features."""

    config: FeatureConfig
    #: Length of a descriptor.
    dim: int
    #: sha256 of the weights, or the name and version of an algorithm without weights.
    weights_hash: str

    def extract(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None = None
    ) -> LocalFeatures:
        """Detect and describe keypoints.

        Args:
            image: (H, W) grey or (H, W, 3) BGR, uint8.
            mask: (H, W) uint8; no keypoint where it is zero.

        Raises:
            UnsupportedImageError: if the image is not of that form.
        """
        ...


class StoredFeatures:
    """Stands for the extractor where features exist already, as those of mapping images.

    Its weights need not be at hand.

    Args:
        config: Of the features.
        weights_hash: Of the extractor that made them.
        dim: Length of a descriptor.
    """

    def __init__(self, config: FeatureConfig, weights_hash: str, dim: int) -> None:
        self.config, self.weights_hash, self.dim = config, weights_hash, dim

    def extract(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None = None
    ) -> LocalFeatures:
        """Refuse.

        Raises:
            UsageError: always; images need the extractor.
        """
        raise UsageError('only features that exist already are localized here, no images')


def to_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W) uint8 from (H, W), (H, W, 1), (H, W, 3) BGR or (H, W, 4) BGRA.

    Raises:
        UnsupportedImageError: another shape or type, or an empty image.
    """
    import cv2

    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.size == 0:
        found = f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image)
        raise UnsupportedImageError(f'expected a non-empty uint8 image, found {found}')
    if image.ndim == 2:
        return image
    if image.ndim == 3 and image.shape[2] == 1:
        return image[:, :, 0]
    if image.ndim == 3 and image.shape[2] == 3:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), dtype=np.uint8)
    if image.ndim == 3 and image.shape[2] == 4:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGRA2GRAY), dtype=np.uint8)
    raise UnsupportedImageError(f'expected (H, W) or (H, W, 3), found {image.shape}')
