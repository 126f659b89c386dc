"""Reading keypoints and descriptors from SuperPoint's dense maps, on any device.

`dense_maps_cpu` does the same faster on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

#: Side of a cell in px: the descriptor map has one descriptor per cell.
CELL = 8
#: Added to scores before their logarithm is taken: what is below is noise.
REFINEMENT_FLOOR = 1e-3


def score_map(logits: Tensor) -> Tensor:
    """Turn logits (B, 65, h, w) into keypoint probabilities (B, 8h, 8w)."""
    # Channels last, as the networks give them: one pass each for softmax and `pixel_shuffle`.
    probabilities = torch.softmax(logits.permute(0, 2, 3, 1).float(), dim=-1)[..., :-1]
    batch, height, width, _ = probabilities.shape
    cells = probabilities.unflatten(-1, (CELL, CELL)).permute(0, 1, 3, 2, 4)
    return cells.reshape(batch, CELL * height, CELL * width)


def suppress_non_maxima(scores: Tensor, radius: int) -> Tensor:
    """Set all but local maxima of (B, H, W) scores to zero.

    A maximum suppresses the square of side 2 * radius + 1 around it. As published, two more rounds
    look for maxima among what no kept maximum suppresses.
    """
    if radius <= 0:
        return scores

    def windowed_max(x: Tensor) -> Tensor:
        # Along rows, then along columns: 2 (2 r + 1) comparisons instead of (2 r + 1)^2.
        side = 2 * radius + 1
        rows = functional.max_pool2d(x[:, None], (1, side), stride=1, padding=(0, radius))
        return functional.max_pool2d(rows, (side, 1), stride=1, padding=(radius, 0))[:, 0]

    kept = scores == windowed_max(scores)
    for _ in range(2):
        suppressed = windowed_max(kept.float()) > 0
        rest = scores.masked_fill(suppressed, 0.0)
        kept = kept | ((rest == windowed_max(rest)) & ~suppressed)
    return torch.where(kept, scores, torch.zeros_like(scores))


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
    mixed = mixed_descriptors(cells, *neighbouring_cells(keypoints, height, width))
    return functional.normalize(mixed, dim=1)


def neighbouring_cells(keypoints: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the four cells around each of (K, 2) keypoints, (K, 4) int64, and their weights."""
    u = ((keypoints[:, 0] - (CELL - 1) / 2) / CELL).clamp(0, width - 1)
    v = ((keypoints[:, 1] - (CELL - 1) / 2) / CELL).clamp(0, height - 1)
    left, top = u.floor().clamp(max=max(width - 2, 0)), v.floor().clamp(max=max(height - 2, 0))
    a, b = u - left, v - top
    right, below = min(1, width - 1), width * min(1, height - 1)
    first = (top * width + left).long()
    neighbours = torch.stack([first, first + right, first + below, first + right + below], dim=1)
    weights = torch.stack([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b], dim=1)
    return neighbours, weights


def mixed_descriptors(cells: Tensor, neighbours: Tensor, weights: Tensor) -> Tensor:
    """Return descriptors (K, C), of any length, from raw ones (M, C), rows (K, 4) and weights."""
    # Cells are normalised by their weights: that saves a copy of the map.
    lengths = torch.linalg.vector_norm(cells, dim=1).clamp_min(1e-12)
    weights = weights / lengths[neighbours]
    return functional.embedding_bag(neighbours, cells, per_sample_weights=weights, mode='sum')


def refine_keypoints(scores: Tensor, keypoints: Tensor) -> Tensor:
    """Move (K, 2) integer keypoints below the pixel, to the top of a parabola; float32 px.

    The parabola, with its mixed term, goes through the logarithm of the 3x3 scores around.

    Args:
        scores: (H, W) before suppression.
        keypoints: (K, 2) int64 x, y, at least one pixel from the border.
    """
    width = scores.shape[1]
    steps = torch.arange(-1, 2, device=scores.device)
    around = (steps[:, None] * width + steps).flatten()
    center = keypoints[:, 1] * width + keypoints[:, 0]
    window = scores.flatten().index_select(0, (around[:, None] + center).flatten())
    # From left to right, then from top to bottom.
    nw, n, ne, w, c, e, sw, s, se = (window.view(9, -1) + REFINEMENT_FLOOR).log().unbind()
    x_slope, y_slope = 0.5 * (e - w), 0.5 * (s - n)
    c2 = c + c
    xx, yy, xy = e + w - c2, s + n - c2, 0.25 * (se + nw - ne - sw)
    determinant = xx * yy - xy * xy
    # A saddle or a plateau says nothing about where the top is: divided by infinity.
    peak = (determinant > 1e-6) & (xx < 0)
    divisor = determinant.masked_fill(~peak, torch.inf)
    offset = torch.stack([xy * y_slope - yy * x_slope, xy * x_slope - xx * y_slope], dim=1)
    offset = (offset / divisor[:, None]).clamp_(-0.75, 0.75)
    return keypoints.to(scores.dtype) + offset
