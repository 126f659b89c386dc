"""Losses of SuperPoint training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from d2s_ros.kernels.interface import CELL, REFINEMENT_FLOOR
from d2s_ros.kernels.tensors import score_map, suppress_non_maxima

#: Keypoints closer than this in the photograph (px) are not held to be different.
SAME_PLACE = 5.0
#: Of so many keypoints of each view the positions are compared: in proportion about three times
#: as many as of a photograph of a megapixel.
PEAKS = 96
#: Keypoints nearer than this to the border of a view are not compared, px.
PEAK_BORDER = 8
#: Two keypoints this close under the true motion are one, px.
SAME_KEYPOINT = 2.0
#: A keypoint found again at this distance is worth exp(-1/2) of one at the same place, px.
PRECISE = 0.6


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of `total_loss`."""

    detector: float = 25.0
    teacher_cosine: float = 1.0
    teacher_contrast: float = 0.5
    pair_contrast: float = 1.0
    temperature: float = 0.05
    precision: float = 0.0
    ranking: float = 0.0


@dataclass(frozen=True, eq=False)
class Batch:
    """B pairs as tensors; view v of pair b is row 2 * b + v.

    Attributes:
        images: (2B, 1, S, S) in [0, 1].
        heatmaps: (2B, S, S) in [0, 1].
        valid: (2B, S/8, S/8) bool.
        keypoints: (2B, K, 2) px.
        visible: (2B, K) bool, False for padding.
        source_keypoints: (B, K, 2) px in the photograph.
        descriptors: (B, K, D), the teacher's; D is 0 without.
        second_from_first: (B, 3, 3), homography between the views of each pair.
    """

    images: Tensor
    heatmaps: Tensor
    valid: Tensor
    keypoints: Tensor
    visible: Tensor
    source_keypoints: Tensor
    descriptors: Tensor
    second_from_first: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


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


def cell_targets(heatmaps: Tensor) -> Tensor:
    """Turn (B, H, W) keypoint probabilities into (B, 65, H/8, W/8) distributions over each cell.

    Channel 8 * y + x is pixel (x, y) of the cell, channel 64 is "no keypoint here".
    """
    pixels = functional.pixel_unshuffle(heatmaps[:, None], 8)
    total = pixels.sum(dim=1, keepdim=True)
    pixels = pixels / total.clamp(min=1.0)
    return torch.cat([pixels, (1.0 - total).clamp(min=0.0)], dim=1)


def detector_loss(logits: Tensor, heatmaps: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of (B, 65, H/8, W/8) logits against soft labels, mean over valid cells."""
    entropy = -(cell_targets(heatmaps) * functional.log_softmax(logits.float(), dim=1)).sum(dim=1)
    return (entropy * valid).sum() / valid.sum().clamp(min=1)


def teacher_losses(
    projected: Tensor,
    target: Tensor,
    visible: Tensor,
    places: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return the cosine and the contrastive loss against a teacher's descriptors.

    Args:
        projected: (2B, K, D) the student's descriptors mapped to the teacher's space, unit rows.
        target: (2B, K, D) unit rows.
        visible: (2B, K) bool.
        places: (2B, K, 2) px in the photograph; near ones are not held against each other.
        temperature: Of the softmax.
    """
    count = visible.sum().clamp(min=1)
    cosine = 1.0 - (projected * target).sum(dim=-1)
    similarity = projected @ target.transpose(1, 2) / temperature
    ignore = (torch.cdist(places, places) < SAME_PLACE) | ~visible[:, None, :]
    diagonal = torch.eye(ignore.shape[1], dtype=torch.bool, device=ignore.device)
    similarity = similarity.masked_fill(ignore & ~diagonal, float('-inf'))
    contrast = -functional.log_softmax(similarity, dim=-1).diagonal(dim1=1, dim2=2)
    return (cosine * visible).sum() / count, (contrast * visible).sum() / count


def pair_loss(
    descriptors: Tensor, visible: Tensor, places: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Contrast the two views of each pair; negatives come from the whole batch.

    Args:
        descriptors: (2B, K, C) unit rows.
        visible: (2B, K) bool.
        places: (B, K, 2) px in the photograph.
        temperature: Of the softmax.

    Returns:
        The loss, and the share of keypoints whose nearest descriptor is the right one.
    """
    both = visible[0::2] & visible[1::2]
    first = descriptors[0::2][both]
    second = descriptors[1::2][both]
    if len(first) < 2:
        zero = descriptors.sum() * 0.0
        return zero, zero.detach()
    image = torch.arange(len(both), device=both.device)[:, None].expand_as(both)[both]
    place = places[both]
    similarity = first @ second.T / temperature
    near = (image[:, None] == image[None]) & (torch.cdist(place, place) < SAME_PLACE)
    near.fill_diagonal_(False)
    similarity = similarity.masked_fill(near, float('-inf'))
    target = torch.arange(len(first), device=first.device)
    loss = 0.5 * (
        functional.cross_entropy(similarity, target)
        + functional.cross_entropy(similarity.T, target)
    )
    accuracy = (similarity.detach().argmax(dim=1) == target).float().mean()
    return loss, accuracy


def strongest_peaks(scores: Tensor, count: int = PEAKS) -> tuple[Tensor, Tensor]:
    """Return the strongest local maxima of (V, S, S): (V, K, 2) int64 x, y and scores (V, K).

    Where there are fewer, what is left has the score zero.
    """
    cut = slice(PEAK_BORDER, -PEAK_BORDER)
    inner = suppress_non_maxima(scores, 4)[:, cut, cut]
    width = inner.shape[2]
    strength, index = inner.flatten(1).topk(min(count, inner[0].numel()), dim=1)
    return torch.stack([index % width, index // width], dim=-1) + PEAK_BORDER, strength


def refined_peaks(log_scores: Tensor, peaks: Tensor) -> Tensor:
    """As `dense_maps.refine_keypoints` with gradients: (V, S, S) and (V, K, 2) to (V, K, 2)."""
    side = log_scores.shape[-1]
    steps = torch.arange(-1, 2, device=peaks.device)
    around = (steps[:, None] * side + steps).flatten()
    index = (peaks[..., 1] * side + peaks[..., 0])[..., None] + around
    window = log_scores.flatten(1).gather(1, index.flatten(1)).view(*index.shape)
    nw, n, ne, w, c, e, sw, s, se = window.unbind(-1)
    x_slope, y_slope = 0.5 * (e - w), 0.5 * (s - n)
    xx, yy, xy = e + w - 2 * c, s + n - 2 * c, 0.25 * (se + nw - ne - sw)
    # A flat top would give a gradient without bound.
    determinant = (xx * yy - xy * xy).clamp(min=0.05)
    offset = torch.stack([xy * y_slope - yy * x_slope, xy * x_slope - xx * y_slope], dim=-1)
    return peaks + (offset / determinant[..., None]).clamp(-0.75, 0.75)


def mapped_points(homographies: Tensor, points: Tensor) -> Tensor:
    """Map (B, K, 2) points by (B, 3, 3) homographies."""
    mapped = points @ homographies[:, :, :2].transpose(1, 2) + homographies[:, None, :, 2]
    return mapped[..., :2] / mapped[..., 2:].clamp(min=1e-6)


def position_losses(logits: Tensor, second_from_first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compare where the two views of each pair see the same keypoints, below the pixel.

    Args:
        logits: (2B, 65, S/8, S/8).
        second_from_first: (B, 3, 3).

    Returns:
        The mean distance of keypoints that both views have (px, rounded off near zero); a loss
        that raises the scores of those that the other view confirms, and as exactly as possible,
        above the others'; and the median distance.
    """
    log_scores = (score_map(logits) + REFINEMENT_FLOOR).log()
    with torch.no_grad():
        peaks, strength = strongest_peaks(log_scores.exp() - REFINEMENT_FLOOR)
    points = refined_peaks(log_scores, peaks)
    first_from_second = torch.linalg.inv(second_from_first)
    forward = mapped_points(second_from_first, points[0::2])
    backward = mapped_points(first_from_second, points[1::2])
    certain = strength > 0.01
    side = log_scores.shape[-1]
    with torch.no_grad():
        gaps = torch.cdist(forward, points[1::2])
        gaps = gaps.masked_fill(~(certain[0::2, :, None] & certain[1::2, None]), torch.inf)
        nearest, other = gaps.min(dim=2)
        back = gaps.argmin(dim=1)
        index = torch.arange(gaps.shape[1], device=gaps.device)
        paired = (nearest < SAME_KEYPOINT) & (back.gather(1, other) == index)
    pick = other[..., None].expand(-1, -1, 2)
    squared = (forward - points[1::2].gather(1, pick)).square().sum(-1)
    squared = squared + (points[0::2] - backward.gather(1, pick)).square().sum(-1)
    distance = (0.5 * squared[paired] + 0.01).sqrt()
    if len(distance) == 0:
        zero = logits.sum() * 0.0
        return zero, zero, zero.detach()
    # What is a keypoint worth? Only those that the other view could have seen are asked.
    heights = log_scores.flatten(1).gather(1, peaks[..., 1] * side + peaks[..., 0])
    gains = []
    for view, mapped, gap in ((0, forward, nearest), (1, backward, gaps.min(dim=1).values)):
        inside = ((mapped > PEAK_BORDER) & (mapped < side - 1 - PEAK_BORDER)).all(dim=-1)
        asked = inside & certain[view::2]
        worth = torch.exp(-0.5 * (gap / PRECISE).square())
        mean = (worth * asked).sum() / asked.sum().clamp(min=1)
        gains.append(-((worth - mean) * heights[view::2] * asked).sum() / asked.sum().clamp(min=1))
    return distance.mean(), 0.5 * (gains[0] + gains[1]), distance.detach().median()


def total_loss(
    logits: Tensor,
    raw_descriptors: Tensor,
    projection: Tensor | None,
    batch: Batch,
    weights: LossWeights,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of all terms, and each term for the log.

    Args:
        logits: (2B, 65, S/8, S/8).
        raw_descriptors: (2B, 256, S/8, S/8).
        projection: (D, 256), from the student's descriptors to the teacher's; None without teacher.
        batch: What the network saw and should have said.
        weights: Of the terms.
    """
    terms = {'detector': detector_loss(logits, batch.heatmaps, batch.valid)}
    total = weights.detector * terms['detector']
    descriptors = sample_descriptors(raw_descriptors.float(), batch.keypoints)
    terms['pair'], terms['accuracy'] = pair_loss(
        descriptors, batch.visible, batch.source_keypoints, weights.temperature
    )
    total = total + weights.pair_contrast * terms['pair']
    if weights.precision > 0 or weights.ranking > 0:
        terms['position'], terms['ranking'], terms['median'] = position_losses(
            logits.float(), batch.second_from_first
        )
        total = total + weights.precision * terms['position'] + weights.ranking * terms['ranking']
    if projection is not None and batch.descriptors.shape[-1] > 0:
        projected = functional.normalize(descriptors @ projection.T, dim=-1)
        terms['cosine'], terms['teacher'] = teacher_losses(
            projected,
            batch.descriptors.float().repeat_interleave(2, dim=0),
            batch.visible,
            batch.source_keypoints.repeat_interleave(2, dim=0),
            weights.temperature,
        )
        total = total + weights.teacher_cosine * terms['cosine']
        total = total + weights.teacher_contrast * terms['teacher']
    return total, {name: value.detach() for name, value in terms.items()}
