"""Compare local features: on warps of photographs, and on real pairs of known geometry.

All methods get the same images, the same number of keypoints and the same matcher (mutual nearest
neighbours, no ratio test), so that the figures are about the features alone.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError
from d2s_ros.features.extractor import FeatureConfig, FeatureExtractor, to_grey
from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, skew

_logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Image = NDArray[np.uint8]

#: A match, or a keypoint, is right when it is this close to the truth, px.
TOLERANCE = 3.0
HOMOGRAPHY_TOLERANCES = (1.0, 3.0, 5.0)
#: One photograph in this many is for evaluation, never for training, see `is_held_out`.
HELD_OUT_ONE_IN = 10


def is_held_out(name: str) -> bool:
    """Whether a photograph is kept for evaluation; depends on its file name (stem) alone."""
    digest = hashlib.sha1(Path(name).stem.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], 'big') % HELD_OUT_ONE_IN == 0


class Orb:
    """OpenCV's ORB; its bits as unit vectors, so that the scalar product ranks as Hamming does."""

    dim = 256
    weights_hash = 'orb-v1'

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config
        self._orb = cv2.ORB.create(nfeatures=config.max_keypoints, fastThreshold=5)

    def extract(self, image: Image, mask: Image | None = None) -> LocalFeatures:
        """Detect and describe keypoints; see `FeatureExtractor.extract`. Does not resize."""
        grey = to_grey(image)
        found, descriptors = self._orb.detectAndCompute(grey, mask)
        if len(found) == 0:
            descriptors = np.zeros((0, 32), np.uint8)
        bits = np.unpackbits(np.asarray(descriptors, np.uint8), axis=1).astype(np.float32)
        responses = np.array([keypoint.response for keypoint in found], np.float32)
        order = np.argsort(-responses, kind='stable')[: self.config.max_keypoints]
        points = np.array([keypoint.pt for keypoint in found], np.float32).reshape(-1, 2)
        sizes = np.array([keypoint.size for keypoint in found], np.float32)
        return LocalFeatures(
            points[order],
            responses[order],
            ((bits[order] * 2 - 1) / 16).astype(np.float32),
            (grey.shape[1], grey.shape[0]),
            sizes[order] / 31.0,
        )


# ---------------------------------------------------------------------------------------------
# What is done to photographs


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


# ---------------------------------------------------------------------------------------------
# Measures


def match_mutual(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return (M, 2) indices of mutual nearest neighbours of unit descriptors."""
    if len(first) == 0 or len(second) == 0:
        return np.zeros((0, 2), np.int64)
    similarity = first @ second.T
    forward, backward = similarity.argmax(axis=1), similarity.argmax(axis=0)
    index = np.arange(len(first))
    mutual = backward[forward] == index
    return np.stack([index[mutual], forward[mutual]], axis=1)


def strongest(features: LocalFeatures, count: int) -> LocalFeatures:
    """Return at most `count` of the strongest keypoints."""
    return LocalFeatures(
        features.keypoints[:count],
        features.keypoint_scores[:count],
        features.descriptors[:count],
        features.image_size,
        features.scales[:count],
    )


def measure_warped_pair(
    first: LocalFeatures, second: LocalFeatures, second_from_first: Array
) -> dict[str, float]:
    """Measure features of a warped pair.

    Returns:
        repeatability: share of keypoints, of those in both images' common part, that have one of
            the other image within 3 px.
        localization_error: mean distance of those, px; NaN if there are none.
        mma: share of the matches within 3 px of the truth, 0 without matches.
        matching_score: right matches relative to the keypoints in the common part.
        matches: number of right matches.
        homography_1, _3, _5: 1 if the homography estimated from the matches moves the image's
            corners by at most that many px on average from where they belong, else 0.
    """
    width, height = first.image_size
    forward = warp_points(second_from_first, first.keypoints)
    first_from_second = np.asarray(np.linalg.inv(second_from_first), np.float64)
    backward = warp_points(first_from_second, second.keypoints)
    in_second = _inside(forward, second.image_size)
    in_first = _inside(backward, first.image_size)
    result: dict[str, float] = {}
    distances = []
    for mapped, others in (
        (forward[in_second], second.keypoints[in_first]),
        (second.keypoints[in_first].astype(np.float64), forward[in_second]),
    ):
        if len(mapped) and len(others):
            gaps = np.linalg.norm(mapped[:, None] - others[None], axis=2).min(axis=1)
        else:
            gaps = np.full(len(mapped), np.inf)
        distances.append(gaps)
    gaps = np.concatenate(distances)
    near = gaps <= TOLERANCE
    result['repeatability'] = float(near.mean()) if len(gaps) else 0.0
    result['localization_error'] = float(gaps[near].mean()) if near.any() else float('nan')
    matches = match_mutual(first.descriptors, second.descriptors)
    errors = np.linalg.norm(forward[matches[:, 0]] - second.keypoints[matches[:, 1]], axis=1)
    right = np.nan_to_num(errors, nan=np.inf) <= TOLERANCE
    result['mma'] = float(right.mean()) if len(right) else 0.0
    common = 0.5 * (int(in_second.sum()) + int(in_first.sum()))
    result['matching_score'] = float(right.sum() / common) if common else 0.0
    result['matches'] = float(right.sum())
    corner_error = float('inf')
    if len(matches) >= 4:
        estimate, _ = cv2.findHomography(
            first.keypoints[matches[:, 0]],
            second.keypoints[matches[:, 1]],
            cv2.USAC_MAGSAC,
            TOLERANCE,
            maxIters=10000,
            confidence=0.9999,
        )
        if estimate is not None:
            corners = np.array(
                [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], float
            )
            moved = warp_points(np.asarray(estimate, np.float64), corners)
            gap = moved - warp_points(second_from_first, corners)
            corner_error = float(np.linalg.norm(gap, axis=1).mean())
    for tolerance in HOMOGRAPHY_TOLERANCES:
        result[f'homography_{tolerance:g}'] = float(corner_error <= tolerance)
    return result


def _inside(points: Array, size: tuple[int, int]) -> NDArray[np.bool_]:
    limit = np.array(size) - 1
    with np.errstate(invalid='ignore'):
        return np.asarray(((points >= 0) & (points <= limit)).all(axis=1))


def evaluate_warps(
    photographs: Sequence[Image],
    extractors: Mapping[str, FeatureExtractor],
    *,
    keypoints: int = 512,
    conditions: Sequence[Condition] = CONDITIONS,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure every method under every condition; mean over the photographs.

    Per pair all methods are cut to the number of keypoints of the one that finds least in the
    first image (at most `keypoints`): more keypoints alone make most figures look better.

    Returns:
        method -> condition -> figure, see `measure_warped_pair`.
    """
    rows: dict[str, dict[str, list[dict[str, float]]]] = {
        method: {condition.name: [] for condition in conditions} for method in extractors
    }
    for index, photograph in enumerate(photographs):
        plain = {name: extractor.extract(photograph) for name, extractor in extractors.items()}
        count = min(keypoints, *(len(features) for features in plain.values()))
        for number, condition in enumerate(conditions):
            pair = make_warped_pair(photograph, condition, seed + 1000 * index + number)
            for name, extractor in extractors.items():
                second = strongest(extractor.extract(pair.second), count)
                figures = measure_warped_pair(
                    strongest(plain[name], count), second, pair.second_from_first
                )
                rows[name][condition.name].append(figures)
        _logger.debug('photograph %d of %d', index + 1, len(photographs))
    return {
        name: {condition: _mean(figures) for condition, figures in by_condition.items()}
        for name, by_condition in rows.items()
    }


# ---------------------------------------------------------------------------------------------
# Real pairs of known geometry


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
                plain[i] = strongest(extractor.extract(images[i].image), keypoints)
            for k, condition in enumerate(conditions):
                rng = np.random.default_rng(seed + 1000 * number + k)
                degraded = condition.degrade(images[j].image, rng)
                second = strongest(extractor.extract(degraded), keypoints)
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
        name: {condition: _mean(figures) for condition, figures in by_condition.items()}
        for name, by_condition in rows.items()
    }


def _mean(figures: list[dict[str, float]]) -> dict[str, float]:
    result = {}
    for key in figures[0] if figures else ():
        values = np.array([row[key] for row in figures])
        result[key] = float(np.nanmean(values)) if np.isfinite(values).any() else float('nan')
    return result


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


def _to_uint8(image: NDArray[np.floating]) -> Image:
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8)
