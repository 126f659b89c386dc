"""The landmarks of a map as they would be without one of the images that made it.

A mapping image helped to make the landmarks it sees: it matches them better, and finds them nearer
to where it wants them, than a new image would. Its observations are therefore taken out of
descriptors, points and covariances.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from d2s_ros.reconstruction.reconstruction import Reconstruction
from d2s_ros.scene_models.landmark.table import (
    LandmarkStatistics,
    LandmarkTable,
    NearestLandmarks,
    find_training_candidates,
)
from d2s_ros.scene_models.leave_out_points import PointsWithoutImages


class LeaveOneOut:
    """Leaves mapping images out of the landmarks that they made.

    Args:
        reconstruction: Images and points.
        table: The landmarks.
        statistics: Which point each landmark is.
        num_candidates: Landmarks that are found for a keypoint.
        kept: Images whose nearest landmarks are kept once they are found.
    """

    def __init__(
        self,
        reconstruction: Reconstruction,
        table: LandmarkTable,
        statistics: LandmarkStatistics,
        num_candidates: int,
        kept: Collection[int] = (),
    ) -> None:
        self.reconstruction, self.statistics = reconstruction, statistics
        self._table = table
        self._num_candidates = num_candidates
        self._kept = frozenset(kept)
        self._found: dict[int, NearestLandmarks] = {}

    def nearest(self, index: int) -> NearestLandmarks:
        """Return the landmarks nearest to the keypoints of an image, by what others see of them."""
        found = self._found.get(index)
        if found is None:
            images = self.reconstruction.images
            found = find_training_candidates(
                images[index].features,
                images[index].point_idx,
                self._table,
                self.statistics,
                self._num_candidates,
            )
            if index in self._kept:
                self._found[index] = found
        return found

    def without(self, index: int) -> tuple[LandmarkTable, NDArray[np.bool_]]:
        """Return the landmarks without an image, and which of them (M,) would not be there."""
        points, covariances, gone = self._positions.without(
            index, self._table.points_in_map, self._table.covariances
        )
        return replace(self._table, points_in_map=points, covariances=covariances), gone

    @cached_property
    def _positions(self) -> PointsWithoutImages:
        return PointsWithoutImages(
            self.reconstruction, self._table.points_in_map, self.statistics.landmark_of_point
        )


def without_landmarks(candidates: NearestLandmarks, gone: NDArray[np.bool_]) -> NearestLandmarks:
    """Return candidates in which landmarks that are gone (M,) are like nothing and come last."""
    lost = gone[candidates.landmark_idx]
    similarity = np.where(lost, np.float32(-1), candidates.similarity)
    best = np.where(lost, np.float32(-1), candidates.best_of_landmark)
    order = np.argsort(-similarity, axis=1, kind='stable')
    return NearestLandmarks(
        np.take_along_axis(candidates.landmark_idx, order, axis=1),
        np.take_along_axis(similarity, order, axis=1),
        np.take_along_axis(best, order, axis=1),
    )


def statistics_of(table: LandmarkTable, reconstruction: Reconstruction) -> LandmarkStatistics:
    """Find the observations behind a map's keys again, to leave images out of them.

    A landmark is the point of its coordinates; among prototypes, the one whose observations are
    most like the key.
    """
    points = table.points_as_kept(reconstruction.points_in_map.astype(np.float32))
    dim = table.keys.shape[1]
    sums = np.zeros((len(points), dim))
    counts = np.zeros(len(points), np.int64)
    for image in reconstruction.images:
        seen = np.flatnonzero(image.point_idx >= 0)
        np.add.at(sums, image.point_idx[seen], image.features.descriptors[seen])
        np.add.at(counts, image.point_idx[seen], 1)
    by_place: dict[bytes, list[int]] = {}
    for index, point in enumerate(points):
        by_place.setdefault(point.tobytes(), []).append(index)
    landmark_of_point = np.full(len(points), -1, np.int64)
    landmark_sums = np.zeros((len(table), dim))
    landmark_counts = np.zeros(len(table), np.int64)
    for landmark, point in enumerate(table.points_in_map):
        free = [i for i in by_place.get(point.tobytes(), ()) if landmark_of_point[i] < 0]
        if not free:
            continue
        if len(free) > 1:
            norms = np.maximum(np.linalg.norm(sums[free], axis=1), 1e-12)
            best = free[int(np.argmax(sums[free] @ table.keys[landmark] / norms))]
        else:
            best = free[0]
        landmark_of_point[best] = landmark
        landmark_sums[landmark], landmark_counts[landmark] = sums[best], counts[best]
    return LandmarkStatistics(landmark_sums, landmark_counts, landmark_of_point)
