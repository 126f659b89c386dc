"""A synthetic room of points with descriptors: what features of a real log would be, at no cost."""

from __future__ import annotations

import numpy as np

from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.map_update.keyframes import Keyframe
from d2s_ros.maps.update_data import MappingData
from d2s_ros.reconstruction.reconstruction import MappedImage
from d2s_ros.reconstruction.retrieval import Vlad

CAMERA = Camera('pinhole', 320, 240, 230.0, 230.0, 161.0, 118.0)
DIM = 64


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


class Room:
    """Points on the walls of a room of 8 x 6 x 3 m; every point looks different."""

    def __init__(self, seed=0, count=1500):
        rng = np.random.default_rng(seed)
        wall = rng.integers(0, 4, count)
        along, height = rng.random(count), rng.random(count) * 3
        x = np.where(wall < 2, along * 8, np.where(wall == 2, 0.0, 8.0))
        y = np.where(wall >= 2, along * 6, np.where(wall == 0, 0.0, 6.0))
        depth = rng.normal(0, 0.15, count)
        self.points = np.stack([x + depth, y + depth, height], 1)
        self.descriptors = _unit(rng.normal(size=(count, DIM)))
        self._other_light = _unit(rng.normal(size=(count, DIM)))

    def look(self, position, heading, rng, *, light=0.0, clutter=60, points=None, missing=0.2):
        """Return (features, point index of each keypoint or -1, true pose)."""
        forward = np.array([np.cos(heading), np.sin(heading), 0.0])
        right = np.array([np.sin(heading), -np.cos(heading), 0.0])
        pose = RigidTransform(
            np.stack([right, [0.0, 0.0, -1.0], forward], 1), np.asarray(position, float)
        )
        points = self.points if points is None else points
        pixels = CAMERA.project(pose.inverse().apply(points))
        in_front = pose.inverse().apply(points)[:, 2] > 0.3
        visible = np.isfinite(pixels).all(1) & in_front & (pixels > 2).all(1)
        visible &= (pixels < [CAMERA.width - 3, CAMERA.height - 3]).all(1)
        visible &= rng.random(len(points)) > missing
        index = np.flatnonzero(visible)
        descriptors = (1 - light) * self.descriptors[index] + light * self._other_light[index]
        descriptors = _unit(_unit(descriptors) + 0.03 * rng.normal(size=(len(index), DIM)))
        keypoints = pixels[index] + rng.normal(0, 0.3, (len(index), 2))
        noise = rng.random((clutter, 2)) * [CAMERA.width, CAMERA.height]
        keypoints = np.concatenate([keypoints, noise]).astype(np.float32)
        descriptors = np.concatenate([descriptors, _unit(rng.normal(size=(clutter, DIM)))])
        labels = np.concatenate([index, np.full(clutter, -1)])
        order = rng.permutation(len(labels))
        features = LocalFeatures(
            keypoints[order],
            np.ones(len(labels), np.float32),
            descriptors[order].astype(np.float32),
            (CAMERA.width, CAMERA.height),
            np.ones(len(labels), np.float32),
        )
        return features, labels[order].astype(np.int64), pose


def path(count, offset=0.0):
    """Return (position, heading) of a loop through the room, looking at the walls."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False) + offset
    return [
        ((4 + 1.2 * np.cos(a), 3 + 0.9 * np.sin(a), 1.4 + 0.1 * np.sin(3 * a)), a) for a in angles
    ]


def mapping_data(room, count=24, seed=1):
    """Return the room as mapped by day: true poses, true labels of points seen at least twice."""
    rng = np.random.default_rng(seed)
    views = [room.look(position, heading, rng) for position, heading in path(count)]
    seen = np.zeros(len(room.points), int)
    for _, labels, _ in views:
        seen[labels[labels >= 0]] += 1
    renumber = np.full(len(room.points) + 1, -1)
    renumber[:-1][seen >= 2] = np.arange((seen >= 2).sum())
    vlad = Vlad.fit([features.descriptors for features, _, _ in views], num_centroids=8)
    images = [
        MappedImage(
            f'map{n}',
            n * 500_000_000,
            CAMERA,
            pose,
            features,
            CAMERA.undistort(features.keypoints),
            renumber[labels].astype(np.int64),
        )
        for n, (features, labels, pose) in enumerate(views)
    ]
    described = np.stack([vlad.describe(features.descriptors) for features, _, _ in views])
    data = MappingData(images, room.points[seen >= 2], vlad, described, True, [''] * len(images))
    return data, renumber


def keyframes(room, count=12, seed=2, log='log', camera=CAMERA, **look):
    """Return keyframes of another drive, their true poses and their true points of the room."""
    rng = np.random.default_rng(seed)
    frames, poses, truths = [], [], []
    for n, (position, heading) in enumerate(path(count, 0.06)):
        features, labels, pose = room.look(position, heading, rng, **look)
        frames.append(Keyframe(log, f'{log}{n}', n * 1_000_000_000, camera, features))
        poses.append(pose)
        truths.append(labels)
    return frames, poses, truths
