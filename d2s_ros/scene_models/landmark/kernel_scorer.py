"""`LandmarkScorer` by the kernels, for networks without attention layers on a CPU."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2s_ros import kernels
from d2s_ros.kernels.interface import ScorerInputs
from d2s_ros.scene_models.landmark.inference import LandmarkScorer


class KernelScorer:
    """Scores the candidate landmarks of one image's keypoints.

    Args:
        scorer: In float32 on the CPU, without attention layers; only read.
    """

    def __init__(self, scorer: LandmarkScorer) -> None:
        self._scorer = scorer
        self._kernel = kernels.active().candidate_scorer(scorer.parts())

    def with_points(self, points: Tensor) -> KernelScorer:
        """Return a scorer to which the landmarks lie at other points (M, 3)."""
        other = copy.copy(self)
        other._scorer = self._scorer.with_points(points)
        other._kernel = self._kernel.with_points(other._scorer.parts().of_points)
        return other

    def __call__(self, *inputs: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the reliability (N,) of the likeliest candidate, and its column (N,).

        Args:
            inputs: As `ScorerInputs`.
        """
        contiguous = ScorerInputs._make(map(np.ascontiguousarray, inputs))
        return self._kernel(contiguous, threads=torch.get_num_threads())
