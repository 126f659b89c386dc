"""Compare local features on real pairs of known geometry."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from d2s_ros.errors import InputError
from d2s_ros.features.evaluation import TOLERANCE, match_mutual, mean_figures
from d2s_ros.features.types import FeatureExtractor, LocalFeatures
from d2s_ros.features.warped_pairs import CONDITIONS, Array, Condition, Image, keep
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, skew

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PosedImage:
    """An image with its pose and camera."""

    name: str
    image: Image
    camera_from_world: RigidTransform
    camera: Camera


def load_posed_images(folder: Path) -> list[PosedImage]:
    """Read images/, images.txt and cameras.txt (COLMAP text), grey, in the order of their names.

    Raises:
        InputError: if a file is missing or cannot be read.
    """
    try:
        camera_lines = (folder / 'cameras.txt').read_text().splitlines()
        image_lines = (folder / 'images.txt').read_text().splitlines()
    except OSError as error:
        raise InputError(f'{folder} is not a COLMAP text model: {error}') from error
    cameras: dict[str, Camera] = {}
    for line in camera_lines:
        words = line.split()
        if words and not line.startswith('#'):
            parameters = [float(word) for word in words[4:]]
            cameras[words[0]] = Camera.from_colmap(
                words[1], int(words[2]), int(words[3]), parameters
            )
    result = []
    for line in image_lines:
        words = line.split()
        if len(words) != 10 or line.startswith('#'):
            continue
        quaternion = [float(word) for word in words[1:5]]
        pose = RigidTransform.from_quaternion(
            [*quaternion[1:], quaternion[0]], [float(word) for word in words[5:8]]
        )
        image = cv2.imread(str(folder / 'images' / words[9]), cv2.IMREAD_GRAYSCALE)
        if image is None:
            raise InputError(f'cannot read the image {folder / "images" / words[9]}')
        result.append(PosedImage(words[9], np.asarray(image, np.uint8), pose, cameras[words[8]]))
    return sorted(result, key=lambda posed: posed.name)


def choose_pairs(
    images: Sequence[PosedImage], *, count: int, max_angle: float = 40.0
) -> list[tuple[int, int]]:
    """Choose pairs that look the same way within `max_angle` degrees, spread over all of them."""
    candidates = []
    for i, first in enumerate(images):
        for j in range(i + 1, len(images)):
            second = images[j]
            axes = first.camera_from_world.rotation[2] @ second.camera_from_world.rotation[2]
            angle = float(np.degrees(np.arccos(np.clip(axes, -1, 1))))
            if angle <= max_angle:
                candidates.append((i, j))
    if len(candidates) <= count:
        return candidates
    chosen = np.linspace(0, len(candidates) - 1, count).round().astype(int)
    return [candidates[index] for index in chosen]


def epipolar_distances(
    first: PosedImage, second: PosedImage, points_first: Array, points_second: Array
) -> Array:
    """Return the Sampson distance of each match (N,), px, by the known poses and cameras."""
    second_from_first = second.camera_from_world @ first.camera_from_world.inverse()
    essential = skew(second_from_first.translation) @ second_from_first.rotation
    x, y = (
        np.column_stack([image.camera.normalize(points), np.ones(len(points))])
        for image, points in ((first, points_first), (second, points_second))
    )
    line_second, line_first = x @ essential.T, y @ essential
    algebraic = np.abs(np.sum(y * line_second, axis=1))
    gradient = np.sqrt((line_second[:, :2] ** 2).sum(axis=1) + (line_first[:, :2] ** 2).sum(axis=1))
    focal = 0.5 * (first.camera.matrix[0, 0] + second.camera.matrix[0, 0])
    return np.asarray(algebraic / np.maximum(gradient, 1e-12) * focal)


def evaluate_posed_images(
    images: Sequence[PosedImage],
    extractors: Mapping[str, FeatureExtractor],
    *,
    pairs: int = 24,
    keypoints: int = 1024,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """Count matches that known poses confirm, with the second image as it is and degraded.

    A match is confirmed if its Sampson distance is at most 3 px: necessary, not sufficient, so
    that `precision` has a floor of a few percent; it is the same for all methods.

    Returns:
        method -> condition -> verified (matches per pair), precision.
    """
    conditions = [Condition('as taken', 0.0, keep), *CONDITIONS[1:]]
    chosen = choose_pairs(images, count=pairs)
    rows: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {condition.name: [] for condition in conditions} for name in extractors
    }
    for name, extractor in extractors.items():
        plain: dict[int, LocalFeatures] = {}
        for number, (i, j) in enumerate(chosen):
            if i not in plain:
                plain[i] = extractor.extract(images[i].image).strongest(keypoints)
            for k, condition in enumerate(conditions):
                rng = np.random.default_rng(seed + 1000 * number + k)
                degraded = condition.degrade(images[j].image, rng)
                second = extractor.extract(degraded).strongest(keypoints)
                matches = match_mutual(plain[i].descriptors, second.descriptors)
                distances = epipolar_distances(
                    images[i],
                    images[j],
                    plain[i].keypoints[matches[:, 0]].astype(np.float64),
                    second.keypoints[matches[:, 1]].astype(np.float64),
                )
                right = distances <= TOLERANCE
                rows[name][condition.name].append(
                    {
                        'verified': float(right.sum()),
                        'precision': float(right.mean()) if len(right) else 0.0,
                    }
                )
        _logger.debug('%s done', name)
    return {
        name: {condition: mean_figures(figures) for condition, figures in by_condition.items()}
        for name, by_condition in rows.items()
    }
