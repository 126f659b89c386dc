"""The landmark head by the kernels, for networks without attention layers on a CPU."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros import kernels
from d2s_ros.kernels.interface import Floats, ScorerInputs
from d2s_ros.scene_models.landmark.scorer_weights import ScorerWeights
from d2s_ros.scene_models.landmark.stored_network import StoredNetwork
from d2s_ros.threads import num_threads


class KernelScorer:
    """Scores the candidate landmarks of one image's keypoints.

    Args:
        stored: A network without attention layers.
        points: (M, 3) float32 points of all landmarks, centred and scaled for the network.
    """

    def __init__(self, stored: StoredNetwork, points: Floats) -> None:
        if stored.config.num_layers:
            raise ValueError('a network with attention layers is not linear')
        self._weights, self._points = ScorerWeights(stored), points
        parts = self._weights.parts(points)
        self._of_points: Floats = parts.of_points
        self._kernel = kernels.active().candidate_scorer(parts)

    def with_points(self, points: Floats) -> KernelScorer:
        """Return a scorer to which the landmarks lie at other points (M, 3)."""
        other = copy.copy(self)
        other._of_points = self._weights.moved(self._of_points, self._points, points)
        other._points = points
        other._kernel = self._kernel.with_points(other._of_points)
        return other

    def __call__(self, *inputs: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the reliability (N,) of the likeliest candidate, and its column (N,).

        Args:
            inputs: As `ScorerInputs`.
        """
        contiguous = ScorerInputs._make(map(np.ascontiguousarray, inputs))
        return self._kernel(contiguous, threads=num_threads())
