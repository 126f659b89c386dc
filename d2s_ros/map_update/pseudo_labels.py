"""Scene coordinates for unlabelled frames, copied from mapping images; and whether to trust them.

The published recipe (D2S, algorithm 1) matches a frame with its nearest mapping images, copies
their coordinates and keeps frames with enough of them. The verified recipe solves for the pose that
the copied coordinates imply and believes neither labels nor pose without evidence for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.localization.acceptance import PoseEvidence, checks
from d2s_ros.localization.result import LocalizationResult, first_failure
from d2s_ros.map_update.config import LabelConfig
from d2s_ros.map_update.keyframes import Keyframe
from d2s_ros.map_update.label_database import (
    CopiedLabels,
    LabelDatabase,
    LabelledFrame,
    solve_labels,
)
from d2s_ros.map_update.log_consistency import (
    WRONG_CALIBRATION,
    find_unconnected,
    find_wrong_focal_lengths,
)
from d2s_ros.maps.manifest import Calibration
from d2s_ros.maps.update_data import MappingData

#: Frames of the same log this close in order are tried as neighbours.
_TIME_NEIGHBOURS = 2


def label_frames(
    keyframes: Sequence[Keyframe],
    held_out: Sequence[bool],
    data: MappingData,
    recipe: str,
    config: LabelConfig,
    *,
    incumbent: Sequence[LocalizationResult] | None = None,
    calibration: Calibration | None = None,
    before: Sequence[LabelledFrame] | None = None,
    progress: bool = False,
) -> list[LabelledFrame]:
    """Label keyframes of one or several logs, each log in order of time.

    Args:
        keyframes: Frames; nothing is known of their poses.
        held_out: Frames to compare the candidate on: verified, but never a source of labels.
        data: The mapping images.
        recipe: 'verified' or 'paper'.
        config: Options.
        incumbent: What the live map says of each frame; its poses find neighbours, and contradict.
        calibration: Noise of keypoints, from the live map.
        before: What is known of the frames already; `data` holds those of them that are verified.
        progress: Show a progress bar.

    Returns:
        One entry for each keyframe, with the reason if it is not used.
    """
    database = LabelDatabase(data)
    frames = [
        LabelledFrame(keyframe, held) for keyframe, held in zip(keyframes, held_out, strict=True)
    ]
    if before is not None:
        frames = list(before)
    if recipe == 'paper':
        return [
            _label_as_published(frame, database, config)
            for frame in tqdm(frames, desc='labels', disable=not progress)
        ]
    calibration = calibration or Calibration()
    poses = [result.map_from_camera for result in incumbent or ()] or [None] * len(frames)
    tried: dict[int, list[int]] = {}
    refused_logs = {
        frame.keyframe.log: frame.reason
        for frame in frames
        if frame.reason.startswith(WRONG_CALIBRATION)
    }
    for current in range(config.rounds):
        pending = [i for i, frame in enumerate(frames) if not frame.usable]
        fresh = []
        for index in tqdm(pending, desc=f'labels, round {current + 1}', disable=not progress):
            if keyframes[index].log in refused_logs:
                continue
            neighbours = _neighbours(index, frames, database, poses[index], config)
            if neighbours == tried.get(index):
                continue
            tried[index] = neighbours
            frames[index] = replace(
                _label(frames[index], neighbours, poses[index], database, calibration, config),
                round=current,
            )
            if frames[index].usable:
                fresh.append(index)
        if current == 0 and before is None:
            refused_logs = find_wrong_focal_lengths(frames, database, calibration, config)
            for index, frame in enumerate(frames):
                reason = refused_logs.get(frame.keyframe.log)
                if reason:
                    frames[index] = replace(frame, reason=reason, map_from_camera=None)
        for index, reason in find_unconnected(frames, config).items():
            frames[index] = replace(frames[index], reason=reason, map_from_camera=None)
        fresh = [index for index in fresh if frames[index].usable]
        for index in fresh:
            if not frames[index].held_out:
                database.add(frames[index])
        if not any(not frames[index].held_out for index in fresh):
            break
    return frames


def _neighbours(
    index: int,
    frames: list[LabelledFrame],
    database: LabelDatabase,
    incumbent: RigidTransform | None,
    config: LabelConfig,
) -> list[int]:
    """Return images to copy labels from: alike, near the incumbent's pose, and near in time."""
    frame = frames[index]
    neighbours = database.nearest(frame.keyframe, config.neighbours)
    guess = incumbent
    for step in range(1, _TIME_NEIGHBOURS + 1):
        for other in (index - step, index + step):
            if not 0 <= other < len(frames) or frames[other].map_from_camera is None:
                continue
            if frames[other].keyframe.log != frame.keyframe.log:
                continue
            if frames[other].image_name in database.names:
                neighbours.append(database.names.index(frames[other].image_name))
            guess = guess or frames[other].map_from_camera
    if guess is not None:
        neighbours += database.nearest_by_pose(guess, config.neighbours // 2)
    return list(dict.fromkeys(neighbours))


def _label_as_published(
    frame: LabelledFrame, database: LabelDatabase, config: LabelConfig
) -> LabelledFrame:
    neighbours = database.nearest(frame.keyframe, config.neighbours)
    labels = database.copy_labels(frame.keyframe, neighbours, config.ratio)
    if len(labels) < config.min_labels:
        reason = f'{len(labels)} labels copied, {config.min_labels} needed'
        return replace(frame, reason=reason, num_labels=len(labels))
    point_idx = np.full(len(frame.keyframe.features), -1, np.int64)
    point_idx[labels.keypoint_idx] = labels.point_idx
    return replace(
        frame, reason='', point_idx=point_idx, num_labels=len(labels), num_inliers=len(labels)
    )


def _label(
    frame: LabelledFrame,
    neighbours: Sequence[int],
    incumbent: RigidTransform | None,
    database: LabelDatabase,
    calibration: Calibration,
    config: LabelConfig,
) -> LabelledFrame:
    """Find labels that one pose explains: near the incumbent's if there is one, else anywhere."""
    camera = frame.keyframe.camera
    radius = config.search_px * 0.5 * (camera.fx + camera.fy) / 1000.0

    def near(guess: RigidTransform) -> LabelledFrame:
        images = [*neighbours, *database.nearest_by_pose(guess, config.neighbours)]
        labels = database.copy_labels(
            frame.keyframe,
            list(dict.fromkeys(images)),
            config.ratio,
            guess=guess,
            radius_px=radius,
            min_similarity=config.min_search_similarity,
        )
        return _verify(frame, labels, database, guess, calibration, config)

    if incumbent is not None:
        confirmed = near(incumbent)
        if confirmed.usable:
            return replace(confirmed, confirmed=True)
    labels = database.copy_labels(frame.keyframe, neighbours, config.ratio)
    found = _verify(frame, labels, database, incumbent, calibration, config)
    if found.map_from_camera is None:
        return found
    # A right pose predicts where much more is to be seen, a wrong one only what misled it.
    refined = near(found.map_from_camera)
    if refined.usable and refined.num_inliers < found.num_inliers:
        return replace(
            refined, reason='its pose predicts nothing else that is seen', map_from_camera=None
        )
    return refined


def _verify(
    frame: LabelledFrame,
    labels: CopiedLabels,
    database: LabelDatabase,
    expected: RigidTransform | None,
    calibration: Calibration,
    config: LabelConfig,
) -> LabelledFrame:
    """Keep the labels of a frame if the pose they imply is accepted."""
    frame = replace(frame, num_labels=len(labels), num_inliers=0, map_from_camera=None)
    if len(labels) < config.min_labels:
        return replace(frame, reason=f'{len(labels)} labels copied, {config.min_labels} needed')
    keyframe = frame.keyframe
    estimate, order = solve_labels(keyframe, labels, database, calibration)
    inliers = order[:0] if estimate is None else order[estimate.inlier_mask]
    frame = replace(frame, num_inliers=len(inliers))
    evidence = PoseEvidence(keyframe.camera, estimate, num_used=len(order))
    failure = first_failure(checks(evidence, config.limits))
    if failure is not None:
        return replace(frame, reason=failure.reason)
    assert estimate is not None
    supporting = _supporting(labels, inliers, database, config)
    if supporting < config.min_agreeing_images:
        return replace(
            frame,
            reason=f'{supporting} images support the pose, {config.min_agreeing_images} needed',
        )
    pose = estimate.camera_from_map.inverse()
    if expected is not None:
        distance, _ = pose_error(pose, expected)
        if distance > config.max_incumbent_difference * estimate.median_depth:
            return replace(frame, reason='copied labels and the incumbent give different poses')
    point_idx = np.full(len(keyframe.features), -1, np.int64)
    point_idx[labels.keypoint_idx[inliers]] = labels.point_idx[inliers]
    return replace(
        frame,
        reason='',
        point_idx=point_idx,
        map_from_camera=pose,
        covariance=estimate.covariance * calibration.covariance_scale,
        median_depth=estimate.median_depth,
    )


def _supporting(
    labels: CopiedLabels,
    inliers: NDArray[np.int64],
    database: LabelDatabase,
    config: LabelConfig,
) -> int:
    """Return how many images gave enough of the inliers."""
    agreed = np.stack(
        [labels.keypoint_idx[inliers], database.groups[labels.point_idx[inliers]]], axis=1
    )
    accepted = {(int(keypoint), int(group)) for keypoint, group in agreed}
    return sum(
        sum((int(keypoint), int(group)) in accepted for keypoint, group in pairs)
        >= config.min_support
        for pairs in labels.support.values()
    )
