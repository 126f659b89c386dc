"""What an attacker sees at a view: points of the map in the image, with their attributes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Inverse depths over the median one are limited to this.
_MAX_INVERSE_DEPTH = 4.0


@dataclass(frozen=True, eq=False)
class SparseView:
    """Points at a view.

    Attributes:
        pixels: (N, 2) float32 px of the photograph.
        depth: (N,) float32 along the optical axis, unit of the map; NaN where unknown.
        attributes: (N, C) float32.
    """

    pixels: NDArray[np.float32]
    depth: NDArray[np.float32]
    attributes: NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.pixels)
        if (
            self.pixels.shape != (count, 2)
            or self.depth.shape != (count,)
            or self.attributes.ndim != 2
            or len(self.attributes) != count
        ):
            raise ValueError(
                f'pixels {self.pixels.shape}, depth {self.depth.shape} and attributes '
                f'{self.attributes.shape} do not fit together'
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def rows(self) -> NDArray[np.float32]:
        """Return (N, 2 + C): inverse depth over the median one, whether it is known, attributes."""
        known = np.isfinite(self.depth)
        inverse = np.zeros(len(self), np.float32)
        if known.any():
            depth = np.maximum(self.depth[known], 1e-9)
            inverse[known] = np.minimum(np.median(depth) / depth, _MAX_INVERSE_DEPTH)
        return np.column_stack([inverse, known, self.attributes]).astype(np.float32)


@dataclass(frozen=True)
class Window:
    """A part of a photograph that a picture is made of.

    Attributes:
        left, top, width, height: px of the photograph.
    """

    left: float
    top: float
    width: float
    height: float

    def cells(
        self, pixels: NDArray[np.float32], size: tuple[int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which pixels (N, 2) lie inside, and their cell, row by row, in a picture.

        Args:
            pixels: px of the photograph.
            size: (width, height) of the picture.
        """
        grid = (pixels + 0.5 - [self.left, self.top]) / [self.width, self.height] * size
        inside = np.flatnonzero((grid >= 0).all(axis=1) & (grid < size).all(axis=1))
        column, row = grid[inside].astype(np.int64).T
        return inside, row * size[0] + column

    def cut(self, grey: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
        """Return the picture (h, w) float32 in [0, 1] of a photograph (H, W)."""
        left, top = round(self.left), round(self.top)
        part = grey[top : round(self.top + self.height), left : round(self.left + self.width)]
        return np.asarray(
            cv2.resize(part, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0,
            np.float32,
        )


def picture_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Return (width, height) of pictures of photographs, in multiples of 16 px."""
    scale = longest / max(width, height)
    return (
        max(16, round(width * scale / 16) * 16),
        max(16, round(height * scale / 16) * 16),
    )


def central_window(width: int, height: int, size: tuple[int, int]) -> Window:
    """Return the largest window of a photograph with the aspect of a picture, in its middle."""
    scale = min(width / size[0], height / size[1])
    w, h = size[0] * scale, size[1] * scale
    return Window((width - w) / 2, (height - h) / 2, w, h)


def random_window(
    width: int, height: int, size: tuple[int, int], draws: tuple[float, float, float]
) -> Window:
    """Return a window of at least half the largest side, chosen by three draws of [0, 1)."""
    largest = central_window(width, height, size)
    share = 0.5 + 0.5 * draws[0]
    w, h = largest.width * share, largest.height * share
    return Window((width - w) * draws[1], (height - h) * draws[2], w, h)


def stack(
    views: list[tuple[NDArray[np.float32], NDArray[np.int64]]], cells: int
) -> tuple[Tensor, Tensor]:
    """Return the rows (T, C) of several views and their cells (T,) among those of all views.

    Args:
        views: Rows and cells of each.
        cells: Of a picture.
    """
    rows = np.concatenate([rows for rows, _ in views])
    index = np.concatenate([found + number * cells for number, (_, found) in enumerate(views)])
    return torch.from_numpy(rows), torch.from_numpy(index)
