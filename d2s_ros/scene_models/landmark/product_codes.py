"""Descriptors as product codes: each part of a vector is the number of its nearest centroid.

Source: H. Jegou, M. Douze and C. Schmid, Product quantization for nearest neighbor search, TPAMI
2011. Codes are decoded once, when a map is opened: they make maps small, not searches fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Numbers of a vector that one code stands for.
PART_DIM = 4
#: A code is one byte.
_NUM_CENTROIDS = 256
_MAX_SAMPLES = 8192
_ITERATIONS = 10


@dataclass(frozen=True, eq=False)
class ProductCodes:
    """Unit vectors (M, D) as S codes each.

    Attributes:
        codebook: (S, K, 4) float16 centroids of each part.
        codes: (M, S) uint8.
        dim: D; the last part is filled up with zeros.
    """

    codebook: NDArray[np.float16]
    codes: NDArray[np.uint8]
    dim: int

    @classmethod
    def encode(cls, vectors: NDArray[np.float32], *, seed: int = 0) -> ProductCodes:
        """Learn a codebook from vectors (M, D) and encode them with it."""
        import torch
        from torch.nn import functional

        from d2s_ros.reconstruction.clustering import k_means, nearest_centroids

        count, dim = vectors.shape
        parts = functional.pad(torch.from_numpy(vectors), (0, -dim % PART_DIM))
        parts = parts.view(count, -(-dim // PART_DIM), PART_DIM).transpose(0, 1).contiguous()
        chosen = torch.from_numpy(np.random.default_rng(seed).permutation(count)[:_MAX_SAMPLES])
        books, codes = [], []
        # Part by part: the distances of one stay in the cache.
        for part in parts:
            sample = part[chosen]
            # The sample is in random order already.
            centroids = k_means(sample, sample[:_NUM_CENTROIDS], iterations=_ITERATIONS).half()
            books.append(centroids)
            codes.append(nearest_centroids(part, centroids.float()))
        codebook = torch.stack(books)
        return cls(codebook.numpy(), torch.stack(codes, dim=1).to(torch.uint8).numpy(), dim)

    def decode(self) -> NDArray[np.float32]:
        """Return L2-normalised vectors (M, D)."""
        parts = self.codebook.astype(np.float32)[np.arange(self.codes.shape[1]), self.codes]
        vectors = parts.reshape(len(self.codes), -1)[:, : self.dim]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(norms, 1e-12), np.float32)

    @property
    def nbytes(self) -> int:
        """Size of codebook and codes."""
        return self.codebook.nbytes + self.codes.nbytes
