"""k-means, for the codebooks of a map."""

from __future__ import annotations

import torch
from torch import Tensor


def k_means(data: Tensor, centroids: Tensor, *, iterations: int = 15) -> Tensor:
    """Return the centroids (K, D) of data (N, D) after some of Lloyd's iterations.

    Clusters that lose all their members keep their centroid.
    """
    for _ in range(iterations):
        assignment = nearest_centroids(data, centroids)
        counts = torch.bincount(assignment, minlength=len(centroids))
        sums = torch.zeros_like(centroids).index_add_(0, assignment, data)
        means = sums / counts.clamp_min(1)[:, None]
        centroids = torch.where(counts[:, None] > 0, means, centroids)
    return centroids


def nearest_centroids(data: Tensor, centroids: Tensor) -> Tensor:
    """Return the centroid (N,) int64 that each row of data (N, D) is nearest to."""
    distance = centroids.square().sum(1) - 2 * data @ centroids.T
    return distance.argmin(dim=1)
