"""The targets and losses of SegLoc, as far as they are known; docs/design/segloc_decisions.md.

Shapes: N places, K labels, features of D numbers. Features and prototypes have length 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

#: Of the clusters' concentrations, so that small clusters are not taken for sharp ones.
_SMOOTHING = 10.0
#: Concentrations further out than these shares of the clusters are cut off.
_QUANTILES = (0.1, 0.9)
#: Of the multi-similarity loss: slopes for positives and negatives, and the similarity between.
_MS_POSITIVE, _MS_NEGATIVE, _MS_BETWEEN = 2.0, 50.0, 0.5


def self_target(logits: Tensor, distribution: Tensor) -> Tensor:
    """Equation (2): predictions (N, K) over the square root of how frequent labels are (K,)."""
    weighted = torch.softmax(logits.detach(), dim=1) / distribution.clamp_min(1e-6).sqrt()
    return weighted / weighted.sum(dim=1, keepdim=True)


def prototype_target(features: Tensor, prototypes: Tensor, concentrations: Tensor) -> Tensor:
    """Equation (4): how alike features (N, D) are to each prototype (K, D), over its concentration.

    Returns:
        (N, K), rows sum to 1.
    """
    return torch.softmax(features.detach() @ prototypes.T / concentrations, dim=1)


def concentrations_of(
    features: Tensor, prototypes: Tensor, assigned: Tensor, temperature: float
) -> Tensor:
    """Return how wide the clusters are, (K,), their mean scaled to `temperature`.

    The sum of distances to the prototype over Z log(Z + 10), Z the members of a cluster. Empty
    clusters are as wide as the widest.
    """
    count = len(prototypes)
    distance = (features - prototypes[assigned]).norm(dim=1)
    members = torch.bincount(assigned, minlength=count).float()
    total = torch.zeros(count).index_add_(0, assigned, distance)
    width = total / (members * torch.log(members + _SMOOTHING)).clamp_min(1e-9)
    known = width[members > 0]
    width = torch.where(members > 0, width, known.max())
    low, high = torch.quantile(known, torch.tensor(_QUANTILES)).tolist()
    width = width.clamp(max(low, 1e-3), max(high, 1e-3))
    return width * (temperature / width.mean())


def classification_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Equation (3), L_CE: cross-entropy of predictions and targets (N, K)."""
    return -(target * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()


def correspondence_loss(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    """L_CC: cross-entropy between predictions (N, K) at matched pixels, both ways."""
    log_a, log_b = torch.log_softmax(logits_a, dim=1), torch.log_softmax(logits_b, dim=1)
    return -0.5 * ((log_a.exp() * log_b).sum(dim=1) + (log_b.exp() * log_a).sum(dim=1)).mean()


def prototype_loss(
    features_a: Tensor, features_b: Tensor, prototypes: Tensor, concentrations: Tensor
) -> Tensor:
    """L_PC: features (N, D) tell the prototype that the matched pixel is assigned to, both ways."""
    scores_a = features_a @ prototypes.T / concentrations
    scores_b = features_b @ prototypes.T / concentrations
    return 0.5 * (
        functional.cross_entropy(scores_a, scores_b.detach().argmax(dim=1))
        + functional.cross_entropy(scores_b, scores_a.detach().argmax(dim=1))
    )


def feature_loss(features_a: Tensor, features_b: Tensor, temperature: float) -> Tensor:
    """L_PF: of all pixels of the other image, features (N, D) are most like the matched one."""
    scores = features_a @ features_b.T / temperature
    own = torch.arange(len(scores))
    return 0.5 * (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own))


def multi_similarity_loss(anchor: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """L_MS: pooled vectors of an image (G,), of images near it (P, G) and of others (Q, G)."""
    total = torch.zeros(())
    if len(positives):
        exponents = -_MS_POSITIVE * (positives @ anchor - _MS_BETWEEN)
        total = total + torch.log1p(exponents.exp().sum()) / _MS_POSITIVE
    if len(negatives):
        exponents = _MS_NEGATIVE * (negatives @ anchor - _MS_BETWEEN)
        total = total + torch.log1p(exponents.exp().sum()) / _MS_NEGATIVE
    return total
