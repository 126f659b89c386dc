"""The contract of feature extractors, and how one is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from d2s_ros.config import option, validate
from d2s_ros.errors import ConfigError, UnsupportedImageError, WeightsError
from d2s_ros.features.types import LocalFeatures


@dataclass(frozen=True)
class FeatureConfig:
    """Which features a map uses; stored in its manifest and used unchanged by the localizer."""

    name: str = option('rootsift', 'Feature type.', choices=('rootsift', 'superpoint'))
    max_keypoints: int = option(2048, 'Strongest keypoints kept per image.', minimum=64)
    max_size: int = option(
        1024,
        'Longest image side that features are computed at; 0 keeps the size.',
        unit='px',
        minimum=0,
    )

    def __post_init__(self) -> None:
        validate(self)


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


def create_extractor(
    config: FeatureConfig,
    *,
    device: str = 'cpu',
    weights: str | None = None,
    precision: str = 'fp32',
) -> FeatureExtractor:
    """Make the extractor a config asks for.

    Args:
        config: Feature type and limits.
        device: 'cpu' or 'cuda' (see `d2s_ros.features.superpoint`); RootSIFT runs on the CPU.
        weights: Path of a weight file for network features; without, the packaged one.
        precision: Of network features: 'fp32', 'bf16', 'int8', or 'auto' for the fastest here.

    Raises:
        WeightsError: SuperPoint without weights, or weights of another architecture.
    """
    if config.name == 'rootsift':
        from d2s_ros.features.rootsift import RootSift

        return RootSift(config)
    if config.name == 'superpoint':
        from d2s_ros.features.superpoint import SuperPoint, default_weights_path

        path = default_weights_path() if weights is None else weights
        if path is None:
            raise WeightsError(
                'superpoint needs a weight file; give --weights PATH, or use --features rootsift'
            )
        return SuperPoint.from_pretrained(path, config=config, device=device, precision=precision)
    raise ConfigError(f'unknown features {config.name!r}')
