"""Which poses are good enough to be given out."""

from __future__ import annotations

import numpy as np

from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.pose_solver import PoseEstimate
from d2s_ros.localization.result import LocalizationStatus


def judge(
    estimate: PoseEstimate | None, camera: Camera, num_used: int, config: LocalizerConfig
) -> tuple[LocalizationStatus, str]:
    """Return whether a pose is given out, with the reason if it is not.

    Args:
        estimate: What the solver found.
        camera: Of the image.
        num_used: Correspondences that were given to the solver.
        config: The thresholds.
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
    if count < config.min_inliers:
        return (
            status.TOO_FEW_INLIERS,
            f'{count} inliers, {config.min_inliers} needed',
        )
    share = count / num_used
    if share < config.min_inlier_share:
        return (
            status.LOW_INLIER_SHARE,
            f'{100 * share:.0f} % inliers, {100 * config.min_inlier_share:.0f} % needed',
        )
    return judge_geometry(estimate, camera, config)


def judge_geometry(
    estimate: PoseEstimate, camera: Camera, config: LocalizerConfig
) -> tuple[LocalizationStatus, str]:
    """Refuse poses whose inliers are bunched up or whose covariance is large."""
    status = LocalizationStatus
    spread = estimate.spread(camera)
    if spread < config.min_spread:
        return (
            status.POOR_SPREAD,
            f'inliers cover {100 * spread:.2f} % of the image, {100 * config.min_spread:.2f} % '
            'needed',
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
