"""Which given poses contradict what their images show.

An image whose pose is wrong agrees with others along epipolar lines by chance only, and three
images hardly ever agree by chance. What it shows still looks like points of the others: those say
where it was taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.pycolmap_import import import_pycolmap
from d2s_ros.reconstruction.colmap_database import colmap_camera
from d2s_ros.reconstruction.matching import match_mutual
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction
from d2s_ros.reconstruction.retrieval import Vlad, nearest_images

#: Images with less than this share of the usual number of points that three images see are asked
#: where they were taken.
_FEW_POINTS = 0.5
#: Images that see a point which is hardly there by chance.
_MIN_TRACK = 3
#: Images that they are compared with, and the ratio test.
_NEIGHBOURS, _RATIO = 10, 0.85
#: Inliers, and share of the matches, that make the answer believable.
_MIN_INLIERS, _MIN_SHARE = 30, 0.3
#: Error of an inlier, px at a focal length of 500 px.
_MAX_ERROR_PX = 6.0
#: A pose is wrong that is off by this share of the distance of what is seen, or this angle.
_MAX_DISTANCE, _MAX_ANGLE_DEG = 0.1, 5.0


@dataclass(frozen=True)
class DoubtfulPose:
    """An image that was taken elsewhere than its given pose says.

    Attributes:
        name: Of the image.
        distance, angle_deg: From the given pose to where it was taken, unit of the map and degrees.
    """

    name: str
    distance: float
    angle_deg: float


def find_doubtful_poses(reconstruction: Reconstruction) -> list[DoubtfulPose]:
    """Find images whose given poses are off by more than a tenth of the scene's depth.

    Args:
        reconstruction: Made with given poses.

    Returns:
        The images, in order. Images that show nothing which the others show are not among them:
        nothing is known about their poses.
    """
    images = reconstruction.images
    firm = np.r_[reconstruction.track_lengths >= _MIN_TRACK, False]
    shares = np.array([firm[image.point_idx].mean() for image in images])
    limit = _FEW_POINTS * float(np.median(shares))
    suspects, trusted = np.flatnonzero(shares < limit), np.flatnonzero(shares >= limit)
    if len(suspects) == 0 or len(trusted) < 2:
        return []
    vlad = Vlad.fit([images[index].features.descriptors for index in trusted])
    described = [vlad.describe(image.features.descriptors) for image in images]
    neighbours = nearest_images(
        np.stack([described[index] for index in suspects]),
        np.stack([described[index] for index in trusted]),
        _NEIGHBOURS,
    )
    found = []
    for index, row in zip(suspects, neighbours, strict=True):
        others = [images[trusted[column]] for column in row]
        wrong = _compare(images[index], others, reconstruction.points_in_map)
        if wrong is not None:
            found.append(wrong)
    return found


def _compare(
    image: MappedImage, others: list[MappedImage], points_in_map: NDArray[np.float64]
) -> DoubtfulPose | None:
    """Return how far an image's pose is from the one that other images' points give it."""
    descriptors = torch.from_numpy(image.features.descriptors)
    point_of_keypoint: dict[int, int] = {}
    for other in others:
        pairs, _ = match_mutual(
            descriptors, torch.from_numpy(other.features.descriptors), ratio=_RATIO
        )
        for keypoint, point in zip(pairs[:, 0], other.point_idx[pairs[:, 1]], strict=True):
            if point >= 0:
                point_of_keypoint.setdefault(int(keypoint), int(point))
    keypoints = np.array(list(point_of_keypoint), np.int64)
    ideal = image.ideal_keypoints[keypoints]
    points = points_in_map[np.array(list(point_of_keypoint.values()), np.int64)]
    seen = np.isfinite(ideal).all(axis=1)
    if seen.sum() < _MIN_INLIERS:
        return None
    pose = _solve(image, ideal[seen], points[seen])
    if pose is None:
        return None
    depth = float(np.median(pose.inverse().apply(points[seen])[:, 2]))
    distance, angle = pose_error(pose, image.map_from_camera)
    if distance <= _MAX_DISTANCE * depth and angle <= _MAX_ANGLE_DEG:
        return None
    return DoubtfulPose(image.name, distance, angle)


def _solve(
    image: MappedImage, ideal: NDArray[np.float64], points: NDArray[np.float64]
) -> RigidTransform | None:
    pycolmap = import_pycolmap()

    options = pycolmap.AbsolutePoseEstimationOptions()
    options.ransac.max_error = _MAX_ERROR_PX * 0.5 * (image.camera.fx + image.camera.fy) / 500.0
    options.ransac.random_seed = 0
    found = pycolmap.estimate_and_refine_absolute_pose(
        ideal + 0.5, points, colmap_camera(image.camera, 1), options
    )
    if found is None or found['num_inliers'] < max(_MIN_INLIERS, _MIN_SHARE * len(ideal)):
        return None
    return RigidTransform.from_matrix(found['cam_from_world'].matrix()).inverse()
