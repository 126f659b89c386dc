"""Verified frames become mapping images: new views of old points, new points, forgotten points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError
from d2s_ros.geometry.noise import scaled_px
from d2s_ros.geometry.reprojection import reprojection_residuals
from d2s_ros.map_update.config import GrowthConfig
from d2s_ros.map_update.growth_matching import (
    Matches,
    image_inputs,
    match_images,
    select_growth_pairs,
)
from d2s_ros.map_update.joint_adjustment import adjust_new_frames
from d2s_ros.map_update.label_database import LabelledFrame
from d2s_ros.map_update.place_changes import PlaceChanges
from d2s_ros.map_update.point_upkeep import find_forgotten, split_prototypes, usefulness
from d2s_ros.maps.update_data import MappingData
from d2s_ros.reconstruction.reconstruction import (
    MappedImage,
    Reconstruction,
    ReconstructionConfig,
    make_reconstruction,
    point_groups,
)
from d2s_ros.reconstruction.triangulation import triangulate


@dataclass(frozen=True, eq=False)
class GrownMap:
    """Old and new images with the points that both make.

    Attributes:
        reconstruction: Points with several prototypes occur several times in it.
        num_old_images: The first so many images are the old ones.
        logs: Name of the log of each image; '' for the first mapping.
        priority: (P,) usefulness of a point as a landmark; negative for forgotten ones.
        figures: Counts of what happened.
        changes: What the logs say of the place.
    """

    reconstruction: Reconstruction
    num_old_images: int
    logs: list[str]
    priority: NDArray[np.float64]
    figures: dict[str, int]
    changes: PlaceChanges


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
        *(mapped_image(frame) for frame in posed),
    ]
    logs = [*data.logs, *(frame.keyframe.log for frame in posed)]
    pairs = select_growth_pairs(images, len(old), data, posed, config)
    matches = match_images(
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
    points = add_structure(images, points, matches, config, settings)
    figures['points_added'] = len(points) - len(data.points_in_map)
    images, points = adjust_new_frames(images, len(old), points, len(data.points_in_map))
    _propagate(images, len(old), points, matches, config)
    forgotten = find_forgotten(images, logs, points, len(data.points_in_map), config)
    figures['points_forgotten'] = int(forgotten.sum())
    # One log that misses a point says that something changed, not that it is gone for good.
    soon = replace(config, forget_min_logs=1, forget_min_frames=3, forget_chance=0.01)
    missed = forgotten | find_forgotten(images, logs, points, len(data.points_in_map), soon)
    old_points = np.arange(len(points)) < len(data.points_in_map)
    changes = PlaceChanges(
        points[old_points], missed[old_points], int(forgotten.sum()), points[~old_points]
    )
    figures['points_lost'] = int(missed.sum())
    for image in images:
        # Without observations they do not come back with the next update either.
        gone = (image.point_idx >= 0) & forgotten[image.point_idx]
        image.point_idx[gone] = -1
    count = len(points)
    points, forgotten = split_prototypes(images, len(old), points, forgotten, config)
    figures['prototypes_added'] = len(points) - count
    reconstruction = make_reconstruction(images, points, data.metric)
    priority = usefulness(images, logs, len(points))
    priority[forgotten | (reconstruction.track_lengths == 0)] = -1.0
    return GrownMap(reconstruction, len(old), logs, priority, figures, changes)


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


def with_adjusted_poses(frames: Sequence[LabelledFrame], grown: GrownMap) -> list[LabelledFrame]:
    """Give frames that the map has grown by the poses that the growth found for them."""
    added = grown.reconstruction.images[grown.num_old_images :]
    poses = {image.name: image.map_from_camera for image in added}
    return [
        replace(frame, map_from_camera=poses[frame.image_name])
        if frame.image_name in poses and frame.usable and not frame.held_out
        else frame
        for frame in frames
    ]


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


def mapped_image(frame: LabelledFrame) -> MappedImage:
    """Return a verified frame as a mapping image."""
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


def label_limit_px(image: MappedImage, config: GrowthConfig) -> float:
    """Return how far from a keypoint its point may project in an image."""
    return scaled_px(config.label_px, image.camera, 2.0)


def reprojection_px(
    image: MappedImage, keypoints: NDArray[np.int64], points: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how far from keypoints (N,) of an image points (N, 3) project, infinite if nowhere."""
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
        residual = reprojection_px(image, pairs[:, 0], points[pairs[:, 1]])
        good = residual <= label_limit_px(image, config)
        pairs, counts, residual = pairs[good], counts[good], residual[good]
        image.point_idx[:] = -1
        taken: set[int] = set()
        for row in np.lexsort((residual, -counts)):
            keypoint, point_id = int(pairs[row, 0]), int(pairs[row, 1])
            if image.point_idx[keypoint] < 0 and point_id not in taken:
                image.point_idx[keypoint] = point_id
                taken.add(point_id)


def add_structure(
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
        model = triangulate(image_inputs(images), free, settings)
    except InputError:
        return points
    keep = model.track_lengths >= config.min_track
    renumber = np.where(keep, np.cumsum(keep) - 1 + len(points), -1)
    for mapped in model.images:
        image = images[int(mapped.name)]
        seen = np.flatnonzero((mapped.point_idx >= 0) & (image.point_idx < 0))
        image.point_idx[seen] = renumber[mapped.point_idx[seen]]
    return np.concatenate([points, model.points_in_map[keep]])
