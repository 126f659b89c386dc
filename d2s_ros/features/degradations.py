"""Photographs as a robot takes them in another light or while it turns: exposure and blur."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
#: Changes an image; what is random is drawn from the generator.
Degradation = Callable[[Image, np.random.Generator], Image]


def exposed(stops: float) -> Degradation:
    """Return a change of exposure with sensor noise before the 8 bits."""

    def change(image: Image, rng: np.random.Generator) -> Image:
        light = image.astype(np.float32) * 2.0**stops
        light += rng.normal(size=image.shape).astype(np.float32)
        return np.asarray(np.clip(np.rint(light), 0, 255), np.uint8)

    return change


def blurred(share: float) -> Degradation:
    """Return motion blur along a random direction, with sensor noise.

    Args:
        share: Length of the motion in parts of the image's longest side.
    """

    def change(image: Image, rng: np.random.Generator) -> Image:
        half = 0.5 * share * max(image.shape[:2])
        size = 2 * int(np.ceil(half)) + 3
        angle = rng.uniform(0, np.pi)
        kernel = np.zeros((size, size), np.float32)
        centre = (size - 1) / 2
        for t in np.linspace(-half, half, 8 * size):
            x, y = centre + t * np.cos(angle), centre + t * np.sin(angle)
            left, top = int(x), int(y)
            for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
                kernel[top + dy, left + dx] += (1 - abs(x - left - dx)) * (1 - abs(y - top - dy))
        result = cv2.filter2D(
            image.astype(np.float32), -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101
        )
        result = np.asarray(result) + rng.normal(size=image.shape).astype(np.float32)
        return np.asarray(np.clip(np.rint(result), 0, 255), np.uint8)

    return change
