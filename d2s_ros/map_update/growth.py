"""Verified frames become mapping images: new views of old points, new points, forgotten points."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.array_log import StageLog
from d2s_ros.errors import InputError
from d2s_ros.geometry.noise import scaled_px
from d2s_ros.geometry.reprojection import reprojection_residuals
from d2s_ros.map_update.config import GrowthConfig
from d2s_ros.map_update.pseudo_labels import LabelledFrame
from d2s_ros.maps.update_data import MappingData
from d2s_ros.reconstruction.points import make_reconstruction, point_groups
from d2s_ros.reconstruction.reconstruction import (
    ImageInput,
    MappedImage,
    Reconstruction,
    ReconstructionConfig,
    match_pairs,
    triangulate,
)
from d2s_ros.reconstruction.retrieval import nearest_images

_logger = logging.getLogger(__name__)

Matches = dict[tuple[int, int], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class GrownMap:
    """Old and new images with the points that both make.

    Attributes:
        reconstruction: Points with several prototypes occur several times in it.
        num_old_images: The first so many images are the old ones.
        logs: Name of the log of each image; '' for the first mapping.
        priority: (P,) usefulness of a point as a landmark; negative for forgotten ones.
        figures: Counts of what happened.
    """

    reconstruction: Reconstruction
    num_old_images: int
    logs: list[str]
    priority: NDArray[np.float64]
    figures: dict[str, int]


def grow(
    data: MappingData,
    frames: Sequence[LabelledFrame],
    config: GrowthConfig,
    reconstruction_config: ReconstructionConfig | None = None,
    *,
    known_matches: dict[tuple[str, str], NDArray[np.int64]] | None = None,
    progress: bool = False,
) -> GrownMap:
    """Add verified frames to the mapping images.

    Args:
        data: The old images.
        frames: Labelled frames; frames without a pose (recipe 'paper') only add their labels.
        config: Options.
        reconstruction_config: Limits of matching and triangulation.
        known_matches: Matches of an earlier call with the same images, by name; new ones are added.
        progress: Show a progress bar.

    Raises:
        InputError: no frame to add.
    """
    settings = reconstruction_config or ReconstructionConfig()
    used = [frame for frame in frames if frame.usable and not frame.held_out]
    posed = [frame for frame in used if frame.map_from_camera is not None]
    if not posed:
        raise InputError('no frame of the logs has a verified pose; the map stays as it is')
    old = data.images
    # Labels change in place below; the old images belong to the incumbent.
    images = [
        *(replace(image, point_idx=image.point_idx.copy()) for image in old),
        *(_mapped_image(frame) for frame in posed),
    ]
    logs = [*data.logs, *(frame.keyframe.log for frame in posed)]
    pairs = _pairs(images, len(old), data, posed, config)
    matches = _match(
        images,
        len(old),
        pairs,
        settings,
        {} if known_matches is None else known_matches,
        progress,
    )
    points = data.points_in_map
    figures = {'frames_added': len(posed)}
    before = sum(int((image.point_idx >= 0).sum()) for image in images[len(old) :])
    for _ in range(2):
        _propagate(images, len(old), points, matches, config)
    figures['observations_added'] = sum(
        int((image.point_idx >= 0).sum()) for image in images[len(old) :]
    )
    figures['observations_by_guided_matching'] = figures['observations_added'] - before
    points = _add_structure(images, points, matches, config, settings)
    figures['points_added'] = len(points) - len(data.points_in_map)
    forgotten = _forgotten(images, logs, points, len(data.points_in_map), config)
    figures['points_forgotten'] = int(forgotten.sum())
    for image in images:
        # Without observations they do not come back with the next update either.
        gone = (image.point_idx >= 0) & forgotten[image.point_idx]
        image.point_idx[gone] = -1
    count = len(points)
    points, forgotten = _split_prototypes(images, len(old), points, forgotten, config)
    figures['prototypes_added'] = len(points) - count
    reconstruction = make_reconstruction(images, points, data.metric)
    priority = _usefulness(images, logs, len(points))
    priority[forgotten | (reconstruction.track_lengths == 0)] = -1.0
    return GrownMap(reconstruction, len(old), logs, priority, figures)


def as_mapping_data(data: MappingData, grown: GrownMap) -> MappingData:
    """Return old and new images as a source of labels for further frames."""
    added = grown.reconstruction.images[grown.num_old_images :]
    described = [data.vlad.describe(image.features.descriptors) for image in added]
    return MappingData(
        grown.reconstruction.images,
        grown.reconstruction.points_in_map,
        data.vlad,
        np.concatenate([data.global_descriptors, *(row[None] for row in described)]),
        data.metric,
        grown.logs,
    )


def in_old_points(
    frames: Sequence[LabelledFrame], data: MappingData, grown: GrownMap
) -> list[LabelledFrame]:
    """Replace labels with points of the grown map by those of the old one, where it has them."""
    count = len(data.points_in_map)
    groups = point_groups(grown.reconstruction.points_in_map)
    old_point = np.full(int(groups.max()) + 1, -1, np.int64)
    old_point[groups[:count]] = np.arange(count)
    translation = np.where(
        np.arange(len(groups)) < count, np.arange(len(groups)), old_point[groups]
    )
    return [
        replace(
            frame,
            point_idx=np.where(frame.point_idx >= 0, translation[frame.point_idx], -1),
        )
        for frame in frames
    ]


def _mapped_image(frame: LabelledFrame) -> MappedImage:
    keyframe = frame.keyframe
    assert frame.map_from_camera is not None
    return MappedImage(
        frame.image_name,
        keyframe.stamp_ns,
        keyframe.camera,
        frame.map_from_camera,
        keyframe.features,
        keyframe.camera.undistort(keyframe.features.keypoints),
        frame.point_idx.copy(),
    )


def _pairs(
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


def _match(
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
        _inputs(images),
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


def _inputs(images: Sequence[MappedImage]) -> list[ImageInput]:
    """Return what reconstruction needs of the images, named by their position."""
    return [
        ImageInput(str(n), image.stamp_ns, image.camera, image.map_from_camera, image.features)
        for n, image in enumerate(images)
    ]


def _limit_px(image: MappedImage, config: GrowthConfig) -> float:
    return scaled_px(config.label_px, image.camera, 2.0)


def _reprojection(
    image: MappedImage, keypoints: NDArray[np.int64], points: NDArray[np.float64]
) -> NDArray[np.float64]:
    in_camera = image.map_from_camera.inverse().apply(points)
    residuals = reprojection_residuals(image.camera, in_camera, image.ideal_keypoints[keypoints])
    residual = np.linalg.norm(residuals, axis=1)
    return np.asarray(np.nan_to_num(residual, nan=np.inf))


def _propagate(
    images: list[MappedImage],
    num_old: int,
    points: NDArray[np.float64],
    matches: Matches,
    config: GrowthConfig,
) -> None:
    """Carry labels along matches into new frames; a point is seen once, where it projects best."""
    votes: dict[int, list[NDArray[np.int64]]] = {}
    for (i, j), found in matches.items():
        for source, target, columns in ((i, j, (0, 1)), (j, i, (1, 0))):
            if target < num_old:
                continue
            point = images[source].point_idx[found[:, columns[0]]]
            labelled = point >= 0
            votes.setdefault(target, []).append(
                np.stack([found[labelled, columns[1]], point[labelled]], axis=1)
            )
    for target in range(num_old, len(images)):
        image = images[target]
        own = np.flatnonzero(image.point_idx >= 0)
        given = [np.stack([own, image.point_idx[own]], axis=1), *votes.get(target, [])]
        pairs, counts = np.unique(np.concatenate(given), axis=0, return_counts=True)
        residual = _reprojection(image, pairs[:, 0], points[pairs[:, 1]])
        good = residual <= _limit_px(image, config)
        pairs, counts, residual = pairs[good], counts[good], residual[good]
        image.point_idx[:] = -1
        taken: set[int] = set()
        for row in np.lexsort((residual, -counts)):
            keypoint, point_id = int(pairs[row, 0]), int(pairs[row, 1])
            if image.point_idx[keypoint] < 0 and point_id not in taken:
                image.point_idx[keypoint] = point_id
                taken.add(point_id)


def _add_structure(
    images: list[MappedImage],
    points: NDArray[np.float64],
    matches: Matches,
    config: GrowthConfig,
    settings: ReconstructionConfig,
) -> NDArray[np.float64]:
    """Triangulate what no label explains; `point_idx` of the images is extended in place."""
    free: Matches = {}
    for (i, j), found in matches.items():
        unlabelled = (images[i].point_idx[found[:, 0]] < 0) & (images[j].point_idx[found[:, 1]] < 0)
        if unlabelled.sum() >= 5:
            free[i, j] = found[unlabelled]
    if not free:
        return points
    try:
        model = triangulate(_inputs(images), free, settings)
    except InputError:
        return points
    keep = model.track_lengths >= config.min_track
    renumber = np.where(keep, np.cumsum(keep) - 1 + len(points), -1)
    for mapped in model.images:
        image = images[int(mapped.name)]
        seen = np.flatnonzero((mapped.point_idx >= 0) & (image.point_idx < 0))
        image.point_idx[seen] = renumber[mapped.point_idx[seen]]
    return np.concatenate([points, model.points_in_map[keep]])


def _forgotten(
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


def _split_prototypes(
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


def _usefulness(
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
