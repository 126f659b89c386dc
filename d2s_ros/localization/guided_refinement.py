"""What a pose finds among all candidate landmarks of an image, most of which RANSAC never saw."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros import kernels
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.statistics import ellipse_area, extent_of, first_of_each, scatter_of
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.localization.pose_solver import (
    Array,
    PoseEstimate,
    PoseSolverConfig,
    Support,
    refine_pose,
    reprojection_errors,
)

#: Support lies within this share of the inlier threshold.
_SUPPORT_RADIUS = 0.6
#: Candidates that a pose is refined on lie within this many inlier thresholds, round by round.
GUIDED_RADII = (1.5, 1.5, 1.5, 1.5)
#: The same for poses of few inliers, and how many these are.
WIDE_RADII, FEW_INLIERS = (3.0, 1.5, 1.5, 1.5), 100
#: A pose that moves by less than this in the image would find the same candidates again.
STANDS_STILL_PX = 0.05
#: Close pairs of a camera are no chance where so many sigmas more of them are in the inner half.
_CHANCE_SIGMAS = 2.0


@dataclass(frozen=True, eq=False)
class CandidateMatches:
    """Landmarks that the keypoints of an image may show.

    How similar they are is not asked: the descriptors of one kind of features and light are alike
    at 0.9, those of another at 0.5.

    Attributes:
        ideal_keypoints: (N, 2) float64 undistorted px of `camera.ideal`, NaN if none.
        sigmas_px: (N,) standard deviation of each keypoint in px of the image.
        similarity: (N, C) cosines of each keypoint's candidates, best first.
        landmark_idx: (N, C) int64 rows of `points_in_map`.
        points_in_map: (M, 3) float64 landmarks.
        point_covariances: (M, 3, 3).
        camera: Intrinsics; distortion tells how the noise of keypoints is stretched.
    """

    ideal_keypoints: Array
    sigmas_px: Array
    similarity: NDArray[np.float32]
    landmark_idx: NDArray[np.int64]
    points_in_map: Array
    point_covariances: Array
    camera: Camera

    def first_close(
        self,
        camera_from_map: RigidTransform,
        radius_px: float,
        *,
        skipped: NDArray[np.bool_] | None = None,
        taken: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.int64]:
        """Return the most similar candidate that projects close to each keypoint, (N,); -1: none.

        Args:
            camera_from_map: The pose.
            radius_px: How close.
            skipped: (N,) keypoints that have none.
            taken: (M,) landmarks that are no candidates.
        """
        camera = self.camera
        return kernels.active().first_close(
            self.ideal_keypoints,
            self.points_in_map,
            self.landmark_idx,
            camera_from_map.rotation,
            camera_from_map.translation,
            (camera.fx, camera.fy, camera.cx, camera.cy),
            radius_px,
            skipped=skipped,
            taken=taken,
        )

    def correspondences(
        self, pairs: NDArray[np.int64]
    ) -> tuple[Array, Array, Camera, Array, Array]:
        """Return pairs of keypoint and landmark (K, 2) as `refine_pose` takes them."""
        keypoint_idx, landmarks = pairs.T
        return (
            self.ideal_keypoints[keypoint_idx],
            self.points_in_map[landmarks],
            self.camera,
            self.sigmas_px[keypoint_idx],
            self.point_covariances[landmarks],
        )


def most_similar_close(
    matches: CandidateMatches, camera_from_map: RigidTransform, radius_px: float
) -> NDArray[np.int64]:
    """Return pairs (K, 2) of keypoint and landmark that a pose brings close to each other.

    Of each keypoint the most similar of those that are close, of each landmark its most similar
    keypoint; the most similar pairs first.
    """
    choice = matches.first_close(camera_from_map, radius_px)
    keypoint_idx = np.flatnonzero(choice >= 0)
    choice = choice[keypoint_idx]
    landmarks = matches.landmark_idx[keypoint_idx, choice]
    order = np.argsort(-matches.similarity[keypoint_idx, choice], kind='stable')
    chosen = order[first_of_each(landmarks[order], len(matches.points_in_map))]
    return np.stack([keypoint_idx[chosen], landmarks[chosen]], axis=1)


def close_beyond_chance(
    matches: CandidateMatches, camera_from_map: RigidTransform, radius_px: float
) -> NDArray[np.int64]:
    """Return the pairs that a pose brings close to each other in one image, (K, 2).

    None where they lie no closer than by chance, which brings a quarter of them within half the
    radius: a camera that sees nothing of the map would only add noise to the pose.
    """
    pairs = most_similar_close(matches, camera_from_map, radius_px)
    keypoints, points = matches.ideal_keypoints[pairs[:, 0]], matches.points_in_map[pairs[:, 1]]
    errors, _ = reprojection_errors(camera_from_map, keypoints, points, matches.camera)
    near = np.count_nonzero(errors < 0.5 * radius_px)
    by_chance = 0.25 * len(pairs) + _CHANCE_SIGMAS * (0.1875 * len(pairs)) ** 0.5
    return pairs if near > by_chance else pairs[:0]


def refine_guided(
    estimate: PoseEstimate, matches: CandidateMatches, config: PoseSolverConfig
) -> PoseEstimate:
    """Refine a pose on every candidate landmark that it brings close to its keypoint.

    The pose knows better than descriptors which candidates are right, so it is given many more
    correspondences than RANSAC was. A pose of few inliers may be many px off where it has none: it
    is given candidates from further around first, and the refined one is asked again, until it
    names the same candidates. Inliers and spread stay those of RANSAC: matches chosen by a pose are
    no evidence for it.

    Args:
        estimate: From `solve_pose`.
        matches: Candidates of all keypoints.
        config: Options.

    Returns:
        The refined estimate, or the given one if the candidates are fewer than its inliers.
    """
    threshold = config.threshold_px(matches.camera)
    num_inliers = int(estimate.inlier_mask.sum())
    for radius in WIDE_RADII if num_inliers < FEW_INLIERS else GUIDED_RADII:
        pairs = most_similar_close(matches, estimate.camera_from_map, radius * threshold)
        if len(pairs) < num_inliers or np.array_equal(pairs, estimate.guided_pairs):
            break
        refined, uncertainty = refine_pose(
            estimate.camera_from_map,
            *matches.correspondences(pairs),
            np.ones(len(pairs), bool),
            config,
            rounds=1,
        )
        moved_px = motion_px(estimate, refined, matches.camera)
        estimate = replace(
            estimate, camera_from_map=refined, uncertainty=uncertainty, guided_pairs=pairs
        )
        if moved_px < STANDS_STILL_PX:
            break
    return estimate


def motion_px(estimate: PoseEstimate, refined: RigidTransform, camera: Camera) -> float:
    """Return how far points about as deep as the inliers move in the image, at most, about."""
    before, depth = estimate.camera_from_map, max(estimate.median_depth, 1e-9)
    angle = float(np.linalg.norm(refined.rotation - before.rotation)) / 2**0.5
    middle = np.array([0.0, 0.0, depth])
    moved = refined.apply(before.rotation.T @ (middle - before.translation))
    return (angle + float(np.linalg.norm(moved - middle)) / depth) * camera.fx


def find_support(
    camera_from_map: RigidTransform,
    matches: CandidateMatches,
    inlier_idx: NDArray[np.int64],
    inlier_landmarks: NDArray[np.int64],
    config: PoseSolverConfig,
) -> Support:
    """Count the candidates that a pose finds beside its inliers.

    A pose that is chance finds a few. The right one finds many, also where the network trusts
    little, as at night.

    Args:
        camera_from_map: The pose.
        matches: Candidates of all keypoints.
        inlier_idx: (K,) keypoints that are inliers.
        inlier_landmarks: (K,) their landmarks.
        config: Options.
    """
    camera, ideal = matches.camera, matches.ideal_keypoints
    explained_keypoints = np.zeros(len(ideal), bool)
    explained_keypoints[inlier_idx] = True
    explained = np.zeros(len(matches.points_in_map), bool)
    explained[inlier_landmarks] = True
    choice = matches.first_close(
        camera_from_map,
        _SUPPORT_RADIUS * config.threshold_px(camera),
        skipped=explained_keypoints,
        taken=explained,
    )
    row = np.flatnonzero(choice >= 0)
    found = matches.landmark_idx[row, choice[row]]
    first = first_of_each(found, len(matches.points_in_map))
    landmarks, supporting = found[first], ideal[row[first]]
    keypoints = np.concatenate([ideal[inlier_idx], supporting])
    points = matches.points_in_map[np.concatenate([inlier_landmarks, landmarks])]
    spread = ellipse_area(scatter_of(keypoints)) / (camera.width * camera.height)
    return Support(supporting, spread, extent_of(points))
