"""Reading descriptors from SuperPoint's dense maps, on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from d2s_ros.kernels import tensors
from d2s_ros.kernels.interface import CELL


def sample_descriptors(raw: Tensor, keypoints: Tensor) -> Tensor:
    """Read unit descriptors (B, K, C) from a raw map (B, C, h, w) at keypoints (B, K, 2) px.

    Convention: a cell's descriptor belongs to the centre of its 8x8 pixels, px (3.5, 3.5) of the
    cell; beyond the outermost centres the map is continued constantly. The map is normalised per
    cell, read bilinearly and normalised again.
    """
    height, width = raw.shape[-2:]
    size = keypoints.new_tensor([width * CELL, height * CELL])
    grid = (keypoints + 0.5) / size * 2.0 - 1.0
    normalised = functional.normalize(raw, dim=1)
    sampled = functional.grid_sample(
        normalised, grid[:, :, None], mode='bilinear', padding_mode='border', align_corners=False
    )
    return functional.normalize(sampled[..., 0].transpose(1, 2), dim=-1)


def read_descriptors(raw: Tensor, keypoints: Tensor) -> Tensor:
    """As `sample_descriptors` for one image, (C, h, w) and (K, 2): three times as fast on a CPU."""
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
