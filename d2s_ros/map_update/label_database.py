"""What labels are copied from, and what copying them and solving for the pose they imply gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from d2s_ros.geometry.noise import detection_sigma_px
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.localization.pose_solver import PoseEstimate, solve_pose
from d2s_ros.map_update.keyframes import Keyframe
from d2s_ros.maps.manifest import Calibration
from d2s_ros.maps.update_data import MappingData
from d2s_ros.reconstruction.matching import match_mutual, match_near
from d2s_ros.reconstruction.reconstruction import point_groups
from d2s_ros.reconstruction.retrieval import nearest_images


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
        held_out: The candidate is compared on it and must not learn from it.
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


def solve_labels(
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
    zoomed = replace(camera, fx=camera.fx * focal_factor, fy=camera.fy * focal_factor)
    scales = keyframe.features.scales[labels.keypoint_idx[order]]
    estimate = solve_pose(
        ideal[order],
        database.data.points_in_map[labels.point_idx[order]],
        zoomed,
        sigmas_px=calibration.sigma_px * detection_sigma_px(scales) * 1.5,
    )
    return estimate, order
