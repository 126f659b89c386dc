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

from d2s_ros.geometry.cameras import projection_jacobian
from d2s_ros.geometry.noise import detection_sigma_px
from d2s_ros.geometry.reprojection import reprojection_residuals
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction
from d2s_ros.scene_models.landmark.table import (
    LandmarkStatistics,
    LandmarkTable,
    NearestLandmarks,
    find_training_candidates,
)

#: Images that must still see a landmark for it to be one.
_MIN_OBSERVATIONS = 2


class LeaveOneOut:
    """Leaves mapping images out of the landmarks that they made.

    To first order: a point is the optimum of its observations' squared residuals, so without one of
    them it moves by that one's gradient over the information of the others.

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
        positions = self._positions
        observed, information, gradients = positions.observations(self.reconstruction.images[index])
        seen, row = np.unique(observed, return_inverse=True)
        left, count = positions.information[seen].copy(), positions.counts[seen].copy()
        pull = np.zeros((len(seen), 3))
        np.subtract.at(left, row, information)
        np.subtract.at(count, row, 1)
        np.add.at(pull, row, gradients)
        # What is not there any more is not used: its numbers stay.
        gone = np.zeros(len(positions.points), bool)
        gone[seen[count < _MIN_OBSERVATIONS]] = True
        kept = count >= _MIN_OBSERVATIONS
        seen, left, pull = seen[kept], left[kept], pull[kept]
        trace = np.maximum(np.trace(left, axis1=1, axis2=2), 0.0)[:, None, None]
        covariances = np.linalg.inv(left + (1e-5 * trace + 1e-12) * np.eye(3))
        moved = positions.points[seen] + np.einsum('nij,nj->ni', covariances, pull)
        # From position to its row among those that changed.
        changed = np.full(len(positions.points), -1, np.int64)
        changed[seen] = np.arange(len(seen))
        change = changed[positions.of_landmark]
        landmarks = np.flatnonzero(change >= 0)
        points, all_covariances = self._table.points_in_map.copy(), self._table.covariances.copy()
        points[landmarks] = moved[change[landmarks]]
        all_covariances[landmarks] = covariances[change[landmarks]]
        table = replace(self._table, points_in_map=points, covariances=all_covariances)
        return table, gone[positions.of_landmark]

    @cached_property
    def _positions(self) -> _Positions:
        return _Positions(self.reconstruction, self._table, self.statistics)


class _Positions:
    """The different points of the landmarks, and what all images tell of them.

    Several landmarks may be one point as it looks in several lights.

    Attributes:
        points: (Q, 3) float64.
        of_landmark: (M,) int64 row of `points`.
        information: (Q, 3, 3) for a noise of 1 px; counts: (Q,) observations.
    """

    def __init__(
        self, reconstruction: Reconstruction, table: LandmarkTable, statistics: LandmarkStatistics
    ) -> None:
        points, of_landmark = np.unique(table.points_in_map, axis=0, return_inverse=True)
        self.of_landmark = of_landmark.reshape(-1)
        self.points = points.astype(np.float64)
        chosen = statistics.landmark_of_point
        self._of_point = np.where(chosen >= 0, self.of_landmark[chosen], -1)
        self.information = np.zeros((len(points), 3, 3))
        self.counts = np.zeros(len(points), np.int64)
        for image in reconstruction.images:
            seen, information, _ = self.observations(image)
            np.add.at(self.information, seen, information)
            np.add.at(self.counts, seen, 1)

    def observations(
        self, image: MappedImage
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Return positions (N,), information (N, 3, 3) and gradients (N, 3) for a noise of 1 px."""
        keypoint_idx = np.flatnonzero(image.point_idx >= 0)
        positions = self._of_point[image.point_idx[keypoint_idx]]
        keypoint_idx, positions = keypoint_idx[positions >= 0], positions[positions >= 0]
        camera_from_map = image.map_from_camera.inverse()
        in_camera = camera_from_map.apply(self.points[positions])
        jacobian = projection_jacobian(in_camera, image.camera) @ camera_from_map.rotation
        weight = 1.0 / np.square(detection_sigma_px(image.features.scales[keypoint_idx]))
        residual = reprojection_residuals(
            image.camera, in_camera, image.ideal_keypoints[keypoint_idx]
        )
        information = jacobian.transpose(0, 2, 1) @ jacobian * weight[:, None, None]
        gradient = np.einsum('nij,ni->nj', jacobian, residual) * weight[:, None]
        return positions, information, gradient


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
