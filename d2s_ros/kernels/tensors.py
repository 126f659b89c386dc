"""Formulas on PyTorch tensors of any device.

The reference computes with them on a CPU; GPUs, training and exports use them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from d2s_ros.kernels.interface import CELL, REFINEMENT_FLOOR, ScorerParts

#: Columns that are searched as one by `nearest_keys`.
GROUP = 32


def score_map(logits: Tensor) -> Tensor:
    """Turn logits (B, 65, h, w) into keypoint probabilities (B, 8h, 8w)."""
    # Channels last, as the networks give them: one pass each for softmax and `pixel_shuffle`.
    probabilities = torch.softmax(logits.permute(0, 2, 3, 1).float(), dim=-1)[..., :-1]
    batch, height, width, _ = probabilities.shape
    cells = probabilities.unflatten(-1, (CELL, CELL)).permute(0, 1, 3, 2, 4)
    return cells.reshape(batch, CELL * height, CELL * width)


def suppress_non_maxima(scores: Tensor, radius: int) -> Tensor:
    """Set all but local maxima of (B, H, W) scores to zero; see `Kernels.strongest_maxima`."""
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


def neighbouring_cells(keypoints: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the four cells around each of (K, 2) keypoints, (K, 4) int64, and their weights.

    A cell's descriptor belongs to the centre of its 8x8 pixels, px (3.5, 3.5) of the cell; beyond
    the outermost centres the map is continued constantly.
    """
    u = ((keypoints[:, 0] - (CELL - 1) / 2) / CELL).clamp(0, width - 1)
    v = ((keypoints[:, 1] - (CELL - 1) / 2) / CELL).clamp(0, height - 1)
    left, top = u.floor().clamp(max=max(width - 2, 0)), v.floor().clamp(max=max(height - 2, 0))
    a, b = u - left, v - top
    right, below = min(1, width - 1), width * min(1, height - 1)
    first = (top * width + left).long()
    neighbours = torch.stack([first, first + right, first + below, first + right + below], dim=1)
    weights = torch.stack([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b], dim=1)
    return neighbours, weights


def nearest_keys(similarity: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest values and their columns of (N, M), best first; exact.

    The largest `count` columns lie in the `count` groups with the largest maxima, so only those are
    sorted: several times as fast as a top-k over all columns on a CPU.
    """
    n, m = similarity.shape
    count = min(count, m)
    num_groups = m // GROUP
    if num_groups <= 4 * count:
        values, columns = similarity.topk(count, dim=1)
        return values, columns
    whole = num_groups * GROUP
    groups = similarity[:, :whole].view(n, num_groups, GROUP)
    top_groups = groups.amax(dim=2).topk(count, dim=1).indices
    within = torch.arange(GROUP, device=similarity.device)
    columns = (top_groups[:, :, None] * GROUP + within).flatten(1)
    if whole < m:
        rest = torch.arange(whole, m, device=similarity.device).expand(n, -1)
        columns = torch.cat([columns, rest], dim=1)
    values, order = similarity.gather(1, columns).topk(count, dim=1)
    return values, columns.gather(1, order)


def search(queries: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `KeyIndex.search`, of keys (M, D), not waited for on a GPU."""
    cosines = queries @ keys.T
    similarity, idx = nearest_keys(cosines, count)
    return idx, similarity, cosines.amax(dim=0)[idx] if len(queries) else similarity


def fourier(x: Tensor, num_frequencies: int) -> Tensor:
    """Return x (..., K) with sines and cosines of doubling frequencies, (..., K + 2 K F)."""
    frequencies = 2.0 ** torch.arange(num_frequencies, device=x.device, dtype=x.dtype) * math.pi / 2
    angles = (x[..., None] * frequencies).flatten(-2)
    return torch.cat([x, angles.sin(), angles.cos()], dim=-1)


def candidate_evidence(similarity: Tensor, best_of_landmark: Tensor) -> Tensor:
    """Describe how candidates compare with each other and with other keypoints.

    Args:
        similarity: (..., C) cosines of a keypoint to its candidates, best first.
        best_of_landmark: (..., C) highest cosine that any keypoint of the image has to each.

    Returns:
        (..., C, 4): cosine, half the logarithm of the distance, cosine below the best candidate,
        cosine below the best keypoint of that landmark (0 for mutual neighbours).
    """
    distance = (1.0 - similarity).clamp_min(0) + 1e-4
    return torch.stack(
        [
            similarity,
            0.5 * distance.log(),
            similarity - similarity[..., :1],
            similarity - best_of_landmark,
        ],
        dim=-1,
    )


def scores(
    parts: ScorerParts, *inputs: Tensor, between: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return logits (N, C + 1) float32 of candidates and 'none of them'.

    Args:
        parts: Tensors, all of one dtype, in which it is computed.
        inputs: As `ScorerInputs`.
        between: What changes the tokens (N, W) of the keypoints before candidates are looked at.
    """
    descriptors, landmark_idx, similarity, best_of_landmark, normalized_points, log_scales = inputs
    if parts.ignores_keypoints:
        normalized_points = torch.zeros_like(normalized_points)
        log_scales = torch.zeros_like(log_scales)
    evidence = candidate_evidence(similarity, best_of_landmark)
    place = fourier(normalized_points, parts.num_frequencies)
    seen = descriptors, evidence.flatten(1), place, log_scales[:, None]
    dtype = parts.input_weight.dtype
    x = torch.cat([part.to(dtype) for part in seen], dim=1)
    x = functional.linear(x, parts.input_weight, parts.input_bias)
    as_best, as_second, as_any = parts.of_points
    (count, candidates), width = landmark_idx.shape, x.shape[1]
    x += as_best.index_select(0, landmark_idx[:, 0])
    x += as_second.index_select(0, landmark_idx[:, min(1, candidates - 1)])
    if between is not None:
        x = between(x)
    final = functional.linear(x, parts.final_weight, parts.final_bias)
    hidden = as_any.index_select(0, landmark_idx.flatten())
    hidden.addmm_(evidence.flatten(0, 1).to(dtype), parts.evidence_weight).relu_()
    query, constant, none = final.split([width, 1, 1], dim=1)
    learned = (hidden.view(count, candidates, width) * query[:, None]).sum(dim=-1) + constant
    logits = parts.gain * evidence[..., 2] + learned
    return torch.cat([logits, none.float()], dim=1)


def reliability_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability (N,) of the likeliest candidate, and its column, from (N, C + 1)."""
    reliability, choice = torch.softmax(logits, dim=-1)[:, :-1].max(dim=-1)
    return reliability, choice
