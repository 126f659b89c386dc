"""The search for nearest landmarks by PyTorch: on a GPU, and where it must be exact."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from d2s_ros.kernels import tensors
from d2s_ros.scene_models.landmark.table import NearestLandmarks


class TensorIndex:
    """As `LandmarkIndex`, in float32 on a device."""

    def __init__(self, keys: NDArray[np.float32], *, device: str = 'cpu') -> None:
        """Arrange keys (M, D), L2-normalised float32."""
        self._keys = torch.from_numpy(np.ascontiguousarray(keys)).to(device)

    @property
    def device(self) -> torch.device:
        """Where the keys are."""
        return self._keys.device

    @torch.inference_mode()
    def search(self, descriptors: NDArray[np.float32], num_candidates: int) -> NearestLandmarks:
        """As `LandmarkIndex.search`."""
        queries = torch.from_numpy(np.ascontiguousarray(descriptors)).to(self.device)
        found = self.nearest(queries, num_candidates)
        return NearestLandmarks(*(tensor.cpu().numpy() for tensor in found))

    def nearest(
        self, queries: torch.Tensor, num_candidates: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `search`, with tensors (N, D) where the keys are and (N, C) there, not waited for."""
        count = min(num_candidates, len(self._keys))
        idx, similarity, best = tensors.search(queries, self._keys, count)
        missing = num_candidates - count
        if missing:
            similarity = functional.pad(similarity, (0, missing), value=-1.0)
            best = functional.pad(best, (0, missing), value=1.0)
            idx = torch.cat([idx, idx[:, -1:].expand(-1, missing)], dim=1)
        return idx, similarity, best
