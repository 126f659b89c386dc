"""What one image says of labels at every place, as the search for its pose reads it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

#: Share of points whose label is told by chance alone: hidden, changed, or wrong in the map.
OUTLIERS = 0.1


@dataclass(frozen=True, eq=False)
class LevelField:
    """The labels of one level in one image.

    Attributes:
        stride: Of the map, px.
        probability: (h, w, K) float32, with `OUTLIERS` mixed in: never below OUTLIERS / K.
    """

    stride: int
    probability: Floats

    @property
    def num_labels(self) -> int:
        """Labels of the level."""
        return int(self.probability.shape[2])

    @cached_property
    def log_probability(self) -> Floats:
        """(h w K,) log of `probability`, flat, over that of chance."""
        return np.log(self.probability * self.num_labels).reshape(-1)

    @cached_property
    def information(self) -> Floats:
        """(h w, 3) Fisher information of the place, xx xy yy, per px squared.

        That of a categorical distribution: how fast the labels expected around a place change.
        """
        root = 2.0 * np.sqrt(self.probability)
        dy, dx = np.gradient(root, float(self.stride), axis=(0, 1))
        found = np.stack(
            [
                np.einsum('hwk,hwk->hw', dx, dx),
                np.einsum('hwk,hwk->hw', dx, dy),
                np.einsum('hwk,hwk->hw', dy, dy),
            ],
            axis=-1,
        )
        return found.reshape(-1, 3).astype(np.float32)

    def cells(self, pixels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the nearest cell (..., ) of pixels (..., 2), flat, and whether they are inside."""
        height, width = self.probability.shape[:2]
        with np.errstate(invalid='ignore'):
            grid = (pixels + 0.5) / self.stride
            within = (grid >= 0) & (grid < np.array([width, height]))
        inside: NDArray[np.bool_] = np.all(within, axis=-1)
        whole = np.where(inside[..., None], grid, 0.0).astype(np.int64)
        return whole[..., 1] * width + whole[..., 0], inside

    def evidence(
        self, pixels: Floats | Doubles, labels: NDArray[np.int64], outside: float
    ) -> Floats:
        """Return log(p / chance) of labels (P,) at the nearest cells of pixels (..., P, 2)."""
        cells, inside = self.cells(pixels)
        found = self.log_probability[cells * self.num_labels + labels]
        return np.where(inside, found, np.float32(outside))

    def interpolated(
        self, pixels: NDArray[np.float64], labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return p (P,) of labels at pixels (P, 2), and its gradient (P, 2) per px."""
        height, width, count = self.probability.shape
        grid = (pixels + 0.5) / self.stride - 0.5
        grid = np.clip(grid, 0.0, np.array([width - 1.001, height - 1.001]))
        low = np.minimum(grid.astype(np.int64), [max(width - 2, 0), max(height - 2, 0)])
        x, y = (grid - low).T
        right = count if width > 1 else 0
        below = width * count if height > 1 else 0
        first = (low[:, 1] * width + low[:, 0]) * count + labels
        flat = self.probability.reshape(-1)
        a, b, c, d = (
            flat[first],
            flat[first + right],
            flat[first + below],
            flat[first + right + below],
        )
        top, bottom = a + x * (b - a), c + x * (d - c)
        gradient = np.stack([(1 - y) * (b - a) + y * (d - c), bottom - top], axis=1) / self.stride
        return top + y * (bottom - top), gradient


@dataclass(frozen=True, eq=False)
class LabelField:
    """The labels of all levels in one image.

    Attributes:
        camera: Of the image, without distortion.
        levels: Coarse to fine.
    """

    camera: Camera
    levels: list[LevelField]

    @classmethod
    def of(
        cls, probabilities: list[Floats], strides: tuple[int, ...], camera: Camera
    ) -> LabelField:
        """Mix outliers into the probabilities (h, w, K) that a network tells."""
        levels = []
        for probability, stride in zip(probabilities, strides, strict=True):
            mixed = (1.0 - OUTLIERS) * probability + np.float32(OUTLIERS / probability.shape[2])
            levels.append(LevelField(stride, mixed.astype(np.float32)))
        return cls(camera, levels)

    def pooled(self, count: int) -> Floats:
        """Return the label vector (count K,) of the image, of its `count` coarsest levels.

        The mean of the square roots of probabilities: a label that is seen surely in a few places
        weighs more than one that is never ruled out.
        """
        parts = [np.sqrt(level.probability).mean(axis=(0, 1)) for level in self.levels[:count]]
        # What all images have in common tells none apart.
        parts = [part - np.sqrt(OUTLIERS / len(part)) for part in parts]
        vector = np.concatenate([part / np.linalg.norm(part) for part in parts])
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def words(self, pixels: NDArray[np.float64]) -> list[Floats]:
        """Return log(p / chance) of all labels, (K, N) of each level, at pixels (N, 2)."""
        found = []
        for level in self.levels:
            cells, inside = level.cells(pixels)
            values = level.log_probability.reshape(-1, level.num_labels)[cells]
            found.append(np.ascontiguousarray(np.where(inside[:, None], values, 0.0).T))
        return found

    def project(
        self, rotation: NDArray[np.float64], translation: NDArray[np.float64], points: Doubles
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return pixels (P, 2), NaN behind the camera, and points in the camera (P, 3)."""
        in_camera = points @ rotation.T + translation
        camera = self.camera
        depth = np.where(in_camera[:, 2:] > 1e-9, in_camera[:, 2:], np.nan)
        pixels = in_camera[:, :2] / depth * [camera.fx, camera.fy] + [camera.cx, camera.cy]
        return pixels, in_camera
