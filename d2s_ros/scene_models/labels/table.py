"""What a label map keeps of a scene besides its heads: no descriptor, and nothing of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.scene_models.labels.refinement import LabelledPoints

#: Points are numbered in 16 bits.
MAX_POINTS = 65_535
_ROWS, _COLUMNS = np.triu_indices(3)


@dataclass(frozen=True, eq=False)
class LabelTable:
    """Points with labels, and the mapping images that see them.

    Attributes:
        points_in_map: (M, 3) float32.
        covariances: (M, 3, 3) float32, of the points for a keypoint noise of 1 px.
        labels: (M, L) uint8, coarse to fine.
        visible_offsets: (I + 1,) int64, rows of each image in `visible_points`.
        visible_points: (T,) uint16 points that the images see, in ascending order for each.
        image_poses: (I, 7) float32, x y z qx qy qz qw of map_from_camera.
        image_vectors: (I, V) int8 pooled labels of the images, 127 is the largest entry of each.
    """

    points_in_map: NDArray[np.float32]
    covariances: NDArray[np.float32]
    labels: NDArray[np.uint8]
    visible_offsets: NDArray[np.int64]
    visible_points: NDArray[np.uint16]
    image_poses: NDArray[np.float32]
    image_vectors: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.points_in_map)

    @cached_property
    def points(self) -> LabelledPoints:
        """All points, as the search takes them."""
        return LabelledPoints(self.points_in_map.astype(np.float64), self.labels.astype(np.int64))

    @cached_property
    def poses(self) -> list[RigidTransform]:
        """camera_from_map of the mapping images."""
        return [
            RigidTransform.from_quaternion(pose[3:], pose[:3]).inverse()
            for pose in self.image_poses.astype(np.float64)
        ]

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """(I, 3) where the mapping images were taken."""
        return self.image_poses[:, :3].astype(np.float64)

    @cached_property
    def rotations(self) -> NDArray[np.float64]:
        """(I, 3, 3) of camera_from_map of the mapping images."""
        return np.stack([pose.rotation for pose in self.poses])

    @cached_property
    def depths(self) -> NDArray[np.float64]:
        """(I,) median distance of what each image sees, along its optical axis."""
        found = []
        for index, pose in enumerate(self.poses):
            seen = self.points.points_in_map[self.seen_by(index)]
            found.append(float(np.median(pose.apply(seen)[:, 2])) if len(seen) else 1.0)
        return np.maximum(found, 1e-9)

    @cached_property
    def unit_vectors(self) -> NDArray[np.float32]:
        """(I, V) pooled labels of length 1."""
        vectors = self.image_vectors.astype(np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    def seen_by(self, image: int) -> NDArray[np.int64]:
        """Return the points that a mapping image sees."""
        first, last = self.visible_offsets[image : image + 2]
        return self.visible_points[first:last].astype(np.int64)

    def seen_by_any(self, images: list[int]) -> NDArray[np.int64]:
        """Return the points that any of some mapping images sees."""
        return np.unique(np.concatenate([self.seen_by(image) for image in images]))

    def unseen(self, gone: NDArray[np.bool_]) -> LabelTable:
        """Return the table in which no image sees some of the points (M,)."""
        left = ~gone[self.visible_points]
        offsets = np.concatenate([[0], np.cumsum(left)])[self.visible_offsets]
        return replace(self, visible_offsets=offsets, visible_points=self.visible_points[left])

    def scaled(self, factor: float) -> LabelTable:
        """Return the table with all coordinates multiplied by `factor`; labels stay."""
        poses = self.image_poses.copy()
        poses[:, :3] *= factor
        return replace(
            self,
            points_in_map=(self.points_in_map * factor).astype(np.float32),
            covariances=(self.covariances * factor**2).astype(np.float32),
            image_poses=poses,
        )

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return what a map file keeps."""
        packed = self.covariances[:, _ROWS, _COLUMNS]
        # Half precision has no room for small numbers: they are kept over the median one.
        unit = np.float32(np.median(np.trace(self.covariances, axis1=1, axis2=2)))
        return {
            'points': self.points_in_map,
            'covariances': np.clip(packed / unit, -6e4, 6e4).astype(np.float16),
            'covariance_unit': np.array([unit], np.float32),
            'labels': self.labels,
            'visible_offsets': self.visible_offsets,
            'visible_points': self.visible_points,
            'image_poses': self.image_poses,
            'image_vectors': self.image_vectors,
        }

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, NDArray[Any]], num_levels: int, num_labels: int
    ) -> LabelTable:
        """Read what `tensors` gave.

        Raises:
            KeyError: something is missing.
            ValueError: it does not fit together.
        """
        points, labels = tensors['points'], tensors['labels']
        offsets, visible = tensors['visible_offsets'], tensors['visible_points']
        poses, vectors = tensors['image_poses'], tensors['image_vectors']
        packed, unit = tensors['covariances'], tensors['covariance_unit']
        expected = {
            'points': (points, (len(points), 3), np.float32),
            'covariances': (packed, (len(points), 6), np.float16),
            'covariance_unit': (unit, (1,), np.float32),
            'labels': (labels, (len(points), num_levels), np.uint8),
            'visible_offsets': (offsets, (len(poses) + 1,), np.int64),
            'visible_points': (visible, (len(visible),), np.uint16),
            'image_poses': (poses, (len(poses), 7), np.float32),
            'image_vectors': (
                vectors,
                (len(poses), min(num_levels, POOLED_LEVELS) * num_labels),
                np.int8,
            ),
        }
        for name, (value, shape, dtype) in expected.items():
            if value.shape != shape or value.dtype != dtype:
                raise ValueError(
                    f'{name} is {value.dtype} {value.shape}, {np.dtype(dtype)} {shape} expected'
                )
            if not np.isfinite(value.astype(np.float64)).all():
                raise ValueError(f'{name} has numbers that are not finite')
        if not 0 < len(points) <= MAX_POINTS or not len(poses):
            raise ValueError(f'{len(points)} points and {len(poses)} images')
        if labels.max() >= num_labels:
            raise ValueError(f'a label is {labels.max()}, there are {num_labels}')
        in_order = offsets[0] == 0 and (np.diff(offsets) >= 0).all() and offsets[-1] == len(visible)
        if not in_order or (len(visible) and visible.max() >= len(points)):
            raise ValueError('what images see does not fit the points')
        if not np.allclose(np.linalg.norm(poses[:, 3:].astype(np.float64), axis=1), 1, atol=1e-3):
            raise ValueError('image_poses has a rotation that is none')
        covariances = np.zeros((len(points), 3, 3), np.float32)
        covariances[:, _ROWS, _COLUMNS] = packed.astype(np.float32) * unit
        covariances[:, _COLUMNS, _ROWS] = packed.astype(np.float32) * unit
        if (np.diagonal(covariances, axis1=1, axis2=2) < 0).any():
            raise ValueError('covariances has a negative variance')
        return cls(points, covariances, labels, offsets, visible, poses, vectors)


#: Levels that the pooled vectors of images are made of, the coarsest.
POOLED_LEVELS = 2


def packed_vector(vector: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return a pooled vector (V,) in 8 bits."""
    largest = max(float(np.abs(vector).max()), 1e-9)
    return np.round(vector * (127.0 / largest)).astype(np.int8)
