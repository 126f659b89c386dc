"""Search and choice of landmarks on a GPU: one transfer in, one out, no wait between.

The stages are those of a CPU. Shapes depend on the number of keypoints alone, which is rounded up,
so that what the GPU does is recorded once and started with one call.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2s_ros.cuda_graph import FrameRecorder
from d2s_ros.kernels.tensors import reliability_of
from d2s_ros.scene_models.base import View
from d2s_ros.scene_models.landmark.descriptor_network import DescriptorNetwork
from d2s_ros.scene_models.landmark.inference import LandmarkScorer
from d2s_ros.scene_models.landmark.table import NearestLandmarks, log_scales_of
from d2s_ros.scene_models.landmark.tensor_index import TensorIndex

#: Numbers of keypoints are rounded up to multiples of this.
_ROWS = 256


class RecordedChoice:
    """From the keypoints of a view to the likeliest of their nearest landmarks.

    Args:
        index: Of the map's landmarks.
        scorer: On the same device.
        num_candidates: Candidates of a keypoint.
        descriptor_network: What descriptors pass first, if there is one.
    """

    def __init__(
        self,
        index: TensorIndex,
        scorer: LandmarkScorer,
        num_candidates: int,
        descriptor_network: DescriptorNetwork | None = None,
    ) -> None:
        self._index, self._scorer = index, scorer
        # A copy: the map's own stays where it is.
        self._describe = copy.deepcopy(descriptor_network)
        if self._describe is not None:
            self._describe = self._describe.to(index.device).requires_grad_(False)
        self._num_candidates = num_candidates
        self._recorder = FrameRecorder(index.device)
        self._rows = 0

    def __call__(
        self, view: View
    ) -> tuple[NearestLandmarks, NDArray[np.float32], NDArray[np.int64]]:
        """Return nearest landmarks, the reliability (N,) of the likeliest and its column (N,)."""
        features = view.features
        count = self._num_rows(len(features))
        table = np.zeros((count, features.descriptors.shape[1] + 3), np.float32)
        rows = table[: len(features)]
        rows[:, :2] = view.normalized_points
        rows[:, 2] = log_scales_of(view)
        rows[:, 3:] = features.descriptors
        found = self._recorder.run(table.shape, self.compute, torch.from_numpy(table)).numpy()
        found = found[: len(features)]
        numbers = found[:, 2:].reshape(len(found), 3, self._num_candidates)
        nearest = NearestLandmarks(
            numbers[:, 0].astype(np.int64), numbers[:, 1].copy(), numbers[:, 2].copy()
        )
        return nearest, found[:, 0].copy(), found[:, 1].astype(np.int64)

    def _num_rows(self, count: int) -> int:
        """Return how many rows are computed: what is no keypoint is like nothing."""
        if not self._scorer.sees_one_keypoint:
            # Keypoints that are none would be seen by others.
            return count
        self._rows = max(self._rows, -(-count // _ROWS) * _ROWS)
        return self._rows

    @torch.inference_mode()
    def compute(self, table: Tensor) -> Tensor:
        """Do all that runs on the device.

        Args:
            table: (K, 3 + D) float32: x/z, y/z, log scale and descriptor of each keypoint.

        Returns:
            (K, 2 + 3 C) float32: reliability, choice; index, cosine and best cosine of each
            candidate. Indices are exact up to 2^24.
        """
        descriptors = table[:, 3:].contiguous()
        if self._describe is not None:
            descriptors = self._describe(descriptors)
        idx, similarity, best = self._index.nearest(descriptors, self._num_candidates)
        logits = self._scorer(descriptors, idx, similarity, best, table[:, :2], table[:, 2])
        reliability, choice = reliability_of(logits)
        parts = [torch.stack([reliability, choice.float()], dim=1), idx.float(), similarity, best]
        return torch.cat(parts, dim=1)
