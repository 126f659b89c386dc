"""From tracks to landmarks, and from features to candidate landmarks.

A mapping image helped to make the landmarks it sees, so its own descriptors match them better than
a new image's would. Training samples therefore leave it out: each landmark seen in the image is
compared by the mean of its other observations. What the network learns then holds for queries.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from d2s_ros import kernels
from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.kernels.interface import KeyIndex
from d2s_ros.reconstruction.reconstruction import Reconstruction
from d2s_ros.scene_models.base import View
from d2s_ros.scene_models.landmark.product_codes import ProductCodes
from d2s_ros.scene_models.landmark.short_form import ShortForm
from d2s_ros.scene_models.points import choose_points, point_covariances
from d2s_ros.threads import num_threads


@dataclass(frozen=True, eq=False)
class LandmarkTable:
    """The landmarks of a map.

    Attributes:
        keys: (M, D) float32, L2-normalised mean descriptors.
        points_in_map: (M, 3) float32.
        covariances: (M, 3, 3) float32, of the points for a keypoint noise of 1 px.
        center: (3,) and `extent`: where coordinates are centred and scaled for the network.
        codes: What `keys` were decoded from, if they were: how a map keeps them.
        short: What keys, points and covariances were decoded from, if the map keeps them shorter.
    """

    keys: NDArray[np.float32]
    points_in_map: NDArray[np.float32]
    covariances: NDArray[np.float32]
    center: NDArray[np.float32]
    extent: float
    codes: ProductCodes | None = None
    short: ShortForm | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def index(self) -> LandmarkIndex:
        """The keys arranged for search on the CPU."""
        return LandmarkIndex(self.keys)

    def coded(self, short_keys: int = 0) -> LandmarkTable:
        """Return the table as a map keeps it.

        Args:
            short_keys: Principal components that stand for a key, with shorter points and
                covariances; 0: product codes stand for keys, the others stay as they are.
        """
        if self.codes is not None or self.short is not None:
            return self
        if short_keys:
            short = ShortForm.encode(self.keys, self.points_in_map, self.covariances, short_keys)
            return self.of_short(short, self.center, self.extent)
        codes = ProductCodes.encode(self.keys)
        return replace(self, keys=codes.decode(), codes=codes)

    @classmethod
    def of_short(
        cls, short: ShortForm, center: NDArray[np.float32], extent: float
    ) -> LandmarkTable:
        """Decode a table."""
        points, covariances = short.points_in_map(), short.covariances()
        return cls(short.keys(), points, covariances, center, extent, short=short)

    def keys_as_kept(self, keys: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return other keys (N, D) for landmarks of this map.

        Product codes lose nothing that matters; short keys do, and training must see it.
        """
        return keys if self.short is None else self.short.keys_like(keys)

    def points_as_kept(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return points (N, 3) of the reconstruction where this map has them."""
        return points if self.short is None else self.short.points_like(points)

    def scaled(self, factor: float) -> LandmarkTable:
        """Return the table with all coordinates multiplied by `factor`; keys stay."""
        center = (self.center * factor).astype(np.float32)
        if self.short is not None:
            return self.of_short(self.short.scaled(factor), center, self.extent * factor)
        return replace(
            self,
            points_in_map=(self.points_in_map * factor).astype(np.float32),
            covariances=(self.covariances * factor**2).astype(np.float32),
            center=center,
            extent=self.extent * factor,
        )

    def of_rows(self, rows: NDArray[np.bool_]) -> LandmarkTable:
        """Return some landmarks (M,), with the frame that the network sees coordinates in."""
        if self.short is not None:
            short = replace(
                self.short,
                codes=self.short.codes[rows],
                steps=self.short.steps[rows],
                points=self.short.points[rows],
                factors=self.short.factors[rows],
            )
            return self.of_short(short, self.center, self.extent)
        codes = None if self.codes is None else replace(self.codes, codes=self.codes.codes[rows])
        return replace(
            self,
            keys=self.keys[rows],
            points_in_map=self.points_in_map[rows],
            covariances=self.covariances[rows],
            codes=codes,
        )

    def normalized(self, points_in_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return points (..., 3) centred and scaled so that most lie within 1."""
        scaled = (points_in_map - self.center) / self.extent
        return np.clip(scaled, -4.0, 4.0).astype(np.float32)


@dataclass(frozen=True, eq=False)
class NearestLandmarks:
    """The landmarks whose keys are nearest to the keypoints of one image, best first.

    Attributes:
        landmark_idx: (N, C) int64.
        similarity: (N, C) float32 cosines.
        best_of_landmark: (N, C) float32, highest cosine of any keypoint to each candidate.
    """

    landmark_idx: NDArray[np.int64]
    similarity: NDArray[np.float32]
    best_of_landmark: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LandmarkStatistics:
    """Sums behind the keys, needed only while a map is built.

    Attributes:
        descriptor_sums: (M, D) float64 sum of each landmark's descriptors.
        counts: (M,) int64 number of descriptors.
        landmark_of_point: (P,) int64 landmark of each point of the reconstruction, -1 for none.
    """

    descriptor_sums: NDArray[np.float64]
    counts: NDArray[np.int64]
    landmark_of_point: NDArray[np.int64]


def build_landmarks(
    reconstruction: Reconstruction,
    *,
    max_landmarks: int,
    priority: NDArray[np.float64] | None = None,
) -> tuple[LandmarkTable, LandmarkStatistics]:
    """Choose landmarks among the points such that every mapping image keeps its best ones.

    Args:
        reconstruction: Points and their observations.
        max_landmarks: Most landmarks.
        priority: (P,) largest first, instead of the track lengths; negative: never chosen,
            infinite: before all others.

    Raises:
        InputError: if there are too few points to localize with.
    """
    points = reconstruction.points_in_map
    covariances = point_covariances(reconstruction)
    order = np.sort(choose_points(reconstruction, covariances, max_landmarks, priority))
    landmark_of_point = np.full(len(points), -1, np.int64)
    landmark_of_point[order] = np.arange(len(order))
    # Only now: of a large scene, the sums of all points would not fit in memory.
    dim = reconstruction.images[0].features.descriptors.shape[1]
    sums, counts = np.zeros((len(order), dim)), np.zeros(len(order), np.int64)
    for image in reconstruction.images:
        seen = np.flatnonzero(image.point_idx >= 0)
        landmark = landmark_of_point[image.point_idx[seen]]
        seen, landmark = seen[landmark >= 0], landmark[landmark >= 0]
        np.add.at(sums, landmark, image.features.descriptors[seen])
        np.add.at(counts, landmark, 1)
    keys = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    center = np.median(points[order], axis=0)
    extent = float(np.percentile(np.abs(points[order] - center).max(axis=1), 90))
    table = LandmarkTable(
        keys.astype(np.float32),
        points[order].astype(np.float32),
        covariances[order].astype(np.float32),
        center.astype(np.float32),
        max(extent, 1e-9),
    )
    return table, LandmarkStatistics(sums, counts, landmark_of_point)


class LandmarkIndex:
    """The keys of a table, arranged for the search of nearest landmarks by the kernels."""

    def __init__(self, keys: NDArray[np.float32]) -> None:
        """Arrange keys (M, D), L2-normalised float32."""
        self._num_keys = len(keys)
        self._index: KeyIndex = kernels.active().key_index(keys)

    def replaced(self, rows: NDArray[np.int64], keys: NDArray[np.float32]) -> LandmarkIndex:
        """Return an index in which some keys (R, D) are others."""
        index = copy.copy(self)
        index._index = self._index.replaced(rows, keys)
        return index

    def search(self, descriptors: NDArray[np.float32], num_candidates: int) -> NearestLandmarks:
        """Return each keypoint's nearest landmarks.

        Args:
            descriptors: (N, D) float32, L2-normalised.
            num_candidates: C; fewer landmarks than that are padded with the last one.
        """
        queries, count = np.ascontiguousarray(descriptors), min(num_candidates, self._num_keys)
        idx, similarity, best = self._index.search(queries, count, threads=num_threads())
        missing = ((0, 0), (0, num_candidates - count))
        return NearestLandmarks(
            np.pad(idx, missing, mode='edge'),
            np.pad(similarity, missing, constant_values=-1.0),
            np.pad(best, missing, constant_values=1.0),
        )


def find_training_candidates(
    features: LocalFeatures,
    point_idx: NDArray[np.int64],
    table: LandmarkTable,
    statistics: LandmarkStatistics,
    num_candidates: int,
) -> NearestLandmarks:
    """Search with the observations of an image left out of the landmarks."""
    seen = np.flatnonzero(point_idx >= 0)
    landmark = statistics.landmark_of_point[point_idx[seen]]
    seen, landmark = seen[landmark >= 0], landmark[landmark >= 0]
    unique, position = np.unique(landmark, return_inverse=True)
    index = table.index
    if len(unique):
        own = np.zeros((len(unique), features.descriptors.shape[1]))
        np.add.at(own, position, features.descriptors[seen])
        left = statistics.counts[unique] - np.bincount(position, minlength=len(unique))
        others = statistics.descriptor_sums[unique] - own
        others /= np.maximum(np.linalg.norm(others, axis=1, keepdims=True), 1e-12)
        # A landmark seen by no other image is out of reach.
        others[left <= 0] = -own[left <= 0]
        index = index.replaced(unique, table.keys_as_kept(others.astype(np.float32)))
    return index.search(features.descriptors, num_candidates)


def log_scales_of(view: View) -> NDArray[np.float32]:
    """Return the scales (N,) of keypoints as the network sees them."""
    return np.log(np.maximum(view.features.scales, 1e-3))


def candidate_errors_px(
    candidates: NearestLandmarks,
    table: LandmarkTable,
    ideal_keypoints: NDArray[np.float64],
    camera: Camera,
    map_from_camera: RigidTransform,
) -> NDArray[np.float32]:
    """Return how far each candidate (N, C) projects from its keypoint, in px; inf behind."""
    points = table.points_in_map[candidates.landmark_idx.reshape(-1)]
    in_camera = map_from_camera.inverse().apply(points)
    depth = np.where(in_camera[:, 2] > 1e-9, in_camera[:, 2], np.nan)
    x = in_camera[:, 0] / depth * camera.fx + camera.cx
    y = in_camera[:, 1] / depth * camera.fy + camera.cy
    shape = candidates.landmark_idx.shape
    error = np.hypot(
        x.reshape(shape) - ideal_keypoints[:, :1], y.reshape(shape) - ideal_keypoints[:, 1:]
    )
    return np.nan_to_num(error, nan=np.inf).astype(np.float32)
