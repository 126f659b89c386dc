"""Which pairs of images are matched, and their matches, kept as they are found."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from d2s_ros.data.array_log import StageLog
from d2s_ros.reconstruction.matching import fundamental_from_poses, match_guided, match_mutual
from d2s_ros.reconstruction.reconstruction import ImageInput, ReconstructionConfig
from d2s_ros.reconstruction.retrieval import Vlad, nearest_images

#: Time between two records of matches: what a kill costs at most.
_KEEP_SECONDS = 0.5


def select_pairs(
    images: Sequence[ImageInput], config: ReconstructionConfig
) -> list[tuple[int, int]]:
    """Choose the image pairs to match; their number grows linearly with the images.

    Returns:
        Sorted pairs (i, j), i < j, of indices into `images`.
    """
    n = len(images)
    pairs: set[tuple[int, int]] = set()
    if config.next_images:
        reach = range(1, config.next_images + 1)
        pairs.update((i, i + step) for i in range(n) for step in reach if i + step < n)
    elif n <= config.all_pairs_up_to:
        return [(i, j) for i in range(n) for j in range(i + 1, n)]
    else:
        vlad = Vlad.fit([image.features.descriptors for image in images])
        described = np.stack([vlad.describe(image.features.descriptors) for image in images])
        neighbours = nearest_images(described, described, config.retrieval_neighbours + 1)
        for i, row in enumerate(neighbours):
            pairs.update((min(i, int(j)), max(i, int(j))) for j in row if j != i)
    poses = [image.map_from_camera for image in images]
    if config.pose_neighbours and all(pose is not None for pose in poses):
        centres = np.stack([pose.translation for pose in poses if pose is not None])
        axes = np.stack([pose.rotation[:, 2] for pose in poses if pose is not None])
        spread = np.median(np.linalg.norm(centres - np.median(centres, axis=0), axis=1)) + 1e-9
        for i in range(n):
            distance = np.linalg.norm(centres - centres[i], axis=1) / spread
            turned = np.arccos(np.clip(axes @ axes[i], -1, 1))
            # A metre per radian, in units of the log's own extent.
            cost = distance + turned
            cost[turned > np.radians(75)] = np.inf
            # Every other neighbour reaches further than the frames just before and after.
            order = np.argsort(cost)[1 : 1 + 2 * config.pose_neighbours : 2]
            pairs.update((min(i, int(j)), max(i, int(j))) for j in order if np.isfinite(cost[j]))
    for i in range(n - 1):
        pairs.add((i, i + 1))
    return sorted(pairs)


def match_pairs(
    images: Sequence[ImageInput],
    ideal: list[NDArray[np.float64]],
    pairs: list[tuple[int, int]],
    config: ReconstructionConfig,
    stage: StageLog,
    *,
    guided: bool,
    progress: bool = False,
) -> dict[tuple[int, int], NDArray[np.int64]]:
    """Match pairs of images.

    Args:
        images: Images with features.
        ideal: (N, 2) undistorted px of each.
        pairs: Pairs (i, j), i < j, of images.
        config: Limits.
        stage: Where matches are kept, and found again.
        guided: Only along the epipolar lines of the images' poses.
        progress: Show a progress bar.

    Returns:
        (M, 2) keypoint indices for each pair with enough of them.
    """
    descriptors = [torch.from_numpy(image.features.descriptors) for image in images]
    points = [np.nan_to_num(p, nan=-1e6).astype(np.float32) for p in ideal]
    prefix = 'guided' if guided else 'free'
    done = read_matches(stage, prefix)
    unsaved: dict[tuple[int, int], NDArray[np.int64]] = {}
    last_kept = time.monotonic()
    for i, j in tqdm(pairs, desc='matching', unit='pair', disable=not progress):
        if (i, j) in done:
            continue
        if time.monotonic() - last_kept > _KEEP_SECONDS:
            _keep_matches(stage, prefix, unsaved)
            unsaved, last_kept = {}, time.monotonic()
        pose_i, pose_j = images[i].map_from_camera, images[j].map_from_camera
        if guided and pose_i is not None and pose_j is not None:
            baseline = np.linalg.norm(pose_i.translation - pose_j.translation)
            if baseline < 1e-9:
                # A camera that did not move shows no depth.
                continue
            fundamental = fundamental_from_poses(
                images[i].camera.ideal, images[j].camera.ideal, pose_i, pose_j
            )
            found, _ = match_guided(
                descriptors[i],
                descriptors[j],
                points[i],
                points[j],
                fundamental,
                max_distance_px=config.guided_distance_px,
                ratio=config.guided_ratio,
                min_similarity=config.min_similarity,
            )
        else:
            found, _ = match_mutual(
                descriptors[i],
                descriptors[j],
                ratio=config.free_ratio,
                min_similarity=config.min_similarity,
            )
        valid = np.isfinite(ideal[i][found[:, 0]]).all(1) & np.isfinite(ideal[j][found[:, 1]]).all(
            1
        )
        done[i, j] = unsaved[i, j] = found[valid]
    _keep_matches(stage, prefix, unsaved)
    # In the order of the pairs, whichever were matched before.
    return {
        pair: done[pair]
        for pair in pairs
        if pair in done and len(done[pair]) >= config.min_pair_matches
    }


def pack_matches(matches: Mapping[tuple[int, int], NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
    """Return matches of at least one pair of images as arrays, as a log keeps them."""
    return {
        'pairs': np.array(list(matches), np.int32),
        'counts': np.array([len(found) for found in matches.values()], np.int32),
        'matches': np.concatenate(list(matches.values())).astype(np.int32),
    }


def _keep_matches(
    stage: StageLog, prefix: str, matches: dict[tuple[int, int], NDArray[np.int64]]
) -> None:
    if matches:
        stage.keep(f'{prefix}/{len(stage.keys())}', pack_matches(matches))


def read_matches(stage: StageLog, prefix: str) -> dict[tuple[int, int], NDArray[np.int64]]:
    """Return the matches (M, 2) of each pair that a log keeps.

    Args:
        stage: The log.
        prefix: Of the keys of their records: 'guided' or 'free'.
    """
    done = {}
    for key, arrays in stage.records():
        if not key.startswith(f'{prefix}/'):
            continue
        ends = np.cumsum(arrays['counts'])
        for (i, j), found in zip(
            arrays['pairs'].tolist(), np.split(arrays['matches'], ends[:-1]), strict=True
        ):
            done[i, j] = found.astype(np.int64)
    return done
