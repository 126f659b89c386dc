"""A third scene model, small enough to read: mean descriptors of points, and nothing learned.

What a new folder beside `landmark` and `regression` has to hold; it needs nothing of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from d2s_ros.reconstruction.reconstruction import Reconstruction
from d2s_ros.scene_models.base import (
    Built,
    Candidates,
    Observation,
    Observer,
    SceneCoordinates,
    SceneModel,
    View,
)

#: Points that a keypoint may show.
COUNT = 3


def mean_descriptors(images, num_points):
    """Return the sums of the descriptors of each point, and how many there are."""
    sums = np.zeros((num_points, images[0].features.descriptors.shape[1]), np.float32)
    counts = np.zeros(num_points, np.int64)
    for image in images:
        seen = np.flatnonzero(image.point_idx >= 0)
        np.add.at(sums, image.point_idx[seen], image.features.descriptors[seen])
        np.add.at(counts, image.point_idx[seen], 1)
    return sums, counts


def unit(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


class ToyObserver(Observer):
    """Takes the nearest point; how much nearer than the next one tells how reliable it is."""

    def __init__(self, model, sigma_px):
        self.model = model
        depth = max(float(np.median(np.linalg.norm(model.points, axis=1))), 1e-9)
        self.covariances = np.tile(
            (1e-3 * sigma_px * depth) ** 2 * np.eye(3), (len(model.keys), 1, 1)
        )

    def _observation(self, view, keys, points):
        cosines = view.features.descriptors @ keys.T
        idx = np.argsort(-cosines, axis=1, kind='stable')[:, :COUNT]
        similarity = np.take_along_axis(cosines, idx, axis=1)
        reliability = np.clip(10 * (similarity[:, 0] - similarity[:, 1]), 0, 1).astype(np.float32)
        nearest = idx[:, 0]
        points = points.astype(np.float64)
        coordinates = SceneCoordinates(
            points[nearest], reliability, self.covariances[nearest], nearest
        )
        return Observation(view, coordinates, Candidates(idx, similarity, points, self.covariances))

    def observe(self, view):
        return self._observation(view, self.model.keys, self.model.points)

    def observe_by_chance(self, view, rng):
        return self._observation(view, self.model.keys, rng.permutation(self.model.points))

    def observe_without(self, index, *, move_points=True):
        images = self.model.mapping.images
        kept = [image for number, image in enumerate(images) if number != index]
        sums, _ = mean_descriptors(kept, len(self.model.mapping.points_in_map))
        keys = unit(sums[self.model.used])
        return self._observation(View.of(images[index]), keys, self.model.points)


@dataclass(frozen=True, eq=False)
class ToyModel(SceneModel):
    """Points with their mean descriptors; `mapping` and `used` only while they are known."""

    name = 'toy'

    keys: np.ndarray
    points: np.ndarray
    mapping: Reconstruction | None = None
    used: np.ndarray | None = None

    @classmethod
    def of(cls, reconstruction, allowed):
        sums, counts = mean_descriptors(reconstruction.images, len(reconstruction.points_in_map))
        used = np.flatnonzero((counts > 1) & allowed)
        # As a map file keeps them.
        keys = unit(sums[used]).astype(np.float16).astype(np.float32)
        points = reconstruction.points_in_map[used].astype(np.float32)
        return cls(keys, points, reconstruction, used)

    @classmethod
    def build(cls, context):
        model = cls.of(
            context.reconstruction, np.ones(len(context.reconstruction.points_in_map), bool)
        )
        return Built(model, {'num_landmarks': len(model.keys)})

    @property
    def network_config(self):
        return {'dim': self.keys.shape[1]}

    @property
    def summary(self):
        return f'{len(self.keys)} mean descriptors'

    def tensors(self):
        return {'keys': self.keys.astype(np.float16), 'points': self.points}

    @classmethod
    def from_tensors(cls, network_config, tensors):
        if tensors['keys'].shape[1] != network_config['dim']:
            raise ValueError('another length of descriptors')
        return cls(tensors['keys'].astype(np.float32), tensors['points'])

    def scaled(self, factor):
        return replace(self, points=(self.points * factor).astype(np.float32))

    def observer(self, *, device, precision, sigma_px):
        return ToyObserver(self, sigma_px)

    @property
    def points_in_map(self):
        return self.points

    @property
    def leaves_out(self):
        return self.mapping is not None

    @property
    def used_points(self):
        return self.used

    def with_mapping(self, reconstruction):
        points = reconstruction.points_in_map.astype(np.float32)
        numbers = {point.tobytes(): number for number, point in enumerate(points)}
        used = np.array([numbers[point.tobytes()] for point in self.points])
        return replace(self, mapping=reconstruction, used=used)

    def updated(self, growth, training):
        model = ToyModel.of(growth.reconstruction, growth.priority >= 0)
        return Built(model, {'num_landmarks': len(model.keys)})
