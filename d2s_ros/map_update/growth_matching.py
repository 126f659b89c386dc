"""Which images are matched when a map grows, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.array_log import StageLog
from d2s_ros.map_update.config import GrowthConfig
from d2s_ros.map_update.label_database import LabelledFrame
from d2s_ros.maps.update_data import MappingData
from d2s_ros.reconstruction.pair_matching import match_pairs
from d2s_ros.reconstruction.reconstruction import ImageInput, MappedImage, ReconstructionConfig
from d2s_ros.reconstruction.retrieval import nearest_images

#: (M, 2) keypoint indices of matches between images i and j, for pairs (i, j), i < j.
Matches = dict[tuple[int, int], NDArray[np.int64]]


def select_growth_pairs(
    images: Sequence[MappedImage],
    num_old: int,
    data: MappingData,
    posed: Sequence[LabelledFrame],
    config: GrowthConfig,
) -> list[tuple[int, int]]:
    """Choose what each new frame is matched with: old images alike or near, new ones near."""
    described = np.stack(
        [data.vlad.describe(frame.keyframe.features.descriptors) for frame in posed]
    )
    centres = np.stack([image.map_from_camera.translation for image in images])
    axes = np.stack([image.map_from_camera.rotation[:, 2] for image in images])
    spread = np.median(np.linalg.norm(centres - np.median(centres, axis=0), axis=1)) + 1e-9
    half = (config.old_neighbours + 1) // 2
    alike = nearest_images(described, data.global_descriptors, half)
    pairs: set[tuple[int, int]] = set()
    for row in range(len(posed)):
        index = num_old + row
        turned = np.arccos(np.clip(axes @ axes[index], -1, 1))
        cost = np.linalg.norm(centres - centres[index], axis=1) / spread + turned
        cost[turned > np.radians(75)] = np.inf
        cost[index] = np.inf
        order = [int(i) for i in np.argsort(cost) if np.isfinite(cost[i])]
        pairs.update((int(i), index) for i in alike[row])
        near_old = [i for i in order if i < num_old][: config.old_neighbours - half]
        near_new = [i for i in order if i >= num_old][: config.new_neighbours]
        pairs.update((min(i, index), max(i, index)) for i in (*near_old, *near_new))
    return sorted(pairs)


def match_images(
    images: Sequence[MappedImage],
    num_old: int,
    pairs: Sequence[tuple[int, int]],
    settings: ReconstructionConfig,
    known: dict[tuple[str, str], NDArray[np.int64]],
    progress: bool,
) -> Matches:
    """Match pairs of images along epipolar lines; `known` is used and extended."""
    # Another light changes descriptors; the geometry makes up for what is lost.
    lenient = replace(settings, min_similarity=max(0.0, settings.min_similarity - 0.1))
    # A log that grew comes again with frames of the same names, but other keypoints were kept.
    name = [str(n) if n < num_old else image.name for n, image in enumerate(images)]
    names = {(i, j): (name[i], name[j]) for i, j in pairs}
    missing = [pair for pair in pairs if names[pair] not in known]
    found = match_pairs(
        image_inputs(images),
        [image.ideal_keypoints for image in images],
        missing,
        lenient,
        StageLog(None),
        guided=True,
        progress=progress,
    )
    for pair in missing:
        known[names[pair]] = found.get(pair, np.zeros((0, 2), np.int64))
    return {pair: known[names[pair]] for pair in pairs if len(known[names[pair]])}


def image_inputs(images: Sequence[MappedImage]) -> list[ImageInput]:
    """Return what reconstruction needs of the images, named by their position."""
    return [
        ImageInput(str(n), image.stamp_ns, image.camera, image.map_from_camera, image.features)
        for n, image in enumerate(images)
    ]
