"""The weights of the landmark head arranged for one image after another, in NumPy.

What depends on a landmark alone is computed once, products of matrices that follow each other are
multiplied beforehand, and layers that read the same tokens are one product.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from d2s_ros.kernels.arrays import fourier
from d2s_ros.kernels.interface import Floats, ScorerParts
from d2s_ros.scene_models.landmark.stored_network import StoredNetwork


class ScorerWeights:
    """`ScorerParts` of a network for landmarks anywhere; attention layers are left out of it."""

    def __init__(self, stored: StoredNetwork) -> None:
        config, state = stored.config, stored.state
        self.config = config
        hidden = config.hidden_inputs
        length = 3 + 6 * config.num_frequencies
        from_points = state['from_points.weight']
        of_best, of_second = from_points[:, :length], from_points[:, length:]
        candidate_in = state['candidate_in.weight']
        # What a landmark is as the best candidate, as the second, and as any.
        self._point_weights = np.stack([of_best.T, of_second.T, candidate_in[:, :length].T])
        no_bias = np.zeros((2, config.width), np.float32)
        self._point_biases = np.concatenate([no_bias, state['candidate_in.bias'][None]])[:, None]
        # Unit descriptors of many dimensions have small entries: the network sees them at about 1.
        scale = 0.0 if 'descriptors' in hidden else math.sqrt(config.descriptor_dim) * 0.7
        names = ('from_descriptor', 'from_evidence', 'from_keypoint')
        weight = np.concatenate([state[f'{name}.weight'] for name in names], axis=1)
        weight[:, : config.descriptor_dim] *= np.float32(scale)
        bias = np.sum([state[f'{name}.bias'] for name in (*names, 'from_points')], axis=0)
        # (W h + c) . q = h . (W^T q) + c . q, and q is linear too.
        out = np.concatenate([state['candidate_out.weight'].T, state['candidate_out.bias'][None]])
        self._fixed = ScorerParts(
            weight,
            bias,
            np.concatenate([out @ state['query.weight'], state['none.weight']]),
            np.concatenate([out @ state['query.bias'], state['none.bias']]),
            np.zeros((3, 0, config.width), np.float32),
            np.ascontiguousarray(candidate_in[:, length:].T),
            float(state['gain']),
            config.num_frequencies,
            'keypoints' in hidden,
        )

    def parts(self, points: Floats) -> ScorerParts:
        """Return the parts for landmarks at points (M, 3), centred and scaled for the network."""
        return self._fixed._replace(of_points=self.of_points(points))

    def of_points(self, points: Floats) -> Floats:
        """Return what landmarks at points (M, 3) add, (3, M, width) float32."""
        if 'candidate_points' in self.config.hidden_inputs:
            points = np.zeros_like(points)
        place = fourier(points, self.config.num_frequencies)
        return np.asarray(place @ self._point_weights + self._point_biases, np.float32)

    def moved(self, of_points: Floats, before: Floats, points: Floats) -> Floats:
        """Return `of_points`, which were of the points `before` (M, 3), for other points."""
        rows: NDArray[np.int64] = np.flatnonzero((points != before).any(axis=1))
        result = of_points.copy()
        result[:, rows] = self.of_points(points[rows])
        return result
