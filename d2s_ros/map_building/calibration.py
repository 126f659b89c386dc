"""What a map learns about itself from its own images: how far to trust its poses.

A mapping image helped to make the landmarks it sees: it matches them better, and finds them nearer
to where it wants them, than a new image would. Images are therefore localized in the map as it
would be without them: their observations are taken out of descriptors, points and covariances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.features.types import FeatureExtractor
from d2s_ros.geometry.cameras import projection_jacobian
from d2s_ros.geometry.noise import detection_sigma_px
from d2s_ros.geometry.transforms import RigidTransform, vector_from_rotation
from d2s_ros.localization.acceptance import inlier_evidence
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.limits import Limits
from d2s_ros.localization.localizer import Localizer
from d2s_ros.maps.manifest import Calibration
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction
from d2s_ros.scene_models.landmark.table import (
    Candidates,
    LandmarkStatistics,
    LandmarkTable,
)

#: Median of the chi-square distribution with six degrees of freedom.
_CHI2_6_MEDIAN = 5.348
#: Fewer poses do not calibrate a covariance.
_MIN_CALIBRATION_POSES = 5
#: Images all over the log that a map is calibrated with, and of those held out.
_MAX_IMAGES, _MAX_HELD_OUT = 60, 200
#: Images that are asked about the map with its points shuffled.
_CHANCE_IMAGES = 30
#: Of the tail: an inlier more is worth more evidence than this.
_MIN_CHANCE_SCALE = 1.0
#: Images that must still see a landmark for it to be one.
_MIN_OBSERVATIONS = 2

#: The truth is known here, so that a pose need only have enough inliers to be compared with it.
CALIBRATION_LIMITS = Limits(
    false_accept_rate=0.5,
    min_inlier_share=0.1,
    min_inlier_share_with_support=0.08,
    min_spread=0.01,
    min_spread_of_safe_extent=0.005,
    min_extent=0.0,
    max_flat_extent=0.0,
    max_rotation_sigma_deg=180.0,
    max_relative_translation_sigma=1e9,
    max_focal_error=1e9,
)


def calibrate(
    scene_map: SceneMap,
    extractor: FeatureExtractor,
    reconstruction: Reconstruction,
    candidates: Mapping[int, Candidates] | Sequence[Candidates] | None,
    held_out: Sequence[int],
    statistics: LandmarkStatistics | None = None,
) -> tuple[Calibration, dict[str, Any]]:
    """Localize mapping images in the map as it would be without them.

    The covariance scale makes the median normalised squared error that of six degrees of freedom.
    Without `candidates` (the regression head) an image cannot be left out of the map, so only
    held-out images are compared, unless they are too few.

    Args:
        scene_map: The map, not calibrated yet.
        extractor: Of its features.
        reconstruction: What it was made from.
        candidates: Of each of `images_to_judge`, without the image's own observations.
        held_out: Images the network was not trained on.
        statistics: What landmarks came from which points; without, landmarks are not moved.

    Returns:
        The calibration, and the accuracy on images the network was not trained on.
    """
    localizer = Localizer(scene_map, extractor, config=LocalizerConfig(limits=CALIBRATION_LIMITS))
    others: LeaveOneOut | None = None
    if statistics is not None and scene_map.landmark_table is not None:
        others = LeaveOneOut(reconstruction, scene_map.landmark_table, statistics)
    held_out = thinned(held_out, _MAX_HELD_OUT)
    chosen = np.asarray(held_out, dtype=int)
    if candidates is not None or len(held_out) < _MIN_CALIBRATION_POSES:
        chosen = images_to_judge(len(reconstruction.images), held_out)
    errors: dict[int, tuple[float, float]] = {}
    shares: dict[int, float] = {}
    reliable_shares: list[float] = []
    nees, depths = [], []
    for index in chosen:
        image = reconstruction.images[index]
        found = None if candidates is None else candidates[index]
        without = localizer
        if others is not None and found is not None:
            table, gone = others.without(index)
            without = localizer.with_points(table)
            found = _without_landmarks(found, gone)
        result = without.localize_features(
            image.features, image.camera, candidates=found, details=True
        )
        if result.map_from_camera is None or result.covariance is None:
            continue
        truth = image.map_from_camera
        difference = pose_difference(result.map_from_camera, truth)
        nees.append(float(difference @ np.linalg.solve(result.covariance, difference)))
        errors[int(index)] = (
            float(np.linalg.norm(difference[:3])),
            float(np.degrees(np.linalg.norm(difference[3:]))),
        )
        if result.details is not None and result.details.estimate is not None:
            depths.append(result.details.estimate.median_depth)
        reliable_shares.append(result.num_reliable / max(1, result.num_keypoints))
        shares[int(index)] = result.num_inliers / max(1, result.num_used)
    calibration = scene_map.manifest.calibration
    if len(nees) >= _MIN_CALIBRATION_POSES:
        scale = float(np.median(nees)) / _CHI2_6_MEDIAN
        calibration = replace(
            calibration,
            covariance_scale=float(np.clip(scale, 0.25, 100.0)),
            scene_depth=float(np.median(depths)),
            reliable_share=float(np.median(reliable_shares)),
        )
    median, tail = chance_evidence(scene_map, extractor, reconstruction)
    calibration = replace(calibration, chance_evidence=median, chance_scale=tail)
    kept = [index for index in held_out if index in errors]
    accuracy = {
        'holdout_images': len(held_out),
        'holdout_localized': len(kept),
        'holdout_median_m': _median([errors[index][0] for index in kept]),
        'holdout_median_deg': _median([errors[index][1] for index in kept]),
        'holdout_inlier_share': _median([shares[index] for index in kept]),
    }
    return calibration, accuracy


def images_to_judge(total: int, held_out: Sequence[int]) -> NDArray[np.int64]:
    """Return the mapping images, of `total`, that a map is calibrated with.

    Those held out, and some all over the log; of a long log not all that are held out.
    """
    evenly = np.linspace(0, total - 1, min(total, _MAX_IMAGES)).round().astype(int)
    return np.union1d(evenly, np.asarray(thinned(held_out, _MAX_HELD_OUT), dtype=int))


def thinned(values: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of the values, evenly."""
    kept = np.linspace(0, len(values) - 1, min(len(values), count)).round().astype(int)
    return [values[index] for index in kept]


def chance_evidence(
    scene_map: SceneMap, extractor: FeatureExtractor, reconstruction: Reconstruction
) -> tuple[float, float]:
    """Return the median evidence for poses that are chance, and the scale of the tail above it.

    Mapping images are localized in the map with its points shuffled among the landmarks: every
    keypoint finds its landmark, and all of them are in wrong places. Without landmarks (the
    regression head) keypoints are shuffled.
    """
    table = scene_map.landmark_table
    total = len(reconstruction.images)
    chosen = np.linspace(0, total - 1, min(total, _CHANCE_IMAGES)).round().astype(int)
    rng = np.random.default_rng(0)
    localizer = Localizer(scene_map, extractor, config=LocalizerConfig(limits=CALIBRATION_LIMITS))
    values = []
    for index in chosen:
        image = reconstruction.images[index]
        features, by_chance = image.features, localizer
        if table is not None:
            order = rng.permutation(len(table))
            shuffled = replace(
                table,
                points_in_map=table.points_in_map[order],
                covariances=table.covariances[order],
            )
            by_chance = localizer.with_points(shuffled)
        else:
            order = rng.permutation(len(features))
            features = replace(features, keypoints=features.keypoints[order])
        result = by_chance.localize_features(features, image.camera)
        values.append(
            inlier_evidence(
                result.num_inliers,
                result.num_used,
                image.camera,
                localizer.error_threshold_px(image.camera),
            )
        )
    median = float(np.median(values))
    # The mean excess over the median is the scale of an exponential tail.
    tail = float(np.mean([value - median for value in values if value >= median]))
    return median, max(tail, _MIN_CHANCE_SCALE)


class LeaveOneOut:
    """The landmarks of a map as they would be without one of the images that made it.

    To first order: a point is the optimum of its observations' squared residuals, so without one of
    them it moves by that one's gradient over the information of the others.

    Args:
        reconstruction: Images and points.
        table: The landmarks.
        statistics: Which point each landmark is.
    """

    def __init__(
        self, reconstruction: Reconstruction, table: LandmarkTable, statistics: LandmarkStatistics
    ) -> None:
        self._reconstruction = reconstruction
        self._table = table
        # Several landmarks may be one point as it looks in several lights.
        places, self._place_of_landmark = np.unique(
            table.points_in_map, axis=0, return_inverse=True
        )
        self._place_of_landmark = self._place_of_landmark.reshape(-1)
        self._places = places.astype(np.float64)
        chosen = statistics.landmark_of_point
        self._place_of_point = np.where(chosen >= 0, self._place_of_landmark[chosen], -1)
        self._information = np.zeros((len(places), 3, 3))
        self._counts = np.zeros(len(places), np.int64)
        for image in reconstruction.images:
            seen, information, _ = self._observations(image)
            np.add.at(self._information, seen, information)
            np.add.at(self._counts, seen, 1)

    def without(self, index: int) -> tuple[LandmarkTable, NDArray[np.bool_]]:
        """Return the landmarks without an image, and which of them (M,) would not be there."""
        observed, information, gradients = self._observations(self._reconstruction.images[index])
        seen, row = np.unique(observed, return_inverse=True)
        left, count = self._information[seen].copy(), self._counts[seen].copy()
        pull = np.zeros((len(seen), 3))
        np.subtract.at(left, row, information)
        np.subtract.at(count, row, 1)
        np.add.at(pull, row, gradients)
        # What is not there any more is not used: its numbers stay.
        gone = np.zeros(len(self._places), bool)
        gone[seen[count < _MIN_OBSERVATIONS]] = True
        kept = count >= _MIN_OBSERVATIONS
        seen, left, pull = seen[kept], left[kept], pull[kept]
        trace = np.maximum(np.trace(left, axis1=1, axis2=2), 0.0)[:, None, None]
        covariances = np.linalg.inv(left + (1e-5 * trace + 1e-12) * np.eye(3))
        moved = self._places[seen] + np.einsum('nij,nj->ni', covariances, pull)
        # From place to its row among those that changed.
        changed = np.full(len(self._places), -1, np.int64)
        changed[seen] = np.arange(len(seen))
        change = changed[self._place_of_landmark]
        landmarks = np.flatnonzero(change >= 0)
        points, all_covariances = self._table.points_in_map.copy(), self._table.covariances.copy()
        points[landmarks] = moved[change[landmarks]]
        all_covariances[landmarks] = covariances[change[landmarks]]
        table = replace(self._table, points_in_map=points, covariances=all_covariances)
        return table, gone[self._place_of_landmark]

    def _observations(
        self, image: MappedImage
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Return places (N,), information (N, 3, 3) and gradients (N, 3) for a noise of 1 px."""
        keypoint_idx = np.flatnonzero(image.point_idx >= 0)
        places = self._place_of_point[image.point_idx[keypoint_idx]]
        keypoint_idx, places = keypoint_idx[places >= 0], places[places >= 0]
        camera_from_map = image.map_from_camera.inverse()
        in_camera = camera_from_map.apply(self._places[places])
        jacobian = projection_jacobian(in_camera, image.camera) @ camera_from_map.rotation
        weight = 1.0 / np.square(detection_sigma_px(image.features.scales[keypoint_idx]))
        residual = image.camera.ideal.project(in_camera) - image.ideal_keypoints[keypoint_idx]
        information = jacobian.transpose(0, 2, 1) @ jacobian * weight[:, None, None]
        gradient = np.einsum('nij,ni->nj', jacobian, residual) * weight[:, None]
        return places, information, gradient


def _without_landmarks(candidates: Candidates, gone: NDArray[np.bool_]) -> Candidates:
    """Return candidates in which landmarks that are gone are like nothing and come last."""
    lost = gone[candidates.landmark_idx]
    similarity = np.where(lost, np.float32(-1), candidates.similarity)
    best = np.where(lost, np.float32(-1), candidates.best_of_landmark)
    order = np.argsort(-similarity, axis=1, kind='stable')
    return Candidates(
        np.take_along_axis(candidates.landmark_idx, order, axis=1),
        np.take_along_axis(similarity, order, axis=1),
        np.take_along_axis(best, order, axis=1),
    )


def pose_difference(estimate: RigidTransform, truth: RigidTransform) -> NDArray[np.float64]:
    """Return the error (6,) of a map_from_camera in ROS order: metres, radians, map axes."""
    rotation = vector_from_rotation(estimate.rotation @ truth.rotation.T)
    return np.concatenate([estimate.translation - truth.translation, rotation])


def _median(values: list[float]) -> float | None:
    return round(float(np.median(values)), 6) if values else None
