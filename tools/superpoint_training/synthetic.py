"""Synthetic shapes with known corners: what a detector learns from before it sees photographs."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from tools.superpoint_training.pairs import Augmentation, Labels, Pair, make_pair

Image = NDArray[np.uint8]
Points = NDArray[np.float32]
#: Scenes are drawn this much larger and shrunk: OpenCV's drawing is off by up to a pixel.
_SCALE = 4
#: Vertices are given in sixteenths of a pixel of the large scene.
_SHIFT = 4


def draw_shapes(
    rng: np.random.Generator, width: int = 320, height: int = 240
) -> tuple[Image, Points]:
    """Draw a random scene of one kind of shape.

    Returns:
        The image (H, W) uint8 and its corners (N, 2) float32 px, all inside.
    """
    draw = _SHAPES[int(rng.integers(len(_SHAPES)))]
    image, points = _draw(rng, draw, width, height)
    inside = ((points >= 0) & (points <= [width - 1, height - 1])).all(axis=1)
    if rng.random() < 0.5:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.5, 1.5))), np.uint8)
    return image, points[inside].astype(np.float32)


def _draw(
    rng: np.random.Generator,
    draw: Callable[[np.random.Generator, Image], Points],
    width: int,
    height: int,
) -> tuple[Image, Points]:
    large = _background(rng, width * _SCALE, height * _SCALE)
    points = draw(rng, large)
    image = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(image, np.uint8), ((points + 0.5) / _SCALE - 0.5).astype(np.float32)


def synthetic_pair(rng: np.random.Generator, *, size: int, config: Augmentation) -> Pair:
    """Draw two views of a scene of shapes; there are no keypoints for descriptors in it."""
    image, corners = draw_shapes(rng)
    labels = Labels(
        corners, np.ones(len(corners), np.float32), np.zeros((len(corners), 0), np.float16)
    )
    return make_pair(rng, image, labels, size=size, keypoints=2, config=config)


def _background(rng: np.random.Generator, width: int, height: int) -> Image:
    base = int(rng.integers(0, 256))
    coarse = rng.normal(base, float(rng.uniform(0, 30)), (int(rng.integers(2, 12)),) * 2)
    smooth = cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(smooth, 0, 255), np.uint8)


def _contrasting(rng: np.random.Generator, image: Image) -> int:
    """Return a grey level that differs from the image's mean by at least 40."""
    mean = int(image.mean())
    levels = [level for level in range(256) if abs(level - mean) >= 40]
    return int(rng.choice(levels))


def _fixed(points: NDArray[np.floating]) -> NDArray[np.int32]:
    return np.asarray(np.rint(points * (1 << _SHIFT)), np.int32)


def _fill(image: Image, points: NDArray[np.floating], level: int) -> None:
    cv2.fillPoly(image, [_fixed(points)], (level,), cv2.LINE_AA, _SHIFT)


def _stroke(image: Image, first: Points, second: Points, level: int, thickness: int) -> None:
    start, stop = _fixed(first), _fixed(second)
    cv2.line(
        image,
        (int(start[0]), int(start[1])),
        (int(stop[0]), int(stop[1])),
        (level,),
        thickness * _SCALE,
        cv2.LINE_AA,
        _SHIFT,
    )


def _lines(rng: np.random.Generator, image: Image) -> Points:
    size = np.array(image.shape[::-1])
    ends: list[Points] = []
    for _ in range(int(rng.integers(2, 10))):
        first, second = (rng.uniform(0.05, 0.95, (2, 2)) * size).astype(np.float32)
        # Lines that cross would have corners that nobody labelled.
        crosses = any(
            _segments_meet(first, second, a, b) for a, b in zip(ends[0::2], ends[1::2], strict=True)
        )
        if crosses or np.linalg.norm(first - second) < 20 * _SCALE:
            continue
        _stroke(image, first, second, _contrasting(rng, image), int(rng.integers(1, 4)))
        ends += [first, second]
    return np.array(ends, np.float32).reshape(-1, 2)


def _segments_meet(a: Points, b: Points, c: Points, d: Points) -> bool:
    def side(p: Points, q: Points, r: Points) -> float:
        return float((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]))

    return side(a, b, c) * side(a, b, d) <= 0 and side(c, d, a) * side(c, d, b) <= 0


def _polygon_at(rng: np.random.Generator, centre: NDArray[np.floating], radius: float) -> Points:
    count = int(rng.integers(3, 7))
    # Angles at least 30 degrees apart keep every corner a corner.
    gaps = rng.dirichlet(np.ones(count)) * (2 * np.pi - count * np.pi / 6) + np.pi / 6
    angles = np.cumsum(gaps) + rng.uniform(0, 2 * np.pi)
    radii = radius * rng.uniform(0.7, 1.0, count)
    offsets = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    return np.asarray(cv2.convexHull((centre + offsets).astype(np.float32)), np.float32)[:, 0]


def _polygons(rng: np.random.Generator, image: Image) -> Points:
    height, width = image.shape
    placed: list[tuple[NDArray[np.floating], float]] = []
    corners = [np.zeros((0, 2), np.float32)]
    for _ in range(int(rng.integers(1, 12))):
        radius = float(rng.uniform(0.05, 0.35) * height)
        centre = rng.uniform(0, 1, 2) * [width, height]
        if any(
            np.linalg.norm(centre - other) < radius + reach + 4 * _SCALE for other, reach in placed
        ):
            continue
        polygon = _polygon_at(rng, centre, radius)
        _fill(image, polygon, _contrasting(rng, image))
        placed.append((centre, radius))
        corners.append(polygon)
    return np.concatenate(corners)


def _star(rng: np.random.Generator, image: Image) -> Points:
    height, width = image.shape
    centre = (rng.uniform(0.3, 0.7, 2) * [width, height]).astype(np.float32)
    count = int(rng.integers(3, 7))
    angles = np.cumsum(rng.dirichlet(np.ones(count) * 5)) * 2 * np.pi
    points = [centre]
    level, thickness = _contrasting(rng, image), int(rng.integers(1, 4))
    for angle in angles:
        reach = rng.uniform(0.2, 0.45) * height
        end = (centre + reach * np.array([np.cos(angle), np.sin(angle)])).astype(np.float32)
        _stroke(image, centre, end, level, thickness)
        points.append(end)
    return np.array(points, np.float32)


def _grid_homography(rng: np.random.Generator, image: Image, columns: int, rows: int) -> Points:
    """Return the (rows + 1, columns + 1, 2) corners of a tilted grid over most of the image."""
    height, width = image.shape
    corners = np.array([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]]) + rng.uniform(
        -0.1, 0.1, (4, 2)
    )
    angle = rng.uniform(-0.6, 0.6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    target = ((corners - 0.5) @ turn.T + 0.5) * [width, height]
    source = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]], np.float32)
    homography = cv2.getPerspectiveTransform(source, target.astype(np.float32))
    x, y = np.meshgrid(np.arange(columns + 1), np.arange(rows + 1))
    grid = np.stack([x, y], axis=-1).reshape(-1, 1, 2).astype(np.float32)
    mapped = cv2.perspectiveTransform(grid, homography)
    return np.asarray(mapped, np.float32).reshape(rows + 1, columns + 1, 2)


def _checkerboard(rng: np.random.Generator, image: Image) -> Points:
    columns, rows = int(rng.integers(3, 9)), int(rng.integers(3, 7))
    grid = _grid_homography(rng, image, columns, rows)
    light = _contrasting(rng, image)
    dark = int(np.clip(light + rng.choice([-1, 1]) * rng.integers(50, 150), 0, 255))
    if abs(dark - light) < 30:
        dark = 255 - light
    for row in range(rows):
        for column in range(columns):
            level = light if (row + column) % 2 else dark
            cell = [
                grid[row, column],
                grid[row, column + 1],
                grid[row + 1, column + 1],
                grid[row + 1, column],
            ]
            _fill(image, np.array(cell), level)
    # Squares of the border meet the background, which may be as grey as they are.
    return grid[1:-1, 1:-1].reshape(-1, 2)


def _stripes(rng: np.random.Generator, image: Image) -> Points:
    count = int(rng.integers(2, 8))
    grid = _grid_homography(rng, image, count, 1)
    corners = []
    for column in range(0, count, 2):
        cell = [grid[0, column], grid[0, column + 1], grid[1, column + 1], grid[1, column]]
        _fill(image, np.array(cell), _contrasting(rng, image))
        corners += cell
    return np.array(corners, np.float32)


def _cube(rng: np.random.Generator, image: Image) -> Points:
    height, width = image.shape
    size = rng.uniform(0.15, 0.3) * height
    vertices = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    # Three visible faces: tilt well away from looking along an axis.
    yaw, pitch = rng.uniform(0.35, 1.2), rng.uniform(0.35, 0.9)
    turn_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    turn_x = np.array(
        [[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]
    )
    stretch = rng.uniform(0.7, 1.3, 3)
    turned = vertices * stretch @ (turn_x @ turn_y).T
    centre = rng.uniform(0.35, 0.65, 2) * [width, height]
    projected = (turned[:, :2] * size + centre).astype(np.float32)
    visible: set[int] = set()
    faces = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))
    levels = rng.permutation(np.linspace(20, 235, 3)).astype(int)
    shown = 0
    for face in faces:
        # The face looks at us, along -z, if its centre is nearer than the cube's.
        if turned[list(face), 2].mean() < 0:
            _fill(image, projected[list(face)], int(levels[shown % 3]))
            visible.update(face)
            shown += 1
    return projected[sorted(visible)]


def _ellipses(rng: np.random.Generator, image: Image) -> Points:
    """Round shapes have no corners: the detector must learn to stay silent."""
    height, width = image.shape
    for _ in range(int(rng.integers(2, 20))):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        axes = (int(rng.integers(20, height // 4)), int(rng.integers(20, height // 4)))
        level = _contrasting(rng, image)
        cv2.ellipse(image, centre, axes, float(rng.uniform(0, 180)), 0, 360, (level,), -1)
    return np.zeros((0, 2), np.float32)


_SHAPES: tuple[Callable[[np.random.Generator, Image], Points], ...] = (
    _lines,
    _polygons,
    _polygons,
    _star,
    _checkerboard,
    _checkerboard,
    _stripes,
    _cube,
    _ellipses,
)
