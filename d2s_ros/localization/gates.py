"""Which poses are good enough to be given out.

Three things can make a pose wrong that has inliers. Chance: some of many wrong correspondences
agree. A thing that stands elsewhere as well, or was moved: many inliers agree, and all lie on it.
Geometry that leaves the pose uncertain. Each has its gates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.pose_solver import PoseEstimate
from d2s_ros.localization.result import LocalizationStatus

if TYPE_CHECKING:
    from d2s_ros.maps.manifest import Calibration

#: What lies this close to a plane is part of it, over the depth of the scene.
_FLAT = 0.024
#: Fewer inliers off the plane, or a smaller share of them, say nothing.
_OFF_PLANE, _OFF_PLANE_SHARE = 3, 0.03
#: A thing is seen well if this share of its landmarks are inliers.
_SEEN_WELL = 0.25
#: So many inliers must be missing around it.
_MISSING = 25.0
#: If support is less than this share of what is missing, the thing is doubted.
_FOUND_AROUND = 0.02
#: The same for a small thing whose inliers alone see it well.
_FOUND_AROUND_SMALL = 0.1
#: With so many times the support that is asked for, half of the inliers are enough.
_MUCH_SUPPORT = 2
#: With support, so much of the smallest share of inliers is enough.
_SUPPORTED_SHARE = 0.8
#: Other hypotheses may hold so many times more of the reliable keypoints.
_AMONG_ALL = 6.0
#: Squared Mahalanobis distances in the image within which inliers lie, and beyond which none do.
_WITHIN, _BEYOND = 6.0, 9.0
#: With so much spread, and extent over the depth of the scene, support makes up for inliers that
#: lie close together.
_SUPPORT_SPREAD, _SUPPORT_EXTENT = 0.15, 0.4
#: A focal length is off if it differs by so many standard deviations: those of single frames are
#: not quite honest in bad light.
_FOCAL_SIGMAS = 8.0
#: Correspondences that make a pose: they agree with it always.
_MINIMAL = 3


def judge(
    estimate: PoseEstimate | None,
    camera: Camera,
    num_used: int,
    config: LocalizerConfig,
    calibration: Calibration,
    threshold_px: float,
    num_reliable: int = 0,
    expected: float | None = None,
) -> tuple[LocalizationStatus, str]:
    """Return whether a pose is given out, with the reason if it is not.

    Args:
        estimate: What the solver found.
        camera: Of the image.
        num_used: Correspondences that were given to the solver.
        config: The thresholds.
        calibration: Of the map.
        threshold_px: How close inliers are, px.
        num_reliable: Reliable keypoints, those of other hypotheses included.
        expected: Inliers expected of the correspondences: the sum of their reliabilities. Far fewer
            are a sign of wrong intrinsics. All of them by default.
    """
    status = LocalizationStatus
    if num_used < max(4, config.min_inliers):
        return (
            status.TOO_FEW_RELIABLE,
            f'{num_used} usable correspondences, {config.min_inliers} needed (another place, '
            'or changed too much)',
        )
    if estimate is None:
        return status.NO_POSE, 'no pose explains the correspondences (another place?)'
    count = int(estimate.inlier_mask.sum())
    min_inliers = config.min_inliers
    if estimate.support is not None:
        if estimate.support.count >= _MUCH_SUPPORT * config.min_support:
            min_inliers = max(4, min_inliers // 2)
        elif not _supported(estimate, config):
            min_inliers *= 2
    if count < min_inliers:
        reason = f'{count} inliers, {min_inliers} needed'
        if estimate.support is not None:
            reason += f' with {estimate.support.count} landmarks found beside them'
        return status.TOO_FEW_INLIERS, reason
    wanted = min(float(num_used), expected if expected is not None else np.inf)
    share = min(count / max(1.0, wanted), _AMONG_ALL * count / max(1, num_reliable))
    min_share = config.min_inlier_share * (
        _SUPPORTED_SHARE if _supported(estimate, config) else 1.0
    )
    if share < min_share:
        return (
            status.LOW_INLIER_SHARE,
            f'{100 * share:.0f} % of the expected inliers, {100 * min_share:.0f} % '
            'needed (another place, or a wrong camera_info)',
        )
    needed = needed_evidence(calibration, config.false_accept_rate)
    if evidence(count, num_used, camera, threshold_px) < needed:
        return (
            status.TOO_FEW_INLIERS,
            f'{count} inliers of {num_used} correspondences may be chance',
        )
    return judge_geometry(estimate, camera, config, calibration.scene_depth)


def _supported(estimate: PoseEstimate, config: LocalizerConfig) -> bool:
    return estimate.support is not None and estimate.support.count >= config.min_support


def evidence(count: int, num_used: int, camera: Camera, threshold_px: float) -> float:
    """Return how unlikely so many inliers are by chance: minus a bound of log10 of the probability.

    A wrong correspondence is an inlier if its point happens to fall into the circle around its
    keypoint; the number of those is at most binomial (Chernoff bound).
    """
    trials, hits = num_used - _MINIMAL, count - _MINIMAL
    if hits <= 0 or trials <= 0:
        return 0.0
    chance = min(np.pi * threshold_px**2 / (camera.width * camera.height), 0.5)
    share = min(hits / trials, 1.0)
    if share <= chance:
        return 0.0
    divergence = share * np.log(share / chance)
    if share < 1.0:
        divergence += (1.0 - share) * np.log((1.0 - share) / (1.0 - chance))
    return float(trials * divergence / np.log(10.0))


def needed_evidence(calibration: Calibration, false_accept_rate: float) -> float:
    """Return the evidence that chance reaches at a given rate: the tail is taken as exponential."""
    if calibration.chance_scale <= 0:
        return 0.0
    tail = calibration.chance_scale * np.log(0.5 / min(false_accept_rate, 0.5))
    return float(calibration.chance_evidence + tail)


def doubt_lone_thing(
    estimate: PoseEstimate,
    ideal_keypoints: NDArray[np.float64],
    inlier_points: NDArray[np.float64],
    landmarks: NDArray[np.float32],
    camera: Camera,
    config: LocalizerConfig,
    scene_depth: float,
) -> str:
    """Return why inliers on one flat thing do not tell where the camera is, or nothing.

    A picture that hangs elsewhere now is seen as well as ever, and gives the pose the camera would
    have if it still hung in its place. From there much else should be seen around it. Where that is
    missing although the picture is seen well, the pose is not believed.

    Args:
        estimate: The pose.
        ideal_keypoints: (K, 2) undistorted px of the inliers.
        inlier_points: (K, 3) their points.
        landmarks: (M, 3) all points of the map.
        camera: Of the image.
        config: The thresholds.
        scene_depth: Of the map; 0 if unknown: then nothing is doubted.
    """
    if scene_depth <= 0 or estimate.extent >= config.max_flat_extent * scene_depth:
        return ''
    off_plane = count_off_plane(inlier_points, _FLAT * scene_depth)
    if off_plane >= max(_OFF_PLANE, _OFF_PLANE_SHARE * len(inlier_points)):
        return ''
    in_camera = estimate.camera_from_map.apply(landmarks.astype(np.float64))
    depth = in_camera[:, 2]
    # What is much nearer or farther may be hidden or too small.
    shown = (depth > 0.2 * estimate.median_depth) & (depth < 2.0 * estimate.median_depth)
    pixels = camera.ideal.project(in_camera[shown])
    pixels = pixels[((pixels >= 0) & (pixels < [camera.width, camera.height])).all(axis=1)]
    center = ideal_keypoints.mean(axis=0)
    scatter = np.linalg.inv(np.cov(ideal_keypoints.T) + 25.0 * np.eye(2))
    distance = np.einsum('ni,ij,nj->n', pixels - center, scatter, pixels - center)
    within = max(1, int((distance < _WITHIN).sum()))
    beyond = int((distance > _BEYOND).sum())
    seen = len(inlier_points) / within
    missing = seen * beyond
    if estimate.support is None:
        doubted = seen >= _SEEN_WELL and missing > _MISSING
    else:
        around = estimate.support.keypoints - center
        distance = np.einsum('ni,ij,nj->n', around, scatter, around)
        all_seen = seen + int((distance < _WITHIN).sum()) / within
        missing = all_seen * beyond
        found = int((distance > _BEYOND).sum())
        small = estimate.extent < config.safe_extent * scene_depth
        doubted = all_seen >= _SEEN_WELL and missing > _MISSING
        needed = _FOUND_AROUND_SMALL if small and seen >= _SEEN_WELL else _FOUND_AROUND
        doubted &= found < needed * missing
    if doubted:
        return f'only one flat thing is seen, {missing:.0f} more inliers were expected around it'
    return ''


def doubt_focal_length(estimate: PoseEstimate, config: LocalizerConfig) -> str:
    """Return why the focal length of the camera is not believed, or nothing."""
    change, sigma = estimate.focal_error
    if abs(change) <= max(config.max_focal_error, _FOCAL_SIGMAS * sigma):
        return ''
    return wrong_focal_length(change, sigma)


def wrong_focal_length(change: float, sigma: float) -> str:
    """Return what people are told of a focal length that is off, given as logarithms."""
    percent = 100 * (np.exp(change) - 1)
    return (
        f'the image fits a focal length {percent:+.1f} % off (sigma {100 * sigma:.1f} %): check '
        'camera_info, or calibrate the camera'
    )


def _spread_by_support(estimate: PoseEstimate, config: LocalizerConfig, scene_depth: float) -> bool:
    """Return whether a pose shows enough of the place by what it found beside its inliers."""
    return (
        estimate.support is not None
        and _supported(estimate, config)
        and scene_depth > 0
        and estimate.support.spread >= max(_SUPPORT_SPREAD, config.min_spread)
        and estimate.support.extent >= max(_SUPPORT_EXTENT, config.min_extent) * scene_depth
    )


def count_off_plane(points: NDArray[np.float64], tolerance: float) -> int:
    """Return how many points (K, 3) lie further than this from the plane that most lie on."""
    keep = np.ones(len(points), bool)
    distance = np.zeros(len(points))
    for _ in range(6):
        center = np.median(points[keep], axis=0)
        _, axes = np.linalg.eigh(np.cov(points[keep].T))
        distance = np.abs((points - center) @ axes[:, 0])
        keep = distance <= max(float(np.quantile(distance, 0.6)), 0.5 * tolerance)
    return int((distance > tolerance).sum())


def judge_geometry(
    estimate: PoseEstimate, camera: Camera, config: LocalizerConfig, scene_depth: float = 0.0
) -> tuple[LocalizationStatus, str]:
    """Refuse poses whose inliers are bunched up or whose covariance is large.

    Args:
        estimate: The pose.
        camera: Of the image.
        config: The thresholds.
        scene_depth: Of the map; 0 if unknown: then spread alone decides.
    """
    status = LocalizationStatus
    spread = estimate.spread(camera)
    min_spread = config.min_spread
    if _spread_by_support(estimate, config, scene_depth):
        min_spread = 0.0
    elif scene_depth > 0:
        extent = estimate.extent / scene_depth
        if extent < config.min_extent:
            return (
                status.POOR_SPREAD,
                f'inliers show a thing of {100 * extent:.1f} % of the depth of the scene, '
                f'{100 * config.min_extent:.1f} % needed',
            )
        if extent >= config.safe_extent:
            min_spread *= 0.5
    if spread < min_spread:
        return (
            status.POOR_SPREAD,
            f'inliers cover {100 * spread:.2f} % of the image, {100 * min_spread:.2f} % needed',
        )
    if estimate.rank_deficient:
        return status.UNCERTAIN, 'the geometry leaves the pose undetermined'
    sigma_m = float(np.sqrt(np.linalg.eigvalsh(estimate.covariance[:3, :3])[-1]))
    sigma_deg = float(np.degrees(np.sqrt(np.linalg.eigvalsh(estimate.covariance[3:, 3:])[-1])))
    if sigma_deg > config.max_rotation_sigma_deg:
        return (
            status.UNCERTAIN,
            f'rotation uncertain by {sigma_deg:.1f} deg, {config.max_rotation_sigma_deg:.1f} '
            'allowed',
        )
    relative = sigma_m / max(estimate.median_depth, 1e-9)
    if relative > config.max_relative_translation_sigma:
        return (
            status.UNCERTAIN,
            f'position uncertain by {100 * relative:.1f} % of the scene depth, '
            f'{100 * config.max_relative_translation_sigma:.1f} % allowed',
        )
    return status.LOCALIZED, ''
