"""Whether the inliers may all lie on one flat object that was moved.

A picture that hangs elsewhere now is seen as well as ever, and gives the pose the camera would have
if it still hung where it was mapped. From there much else should be seen around it. Where that is
missing although the picture is seen well, the pose is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.limits import Limits
from d2s_ros.localization.pose_solver import PoseEstimate
from d2s_ros.localization.result import Check, LocalizationStatus


@dataclass(frozen=True, eq=False)
class InlierView:
    """The inliers of a pose, and the landmarks that it could have found.

    Attributes:
        keypoints: (K, 2) float64 undistorted px of the inliers.
        points_in_map: (K, 3) float64 their points.
        landmarks: (M, 3) float64 all points of the map.
    """

    keypoints: NDArray[np.float64]
    points_in_map: NDArray[np.float64]
    landmarks: NDArray[np.float64]


def check_moved_object(
    estimate: PoseEstimate, view: InlierView, camera: Camera, scene_depth: float, limits: Limits
) -> Check:
    """Compare what a pose found around one flat object with what should be seen there.

    Args:
        estimate: The pose.
        view: Its inliers and the map.
        camera: Of the image.
        scene_depth: Of the map, greater than 0.
        limits: Of acceptance.
    """
    if estimate.extent >= limits.max_flat_extent * scene_depth:
        return _check(0, 0.0, 'the inliers show more than one object')
    off_plane = count_off_plane(view.points_in_map, limits.flat_tolerance * scene_depth, limits)
    if off_plane >= max(limits.min_off_plane, limits.min_off_plane_share * len(view.keypoints)):
        return _check(0, 0.0, f'what the inliers show is not flat: {off_plane} are off the plane')
    in_camera = estimate.camera_from_map.apply(view.landmarks)
    depth = in_camera[:, 2]
    # What is much nearer or farther may be hidden or too small.
    shown = depth > limits.expected_from_depth * estimate.median_depth
    shown &= depth < limits.expected_to_depth * estimate.median_depth
    pixels = camera.ideal.project(in_camera[shown])
    pixels = pixels[((pixels >= 0) & (pixels < [camera.width, camera.height])).all(axis=1)]
    center = view.keypoints.mean(axis=0)
    margin = limits.object_margin_px**2 * np.eye(2)
    scatter = np.linalg.inv(np.cov(view.keypoints.T) + margin)
    distance = np.einsum('ni,ij,nj->n', pixels - center, scatter, pixels - center)
    on_object = max(1, int((distance < limits.inside_object).sum()))
    around = int((distance > limits.outside_object).sum())
    seen = seen_by_inliers = len(view.keypoints) / on_object
    found, needed = 0, 1.0
    if estimate.support is not None:
        offset = estimate.support.keypoints - center
        distance = np.einsum('ni,ij,nj->n', offset, scatter, offset)
        seen += int((distance < limits.inside_object).sum()) / on_object
        found = int((distance > limits.outside_object).sum())
        small = estimate.extent < limits.safe_extent * scene_depth
        alone = seen_by_inliers >= limits.min_object_seen
        needed = limits.min_found_around_small if small and alone else limits.min_found_around
    expected = seen * around
    if seen < limits.min_object_seen or expected <= limits.min_expected_around:
        return _check(found, 0.0, f'{found} found around one flat object, few are expected there')
    return _check(
        found,
        needed * expected,
        f'only one flat object is seen: {found} found around it, {needed * expected:.1f} needed of '
        f'{expected:.0f} more inliers that were expected there',
    )


def _check(found: int, needed: float, reason: str) -> Check:
    return Check(
        'moved object', float(found), needed, True, LocalizationStatus.MOVED_OBJECT, reason
    )


def count_off_plane(points: NDArray[np.float64], tolerance: float, limits: Limits) -> int:
    """Return how many points (K, 3) lie further than this from the plane that most lie on."""
    keep = np.ones(len(points), bool)
    distance = np.zeros(len(points))
    near = limits.plane_tolerance_share * tolerance
    for _ in range(limits.plane_rounds):
        center = np.median(points[keep], axis=0)
        _, axes = np.linalg.eigh(np.cov(points[keep].T))
        distance = np.abs((points - center) @ axes[:, 0])
        keep = distance <= max(float(np.quantile(distance, limits.plane_quantile)), near)
    return int((distance > tolerance).sum())
