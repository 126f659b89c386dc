"""A first pose by labels alone: keypoints and points that agree at all levels at once.

The labels of a point at all levels are a word of some 18 bits. How likely an image makes each word
at each keypoint says which pairs to try; RANSAC finds the pose that most of them agree with. A pair
is right seldom (one in three to ten), which is enough for it, and no start is needed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.ransac import RansacConfig, find_pose
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.scene_models.base import View
from d2s_ros.scene_models.labels.field import LabelField
from d2s_ros.scene_models.labels.refinement import LabelledPoints

#: Points of a block; what it computes stays in the cache.
_BLOCK = 256
#: Pairs that RANSAC is given, the likeliest.
_PAIRS = 1000
#: Error of an inlier, px of the label image: labels stand on cells of 2 to 8 px.
_THRESHOLD_PX = 4.0
_RANSAC = RansacConfig(
    threshold_px=_THRESHOLD_PX, max_iterations=20_000, min_iterations=100, seed=0
)


def keypoint_pixels(field: LabelField, view: View) -> NDArray[np.float64]:
    """Return where the keypoints (N, 2) of a view lie in the label image, NaN where nowhere."""
    camera = view.ideal_camera
    ratio = [field.camera.width / camera.width, field.camera.height / camera.height]
    return (view.ideal_keypoints + 0.5) * ratio - 0.5


def pose_from_labels(
    field: LabelField, pixels: NDArray[np.float64], points: LabelledPoints
) -> RigidTransform | None:
    """Return camera_from_map by points and keypoints whose labels fit each other best.

    Args:
        field: Of the image.
        pixels: (N, 2) keypoints, px of the label image.
        points: Those that may be seen.

    Returns:
        The pose; None where no four pairs agree on one.
    """
    seen = np.flatnonzero(np.isfinite(pixels).all(axis=1))
    if len(seen) < 4 or len(points) < 4:
        return None
    keypoints = pixels[seen]
    keypoint, point, score = mutual_pairs(field.words(keypoints), points.labels)
    kept = np.argsort(-score, kind='stable')[:_PAIRS]
    found = find_pose(
        keypoints[keypoint[kept]], points.points_in_map[point[kept]], field.camera, _RANSAC
    )
    return None if found is None else found[0]


def mutual_pairs(
    words: list[NDArray[np.float32]], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return rows of keypoints and points that are each other's likeliest, and their scores.

    Args:
        words: Of each level, (K, N) log(p / chance) of each label at each of N keypoints.
        labels: (P, L) of the points.
    """
    count = words[0].shape[1]
    best_keypoint = np.empty(len(labels), np.int64)
    best_point = np.zeros(count, np.int64)
    highest = np.full(count, -np.inf, np.float32)
    for begin in range(0, len(labels), _BLOCK):
        block = labels[begin : begin + _BLOCK]
        scores = words[0][block[:, 0]]
        for level in range(1, len(words)):
            scores += words[level][block[:, level]]
        best_keypoint[begin : begin + _BLOCK] = scores.argmax(axis=1)
        rows = scores.argmax(axis=0)
        values = scores[rows, np.arange(count)]
        better = values > highest
        best_point[better] = begin + rows[better]
        highest[better] = values[better]
    keypoint = np.flatnonzero(best_keypoint[best_point] == np.arange(count))
    return keypoint, best_point[keypoint], highest[keypoint]
