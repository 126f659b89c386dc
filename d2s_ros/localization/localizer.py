"""Image and camera in, pose with covariance or a refusal with its reason out.

The only place that chains extractor, scene model, pose search and acceptance.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.device import resolve_device
from d2s_ros.errors import MapFormatError
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureConfig, FeatureExtractor, LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.acceptance import check_keypoints
from d2s_ros.localization.compute_budget import FULL, ComputeBudget
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.estimator import Outcome, PoseEstimator
from d2s_ros.localization.extraction import TakenShots, take_image, take_shots
from d2s_ros.localization.pose_prior import PriorSource, relative_to
from d2s_ros.localization.result import CameraShare, LocalizationResult, LocalizationStatus
from d2s_ros.localization.rig_agreement import CameraOnRig
from d2s_ros.localization.rig_estimator import RigEstimator
from d2s_ros.localization.rig_shot import RigShot
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.scene_models.base import Observation, View
from d2s_ros.threads import apply_limit_to_torch


@dataclass(frozen=True)
class MapFacts:
    """What is known of a map, or of the maps of an area together.

    Attributes:
        version: What identifies its state.
        frame: Of its poses; of an area the frame that is common where one is.
        metric: Whether one unit is a metre.
        features: Of its images.
        cameras: Of its mapping images.
        scale: By what `d2s map scale` has multiplied its lengths since it was built; of an area
            the product over its places.
        place_frames: Of an area, the frames of places that are not in the common one.
    """

    version: str
    frame: str
    metric: bool
    features: FeatureConfig
    cameras: tuple[Camera, ...]
    scale: float = 1.0
    place_frames: tuple[str, ...] = ()


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
        self.scene_map = scene_map
        self.extractor = extractor
        self.device = device
        manifest = scene_map.manifest
        self._origin = scene_map.origin
        if extractor.weights_hash != manifest.features_hash:
            raise MapFormatError(
                f'the map was built with {manifest.features.name} features '
                f'{manifest.features_hash[:12]}, the extractor is {extractor.weights_hash[:12]}; '
                'use the same weights or build the map again'
            )
        model = scene_map.model
        self.observer = model.observer(
            device=device, precision=precision, sigma_px=manifest.calibration.sigma_px
        )
        self.estimator = PoseEstimator(
            manifest.calibration, config or LocalizerConfig(), model.min_error_px
        )
        self.rig = RigEstimator(self.estimator)
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
        manifest = self.scene_map.manifest
        return MapFacts(
            manifest.version,
            manifest.map_frame,
            manifest.metric,
            manifest.features,
            manifest.cameras,
            scale=float(manifest.metrics.get('scaled_by', 1.0)),
        )

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
        """Localize what several cameras of one robot see at one moment: one pose.

        Args:
            shots: An image of each camera; those without one, or without a calibration, do no harm.
            details: Also return per-keypoint results, of the camera that shows most of the pose.
            budget, prior: As for `localize`, the prior of the rig's frame.

        Returns:
            map_from_camera is map_from_rig, and the covariance is its.
        """
        taken = take_shots(shots, self.extractor, budget, self.estimator.config.limits)
        return self.localize_taken(taken, details=details, prior=prior)

    def localize_taken(
        self, found: TakenShots, *, details: bool = False, prior: PriorSource | None = None
    ) -> LocalizationResult:
        """Localize from what the images of a rig show, as `localize_rig` does."""
        started = time.perf_counter()
        seen: list[CameraOnRig] = []
        for shot in found.shots:
            if shot.name in found.taken:
                observation = self.observer.observe(found.taken[shot.name].view)
                place = shot.rig_from_camera.inverse()
                seen.append(CameraOnRig(shot.name, observation, place))
        observed = time.perf_counter()
        latency = {
            'features': found.features_ms,
            'network': 1e3 * (observed - started),
            'pose': 0.0,
            'total': found.features_ms,
        }
        if not seen:
            first = next(iter(found.refused.values()), None)
            if first is None:
                first = LocalizationResult(
                    LocalizationStatus.BAD_IMAGE, 'no camera of the rig gave an image'
                )
            result, shares = replace(first, latency_ms=latency), []
        else:
            outcome = self.rig.estimate(seen, relative_to(self._origin, prior))
            latency['pose'] = 1e3 * (time.perf_counter() - observed)
            latency['total'] = found.features_ms + latency['network'] + latency['pose']
            best = seen[outcome.best]
            result = outcome.result(best.observation.view.features, latency, details=details)
            result = found.taken[best.name].at_full_size(result)
            if self._origin.any():
                result = result.moved(self._origin)
            shares = list(result.cameras)
        shares += [
            CameraShare(name, one.status.value, one.reason, one.num_keypoints)
            for name, one in found.refused.items()
        ]
        order = {shot.name: index for index, shot in enumerate(found.shots)}
        shares.sort(key=lambda share: order[share.name])
        return replace(result, cameras=tuple(shares))

    def view_of(
        self, image: NDArray[np.uint8] | None, camera: Camera | None
    ) -> View | LocalizationResult:
        """Return the keypoints of an image with it, or why it cannot be used."""
        taken = take_image(image, camera, self.extractor, FULL, self.estimator.config.limits)
        return taken if isinstance(taken, LocalizationResult) else taken.view

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
            details: Also return per-keypoint results.
            features_ms: Time that the features took.
            prior: As for `localize`.
        """
        latency = {'features': features_ms, 'network': 0.0, 'pose': 0.0, 'total': features_ms}
        enough = check_keypoints(len(view.features), self.estimator.config.limits)
        if not enough.passed:
            return LocalizationResult(
                enough.status,
                enough.reason,
                num_keypoints=len(view.features),
                latency_ms=latency,
                checks=(enough,),
            )
        prior = relative_to(self._origin, prior)
        known = None
        if observation is None and prior is not None and self.observer.starts_from_priors:
            known = prior()
        outcome = None
        if known is not None:
            started = time.perf_counter()
            observation = self.observer.observe_near(view, known.map_from_camera)
            outcome = self._timed_estimate(observation, None, started, latency)
        if outcome is None or outcome.status is not LocalizationStatus.LOCALIZED:
            started = time.perf_counter()
            if observation is None or known is not None:
                observation = self.observer.observe(view)
            outcome = self._timed_estimate(observation, prior, started, latency)
        assert observation is not None
        latency['total'] = features_ms + latency['network'] + latency['pose']
        result = outcome.result(observation.view.features, latency, details=details)
        result = replace(result, checks=(enough, *result.checks))
        # All is computed relative to the origin; only what comes in and goes out is not.
        return result.moved(self._origin) if self._origin.any() else result

    def _timed_estimate(
        self,
        observation: Observation,
        prior: PriorSource | None,
        started: float,
        latency: dict[str, float],
    ) -> Outcome:
        """Find the pose of what was observed since `started`, and add the times it took."""
        observed = time.perf_counter()
        outcome = self.estimator.estimate(observation, prior)
        latency['network'] += 1e3 * (observed - started)
        latency['pose'] += 1e3 * (time.perf_counter() - observed)
        return outcome
