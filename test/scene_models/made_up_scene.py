"""A reconstruction without images: random points, each with its own descriptor and noise."""

from __future__ import annotations

import numpy as np

from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction

CAMERA = Camera('plumb_bob', 320, 240, 260.0, 262.0, 158.0, 121.0, (-0.1, 0.02, 0.001, -0.001, 0.0))


def made_up_reconstruction(
    *,
    num_images: int = 12,
    num_points: int = 150,
    num_clutter: int = 50,
    dim: int = 32,
    noise_px: float = 0.5,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    seed: int = 0,
) -> Reconstruction:
    """Return images from around a cloud of points; clutter has no points and random descriptors."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-2, -1.5, 3], [2, 1.5, 6], size=(num_points, 3)) + origin
    own = rng.normal(size=(num_points, dim))
    images = []
    for index in range(num_images):
        turn = rotation_from_vector(rng.normal(size=3) * 0.08)
        place = rng.uniform(-0.6, 0.6, size=3) + origin
        pose = RigidTransform(turn, place)
        pixels = CAMERA.project(pose.inverse().apply(points))
        inside = ((pixels >= 0) & (pixels < [320, 240])).all(axis=1)
        seen = np.flatnonzero(inside)
        keypoints = pixels[seen] + rng.normal(size=(len(seen), 2)) * noise_px
        clutter = rng.uniform([5, 5], [315, 235], size=(num_clutter, 2))
        keypoints = np.concatenate([keypoints, clutter]).astype(np.float32)
        descriptors = np.concatenate(
            [
                own[seen] + 0.1 * rng.normal(size=(len(seen), dim)),
                rng.normal(size=(num_clutter, dim)),
            ]
        )
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
        point_idx = np.concatenate([seen, np.full(num_clutter, -1)]).astype(np.int64)
        order = rng.permutation(len(keypoints))
        count = len(keypoints)
        features = LocalFeatures(
            keypoints[order].astype(np.float32),
            np.ones(count, np.float32),
            descriptors[order].astype(np.float32),
            (320, 240),
            np.ones(count, np.float32),
        )
        images.append(
            MappedImage(
                f'{index:03d}',
                index,
                CAMERA,
                pose,
                features,
                CAMERA.undistort(features.keypoints),
                point_idx[order],
            )
        )
    lengths = np.zeros(num_points, np.int64)
    for image in images:
        np.add.at(lengths, image.point_idx[image.point_idx >= 0], 1)
    return Reconstruction(images, points, np.full(num_points, noise_px), lengths, True)
