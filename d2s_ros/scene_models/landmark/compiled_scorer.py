"""`LandmarkJudge` by the compiled part, for networks without attention layers on a CPU.

What it computes of a keypoint before it looks at the candidates is linear in its inputs then: one
product. Products are float32; what belongs to landmarks is kept in bfloat16.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from d2s_ros.kernels.judge import LANES, JudgeWeights, judge
from d2s_ros.scene_models.landmark.inference import LandmarkJudge
from d2s_ros.scene_models.landmark.network import fourier


class CompiledJudge:
    """Judges the candidate landmarks of one image's keypoints.

    Args:
        reference: In float32 on the CPU, without attention layers; only read.
    """

    @torch.inference_mode()
    def __init__(self, reference: LandmarkJudge) -> None:
        parts = reference.linear_parts()
        self._reference = reference
        padding = -len(parts.final_bias) % LANES
        # The columns beyond are zero, and never read.
        self._final = functional.pad(parts.final_weight, (0, 0, 0, padding)).T.contiguous()
        product = parts.input_weight.T @ self._final
        bias = functional.pad(parts.final_bias, (0, padding)) + parts.input_bias @ self._final
        if 'keypoints' in reference.config.hidden_inputs:
            # What the place (0, 0) and the scale 1 add, whatever the place.
            rows = product[-(3 + 4 * reference.config.num_frequencies) :]
            place = fourier(torch.zeros(2), reference.config.num_frequencies)
            bias += functional.pad(place, (0, 1)) @ rows
            rows.zero_()
        as_best, as_second, as_any = parts.of_points
        self.weights = JudgeWeights(
            reference.config.num_frequencies,
            product.contiguous().numpy(),
            bias.numpy(),
            _bfloat16(as_best @ self._final),
            _bfloat16(as_second @ self._final),
            _bfloat16(as_any),
            parts.evidence_weight.contiguous().numpy(),
            parts.gain,
        )

    @torch.inference_mode()
    def with_points(self, points: Tensor) -> CompiledJudge:
        """Return a judge to which the landmarks lie at other points (M, 3)."""
        other = copy.copy(self)
        other._reference = self._reference.with_points(points)
        before, after = (j.linear_parts().of_points for j in (self._reference, other._reference))
        rows = (before != after).any(dim=2).any(dim=0).nonzero()[:, 0]
        as_best, as_second, as_any = after[:, rows]
        weights, changed = self.weights, rows.numpy()
        other.weights = replace(
            weights,
            of_best=_replaced(weights.of_best, changed, as_best @ self._final),
            of_second=_replaced(weights.of_second, changed, as_second @ self._final),
            of_any=_replaced(weights.of_any, changed, as_any),
        )
        return other

    def __call__(
        self,
        descriptors: NDArray[np.float32],
        landmark_idx: NDArray[np.int64],
        similarity: NDArray[np.float32],
        best_of_landmark: NDArray[np.float32],
        keypoints: NDArray[np.float32],
        log_scales: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the reliability (N,) of the likeliest candidate, and its column (N,).

        Args:
            descriptors, landmark_idx, similarity, best_of_landmark, keypoints, log_scales: As for
                `LandmarkJudge`.
        """
        return judge(
            self.weights,
            np.ascontiguousarray(descriptors),
            np.ascontiguousarray(landmark_idx),
            np.ascontiguousarray(similarity),
            np.ascontiguousarray(best_of_landmark),
            np.ascontiguousarray(keypoints),
            np.ascontiguousarray(log_scales),
            threads=torch.get_num_threads(),
        )


def _bfloat16(values: Tensor) -> NDArray[np.uint16]:
    """Return the bits of values rounded to bfloat16."""
    return values.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()


def _replaced(
    table: NDArray[np.uint16], rows: NDArray[np.int64], values: Tensor
) -> NDArray[np.uint16]:
    result = table.copy()
    result[rows] = _bfloat16(values)
    return result
