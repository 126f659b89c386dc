"""Which points of a reconstruction a map keeps, and how exactly they are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError
from d2s_ros.geometry.cameras import projection_jacobian
from d2s_ros.geometry.noise import detection_sigma_px, in_image_px
from d2s_ros.reconstruction.reconstruction import Reconstruction


def point_covariances(reconstruction: Reconstruction) -> NDArray[np.float64]:
    """Return the covariances (P, 3, 3) of points for a keypoint noise of 1 px.

    Raises:
        InputError: there are too few points to localize with.
    """
    points = reconstruction.points_in_map
    if len(points) < 20:
        raise InputError(
            f'only {len(points)} points were triangulated, too few for a map; add images that '
            'overlap and are taken from different places'
        )
    information = np.zeros((len(points), 3, 3))
    for image in reconstruction.images:
        keypoint_idx = np.flatnonzero(image.point_idx >= 0)
        point_idx = image.point_idx[keypoint_idx]
        camera_from_map = image.map_from_camera.inverse()
        in_camera = camera_from_map.apply(points[point_idx])
        jacobian = projection_jacobian(in_camera, image.camera) @ camera_from_map.rotation
        jacobian = in_image_px(jacobian, image.ideal_keypoints[keypoint_idx], image.camera)
        sigma = detection_sigma_px(image.features.scales[keypoint_idx])
        np.add.at(
            information,
            point_idx,
            jacobian.transpose(0, 2, 1) @ jacobian / np.square(sigma)[:, None, None],
        )
    trace = np.trace(information, axis1=1, axis2=2)[:, None, None]
    # Float32 must keep the covariances positive definite: their condition is limited.
    return np.asarray(np.linalg.inv(information + 1e-5 * trace * np.eye(3) + 1e-12 * np.eye(3)))


def choose_points(
    reconstruction: Reconstruction,
    covariances: NDArray[np.float64],
    count: int,
    priority: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Return the points to keep: those that rank highest in any image that sees them.

    In an image, points seen by many images come first, then those known more precisely. Choosing by
    track length alone would leave nothing of places that few images show.

    Args:
        reconstruction: Points and their observations.
        covariances: (P, 3, 3) of the points.
        count: Most points.
        priority: (P,) largest first, instead of the track lengths; negative: never chosen,
            infinite: before all others.
    """
    lengths = reconstruction.track_lengths
    if priority is None:
        priority = lengths.astype(np.float64)
    allowed = np.flatnonzero(priority >= 0)
    if len(allowed) <= count:
        return allowed
    spread = np.sqrt(np.trace(covariances, axis1=1, axis2=2))
    quality = np.empty(len(lengths), np.int64)
    quality[np.lexsort((spread, -priority))] = np.arange(len(lengths))
    best_rank = np.full(len(lengths), len(lengths), np.int64)
    for image in reconstruction.images:
        seen = np.unique(image.point_idx[image.point_idx >= 0])
        seen = seen[priority[seen] >= 0]
        ranked = seen[np.argsort(quality[seen])]
        np.minimum.at(best_rank, ranked, np.arange(len(ranked)))
    best_rank[np.isposinf(priority)] = -1
    order: NDArray[np.int64] = np.lexsort((quality, best_rank))
    return order[priority[order] >= 0][:count]
