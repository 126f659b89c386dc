"""Image and camera in, pose with covariance or a refusal with its reason out.

The chain of a frame: extract, observe, estimate, accept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.device import resolve_device
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureExtractor, LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.acceptance import check_keypoints
from d2s_ros.localization.compute_budget import FULL, ComputeBudget
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.estimator import PoseEstimator
from d2s_ros.localization.extraction import take_image, take_shots
from d2s_ros.localization.map_facts import MapFacts
from d2s_ros.localization.pose_prior import PriorSource, relative_to
from d2s_ros.localization.result import LocalizationResult, LocalizationStatus
from d2s_ros.localization.rig_localizer import RigLocalizer
from d2s_ros.localization.rig_shot import RigShot
from d2s_ros.localization.stage_clock import StageClock
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.scene_models.base import Observation, View
from d2s_ros.threads import apply_limit_to_torch


class Localizer:
    """Localizes images in one map; no initial guess, no memory between images.

    Attributes:
        observer: The scene model of the map, ready on the device.
        estimator: Finds poses and decides about them.
        rig: The same for several cameras of one robot.
    """

    def __init__(
        self,
        scene_map: SceneMap,
        extractor: FeatureExtractor,
        *,
        device: str = 'cpu',
        config: LocalizerConfig | None = None,
        precision: str = 'auto',
    ) -> None:
        self.scene_map, self.extractor, self.device = scene_map, extractor, device
        self._origin = scene_map.origin
        manifest, model = scene_map.manifest, scene_map.model
        manifest.check_features(extractor.weights_hash)
        self.observer = model.observer(
            device=device, precision=precision, sigma_px=manifest.calibration.sigma_px
        )
        self.estimator = PoseEstimator(
            manifest.calibration, config or LocalizerConfig(), model.min_error_px
        )
        self.rig = RigLocalizer(self.observer, self.estimator, self._origin)
        # The features and the model may have been the first to import it.
        apply_limit_to_torch()

    @classmethod
    def from_map(
        cls,
        scene_map: SceneMap | str | os.PathLike[str],
        *,
        device: str = 'auto',
        weights: str | None = None,
        config: LocalizerConfig | None = None,
        precision: str = 'auto',
    ) -> Localizer:
        """Open a map and make its feature extractor.

        Args:
            scene_map: A map in memory or the path of one.
            device: 'auto', 'cpu' or 'cuda'.
            weights: Weight file of network features.
            config: Thresholds.
            precision: 'fp32' computes everything in float32: the reference; 'int8' is that of
                network features, 'auto' the fastest here.

        Raises:
            MapFormatError: the map is missing, damaged, or of other features than the extractor.
            DeviceError: 'cuda' was asked for and is not there.
            WeightsError: the features need a weight file.
        """
        if not isinstance(scene_map, SceneMap):
            scene_map = SceneMap.open(scene_map)
        device = resolve_device(device)
        extractor = create_extractor(
            scene_map.manifest.features, device=device, weights=weights, precision=precision
        )
        return cls(scene_map, extractor, device=device, config=config, precision=precision)

    @property
    def facts(self) -> MapFacts:
        """What is known of the map."""
        return MapFacts.of(self.scene_map.manifest)

    def localize(
        self,
        image: NDArray[np.uint8] | None,
        camera: Camera | None,
        *,
        details: bool = False,
        budget: ComputeBudget = FULL,
        prior: PriorSource | None = None,
    ) -> LocalizationResult:
        """Localize one image.

        Args:
            image: (H, W) grey or (H, W, 3) BGR uint8; None is refused as a bad image.
            camera: Its intrinsics; another size of the same aspect is scaled; None is refused.
            details: Also return per-keypoint results.
            budget: Less than full computes on a smaller image or with fewer keypoints.
            prior: Says where the camera should be; asked about images that would be refused.
        """
        taken = take_image(image, camera, self.extractor, budget, self.estimator.config.limits)
        if isinstance(taken, LocalizationResult):
            return taken
        result = self.localize_view(
            taken.view, details=details, features_ms=taken.elapsed_ms, prior=prior
        )
        return taken.at_full_size(result)

    def localize_rig(
        self,
        shots: Sequence[RigShot],
        *,
        details: bool = False,
        budget: ComputeBudget = FULL,
        prior: PriorSource | None = None,
    ) -> LocalizationResult:
        """Localize what several cameras of one robot see at one moment: one pose, map_from_rig.

        Args:
            shots: An image of each camera; those without one, or without a calibration, do no harm.
            details: Also return per-keypoint results, of the camera that shows most of the pose.
            budget, prior: As for `localize`, the prior of the rig's frame.
        """
        found = take_shots(shots, self.extractor, budget, self.estimator.config.limits)
        return self.rig.localize(found, details=details, prior=prior)

    def localize_features(
        self,
        features: LocalFeatures,
        camera: Camera,
        *,
        details: bool = False,
        prior: PriorSource | None = None,
    ) -> LocalizationResult:
        """Localize from features that were extracted before; `camera` is of the image's size."""
        return self.localize_view(View(features, camera), details=details, prior=prior)

    def localize_view(
        self,
        view: View,
        *,
        observation: Observation | None = None,
        details: bool = False,
        features_ms: float = 0.0,
        prior: PriorSource | None = None,
    ) -> LocalizationResult:
        """Localize from what an image shows.

        Args:
            view: The image.
            observation: What the scene model says of it, instead of asking; calibration leaves
                mapping images out of the model.
            features_ms: Time that the features took.
            details, prior: As for `localize`.
        """
        clock = StageClock(features_ms)
        enough = check_keypoints(len(view.features), self.estimator.config.limits)
        if not enough.passed:
            return LocalizationResult.of_too_few(enough, len(view.features), clock.latency_ms)
        prior = relative_to(self._origin, prior)
        known, outcome = None, None
        if observation is None and prior is not None and self.observer.starts_from_priors:
            known = prior()
        if known is not None:
            seen = self.observer.observe_near(view, known.map_from_camera)
            clock.end('network')
            outcome = self.estimator.estimate(seen)
            clock.end('pose')
        if outcome is None or outcome.status is not LocalizationStatus.LOCALIZED:
            seen = self.observer.observe(view) if observation is None else observation
            clock.end('network')
            outcome = self.estimator.estimate(seen, prior)
            clock.end('pose')
        result = outcome.result(seen.view.features, clock.latency_ms, details=details)
        # All is computed relative to the origin; only what comes in and goes out is not.
        return replace(result, checks=(enough, *result.checks)).moved(self._origin)
