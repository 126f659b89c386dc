"""Reading descriptors from SuperPoint's dense maps, on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from d2s_ros.kernels import tensors


def read_descriptors(raw: Tensor, keypoints: Tensor) -> Tensor:
    """Read unit descriptors (K, C) from a raw map (C, h, w) at keypoints (K, 2) px.

    The map is normalised per cell, read bilinearly (see `tensors.neighbouring_cells`) and
    normalised again.
    """
    channels, height, width = raw.shape
    cells = raw.permute(1, 2, 0).reshape(height * width, channels)
    mixed = mixed_descriptors(cells, *tensors.neighbouring_cells(keypoints, height, width))
    return functional.normalize(mixed, dim=1)


def mixed_descriptors(cells: Tensor, neighbours: Tensor, weights: Tensor) -> Tensor:
    """Return descriptors (K, C), of any length, from raw ones (M, C), rows (K, 4) and weights."""
    # Cells are normalised by their weights: that saves a copy of the map.
    lengths = torch.linalg.vector_norm(cells, dim=1).clamp_min(1e-12)
    weights = weights / lengths[neighbours]
    return functional.embedding_bag(neighbours, cells, per_sample_weights=weights, mode='sum')
