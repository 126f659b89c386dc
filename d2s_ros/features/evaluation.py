"""Compare local features on warps of photographs.

All methods get the same images, the same number of keypoints and the same matcher (mutual nearest
neighbours, no ratio test), so that the figures are about the features alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.features.types import FeatureConfig, FeatureExtractor, LocalFeatures, to_grey
from d2s_ros.features.warped_pairs import (
    CONDITIONS,
    Array,
    Condition,
    Image,
    make_warped_pair,
    warp_points,
)

_logger = logging.getLogger(__name__)

#: A match, or a keypoint, is right when it is this close to the truth, px.
TOLERANCE = 3.0
HOMOGRAPHY_TOLERANCES = (1.0, 3.0, 5.0)


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


def match_mutual(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return (M, 2) indices of mutual nearest neighbours of unit descriptors."""
    if len(first) == 0 or len(second) == 0:
        return np.zeros((0, 2), np.int64)
    similarity = first @ second.T
    forward, backward = similarity.argmax(axis=1), similarity.argmax(axis=0)
    index = np.arange(len(first))
    mutual = backward[forward] == index
    return np.stack([index[mutual], forward[mutual]], axis=1)


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
                second = extractor.extract(pair.second).strongest(count)
                figures = measure_warped_pair(
                    plain[name].strongest(count), second, pair.second_from_first
                )
                rows[name][condition.name].append(figures)
        _logger.debug('photograph %d of %d', index + 1, len(photographs))
    return {
        name: {condition: mean_figures(figures) for condition, figures in by_condition.items()}
        for name, by_condition in rows.items()
    }


def mean_figures(figures: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each figure over rows; NaN where no row has it."""
    result = {}
    for key in figures[0] if figures else ():
        values = np.array([row[key] for row in figures])
        result[key] = float(np.nanmean(values)) if np.isfinite(values).any() else float('nan')
    return result
