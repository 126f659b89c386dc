"""Which label each point of a map gets: the one that tells it apart, all labels equally often."""

from __future__ import annotations

import torch
from torch import Tensor

#: Rounds that offsets are adjusted in.
_ROUNDS = 60


def balanced_labels(scores: Tensor) -> Tensor:
    """Return a label (P,) int64 for each row of scores (P, K), higher is better.

    Offsets are taken from the labels that are chosen too often, until all are about equally
    frequent: a label that stands for everything tells nothing.
    """
    count, labels = scores.shape
    offsets = torch.zeros(labels)
    usual = count / labels
    step = 0.5 * float(scores.std().clamp_min(1e-6))
    chosen = scores.argmax(dim=1)
    for number in range(_ROUNDS):
        frequency = torch.bincount(chosen, minlength=labels).float()
        change = torch.log((frequency + 0.1 * usual + 1e-3) / (1.1 * usual + 1e-3))
        offsets += step * 0.95**number * change
        chosen = (scores - offsets).argmax(dim=1)
    return chosen


def mean_by_point(
    values: Tensor, point_idx: Tensor, num_points: int, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the weighted mean (P, D) of rows (N, D) of each point, and the sum of weights (P,)."""
    if weights is None:
        weights = torch.ones(len(values))
    sums = torch.zeros((num_points, values.shape[1]))
    sums.index_add_(0, point_idx, values * weights[:, None])
    counts = torch.zeros(num_points).index_add_(0, point_idx, weights)
    return sums / counts.clamp_min(1e-9)[:, None], counts
