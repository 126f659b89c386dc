"""Pairs of images for the comparison of features: photographs, and warped and degraded ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Image = NDArray[np.uint8]

#: One photograph in this many is for evaluation, never for training, see `is_held_out`.
HELD_OUT_ONE_IN = 10


def is_held_out(name: str) -> bool:
    """Whether a photograph is kept for evaluation; depends on its file name (stem) alone."""
    digest = hashlib.sha1(Path(name).stem.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], 'big') % HELD_OUT_ONE_IN == 0


def held_out_photographs(folder: Path, *, limit: int = 0) -> Iterator[tuple[str, Image]]:
    """Yield name and grey image of the photographs that training never sees, sorted by name.

    With a limit, that many, spread evenly over all of them.
    """
    names = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in ('.jpg', '.jpeg', '.png')
    )
    chosen = [path for path in names if is_held_out(path.name)]
    if 0 < limit < len(chosen):
        spread = np.linspace(0, len(chosen) - 1, limit).round().astype(int)
        chosen = [chosen[index] for index in spread]
    for path in chosen:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if image is not None:
            yield path.name, np.asarray(image, np.uint8)


def adjust_exposure(image: Image, rng: np.random.Generator) -> Image:
    """Scale the light by up to four stops either way; what leaves the range is lost."""
    stops = float(rng.uniform(1.0, 2.0)) * (-1 if rng.random() < 0.5 else 1)
    return _to_uint8(image * 2.0**stops)


def darken(image: Image, rng: np.random.Generator) -> Image:
    """Night: a gamma that crushes the shadows, little light, sensor noise, 8 bits."""
    gamma, gain = float(rng.uniform(1.5, 2.5)), float(rng.uniform(0.12, 0.4))
    dark = (image.astype(np.float64) / 255) ** gamma * gain
    noise = rng.normal(size=image.shape)
    return _to_uint8((dark + noise * np.sqrt(1e-5 + 4e-4 * dark)) * 255)


def add_noise(image: Image, rng: np.random.Generator) -> Image:
    """Gaussian noise of standard deviation 10 to 25 grey levels."""
    noise = rng.normal(size=image.shape) * float(rng.uniform(10, 25))
    return _to_uint8(image + noise)


def blur(image: Image, rng: np.random.Generator) -> Image:
    """Gaussian blur of 1 to 2 px, or motion blur over 5 to 11 px."""
    if rng.random() < 0.5:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(1.0, 2.0))), np.uint8)
    length = int(rng.integers(2, 6)) * 2 + 1
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1.0 / length
    turn = cv2.getRotationMatrix2D((length // 2, length // 2), float(rng.uniform(0, 180)), 1.0)
    kernel = np.asarray(cv2.warpAffine(kernel, turn, (length, length)))
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), np.uint8)


def keep(image: Image, rng: np.random.Generator) -> Image:
    """Change nothing."""
    return image


@dataclass(frozen=True)
class Condition:
    """How the second image of a pair differs from the first.

    Attributes:
        name: For tables.
        strength: Of the change of viewpoint; 1 is strong.
        degrade: Applied to the second image.
    """

    name: str
    strength: float
    degrade: Callable[[Image, np.random.Generator], Image]


#: All but the first also move the camera a little, or a fixed pattern of pixels would match itself.
CONDITIONS = (
    Condition('viewpoint', 1.0, keep),
    Condition('blur', 0.35, blur),
    Condition('noise', 0.35, add_noise),
    Condition('exposure', 0.35, adjust_exposure),
    Condition('night', 0.35, darken),
)


def sample_homography(
    rng: np.random.Generator, width: int, height: int, strength: float = 1.0
) -> Array:
    """Draw a `second_from_first` homography: scale, rotation, tilt, shift. Float64 (3, 3)."""
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], float)
    centre = corners.mean(axis=0)
    angle = np.deg2rad(rng.uniform(-25, 25)) * strength
    scale = float(np.exp(rng.uniform(np.log(0.7), np.log(1.4)) * strength))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    size = np.array([width, height])
    moved = (corners - centre) @ rotation.T * scale + centre
    moved += rng.uniform(-0.12, 0.12, (4, 2)) * size * strength
    moved += rng.uniform(-0.06, 0.06, 2) * size * strength
    return np.asarray(
        cv2.getPerspectiveTransform(corners.astype(np.float32), moved.astype(np.float32))
    )


def warp_points(homography: Array, points: NDArray[np.floating]) -> Array:
    """Map (N, 2) points by a 3x3 homography; those behind the camera become NaN."""
    mapped = np.asarray(points, np.float64) @ homography[:, :2].T + homography[:, 2]
    depth = np.where(mapped[:, 2:] > 1e-9, mapped[:, 2:], np.nan)
    return np.asarray(mapped[:, :2] / depth)


@dataclass(frozen=True, eq=False)
class WarpedPair:
    """A photograph and a warp of it.

    Attributes:
        first, second: Grey images of one size.
        second_from_first: (3, 3) homography between their pixels.
    """

    first: Image
    second: Image
    second_from_first: Array


def make_warped_pair(photograph: Image, condition: Condition, seed: int) -> WarpedPair:
    """Warp and degrade a photograph; the same seed gives the same pair."""
    rng = np.random.default_rng(seed)
    height, width = photograph.shape
    homography = sample_homography(rng, width, height, condition.strength)
    second = cv2.warpPerspective(
        photograph, homography, (width, height), borderMode=cv2.BORDER_REFLECT_101
    )
    return WarpedPair(photograph, condition.degrade(np.asarray(second, np.uint8), rng), homography)


def _to_uint8(image: NDArray[np.floating]) -> Image:
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8)
