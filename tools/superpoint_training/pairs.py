"""Training samples: two degraded views of one photograph, with what a teacher saw in it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

#: Pixels of an image of twice the size, whose 2x2 blocks are this one's.
_TWICE = np.array([[2.0, 0.0, 0.5], [0.0, 2.0, 0.5], [0.0, 0.0, 1.0]])


@dataclass(frozen=True, eq=False)
class Labels:
    """What the teacher saw in one photograph.

    Attributes:
        keypoints: (N, 2) float32 x, y in px, (0, 0) = centre of first pixel, strongest first.
        scores: (N,) float32 in [0, 1].
        descriptors: (N, D) float16, L2-normalised rows; D is 0 for a teacher that only detects.
    """

    keypoints: Array
    scores: Array
    descriptors: NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class View:
    """One view of a photograph.

    Attributes:
        image: (S, S) float32 in [0, 1].
        heatmap: (S, S) float32 in [0, 1], probability of a keypoint at each pixel.
        valid: (S/8, S/8) bool, cells that lie within the photograph.
        keypoints: (K, 2) float32, where the chosen keypoints are in this view, px.
        visible: (K,) bool, which of them are inside.
    """

    image: Array
    heatmap: Array
    valid: NDArray[np.bool_]
    keypoints: Array
    visible: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two views of a photograph and the keypoints they share.

    Attributes:
        views: The two views.
        source_keypoints: (K, 2) float32 px in the photograph.
        descriptors: (K, D) float16, the teacher's.
        second_from_first: (3, 3) homography between the views' pixels.
    """

    views: tuple[View, View]
    source_keypoints: Array
    descriptors: NDArray[np.float16]
    second_from_first: NDArray[np.float64]


@dataclass(frozen=True)
class Augmentation:
    """How much views differ. Angles in degrees, the rest relative to the view's side.

    `clean` is the share of pairs without any degradation but `grain`, the noise (grey levels, at
    most) that every view has. `smoothing` is the sigma, px, that the product smooths images with.
    """

    scale: tuple[float, float] = (0.75, 1.7)
    view_scale: float = 0.25
    rotation: float = 20.0
    perspective: float = 0.16
    shift: float = 0.12
    photometric: float = 1.0
    clean: float = 0.0
    grain: float = 0.0
    smoothing: float = 0.0


def transform_points(homography: NDArray[np.float64], points: Array) -> Array:
    """Map (N, 2) points by a 3x3 homography."""
    mapped = points @ homography[:, :2].T + homography[:, 2]
    return np.asarray(mapped[:, :2] / mapped[:, 2:], dtype=np.float32)


def sample_homographies(
    rng: np.random.Generator, width: int, height: int, size: int, config: Augmentation
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw two `view_from_source` homographies that look at about the same part of an image."""
    low, high = config.scale
    high = max(low, min(high, min(width, height) / size * 1.05))
    side = size * float(np.exp(rng.uniform(np.log(low), np.log(high))))
    margin = side * 0.42
    centre = np.array(
        [
            rng.uniform(margin, max(margin, width - margin)) if width > 2 * margin else width / 2,
            rng.uniform(margin, max(margin, height - margin))
            if height > 2 * margin
            else height / 2,
        ]
    )
    first = _sample_homography(rng, centre, side, size, config)
    second = _sample_homography(rng, centre, side, size, config)
    return first, second


def _sample_homography(
    rng: np.random.Generator,
    centre: NDArray[np.float64],
    side: float,
    size: int,
    config: Augmentation,
) -> NDArray[np.float64]:
    angle = np.deg2rad(rng.normal(0.0, config.rotation))
    if rng.random() < 0.05:
        angle = rng.uniform(-np.pi, np.pi)
    side = side * float(np.exp(rng.uniform(-1, 1) * config.view_scale))
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    strength = rng.random() * config.perspective
    corners = corners + rng.uniform(-1, 1, (4, 2)) * strength
    # Foreshortening along one direction, as of a plane seen from the side.
    tilt, direction = np.exp(abs(rng.normal(0, 0.15))), rng.uniform(0, np.pi)
    axis = np.array([np.cos(direction), np.sin(direction)])
    stretch = np.eye(2) + (tilt - 1) * np.outer(axis, axis)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = corners @ stretch.T @ rotation.T * side + centre
    corners = corners + rng.uniform(-1, 1, 2) * config.shift * side
    target = np.array([[0, 0], [size - 1, 0], [size - 1, size - 1], [0, size - 1]])
    return np.asarray(
        cv2.getPerspectiveTransform(corners.astype(np.float32), target.astype(np.float32))
    )


def degrade(rng: np.random.Generator, image: Array, strength: float = 1.0) -> Array:
    """Change light, exposure, sharpness and noise of a [0, 1] image at random.

    Light is weighted most: a robot that maps by day and works at night meets it most often.
    """
    size = image.shape[0]
    if strength <= 0 or rng.random() < 0.25:
        return image
    image = image.copy()
    if rng.random() < 0.35:
        image = _shadow(rng, image)
    # Blur before noise, as in a camera.
    choice = rng.random()
    if choice < 0.22:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.8)))  # type: ignore[assignment]
    elif choice < 0.36:
        image = _motion_blur(rng, image)
    elif choice < 0.42:
        factor = float(rng.uniform(0.4, 0.8))
        small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    light = rng.random()
    if light < 0.35:
        # Night: little light, a gamma that crushes the shadows, and sensor noise on what is left.
        gamma, gain = float(rng.uniform(1.2, 3.2)), float(np.exp(rng.uniform(np.log(0.08), 0.0)))
        image = np.asarray(np.power(np.clip(image, 0, 1), gamma) * gain, np.float32)
        shot = float(rng.uniform(0.0, 0.02))
        variance = shot * np.clip(image, 0, 1) * 0.1 + float(rng.uniform(0.0, 0.012)) ** 2
        noise = rng.normal(size=image.shape) * np.sqrt(variance)
        image = np.asarray(image + noise, np.float32)
        if rng.random() < 0.3:
            # The camera's gain brings the dark image back up, noise included.
            image = image * (0.5 / max(float(image.mean()), 0.02)) * float(rng.uniform(0.4, 1.0))
    elif light < 0.85:
        contrast = float(np.exp(rng.uniform(np.log(0.35), np.log(1.9))))
        mean = float(image.mean())
        image = (image - mean) * contrast + mean + float(rng.uniform(-0.3, 0.3))
        image = np.power(np.clip(image, 0, 1), float(np.exp(rng.uniform(-0.5, 0.5))))
    if rng.random() < 0.5:
        image = image + rng.normal(size=image.shape).astype(np.float32) * float(
            rng.uniform(0.0, 0.05 if rng.random() < 0.7 else 0.1) * rng.random()
        )
    # The camera delivers 8 bits; in the dark that is a loss that must be learned too.
    return np.asarray(np.round(np.clip(image, 0, 1) * 255) / 255, dtype=np.float32)


def _shadow(rng: np.random.Generator, image: Array) -> Array:
    size = image.shape[0]
    if rng.random() < 0.5:
        count = int(rng.integers(3, 7))
        polygon = rng.uniform(-0.2, 1.2, (count, 2)) * size
        mask = np.zeros_like(image)
        cv2.fillConvexPoly(mask, cv2.convexHull(polygon.astype(np.int32)), 1.0)
        mask = np.asarray(cv2.GaussianBlur(mask, (0, 0), float(rng.uniform(0.8, 12))))
    else:
        # Light that falls off across the image, as of a lamp.
        low = rng.random((3, 3)).astype(np.float32)
        mask = np.asarray(cv2.resize(low, (size, size), interpolation=cv2.INTER_CUBIC))
    gain = float(np.exp(rng.uniform(np.log(0.2), np.log(1.8))))
    return np.asarray(image * (1 + (gain - 1) * np.clip(mask, 0, 1)), dtype=np.float32)


def _motion_blur(rng: np.random.Generator, image: Array) -> Array:
    length = int(rng.integers(3, 10))
    kernel = np.zeros((length, length), np.float32)
    angle = rng.uniform(0, np.pi)
    half = (length - 1) / 2
    offset = np.array([np.cos(angle), np.sin(angle)]) * half
    start, stop = np.array([half, half]) - offset, np.array([half, half]) + offset
    cv2.line(
        kernel,
        (round(start[0] * 16), round(start[1] * 16)),
        (round(stop[0] * 16), round(stop[1] * 16)),
        1.0,
        1,
        cv2.LINE_AA,
        4,
    )
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()))


def _photographed(rng: np.random.Generator, image: Array, config: Augmentation) -> Array:
    """Add what every camera adds, and smooth as the product does before the network."""
    if config.grain > 0:
        noise = rng.normal(size=image.shape) * rng.uniform(0.0, config.grain) / 255
        levels = np.round(np.clip(image + noise, 0, 1) * 255) / 255
        image = np.asarray(levels, np.float32)
    if config.smoothing > 0:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), config.smoothing), np.float32)
    return image


def splat(size: int, points: Array, weights: Array) -> Array:
    """Spread each weight over the four pixels around its sub-pixel point; (size, size).

    The strongest wins where several meet, so that crowding does not add up to a keypoint.
    """
    heatmap = np.zeros((size, size), np.float32)
    base = np.floor(points).astype(np.int64)
    fraction = points - base
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = base[:, 0] + dx, base[:, 1] + dy
            share = np.abs(1 - dx - fraction[:, 0]) * np.abs(1 - dy - fraction[:, 1])
            inside = (x >= 0) & (y >= 0) & (x < size) & (y < size)
            np.maximum.at(heatmap, (y[inside], x[inside]), (share * weights)[inside])
    return heatmap


def _warped(
    photograph: NDArray[np.uint8], homography: NDArray[np.float64], size: int
) -> NDArray[np.uint8]:
    # At twice the size and averaged: what is made smaller would be aliased.
    twice = cv2.warpPerspective(
        photograph,
        _TWICE @ homography,
        (2 * size, 2 * size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=float(photograph.mean()),
    )
    return np.asarray(cv2.resize(twice, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def draw_views(
    rng: np.random.Generator, photograph: NDArray[np.uint8], size: int, config: Augmentation
) -> tuple[tuple[Array, Array], NDArray[np.float64], bool]:
    """Draw two views without labels.

    Returns:
        Two (S, S) images, the homography from the first to the second, and whether neither is
        degraded.
    """
    height, width = photograph.shape
    first, second = sample_homographies(rng, width, height, size, config)
    clean = bool(rng.random() < config.clean)
    views = []
    for homography in (first, second):
        plain = np.asarray(_warped(photograph, homography, size) / np.float32(255), np.float32)
        image = degrade(rng, plain, 0.0 if clean else config.photometric)
        views.append(_photographed(rng, image, config))
    return (views[0], views[1]), _motion(first, second), clean


def _motion(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    motion = second @ np.linalg.inv(first)
    return np.asarray(motion / motion[2, 2])


def make_pair(
    rng: np.random.Generator,
    photograph: NDArray[np.uint8],
    labels: Labels,
    *,
    size: int,
    keypoints: int,
    config: Augmentation,
) -> Pair:
    """Draw two views of a photograph.

    Args:
        rng: Source of randomness; the same state gives the same pair.
        photograph: (H, W) uint8.
        labels: The teacher's, in the photograph.
        size: Side S of the views, px, a multiple of 8.
        keypoints: K, the number of keypoints sampled for descriptors (fewer where there are few).
        config: How much the views differ.
    """
    height, width = photograph.shape
    homographies = sample_homographies(rng, width, height, size, config)
    mapped = [transform_points(h, labels.keypoints) for h in homographies]
    inside = [np.asarray(((p >= 4) & (p <= size - 5)).all(axis=1)) for p in mapped]
    either = np.flatnonzero(inside[0] | inside[1])
    both = np.flatnonzero(inside[0] & inside[1])
    # Strong keypoints are what will be matched, weak ones still say what a place looks like.
    pool = both if len(both) >= keypoints // 2 else either
    if len(pool) > keypoints:
        weight = 0.1 + labels.scores[pool]
        pool = rng.choice(pool, keypoints, replace=False, p=weight / weight.sum())
    photometric = 0.0 if rng.random() < config.clean else config.photometric
    views = []
    for homography, points, seen in zip(homographies, mapped, inside, strict=True):
        warped = _warped(photograph, homography, size)
        outside = cv2.warpPerspective(
            np.zeros_like(photograph), homography, (size, size), borderValue=255.0
        )
        blocks = np.asarray(outside, np.uint8).reshape(size // 8, 8, size // 8, 8)
        cells = np.asarray(blocks.max(axis=(1, 3)) == 0, np.bool_)
        near = ((points > -1) & (points < size)).all(axis=1)
        heatmap = splat(size, points[near], labels.scores[near])
        plain = np.asarray(np.asarray(warped, np.float32) / 255, np.float32)
        image = degrade(rng, plain, photometric)
        image = _photographed(rng, image, config)
        views.append(View(image, heatmap, cells, points[pool], seen[pool]))
    return Pair(
        (views[0], views[1]), labels.keypoints[pool], labels.descriptors[pool],
        _motion(*homographies),
    )  # fmt: skip
