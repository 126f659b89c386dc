"""The landmark head at work: nearest landmarks of each keypoint, and which of them is right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from d2s_ros.device import has_fast_bfloat16, require_torch
from d2s_ros.scene_models.base import Candidates, Observation, Observer, SceneCoordinates, View
from d2s_ros.scene_models.landmark.kernel_scorer import KernelScorer
from d2s_ros.scene_models.landmark.leave_one_out import LeaveOneOut, without_landmarks
from d2s_ros.scene_models.landmark.stored_network import StoredNetwork
from d2s_ros.scene_models.landmark.table import (
    LandmarkIndex,
    LandmarkTable,
    NearestLandmarks,
    log_scales_of,
)

if TYPE_CHECKING:
    from d2s_ros.scene_models.landmark.gpu import RecordedChoice
    from d2s_ros.scene_models.landmark.inference import TensorScorer
    from d2s_ros.scene_models.landmark.tensor_index import TensorIndex


class LandmarkObserver(Observer):
    """Landmarks arranged for the search and a network for one image after another.

    Args:
        table, network: Of the model.
        left_out: Leaves mapping images out; None where none can be.
        device, precision, sigma_px: As for `SceneModel.observer`.
    """

    def __init__(
        self,
        table: LandmarkTable,
        network: StoredNetwork,
        left_out: LeaveOneOut | None,
        *,
        device: str,
        precision: str,
        sigma_px: float,
    ) -> None:
        exact = precision == 'fp32'
        self._table, self._left_out = table, left_out
        self._describe = network.describe
        self._variance = sigma_px**2
        self.num_candidates = network.config.num_candidates
        points = table.normalized(table.points_in_map)
        self._index: LandmarkIndex | TensorIndex
        self._choice: RecordedChoice | None = None
        scorer: KernelScorer | TensorScorer
        if device == 'cpu' and not exact:
            self._index = table.index
        if device == 'cpu' and not exact and network.config.num_layers == 0:
            scorer = KernelScorer(network, points)
        else:
            require_torch('attention layers, a GPU and the precision fp32')
            import torch

            from d2s_ros.scene_models.landmark.gpu import RecordedChoice
            from d2s_ros.scene_models.landmark.inference import LandmarkScorer, TensorScorer
            from d2s_ros.scene_models.landmark.tensor_index import TensorIndex

            half = not exact and has_fast_bfloat16(device)
            by_tensors = LandmarkScorer(
                network,
                torch.from_numpy(points),
                device=device,
                dtype=torch.bfloat16 if half else torch.float32,
            )
            scorer = TensorScorer(by_tensors, device)
            if device != 'cpu' or exact:
                self._index = TensorIndex(table.keys, device=device)
                if device != 'cpu':
                    self._choice = RecordedChoice(
                        self._index, by_tensors, self.num_candidates, network.network.descriptors
                    )
        self._landmarks = _Landmarks(*self._positions(table), scorer)

    def observe(self, view: View) -> Observation:
        """Search the nearest landmarks of the keypoints and choose among them."""
        if self._choice is not None:
            return self._landmarks.observation(view, *self._choice(view))
        return self._chosen(view, self._landmarks)

    def find_nearest(self, descriptors: NDArray[np.float32]) -> NearestLandmarks:
        """Return the nearest landmarks of keypoints, by what the descriptor network gives."""
        return self._index.search(descriptors, self.num_candidates)

    def observe_by_chance(self, view: View, rng: np.random.Generator) -> Observation:
        """Observe with the points shuffled among the landmarks: all of them are in wrong places."""
        order = rng.permutation(len(self._table))
        shuffled = replace(
            self._table,
            points_in_map=self._table.points_in_map[order],
            covariances=self._table.covariances[order],
        )
        return self._chosen(view, self._moved(shuffled))

    def observe_without(self, index: int, *, move_points: bool = True) -> Observation:
        """Observe a mapping image with its observations left out of the landmarks."""
        assert self._left_out is not None
        view = View.of(self._left_out.reconstruction.images[index])
        nearest, landmarks = self._left_out.nearest(index), self._landmarks
        if move_points:
            table, gone = self._left_out.without(index)
            nearest, landmarks = without_landmarks(nearest, gone), self._moved(table)
        # What mapping images are left out of has passed the descriptor network already.
        chosen = landmarks.choose(view, view.features.descriptors, nearest)
        return landmarks.observation(view, nearest, *chosen)

    def _chosen(self, view: View, landmarks: _Landmarks) -> Observation:
        descriptors = self._describe(view.features.descriptors)
        nearest = self.find_nearest(descriptors)
        return landmarks.observation(view, nearest, *landmarks.choose(view, descriptors, nearest))

    def _positions(self, table: LandmarkTable) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return points and covariances as the pose solver takes them."""
        points = table.points_in_map.astype(np.float64)
        return points, table.covariances.astype(np.float64) * self._variance

    def _moved(self, table: LandmarkTable) -> _Landmarks:
        """Return landmarks with the same keys that lie at other points."""
        points = table.normalized(table.points_in_map)
        return self._landmarks.moved(*self._positions(table), points)


@dataclass(frozen=True, eq=False)
class _Landmarks:
    """Where landmarks lie, and a scorer to which they lie there.

    Attributes:
        points_in_map: (M, 3) float64; covariances: (M, 3, 3) float64, unit of the map squared.
        scorer: By the kernels or by PyTorch.
    """

    points_in_map: NDArray[np.float64]
    covariances: NDArray[np.float64]
    scorer: KernelScorer | TensorScorer

    def moved(
        self,
        points_in_map: NDArray[np.float64],
        covariances: NDArray[np.float64],
        normalized: NDArray[np.float32],
    ) -> _Landmarks:
        return _Landmarks(points_in_map, covariances, self.scorer.with_points(normalized))

    def choose(
        self, view: View, descriptors: NDArray[np.float32], nearest: NearestLandmarks
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the reliability (N,) of the likeliest candidate, and its column (N,)."""
        return self.scorer(
            descriptors,
            nearest.landmark_idx,
            nearest.similarity,
            nearest.best_of_landmark,
            view.normalized_points,
            log_scales_of(view),
        )

    def observation(
        self,
        view: View,
        nearest: NearestLandmarks,
        reliability: NDArray[np.float32],
        choice: NDArray[np.int64],
    ) -> Observation:
        """Return the points of the chosen columns (N,) of the candidates."""
        landmark_idx = nearest.landmark_idx[np.arange(len(choice)), choice]
        coordinates = SceneCoordinates(
            self.points_in_map[landmark_idx],
            reliability,
            self.covariances[landmark_idx],
            landmark_idx,
        )
        candidates = Candidates(
            nearest.landmark_idx, nearest.similarity, self.points_in_map, self.covariances
        )
        return Observation(view, coordinates, candidates)
