"""What reconstruction takes and gives: posed images with features, and points they observe."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.config import option, validate
from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.reprojection import reprojection_residuals
from d2s_ros.geometry.transforms import RigidTransform

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReconstructionConfig:
    """How tracks are made."""

    all_pairs_up_to: int = option(
        48, 'Up to this many images every pair is matched; beyond, only neighbours.', minimum=2
    )
    retrieval_neighbours: int = option(
        10, 'Neighbours of an image by global descriptor.', minimum=1
    )
    pose_neighbours: int = option(6, 'Neighbours of an image by pose.', minimum=0)
    next_images: int = option(
        0,
        'Each image is matched with so many that follow in the log and, with poses, its neighbours '
        'by pose, whatever looks alike; 0 matches those that look alike.',
        minimum=0,
    )
    global_mapping: bool = option(
        False,
        'Images without poses are placed all at once instead of one after the other, which few '
        'images of each thing and a camera that moves straight ahead break less easily.',
    )
    guided_distance_px: float = option(
        2.5, 'Largest epipolar distance of a match with known poses.', unit='px', minimum=0.1
    )
    guided_ratio: float = option(
        0.9, 'Ratio test among epipolar candidates.', minimum=0.1, maximum=1.0
    )
    free_ratio: float = option(0.85, 'Ratio test without known poses.', minimum=0.1, maximum=1.0)
    min_similarity: float = option(0.8, 'Smallest cosine of a match.', minimum=0.0, maximum=1.0)
    min_pair_matches: int = option(15, 'Pairs with fewer matches are dropped.', minimum=1)
    max_reprojection_error_px: float = option(
        3.0, 'Observations further from their point are dropped.', unit='px', minimum=0.1
    )
    min_angle_deg: float = option(
        1.5, 'Points seen under a smaller angle are dropped.', unit='deg', minimum=0.0
    )
    refine_poses: bool = option(
        False, 'The given poses are approximate (odometry): refine them by bundle adjustment.'
    )
    max_reprojection_error_unposed_px: float = option(
        4.0, 'As max_reprojection_error_px, for unposed mapping.', unit='px', minimum=0.1
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, eq=False)
class MappedImage:
    """One mapping image after reconstruction.

    Attributes:
        name, stamp_ns: As in the log.
        camera: Intrinsics at the image's size.
        map_from_camera: Pose of the optical frame.
        features: Local features in px of the image.
        ideal_keypoints: (N, 2) float64 undistorted px of the `camera.ideal` camera, NaN if none.
        point_idx: (N,) int64 index of the keypoint's point, -1 for none.
    """

    name: str
    stamp_ns: int
    camera: Camera
    map_from_camera: RigidTransform
    features: LocalFeatures
    ideal_keypoints: NDArray[np.float64]
    point_idx: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Points with the observations that made them.

    Attributes:
        images: Mapping images with poses.
        points_in_map: (P, 3) float64.
        point_errors_px: (P,) float64 mean reprojection error.
        track_lengths: (P,) int64 number of observing images.
        metric: Whether poses were given (False: scale and frame are arbitrary).
        focal_sigma_px: Standard deviation of the focal length of all images, px, where the
            reconstruction found it; None where the calibration was given.
    """

    images: list[MappedImage]
    points_in_map: NDArray[np.float64]
    point_errors_px: NDArray[np.float64]
    track_lengths: NDArray[np.int64]
    metric: bool
    focal_sigma_px: float | None = None


@dataclass(frozen=True, eq=False)
class ImageInput:
    """What reconstruction needs of an image; `map_from_camera` may be None for all images."""

    name: str
    stamp_ns: int
    camera: Camera
    map_from_camera: RigidTransform | None
    features: LocalFeatures


def pack_reconstruction(
    reconstruction: Reconstruction, images: Sequence[ImageInput]
) -> dict[str, NDArray[Any]]:
    """Return a reconstruction of `images` as arrays, without their features."""
    index_of = {image.name: index for index, image in enumerate(images)}
    mapped = reconstruction.images
    found: dict[str, NDArray[Any]] = {}
    if reconstruction.focal_sigma_px is not None:
        camera = json.dumps(mapped[0].camera.to_dict()).encode()
        found = {
            'camera': np.frombuffer(camera, np.uint8),
            'focal_sigma_px': np.array([reconstruction.focal_sigma_px]),
        }
    return {
        **found,
        'image_idx': np.array([index_of[image.name] for image in mapped], np.int64),
        'rotations': np.stack([image.map_from_camera.rotation for image in mapped]),
        'translations': np.stack([image.map_from_camera.translation for image in mapped]),
        'counts': np.array([len(image.point_idx) for image in mapped], np.int64),
        'point_idx': np.concatenate([image.point_idx for image in mapped]),
        'points_in_map': reconstruction.points_in_map,
        'point_errors_px': reconstruction.point_errors_px,
        'track_lengths': reconstruction.track_lengths,
        'metric': np.array([reconstruction.metric]),
    }


def unpack_reconstruction(
    arrays: dict[str, NDArray[Any]], images: Sequence[ImageInput]
) -> Reconstruction:
    """Return the reconstruction that `pack_reconstruction` was given, of the same images."""
    point_idx = np.split(arrays['point_idx'], np.cumsum(arrays['counts'])[:-1])
    mapped = []
    found, focal_sigma_px = None, None
    if 'camera' in arrays:
        found = Camera.from_dict(json.loads(arrays['camera'].tobytes()))
        focal_sigma_px = float(arrays['focal_sigma_px'][0])
    for row, index in enumerate(arrays['image_idx'].tolist()):
        image = images[index]
        camera = found or image.camera
        mapped.append(
            MappedImage(
                image.name,
                image.stamp_ns,
                camera,
                RigidTransform(arrays['rotations'][row], arrays['translations'][row]),
                image.features,
                camera.undistort(image.features.keypoints),
                point_idx[row],
            )
        )
    return Reconstruction(
        mapped,
        arrays['points_in_map'],
        arrays['point_errors_px'],
        arrays['track_lengths'],
        bool(arrays['metric'][0]),
        focal_sigma_px,
    )


def make_reconstruction(
    images: list[MappedImage], points_in_map: NDArray[np.float64], metric: bool
) -> Reconstruction:
    """Return a reconstruction; errors of points are measured, track lengths counted."""
    count = len(points_in_map)
    lengths = np.zeros(count, np.int64)
    errors, observations = np.zeros(count), np.zeros(count)
    for image in images:
        seen = np.flatnonzero(image.point_idx >= 0)
        points = image.point_idx[seen]
        lengths += np.bincount(np.unique(points), minlength=count)
        camera_from_map = image.map_from_camera.inverse()
        residuals = reprojection_residuals(
            image.camera, camera_from_map.apply(points_in_map[points]), image.ideal_keypoints[seen]
        )
        residual = np.linalg.norm(residuals, axis=1)
        good = np.isfinite(residual)
        np.add.at(errors, points[good], residual[good])
        np.add.at(observations, points[good], 1)
    return Reconstruction(
        images, points_in_map, errors / np.maximum(observations, 1), lengths, metric
    )


def part_of(reconstruction: Reconstruction, rows: Sequence[int]) -> Reconstruction:
    """Return some images of a reconstruction with the points that at least two of them show.

    Args:
        reconstruction: The whole; it stays as it is.
        rows: Of its images.
    """
    images = [reconstruction.images[row] for row in rows]
    lengths = np.zeros(len(reconstruction.points_in_map), np.int64)
    for image in images:
        lengths += np.bincount(
            np.unique(image.point_idx[image.point_idx >= 0]), minlength=len(lengths)
        )
    kept = lengths >= 2
    renumber = np.where(kept, np.cumsum(kept) - 1, -1)
    # Keypoints without a point take the last entry.
    renumber = np.append(renumber, -1)
    images = [replace(image, point_idx=renumber[image.point_idx]) for image in images]
    part = make_reconstruction(images, reconstruction.points_in_map[kept], reconstruction.metric)
    return replace(part, focal_sigma_px=reconstruction.focal_sigma_px)


def point_groups(points_in_map: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each point (P,) the number of its place; prototypes of one point share it."""
    _, groups = np.unique(points_in_map.astype(np.float32), axis=0, return_inverse=True)
    return np.asarray(groups, np.int64).reshape(-1)
