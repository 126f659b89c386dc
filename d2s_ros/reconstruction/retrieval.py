"""Global image descriptors without trained weights: VLAD over the map's own local descriptors.

Source: H. Jegou et al., Aggregating local descriptors into a compact image representation,
CVPR 2010; intra-normalisation after R. Arandjelovic and A. Zisserman, All about VLAD, CVPR 2013.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_QUERIES_AT_ONCE = 1024


class Vlad:
    """Aggregates local descriptors (N, D) to one global descriptor (K * D,), L2-normalised."""

    def __init__(self, centroids: NDArray[np.float32]) -> None:
        import torch

        self.centroids = torch.from_numpy(np.ascontiguousarray(centroids, dtype=np.float32))

    @classmethod
    def fit(
        cls,
        descriptors: list[NDArray[np.float32]],
        *,
        num_centroids: int = 32,
        max_samples: int = 20_000,
        seed: int = 0,
    ) -> Vlad:
        """Learn the codebook by k-means on a sample of the descriptors of all images."""
        import torch

        from d2s_ros.reconstruction.clustering import k_means

        generator = np.random.default_rng(seed)
        share = max(1, max_samples // max(1, len(descriptors)))
        sample = np.concatenate(
            [d[generator.permutation(len(d))[:share]] for d in descriptors if len(d)]
        )
        num_centroids = min(num_centroids, len(sample))
        data = torch.from_numpy(np.ascontiguousarray(sample, dtype=np.float32))
        centroids = data[torch.from_numpy(generator.permutation(len(data))[:num_centroids])].clone()
        return cls(k_means(data, centroids).numpy())

    def describe(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the global descriptor (K * D,) of one image's local descriptors (N, D)."""
        import torch

        from d2s_ros.reconstruction.clustering import nearest_centroids

        k, dim = self.centroids.shape
        if len(descriptors) == 0:
            return np.zeros(k * dim, np.float32)
        data = torch.from_numpy(np.ascontiguousarray(descriptors, dtype=np.float32))
        assignment = nearest_centroids(data, self.centroids)
        residual = data - self.centroids[assignment]
        vlad = torch.zeros(k, dim).index_add_(0, assignment, residual)
        vlad = torch.nn.functional.normalize(vlad, dim=1).flatten()
        return np.asarray(torch.nn.functional.normalize(vlad, dim=0), dtype=np.float32)


def nearest_images(
    queries: NDArray[np.float32], database: NDArray[np.float32], count: int
) -> NDArray[np.int64]:
    """Return for each query (Q, G) the indices (Q, count) of the nearest of (M, G), best first."""
    import torch

    count = min(count, len(database))
    columns = torch.from_numpy(database).T
    found = []
    # In slices: the similarities of ten thousand images to each other would take 400 MB.
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        similarity = torch.from_numpy(queries[start : start + _QUERIES_AT_ONCE]) @ columns
        found.append(similarity.topk(count, dim=1).indices.numpy())
    return np.concatenate(found) if found else np.zeros((0, count), np.int64)
