"""How well a reconstruction of images of an unknown camera tells its focal length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.statistics import subsample
from d2s_ros.reconstruction.reconstruction import Reconstruction

Array = NDArray[np.float64]

#: Points that the uncertainty is computed from; more of them add information in proportion.
_MAX_POINTS = 4000
#: Intrinsics in the uncertainty: log of the focal length, k1, k2 and the principal point.
_INTRINSICS = 5
#: The principal point is taken to be the middle; how far it may be, as a share of the width.
_PRINCIPAL_POINT_SIGMA = 0.01


def focal_sigma_px(reconstruction: Reconstruction) -> float:
    """Return the standard deviation of the focal length (px) that the residuals tell.

    Points and poses are free: their share of the information is taken out (Schur complement). So is
    the principal point, within what lenses have. It is a lower bound: what all images share (a lens
    that two coefficients do not describe, matches that are wrong alike) is not in the residuals.
    """
    images = reconstruction.images
    camera = images[0].camera
    size = 6 * len(images) + _INTRINSICS
    tracks: dict[int, list[tuple[int, Array, Array]]] = {}
    residuals = []
    chosen = np.zeros(len(reconstruction.points_in_map), bool)
    chosen[subsample(list(range(len(chosen))), _MAX_POINTS)] = True
    for row, image in enumerate(images):
        keypoint_idx = np.flatnonzero(image.point_idx >= 0)
        point_idx = image.point_idx[keypoint_idx]
        pose = image.map_from_camera.inverse()
        in_camera = pose.apply(reconstruction.points_in_map[point_idx])
        predicted = camera.project(in_camera)
        residuals.append(predicted - image.features.keypoints[keypoint_idx])
        by_point, by_pose, by_intrinsics = _jacobians(camera, in_camera, pose.rotation)
        own = np.concatenate([by_pose, by_intrinsics], axis=2)
        for position in np.flatnonzero(chosen[point_idx]).tolist():
            tracks.setdefault(int(point_idx[position]), []).append(
                (row, own[position], by_point[position])
            )
    all_residuals = np.concatenate(residuals)
    sigma = 1.4826 * float(np.nanmedian(np.abs(all_residuals)))
    information = np.zeros((size, size))
    for track in tracks.values():
        columns = np.concatenate(
            [
                [*range(6 * row, 6 * row + 6), *range(size - _INTRINSICS, size)]
                for row, _, _ in track
            ]
        ).reshape(len(track), -1)
        point = np.einsum('nij,nik->jk', *(2 * [np.stack([of for _, _, of in track])]))
        cross = np.zeros((size, 3))
        for (_, own, of), column in zip(track, columns, strict=True):
            information[np.ix_(column, column)] += own.T @ own
            np.add.at(cross, column, own.T @ of)
        used = np.unique(columns)
        point += 1e-9 * np.trace(point) * np.eye(3)
        taken = cross[used] @ np.linalg.solve(point, cross[used].T)
        information[np.ix_(used, used)] -= taken
    information[[-2, -1], [-2, -1]] += (sigma / (_PRINCIPAL_POINT_SIGMA * camera.width)) ** 2
    # Position, rotation and scale of everything are free: hold them weakly.
    information += 1e-9 * np.trace(information) / size * np.eye(size)
    variance = float(np.linalg.inv(information)[-_INTRINSICS, -_INTRINSICS])
    share = min(1.0, _MAX_POINTS / len(chosen))
    return float(camera.fx * sigma * np.sqrt(max(variance, 0.0) * share))


def _jacobians(camera: Camera, in_camera: Array, rotation: Array) -> tuple[Array, Array, Array]:
    """Return d pixel / d point (N, 2, 3), / d pose (N, 2, 6) and / d intrinsics (N, 2, 5)."""
    k1, k2 = (*camera.distortion, 0.0, 0.0)[:2]
    depth = in_camera[:, 2:]
    flat = in_camera[:, :2] / depth
    squared = (flat**2).sum(axis=1)
    factor = 1 + k1 * squared + k2 * squared**2
    # d distorted / d flat
    slope = 2 * (k1 + 2 * k2 * squared)
    by_flat = factor[:, None, None] * np.eye(2) + slope[:, None, None] * (
        flat[:, :, None] * flat[:, None, :]
    )
    flat_by_camera = np.zeros((len(flat), 2, 3))
    flat_by_camera[:, [0, 1], [0, 1]] = 1 / depth
    flat_by_camera[:, :, 2] = -flat / depth
    by_camera = camera.fx * by_flat @ flat_by_camera
    skew = np.zeros((len(flat), 3, 3))
    x, y, z = in_camera.T
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = z, -y, x
    skew -= skew.transpose(0, 2, 1)
    by_pose = np.concatenate([by_camera @ skew, by_camera], axis=2)
    by_intrinsics = camera.fx * np.stack(
        [
            flat * factor[:, None],
            flat * squared[:, None],
            flat * (squared**2)[:, None],
            np.broadcast_to(np.array([1.0, 0.0]) / camera.fx, flat.shape),
            np.broadcast_to(np.array([0.0, 1.0]) / camera.fx, flat.shape),
        ],
        axis=2,
    )
    return by_camera @ rotation, by_pose, by_intrinsics
