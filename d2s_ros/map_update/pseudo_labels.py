"""Scene coordinates for unlabelled frames, copied from mapping images; and whether to trust them.

The published recipe (D2S, algorithm 1) matches a frame with its nearest mapping images, copies
their coordinates and keeps frames with enough of them. The verified recipe solves for the pose that
the copied coordinates imply and believes neither labels nor pose without evidence for both.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from d2s_ros.geometry.noise import detection_sigma_px
from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.localization.pose_solver import PoseEstimate, solve_pose
from d2s_ros.localization.result import LocalizationResult
from d2s_ros.map_update.config import LabelConfig
from d2s_ros.map_update.keyframes import Keyframe
from d2s_ros.maps.scene_map import Calibration
from d2s_ros.maps.update_data import MappingData
from d2s_ros.reconstruction.matching import match_mutual, match_near
from d2s_ros.reconstruction.points import point_groups
from d2s_ros.reconstruction.retrieval import nearest_images

_logger = logging.getLogger(__name__)

#: Focal lengths that are tried against the one that a log claims.
_FOCAL_FACTORS = (0.8, 0.86, 0.92, 0.96, 1.0, 1.04, 1.08, 1.16, 1.25)
#: Another focal length must explain this much more to be believed, and by so many roots of what the
#: given one explains: of few inliers some are chance.
_FOCAL_EVIDENCE, _FOCAL_EXCESS = 1.08, 1.5
_WRONG_CALIBRATION = 'the camera calibration does not fit'
#: Frames of the same log this close in order are tried as neighbours.
_TIME_NEIGHBOURS = 2


@dataclass(frozen=True, eq=False)
class CopiedLabels:
    """Labels of the keypoints of one frame, copied from neighbours.

    Attributes:
        keypoint_idx: (L,) int64 labelled keypoints, each once.
        point_idx: (L,) int64 their points.
        votes: (L,) int64 neighbours that gave this point.
        similarity: (L,) float32 best cosine.
        support: For each neighbour (index into the database) its (keypoint, point group) pairs.
    """

    keypoint_idx: NDArray[np.int64]
    point_idx: NDArray[np.int64]
    votes: NDArray[np.int64]
    similarity: NDArray[np.float32]
    support: dict[int, NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.keypoint_idx)


@dataclass(frozen=True, eq=False)
class LabelledFrame:
    """What labelling found out about a keyframe.

    Attributes:
        keyframe: The frame.
        held_out: It judges the candidate and must not teach it.
        reason: Why it is not used; empty if it is.
        point_idx: (N,) int64 trusted label of each keypoint, -1 for none.
        map_from_camera: Verified pose; None without (always with the recipe 'paper').
        covariance: (6, 6) of the pose, ROS order.
        median_depth: Of the inliers.
        num_labels, num_inliers: Copied labels, and those that agree with the pose.
        round: When it was verified, from 0.
        confirmed: The live map gives the same pose.
    """

    keyframe: Keyframe
    held_out: bool
    reason: str = 'not tried'
    point_idx: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    map_from_camera: RigidTransform | None = None
    covariance: NDArray[np.float64] | None = None
    median_depth: float = float('nan')
    num_labels: int = 0
    num_inliers: int = 0
    round: int = -1
    confirmed: bool = False

    @property
    def usable(self) -> bool:
        """Whether the frame was labelled."""
        return not self.reason

    @property
    def image_name(self) -> str:
        """Its name among the mapping images."""
        return f'{self.keyframe.log}/{self.keyframe.name}'


class LabelDatabase:
    """Images with labels that labels are copied from; verified frames can be added."""

    def __init__(self, data: MappingData) -> None:
        self.data = data
        self.groups = point_groups(data.points_in_map)
        self.descriptors = [torch.from_numpy(image.features.descriptors) for image in data.images]
        self.point_idx = [image.point_idx for image in data.images]
        self.poses = [image.map_from_camera for image in data.images]
        self.global_descriptors = data.global_descriptors
        self.names = [image.name for image in data.images]

    def add(self, frame: LabelledFrame) -> None:
        """Make a verified frame a source of labels."""
        assert frame.map_from_camera is not None
        features = frame.keyframe.features
        self.descriptors.append(torch.from_numpy(features.descriptors))
        self.point_idx.append(frame.point_idx)
        self.poses.append(frame.map_from_camera)
        described = self.data.vlad.describe(features.descriptors)[None]
        self.global_descriptors = np.concatenate([self.global_descriptors, described])
        self.names.append(frame.image_name)

    def nearest(self, keyframe: Keyframe, count: int) -> list[int]:
        """Return the nearest images by global descriptor, best first."""
        described = self.data.vlad.describe(keyframe.features.descriptors)[None]
        return [int(i) for i in nearest_images(described, self.global_descriptors, count)[0]]

    def nearest_by_pose(self, pose: RigidTransform, count: int) -> list[int]:
        """Return the images that look from a similar place in a similar direction."""
        centres = np.stack([other.translation for other in self.poses])
        axes = np.stack([other.rotation[:, 2] for other in self.poses])
        spread = np.median(np.linalg.norm(centres - np.median(centres, axis=0), axis=1)) + 1e-9
        turned = np.arccos(np.clip(axes @ pose.rotation[:, 2], -1, 1))
        cost = np.linalg.norm(centres - pose.translation, axis=1) / spread + turned
        return [int(i) for i in np.argsort(cost)[:count] if turned[i] < np.radians(75)]

    def copy_labels(
        self,
        keyframe: Keyframe,
        neighbours: Sequence[int],
        ratio: float,
        *,
        guess: RigidTransform | None = None,
        radius_px: float = 0.0,
        min_similarity: float = 0.0,
    ) -> CopiedLabels:
        """Match a frame with neighbours and merge the labels they give.

        With a guess of the frame's pose, a neighbour's labelled keypoints are looked for only
        within `radius_px` of where their points project.
        """
        descriptors = torch.from_numpy(keyframe.features.descriptors)
        keypoints, points, similarities, support = [], [], [], {}
        ideal = keyframe.camera.undistort(keyframe.features.keypoints).astype(np.float32)
        for neighbour in neighbours:
            point_idx = self.point_idx[neighbour]
            if guess is None:
                pairs, similarity = match_mutual(
                    descriptors, self.descriptors[neighbour], ratio=ratio
                )
            else:
                labelled = np.flatnonzero(point_idx >= 0)
                projected = keyframe.camera.ideal.project(
                    guess.inverse().apply(self.data.points_in_map[point_idx[labelled]])
                )
                pairs, similarity = match_near(
                    descriptors,
                    self.descriptors[neighbour][torch.from_numpy(labelled)],
                    ideal,
                    projected.astype(np.float32),
                    max_distance_px=radius_px,
                    ratio=ratio,
                    min_similarity=min_similarity,
                )
                pairs = np.stack([pairs[:, 0], labelled[pairs[:, 1]]], axis=1)
            point = point_idx[pairs[:, 1]]
            seen = point >= 0
            keypoints.append(pairs[seen, 0])
            points.append(point[seen])
            similarities.append(similarity[seen])
            support[neighbour] = np.stack([pairs[seen, 0], self.groups[point[seen]]], 1)
        return self._merge(
            np.concatenate(keypoints or [np.zeros(0, np.int64)]),
            np.concatenate(points or [np.zeros(0, np.int64)]),
            np.concatenate(similarities or [np.zeros(0, np.float32)]),
            support,
        )

    def _merge(
        self,
        keypoints: NDArray[np.int64],
        points: NDArray[np.int64],
        similarities: NDArray[np.float32],
        support: dict[int, NDArray[np.int64]],
    ) -> CopiedLabels:
        """Give each keypoint the point that most neighbours give it, the most similar of equals."""
        groups = self.groups[points] if len(points) else points
        order = np.lexsort((-similarities, groups, keypoints))
        keypoints, points = keypoints[order], points[order]
        groups, similarities = groups[order], similarities[order]
        first = np.r_[True, (np.diff(keypoints) != 0) | (np.diff(groups) != 0)][: len(order)]
        start = np.flatnonzero(first)
        votes = np.diff(np.r_[start, len(order)])
        keypoints, points, similarities = keypoints[start], points[start], similarities[start]
        order = np.lexsort((-similarities, -votes, keypoints))
        winner = order[np.r_[True, np.diff(keypoints[order]) != 0][: len(order)]]
        return CopiedLabels(
            keypoints[winner], points[winner], votes[winner], similarities[winner], support
        )


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
        held_out: Frames that judge the candidate: verified, but never a source of labels.
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
        if frame.reason.startswith(_WRONG_CALIBRATION)
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
            refused_logs = _wrong_focal_lengths(frames, database, calibration, config)
            for index, frame in enumerate(frames):
                reason = refused_logs.get(frame.keyframe.log)
                if reason:
                    frames[index] = replace(frame, reason=reason, map_from_camera=None)
        for index, reason in _unconnected(frames, config).items():
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


def _solve(
    keyframe: Keyframe,
    labels: CopiedLabels,
    database: LabelDatabase,
    calibration: Calibration,
    focal_factor: float = 1.0,
) -> tuple[PoseEstimate | None, NDArray[np.int64]]:
    """Return the pose that labels imply, and the order of the labels it was given."""
    camera = keyframe.camera
    ideal = camera.undistort(keyframe.features.keypoints[labels.keypoint_idx])
    order = np.lexsort((-labels.similarity, -labels.votes))
    order = order[np.isfinite(ideal[order]).all(axis=1)]
    pinhole = replace(
        camera.ideal, fx=camera.ideal.fx * focal_factor, fy=camera.ideal.fy * focal_factor
    )
    scales = keyframe.features.scales[labels.keypoint_idx[order]]
    estimate = solve_pose(
        ideal[order],
        database.data.points_in_map[labels.point_idx[order]],
        pinhole,
        sigmas_px=calibration.sigma_px * detection_sigma_px(scales) * 1.5,
    )
    return estimate, order


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
        return _verify(frame, labels, database, guess, calibration, config, config.min_spread)

    if incumbent is not None:
        confirmed = near(incumbent)
        if confirmed.usable:
            return replace(confirmed, confirmed=True)
    labels = database.copy_labels(frame.keyframe, neighbours, config.ratio)
    found = _verify(frame, labels, database, incumbent, calibration, config, config.min_spread)
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
    min_spread: float,
) -> LabelledFrame:
    """Judge the labels of a frame by the pose they imply."""
    frame = replace(frame, num_labels=len(labels), num_inliers=0, map_from_camera=None)
    if len(labels) < config.min_labels:
        return replace(frame, reason=f'{len(labels)} labels copied, {config.min_labels} needed')
    keyframe = frame.keyframe
    estimate, order = _solve(keyframe, labels, database, calibration)
    if estimate is None:
        return replace(frame, reason='no pose explains the copied labels')
    inliers = order[estimate.inlier_mask]
    frame = replace(frame, num_inliers=len(inliers))
    reason = _doubt(estimate, len(inliers), len(order), frame, config, min_spread)
    if reason:
        return replace(frame, reason=reason)
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


def _doubt(
    estimate: PoseEstimate,
    num_inliers: int,
    num_labels: int,
    frame: LabelledFrame,
    config: LabelConfig,
    min_spread: float,
) -> str:
    """Return why a pose is not believed, or nothing."""
    if num_inliers < config.min_inliers:
        return f'{num_inliers} labels agree with one pose, {config.min_inliers} needed'
    if num_inliers < config.min_inlier_share * num_labels:
        share = 100 * num_inliers / num_labels
        return f'{share:.0f} % of the labels agree with one pose, too few'
    spread = estimate.spread(frame.keyframe.camera)
    if spread < min_spread:
        return f'the agreeing labels cover {100 * spread:.1f} % of the image, too little'
    if estimate.rank_deficient:
        return 'the labels leave the pose undetermined'
    covariance = estimate.covariance
    rotation = float(np.degrees(np.sqrt(np.linalg.eigvalsh(covariance[3:, 3:])[-1])))
    translation = float(np.sqrt(np.linalg.eigvalsh(covariance[:3, :3])[-1]))
    if rotation > config.max_rotation_sigma_deg:
        return f'the rotation is uncertain by {rotation:.2f} degrees'
    if translation > config.max_relative_translation_sigma * estimate.median_depth:
        share = 100 * translation / max(estimate.median_depth, 1e-9)
        return f'the position is uncertain by {share:.1f} % of the scene depth'
    return ''


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


def _wrong_focal_lengths(
    frames: list[LabelledFrame],
    database: LabelDatabase,
    calibration: Calibration,
    config: LabelConfig,
    frames_per_log: int = 8,
) -> dict[str, str]:
    """Return the logs whose labels are explained clearly better by another focal length."""
    refused = {}
    for log in dict.fromkeys(frame.keyframe.log for frame in frames):
        candidates = [
            frame
            for frame in frames
            if frame.keyframe.log == log and frame.num_labels >= config.min_labels
        ]
        candidates.sort(key=lambda frame: -frame.num_inliers)
        counts = np.zeros(len(_FOCAL_FACTORS))
        for frame in candidates[:frames_per_log]:
            neighbours = database.nearest(frame.keyframe, config.neighbours)
            labels = database.copy_labels(frame.keyframe, neighbours, config.ratio)
            for position, factor in enumerate(_FOCAL_FACTORS):
                estimate, _ = _solve(frame.keyframe, labels, database, calibration, factor)
                counts[position] += 0 if estimate is None else estimate.inlier_mask.sum()
        if counts.max() < config.min_inliers:
            continue
        best = _FOCAL_FACTORS[int(np.argmax(counts))]
        given = counts[_FOCAL_FACTORS.index(1.0)]
        needed = max(_FOCAL_EVIDENCE * given, given + _FOCAL_EXCESS * given**0.5)
        if abs(best - 1) >= config.max_focal_error and counts.max() > needed:
            refused[log] = (
                f'{_WRONG_CALIBRATION}: the focal length seems wrong by {100 * abs(best - 1):.0f} %'
            )
            _logger.warning('%s: %s', log, refused[log])
    return refused


def _unconnected(frames: list[LabelledFrame], config: LabelConfig) -> dict[int, str]:
    """Return frames that no believable motion connects with those that the live map confirms.

    Moved furniture can make a wrong pose look right in all frames that it fills. At the ends of
    such a stretch the pose jumps.
    """
    found = {}
    for log in dict.fromkeys(frame.keyframe.log for frame in frames):
        indices = [
            i for i, frame in enumerate(frames) if frame.keyframe.log == log and frame.usable
        ]
        poses = [pose for i in indices if (pose := frames[i].map_from_camera) is not None]
        if len(indices) < 3 or len(poses) < len(indices):
            continue
        seconds = np.array([frames[i].keyframe.stamp_ns for i in indices]) / 1e9
        steps = [pose_error(a, b) for a, b in itertools.pairwise(poses)]
        depth = float(np.median([frames[i].median_depth for i in indices]))
        # Where the camera stands still, a usual step of nothing must not forbid all motion.
        far = config.jump_factor * max(float(np.median([m for m, _ in steps])), 0.02 * depth)
        turned = config.jump_factor * max(float(np.median([d for _, d in steps])), 5.0)
        long = config.jump_factor * float(np.median(np.diff(seconds)))
        part = np.arange(len(indices))
        for skip in (1, 2):
            # Over one frame as well, so that a single wrong pose does not cut the log.
            for i in range(len(indices) - skip):
                metres, degrees = pose_error(poses[i], poses[i + skip])
                if seconds[i + skip] - seconds[i] <= long and metres <= far and degrees <= turned:
                    part[part == part[i + skip]] = part[i]
        names, sizes = np.unique(part, return_counts=True)
        confirmed = np.array([frames[i].confirmed for i in indices])
        votes = np.array([confirmed[part == name].sum() for name in names])
        largest = names[np.lexsort((sizes, votes))[-1]]
        for name, count in zip(names, votes, strict=True):
            if name != largest and count < config.min_confirmed:
                for row in np.flatnonzero(part == name):
                    found[indices[row]] = 'its pose jumps away from those of the rest of the log'
    return found
