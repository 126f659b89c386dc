"""What a map learns about itself from its own images: how far to trust its poses.

A mapping image helped to make the landmarks it sees: it matches them better, and finds them nearer
to where it wants them, than a new image would. Images are therefore localized in the map as it
would be without them: their observations are taken out of descriptors, points and covariances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.features.types import FeatureExtractor
from d2s_ros.geometry.noise import detection_sigma_px, in_image_px
from d2s_ros.geometry.reprojection import reprojection_residuals
from d2s_ros.geometry.statistics import subsample
from d2s_ros.geometry.transforms import RigidTransform, vector_from_rotation
from d2s_ros.localization.acceptance import inlier_evidence
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.covariance import COVERAGE_MARGIN
from d2s_ros.localization.limits import Limits
from d2s_ros.localization.localizer import Localizer
from d2s_ros.maps.manifest import Calibration
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.reconstruction.reconstruction import Reconstruction

#: Median and 90 % quantile of the chi-square distribution with six degrees of freedom.
_CHI2_6_MEDIAN, _CHI2_6_90 = 5.348, 10.645
#: Fewer poses do not calibrate a covariance.
_MIN_CALIBRATION_POSES = 5
#: Images all over the log that a map is calibrated with, and of those held out.
_MAX_IMAGES, _MAX_HELD_OUT = 60, 200
#: Images that are asked about the map with its points shuffled.
_CHANCE_IMAGES = 30
#: Of the tail: an inlier more is worth more evidence than this.
_MIN_CHANCE_SCALE = 1.0
#: The truth is known here, so that a pose need only have enough inliers to be compared with it.
CALIBRATION_LIMITS = Limits(
    false_accept_rate=0.5,
    min_inlier_share=0.1,
    min_inlier_share_with_support=0.08,
    min_spread=0.01,
    min_spread_of_safe_extent=0.005,
    min_spread_with_support=0.0,
    min_extent=0.0,
    max_flat_extent=0.0,
    max_rotation_sigma_deg=180.0,
    max_relative_translation_sigma=1e9,
    max_intrinsics_error=1e9,
    max_focal_error=1e9,
    max_pose_focal_error=1e9,
)


def calibrate(
    scene_map: SceneMap,
    extractor: FeatureExtractor,
    reconstruction: Reconstruction,
    held_out: Sequence[int],
) -> tuple[Calibration, dict[str, Any]]:
    """Localize mapping images in the map as it would be without them.

    The covariance scale makes the median normalised squared error that of six degrees of freedom,
    and is larger where the published region of 90 % would not hold as many of these images.
    Where the scene model cannot leave an image out, only held-out images are localized, unless
    they are too few.

    Args:
        scene_map: The map, not calibrated yet.
        extractor: Of its features.
        reconstruction: What it was made from.
        held_out: Images the network was not trained on.

    Returns:
        The calibration, and the accuracy on images the network was not trained on.
    """
    localizer = Localizer(scene_map, extractor, config=LocalizerConfig(limits=CALIBRATION_LIMITS))
    leaves_out = scene_map.model.leaves_out
    held_out = subsample(held_out, _MAX_HELD_OUT)
    chosen = np.asarray(held_out, dtype=int)
    if leaves_out or len(held_out) < _MIN_CALIBRATION_POSES:
        chosen = calibration_images(len(reconstruction.images), held_out)
    errors: dict[int, tuple[float, float]] = {}
    shares: dict[int, float] = {}
    reliable_shares: list[float] = []
    nees, depths = [], []
    for index in chosen.tolist():
        image = reconstruction.images[index]
        observation = localizer.observer.observe_without(index) if leaves_out else None
        result = localizer.localize_view(
            localizer.observer.mapping_view(image), observation=observation, details=True
        )
        if result.map_from_camera is None or result.covariance is None:
            continue
        truth = image.map_from_camera
        difference = pose_difference(result.map_from_camera, truth)
        nees.append(float(difference @ np.linalg.solve(result.covariance, difference)))
        errors[index] = (
            float(np.linalg.norm(difference[:3])),
            float(np.degrees(np.linalg.norm(difference[3:]))),
        )
        if result.details is not None and result.details.estimate is not None:
            depths.append(result.details.estimate.median_depth)
        reliable_shares.append(result.num_reliable / max(1, result.num_keypoints))
        shares[index] = result.num_inliers / max(1, result.num_used)
    calibration = scene_map.manifest.calibration
    if len(nees) >= _MIN_CALIBRATION_POSES:
        scale = scale_of_covariances(np.array(nees))
        calibration = replace(
            calibration,
            covariance_scale=float(np.clip(scale, 0.25, 100.0)),
            scene_depth=float(np.median(depths)),
            reliable_share=float(np.median(reliable_shares)),
        )
    median, tail = chance_evidence(localizer, reconstruction)
    calibration = replace(calibration, chance_evidence=median, chance_scale=tail)
    kept = [index for index in held_out if index in errors]
    accuracy = {
        'holdout_images': len(held_out),
        'holdout_localized': len(kept),
        'holdout_median_m': rounded_median([errors[index][0] for index in kept]),
        'holdout_median_deg': rounded_median([errors[index][1] for index in kept]),
        'holdout_inlier_share': rounded_median([shares[index] for index in kept]),
    }
    return calibration, accuracy


def scale_of_covariances(nees: NDArray[np.float64]) -> float:
    """Return what covariances must be multiplied by.

    Args:
        nees: (N,) squared errors over the covariances that are published with a scale of 1.
    """
    by_median = COVERAGE_MARGIN * float(np.median(nees)) / _CHI2_6_MEDIAN
    # Split conformal prediction: of so few errors the quantile has to be one rank higher.
    rank = min(int(np.ceil(0.9 * (len(nees) + 1))), len(nees))
    return max(by_median, float(np.sort(nees)[rank - 1]) / _CHI2_6_90)


def calibration_images(total: int, held_out: Sequence[int]) -> NDArray[np.int64]:
    """Return the mapping images, of `total`, that a map is calibrated with.

    Those held out, and some all over the log; of a long log not all that are held out.
    """
    evenly = np.linspace(0, total - 1, min(total, _MAX_IMAGES)).round().astype(int)
    return np.union1d(evenly, np.asarray(subsample(held_out, _MAX_HELD_OUT), dtype=int))


def chance_evidence(localizer: Localizer, reconstruction: Reconstruction) -> tuple[float, float]:
    """Return the median evidence for poses that are chance, and the scale of the tail above it.

    Mapping images are localized from observations in which all points are in wrong places.
    """
    total = len(reconstruction.images)
    chosen = np.linspace(0, total - 1, min(total, _CHANCE_IMAGES)).round().astype(int)
    rng = np.random.default_rng(0)
    values = []
    for index in chosen:
        image = reconstruction.images[index]
        view = localizer.observer.mapping_view(image)
        by_chance = localizer.observer.observe_by_chance(view, rng)
        result = localizer.localize_view(by_chance.view, observation=by_chance)
        values.append(
            inlier_evidence(
                result.num_inliers,
                result.num_used,
                image.camera,
                localizer.estimator.threshold_px(image.camera),
            )
        )
    median = float(np.median(values))
    # The mean excess over the median is the scale of an exponential tail.
    tail = float(np.mean([value - median for value in values if value >= median]))
    return median, max(tail, _MIN_CHANCE_SCALE)


def keypoint_noise_px(reconstruction: Reconstruction) -> float:
    """Return the noise of a keypoint of scale 1 in px, one axis, from the residuals of tracks."""
    normalized = []
    for image in reconstruction.images:
        seen = np.flatnonzero(image.point_idx >= 0)
        point_idx = image.point_idx[seen]
        in_camera = image.map_from_camera.inverse().apply(reconstruction.points_in_map[point_idx])
        ideal = image.ideal_keypoints[seen]
        residual = reprojection_residuals(image.camera, in_camera, ideal)
        residual = in_image_px(residual, ideal, image.camera)
        # A point fitted to n observations leaves residuals smaller by sqrt((2n - 3) / 2n).
        length = np.maximum(reconstruction.track_lengths[point_idx], 2)
        shrink = np.sqrt((2 * length - 3) / (2 * length))
        sigma = detection_sigma_px(image.features.scales[seen])
        normalized.append(residual / (shrink * sigma)[:, None])
    values = np.concatenate(normalized)
    return float(np.clip(1.4826 * np.median(np.abs(values)), 0.1, 3.0))


def pose_difference(estimate: RigidTransform, truth: RigidTransform) -> NDArray[np.float64]:
    """Return the error (6,) of a map_from_camera in ROS order: metres, radians, map axes."""
    rotation = vector_from_rotation(estimate.rotation @ truth.rotation.T)
    return np.concatenate([estimate.translation - truth.translation, rotation])


def rounded_median(values: list[float]) -> float | None:
    """Return the median as a map keeps it, None without values."""
    return round(float(np.median(values)), 6) if values else None
