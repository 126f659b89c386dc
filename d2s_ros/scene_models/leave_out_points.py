"""Points of a map as they would be without one of the images that made them.

A mapping image helped to make the points it sees, and finds them nearer to where it wants them than
a new image would. To first order: a point is the optimum of its observations' squared residuals, so
without one of them it moves by that one's gradient over the information of the others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import projection_jacobian
from d2s_ros.geometry.noise import detection_sigma_px, in_image_px
from d2s_ros.geometry.reprojection import reprojection_residuals
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction

#: Images that must still see a point for it to be one.
_MIN_OBSERVATIONS = 2


class PointsWithoutImages:
    """The different points of a map, and what all images say of where they are.

    Several rows of a map may be one point as it looks in several lights.

    Args:
        reconstruction: Images and points.
        points_in_map: (M, 3) rows of the map.
        row_of_point: (P,) row of each point of the reconstruction, -1 for those not in the map.
    """

    def __init__(
        self,
        reconstruction: Reconstruction,
        points_in_map: NDArray[np.float32],
        row_of_point: NDArray[np.int64],
    ) -> None:
        self._reconstruction = reconstruction
        points, position_of_row = np.unique(points_in_map, axis=0, return_inverse=True)
        self._position_of_row = position_of_row.reshape(-1)
        self._points = points.astype(np.float64)
        self._position_of_point = np.where(
            row_of_point >= 0, self._position_of_row[row_of_point], -1
        )
        self._information = np.zeros((len(points), 3, 3))
        self._counts = np.zeros(len(points), np.int64)
        for image in reconstruction.images:
            seen, information, _ = self._observations(image)
            np.add.at(self._information, seen, information)
            np.add.at(self._counts, seen, 1)

    def without(
        self,
        index: int,
        points_in_map: NDArray[np.float32],
        covariances: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        """Return rows (M, 3) and covariances (M, 3, 3) without an image, and which are gone (M,).

        What would not be there any more keeps its numbers.
        """
        observed, information, gradients = self._observations(self._reconstruction.images[index])
        seen, row = np.unique(observed, return_inverse=True)
        left, count = self._information[seen].copy(), self._counts[seen].copy()
        pull = np.zeros((len(seen), 3))
        np.subtract.at(left, row, information)
        np.subtract.at(count, row, 1)
        np.add.at(pull, row, gradients)
        gone = np.zeros(len(self._points), bool)
        gone[seen[count < _MIN_OBSERVATIONS]] = True
        kept = count >= _MIN_OBSERVATIONS
        seen, left, pull = seen[kept], left[kept], pull[kept]
        trace = np.maximum(np.trace(left, axis1=1, axis2=2), 0.0)[:, None, None]
        without = np.linalg.inv(left + (1e-5 * trace + 1e-12) * np.eye(3))
        moved = self._points[seen] + np.einsum('nij,nj->ni', without, pull)
        # From position to its row among those that changed.
        changed = np.full(len(self._points), -1, np.int64)
        changed[seen] = np.arange(len(seen))
        change = changed[self._position_of_row]
        rows = np.flatnonzero(change >= 0)
        points, all_covariances = points_in_map.copy(), covariances.copy()
        points[rows] = moved[change[rows]]
        all_covariances[rows] = without[change[rows]]
        return points, all_covariances, gone[self._position_of_row]

    def _observations(
        self, image: MappedImage
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Return positions (N,), information (N, 3, 3) and gradients (N, 3) for a noise of 1 px."""
        keypoint_idx = np.flatnonzero(image.point_idx >= 0)
        positions = self._position_of_point[image.point_idx[keypoint_idx]]
        keypoint_idx, positions = keypoint_idx[positions >= 0], positions[positions >= 0]
        camera_from_map = image.map_from_camera.inverse()
        in_camera = camera_from_map.apply(self._points[positions])
        jacobian = projection_jacobian(in_camera, image.camera) @ camera_from_map.rotation
        ideal = image.ideal_keypoints[keypoint_idx]
        jacobian = in_image_px(jacobian, ideal, image.camera)
        weight = 1.0 / np.square(detection_sigma_px(image.features.scales[keypoint_idx]))
        residual = reprojection_residuals(image.camera, in_camera, ideal)
        residual = in_image_px(residual, ideal, image.camera)
        information = jacobian.transpose(0, 2, 1) @ jacobian * weight[:, None, None]
        gradient = np.einsum('nij,ni->nj', jacobian, residual) * weight[:, None]
        return positions, information, gradient
