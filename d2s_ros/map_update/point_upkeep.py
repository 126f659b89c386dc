"""What becomes of points as logs come in: forgotten, split by their looks, ranked by their use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from d2s_ros.map_update.config import GrowthConfig
from d2s_ros.reconstruction.reconstruction import MappedImage, point_groups


def find_forgotten(
    images: Sequence[MappedImage],
    logs: Sequence[str],
    points: NDArray[np.float64],
    num_old_points: int,
    config: GrowthConfig,
) -> NDArray[np.bool_]:
    """Find old points that frames should see and do not, in several logs since they were seen last.

    A frame should see a point that falls into it and that others saw from nearly the same direction
    and distance. How often frames find what they should see is measured, so a night in which little
    is found is weak evidence, and a bright day strong. What one log misses may stand there again in
    the next.
    """
    groups = point_groups(points)
    direction_sum = np.zeros((len(points), 3))
    distance_sum, observers = np.zeros(len(points)), np.zeros(len(points))
    for image in images:
        point_idx = np.unique(image.point_idx[image.point_idx >= 0])
        ray = image.map_from_camera.translation - points[point_idx]
        distance = np.linalg.norm(ray, axis=1)
        direction_sum[point_idx] += ray / np.maximum(distance, 1e-9)[:, None]
        distance_sum[point_idx] += distance
        observers[point_idx] += 1
    known = (observers >= 2) & (np.arange(len(points)) < num_old_points)
    mean_distance = distance_sum / np.maximum(observers, 1)
    norms = np.linalg.norm(direction_sum, axis=1)
    log_chance = np.zeros(len(points))
    misses = np.zeros(len(points), np.int64)
    missed_logs = np.zeros(len(points), np.int64)
    for log in dict.fromkeys(logs):
        seen_in_log = np.zeros(len(points), bool)
        missed_in_log = np.zeros(len(points), bool)
        for image in (image for image, its_log in zip(images, logs, strict=True) if its_log == log):
            seen_groups = np.zeros(groups.max() + 1, bool)
            seen_groups[groups[image.point_idx[image.point_idx >= 0]]] = True
            seen = seen_groups[groups]
            seen_in_log |= seen
            in_camera = image.map_from_camera.inverse().apply(points)
            pixel = image.camera.ideal.project(in_camera)
            ray = image.map_from_camera.translation - points
            distance = np.linalg.norm(ray, axis=1)
            cosine = (ray * direction_sum).sum(1) / np.maximum(distance * norms, 1e-9)
            ratio = distance / np.maximum(mean_distance, 1e-9)
            with np.errstate(invalid='ignore'):
                expected = (
                    known
                    & (in_camera[:, 2] > 0)
                    & (pixel > [0, 0]).all(axis=1)
                    & (pixel < [image.camera.width - 1, image.camera.height - 1]).all(axis=1)
                    & (cosine > np.cos(np.radians(20)))
                    & (ratio > 0.67)
                    & (ratio < 1.5)
                )
            if expected.sum() < 20:
                continue
            rate = float(np.clip(seen[expected].mean(), 0.0, 0.95))
            missed = expected & ~seen
            log_chance[missed] += np.log1p(-rate)
            misses += missed
            missed_in_log |= missed
        missed_logs += missed_in_log
        log_chance[seen_in_log] = 0.0
        misses[seen_in_log] = missed_logs[seen_in_log] = 0
    return (
        known
        & (missed_logs >= config.forget_min_logs)
        & (misses >= config.forget_min_frames)
        & (log_chance < np.log(max(config.forget_chance, 1e-300)))
    )


def split_prototypes(
    images: list[MappedImage],
    num_old: int,
    points: NDArray[np.float64],
    forgotten: NDArray[np.bool_],
    config: GrowthConfig,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Give observations that look different from a point's others a point of their own.

    The copies have the same coordinates; `point_idx` of new images is changed in place.
    """
    dim = images[0].features.descriptors.shape[1]
    sums = np.zeros((len(points), dim))
    for image in images[:num_old]:
        seen = np.flatnonzero(image.point_idx >= 0)
        np.add.at(sums, image.point_idx[seen], image.features.descriptors[seen])
    groups = point_groups(points)
    # (G, max_prototypes) members of each place, -1 for none; sums grow with the copies.
    slots = np.full((int(groups.max()) + 1, config.max_prototypes), -1, np.int64)
    order = np.argsort(groups, kind='stable')
    first = np.r_[True, np.diff(groups[order]) != 0]
    starts = np.flatnonzero(first)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    fits = rank < config.max_prototypes
    slots[groups[order[fits]], rank[fits]] = order[fits]
    parents: list[NDArray[np.int64]] = []
    for image in images[num_old:]:
        keypoints = np.flatnonzero(image.point_idx >= 0)
        if len(keypoints) == 0:
            continue
        place = groups[image.point_idx[keypoints]]
        descriptors = image.features.descriptors[keypoints].astype(np.float64)
        members = slots[place]
        member_sums = sums[members]
        norms = np.linalg.norm(member_sums, axis=2)
        similarity = np.einsum('nkd,nd->nk', member_sums, descriptors)
        # A point that no old image keeps an observation of looks like whatever is seen of it.
        similarity = np.where(norms > 0, similarity / np.maximum(norms, 1e-12), 1.0)
        similarity[members < 0] = -np.inf
        best = similarity.argmax(axis=1)
        rows = np.arange(len(keypoints))
        target = members[rows, best]
        used = (members >= 0).sum(axis=1)
        new = (similarity[rows, best] < config.prototype_similarity) & (
            used < config.max_prototypes
        )
        # Of several views of one place in an image, one starts the new prototype.
        _, once = np.unique(np.where(new, place, -1 - rows), return_index=True)
        new &= np.isin(rows, once)
        if new.any():
            added = len(sums) + np.arange(int(new.sum()))
            parents.append(image.point_idx[keypoints[new]])
            slots[place[new], used[new]] = added
            target[new] = added
            sums = np.concatenate([sums, np.zeros((len(added), dim))])
        np.add.at(sums, target, descriptors)
        image.point_idx[keypoints] = target
    if not parents:
        return points, forgotten
    source = np.concatenate(parents)
    return (
        np.concatenate([points, points[source]]),
        np.concatenate([forgotten, np.zeros(len(source), bool)]),
    )


def usefulness(
    images: Sequence[MappedImage], logs: Sequence[str], count: int
) -> NDArray[np.float64]:
    """Return the sum of the shares of each log's images that see each point.

    A new log is short, so its landmarks would lose against those of the first mapping by number,
    and those of earlier logs against both.
    """
    result = np.zeros(count)
    lengths = Counter(logs)
    for image, log in zip(images, logs, strict=True):
        result[np.unique(image.point_idx[image.point_idx >= 0])] += 1.0 / lengths[log]
    return result
