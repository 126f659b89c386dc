"""A shorter form of a network's descriptors that tells places apart as well."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from d2s_ros.errors import InputError
from d2s_ros.features.superpoint.extractor import SuperPoint
from d2s_ros.features.superpoint.network import SuperPointNet
from d2s_ros.features.types import FeatureConfig

#: Power of the variances that each direction is divided by: 0 keeps distances, 0.5 whitens.
WHITENING = 0.125
#: Sigma in px: views in training are resampled, and so smoother than what a camera delivers.
SMOOTHING = 0.7


def fit_projection(
    network: SuperPointNet,
    photographs: Iterable[NDArray[np.uint8]],
    *,
    dim: int = 128,
    device: str = 'cpu',
) -> Tensor:
    """Return the (256, dim) projection on the directions in which descriptors vary most.

    Raises:
        InputError: if the photographs have no keypoints.
    """
    config = FeatureConfig(name='superpoint', max_keypoints=512)
    extractor = SuperPoint(network, config, weights_hash='', device=device, smoothing=SMOOTHING)
    second_moment = np.zeros((256, 256))
    count = 0
    for photograph in photographs:
        descriptors = extractor.extract(photograph).descriptors.astype(np.float64)
        second_moment += descriptors.T @ descriptors
        count += len(descriptors)
    if count < 256:
        raise InputError(f'{count} keypoints are too few for a projection of descriptors')
    variance, directions = np.linalg.eigh(second_moment / count)
    order = np.argsort(-variance, kind='stable')[:dim]
    projection = directions[:, order] * np.maximum(variance[order], 1e-9) ** -WHITENING
    # The scale is free, descriptors are normalised afterwards; this one suits float16.
    return torch.from_numpy(projection / np.abs(projection).max()).float()


def save_projection(projection: Tensor, path: Path) -> None:
    """Write a projection and the smoothing as safetensors; written aside, then renamed."""
    temporary = path.with_suffix('.partial')
    matrix = projection.half().cpu().contiguous()
    tensors = {'projection': matrix, 'smoothing': torch.tensor([SMOOTHING])}
    temporary.write_bytes(save(tensors, {'format': 'pt'}))
    os.replace(temporary, path)
