"""Updates of maps that hold nothing of images: a log's frames are looked at, and nothing is stored.

A frame that the live map localizes is a verified one: its keypoints show the points that project
there. What is matched between frames and shows no point is triangulated. The map gets poses of the
frames, which points they see, and new points; what it says of old points does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.result import LocalizationResult
from d2s_ros.map_update.config import GrowthConfig
from d2s_ros.map_update.context import UpdateContext
from d2s_ros.map_update.growth import (
    add_structure,
    label_limit_px,
    mapped_image,
    reprojection_px,
)
from d2s_ros.map_update.growth_matching import match_images
from d2s_ros.map_update.keyframes import Keyframe
from d2s_ros.map_update.label_database import LabelledFrame
from d2s_ros.map_update.log_consistency import find_unconnected
from d2s_ros.map_update.promotion import MapUnderTest, PromotionDecision, decide_promotion
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.update_data import MappingData
from d2s_ros.reconstruction.reconstruction import make_reconstruction
from d2s_ros.reconstruction.retrieval import Vlad
from d2s_ros.scene_models.base import Candidates
from d2s_ros.scene_models.points import point_covariances
from d2s_ros.scene_models.view_updates import LearnsFromViews, PosedView


def mapping_data(scene_map: SceneMap) -> MappingData:
    """Return the mapping images: those in the update data, or as the model remembers them.

    Raises:
        MapFormatError: the model needs update data, and there is none that can be used.
    """
    model, manifest = scene_map.model, scene_map.manifest
    if not isinstance(model, LearnsFromViews):
        return MappingData.from_map(scene_map)
    found = model.remembered(manifest.cameras[0])
    count = len(found.images)
    no_vlad = Vlad(np.zeros((1, 0), np.float32))
    empty = np.zeros((count, 0), np.float32)
    return MappingData(
        found.images, found.points_in_map, no_vlad, empty, manifest.metric, [''] * count
    )


def label_by_views(
    context: UpdateContext, keyframes: Sequence[Keyframe], held_out: Sequence[bool]
) -> tuple[list[LabelledFrame], list[LocalizationResult]]:
    """Localize the frames, and say which points the keypoints of those that are localized show.

    Returns:
        The frames, and what the live map says of each.

    Raises:
        InputError: the recipe copies descriptors.
    """
    if context.config.recipe != 'verified':
        raise InputError(
            f'the recipe {context.config.recipe} matches descriptors, and this map holds none; '
            'update it with the recipe verified'
        )
    localizer = Localizer(context.incumbent, context.extractor, device=context.device)
    frames, results = [], []
    for number, (keyframe, held) in enumerate(zip(keyframes, held_out, strict=True)):
        context.status.step('labels', 30 + 30 * number / len(keyframes))
        observation = localizer.observer.observe(keyframe.view)
        result = localizer.localize_view(keyframe.view, observation=observation, details=True)
        results.append(replace(result, details=None))
        frame = LabelledFrame(keyframe, held, f'not localized: {result.reason}')
        if result.map_from_camera is not None:
            assert observation.candidates is not None
            assert result.details is not None
            estimate = result.details.estimate
            frame = replace(
                frame,
                reason='',
                map_from_camera=result.map_from_camera,
                covariance=result.covariance,
                median_depth=float('nan') if estimate is None else estimate.median_depth,
                num_inliers=result.num_inliers,
                confirmed=True,
                round=0,
            )
            shown = _shown(frame, observation.candidates, context.config.growth)
            frame = replace(frame, point_idx=shown, num_labels=int((shown >= 0).sum()))
        frames.append(frame)
    for index, reason in find_unconnected(frames, context.config.labels).items():
        frames[index] = replace(frames[index], reason=reason)
    return frames, results


def _shown(frame: LabelledFrame, candidates: Candidates, config: GrowthConfig) -> NDArray[np.int64]:
    """Return the point (N,) that each keypoint shows: the nearest of its candidates, or -1."""
    image = mapped_image(replace(frame, point_idx=np.empty(0, np.int64)))
    keypoint, column = np.nonzero(candidates.similarity >= 0)
    point = candidates.landmark_idx[keypoint, column]
    residual = reprojection_px(image, keypoint, candidates.points_in_map[point])
    near = np.flatnonzero(residual <= label_limit_px(image, config))
    order = near[np.argsort(residual[near], kind='stable')]
    _, first = np.unique(keypoint[order], return_index=True)
    order = order[np.sort(first)]
    _, first = np.unique(point[order], return_index=True)
    order = order[first]
    shown = np.full(len(frame.keyframe.features), -1, np.int64)
    shown[keypoint[order]] = point[order]
    return shown


def propose_from_views(
    context: UpdateContext,
    used: Sequence[LabelledFrame],
    held_out: list[LabelledFrame],
    results: dict[tuple[str, str], LocalizationResult],
    figures: dict[str, Any],
) -> tuple[PromotionDecision, SceneMap]:
    """Make a candidate with what the frames see, and let both maps localize old and new frames.

    Args:
        context: The update.
        used: Frames that the candidate gets.
        held_out: Frames held out of it.
        results: What the live map says of frames, by log and name.
        figures: Counts, extended by those of growing.
    """
    incumbent, config, data = context.incumbent, context.config, context.data
    model = incumbent.model
    assert isinstance(model, LearnsFromViews)
    # A map at most doubles: of a long log frames are taken evenly.
    most = min(len(used), len(data.images), config.max_update_images)
    used = [used[row] for row in np.unique(np.linspace(0, len(used) - 1, most).round().astype(int))]
    images = [mapped_image(frame) for frame in used]
    settings = context.build_config.reconstruction
    pairs = _near_pairs(used, config.growth.new_neighbours)
    matches = match_images(images, 0, pairs, settings, {}, context.show_progress)
    known = len(data.points_in_map)
    points = add_structure(images, data.points_in_map, matches, config.growth, settings)
    covariances = point_covariances(make_reconstruction(images, points, data.metric))[known:]
    figures.update(frames_added=len(images), points_added=len(points) - known)
    context.status.step('training', 70, frames_added=len(images), points_added=len(points) - known)
    views = [
        PosedView(frame.keyframe.view, image.map_from_camera, image.point_idx)
        for frame, image in zip(used, images, strict=True)
    ]
    built = model.with_views(views, points[known:], covariances, device=context.device)
    num_images = len(data.images) + len(images)
    metrics = {**built.figures, 'num_images': num_images, 'num_points': len(points)}
    candidate = SceneMap(replace(incumbent.manifest, metrics=metrics), built.model)
    context.status.step('gate', 88)
    decision = decide_promotion(
        MapUnderTest(incumbent, context.extractor, data.images, results),
        MapUnderTest(candidate, context.extractor, data.images),
        data.logs,
        held_out,
        config.gate,
    )
    return decision, candidate


def _near_pairs(frames: Sequence[LabelledFrame], count: int) -> list[tuple[int, int]]:
    """Return pairs of frames that look at about the same from near each other."""
    poses = [frame.map_from_camera for frame in frames if frame.map_from_camera is not None]
    centres = np.stack([pose.translation for pose in poses])
    axes = np.stack([pose.rotation[:, 2] for pose in poses])
    depth = max(float(np.nanmedian([frame.median_depth for frame in frames])), 1e-9)
    pairs = set()
    for row in range(len(frames)):
        turned = np.arccos(np.clip(axes @ axes[row], -1, 1))
        cost = np.linalg.norm(centres - centres[row], axis=1) / depth + turned
        cost[(turned > np.radians(75)) | (np.arange(len(frames)) == row)] = np.inf
        for other in np.argsort(cost)[:count].tolist():
            if np.isfinite(cost[other]):
                pairs.add((min(row, other), max(row, other)))
    return sorted(pairs)
