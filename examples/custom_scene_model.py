"""A scene model of your own: mean descriptors of points, and the nearest one for each keypoint.

    python examples/custom_scene_model.py MAPPING MAP QUERIES

Nothing is learned, nothing is compressed; it is the smallest model that localizes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.sources import open_source
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.scene_models import registry
from d2s_ros.scene_models.base import (
    BuildContext,
    Built,
    Candidates,
    Observation,
    Observer,
    SceneCoordinates,
    SceneModel,
    View,
)


@dataclass(frozen=True, eq=False)
class NearestMean(SceneModel):
    """Points of the reconstruction with their mean descriptors."""

    name: ClassVar[str] = 'nearest_mean'

    keys: NDArray[np.float32]
    points: NDArray[np.float32]

    @classmethod
    def build(cls, context: BuildContext) -> Built:
        """Average the descriptors of every point that two images see."""
        images = context.reconstruction.images
        num_points = len(context.reconstruction.points_in_map)
        sums = np.zeros((num_points, context.extractor.dim), np.float32)
        counts = np.zeros(num_points, np.int64)
        for image in images:
            seen = np.flatnonzero(image.point_idx >= 0)
            np.add.at(sums, image.point_idx[seen], image.features.descriptors[seen])
            np.add.at(counts, image.point_idx[seen], 1)
        used = np.flatnonzero(counts > 1)
        keys = sums[used] / np.linalg.norm(sums[used], axis=1, keepdims=True)
        points = context.reconstruction.points_in_map[used].astype(np.float32)
        return Built(cls(keys, points), {'num_landmarks': len(keys)})

    @property
    def network_config(self) -> dict[str, Any]:
        """Return what the manifest keeps beside the tensors."""
        return {'dim': self.keys.shape[1]}

    @property
    def summary(self) -> str:
        """Return the size in words."""
        return f'{len(self.keys)} mean descriptors'

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return what the map file keeps."""
        return {'keys': self.keys, 'points': self.points}

    @classmethod
    def from_tensors(
        cls, network_config: dict[str, Any], tensors: Mapping[str, NDArray[Any]]
    ) -> NearestMean:
        """Read the model back from a map file."""
        return cls(tensors['keys'], tensors['points'])

    @property
    def points_in_map(self) -> NDArray[np.float32]:
        """Return the landmarks."""
        return self.points

    def scaled(self, factor: float) -> NearestMean:
        """Return the model in a smaller unit of length, for `d2s map scale`."""
        return NearestMean(self.keys, (self.points * factor).astype(np.float32))

    def observer(self, *, device: str, precision: str, sigma_px: float) -> NearestObserver:
        """Return the model ready to observe images."""
        return NearestObserver(self, sigma_px)


class NearestObserver(Observer):
    """Takes the nearest point; how much nearer than the next one says how reliable it is."""

    def __init__(self, model: NearestMean, sigma_px: float) -> None:
        self.model = model
        depth = float(np.median(np.linalg.norm(model.points, axis=1)))
        self.covariances = np.tile(
            (1e-3 * sigma_px * depth) ** 2 * np.eye(3), (len(model.keys), 1, 1)
        )

    def observe(self, view: View) -> Observation:
        """Return where the keypoints of an image lie."""
        return self._observe(view, self.model.points.astype(np.float64))

    def observe_by_chance(self, view: View, rng: np.random.Generator) -> Observation:
        """Observe with the points shuffled: every pose found then is chance."""
        return self._observe(view, rng.permutation(self.model.points).astype(np.float64))

    def _observe(self, view: View, points: NDArray[np.float64]) -> Observation:
        cosines = view.features.descriptors @ self.model.keys.T
        best = np.argpartition(-cosines, 3, axis=1)[:, :3]
        order = np.argsort(-np.take_along_axis(cosines, best, axis=1), axis=1, kind='stable')
        landmarks = np.take_along_axis(best, order, axis=1)
        similarity = np.take_along_axis(cosines, landmarks, axis=1)
        margin = similarity[:, 0] - similarity[:, 1]
        reliability = np.clip(10 * margin, 0, 1).astype(np.float32)
        nearest = landmarks[:, 0]
        coordinates = SceneCoordinates(
            points[nearest], reliability, self.covariances[nearest], nearest
        )
        candidates = Candidates(landmarks, similarity, points, self.covariances)
        return Observation(view, coordinates, candidates)


def main(mapping: str, map_path: str, queries: str) -> None:
    """Register the model, build a map with it, and localize."""
    registry.MODELS[NearestMean.name] = NearestMean
    config = budget('quick', head=NearestMean.name)
    built = build_map(open_source(mapping), map_path, config, device='cpu', progress=False)
    print(f'{map_path}: {built.scene_map.model.summary}')
    localizer = Localizer.from_map(map_path, device='cpu')
    for frame in open_source(queries):
        result = localizer.localize(frame.image, frame.camera)
        print(f'{frame.name}: {result.status.value}, {result.num_inliers} inliers')


if __name__ == '__main__':
    main(*sys.argv[1:])
