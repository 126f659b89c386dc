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
from d2s_ros.errors import CalibrationError, MapFormatError, UnsupportedImageError
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureExtractor, LocalFeatures, to_grey
from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.acceptance import check_keypoints
from d2s_ros.localization.compute_budget import FULL, ComputeBudget
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.estimator import Outcome, PoseEstimator
from d2s_ros.localization.pose_prior import PriorSource, relative_to
from d2s_ros.localization.result import CameraShare, LocalizationResult, LocalizationStatus
from d2s_ros.localization.rig_agreement import CameraOnRig
from d2s_ros.localization.rig_estimator import RigEstimator
from d2s_ros.localization.rig_shot import RigShot
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.scene_models.base import Observation, View
from d2s_ros.threads import apply_limit_to_torch, num_threads


@dataclass(frozen=True, eq=False)
class _Taken:
    """What was extracted of an image, its size as given and the time that took."""

    view: View
    given_shape: tuple[int, ...]
    elapsed_ms: float

    def at_full_size(self, result: LocalizationResult) -> LocalizationResult:
        """Return a result with its keypoints in px of the image as given."""
        assert self.view.image is not None
        shape = self.view.image.shape
        if result.details is None or shape == self.given_shape:
            return result
        ratio = np.array(self.given_shape[::-1], np.float32) / np.array(shape[::-1], np.float32)
        keypoints = ((result.details.keypoints + 0.5) * ratio - 0.5).astype(np.float32)
        return replace(result, details=replace(result.details, keypoints=keypoints))


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
        taken = self._extract(image, camera, budget)
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
        refused: dict[str, LocalizationResult] = {}
        taken: dict[str, _Taken] = {}
        seen: list[CameraOnRig] = []
        started = time.perf_counter()
        for shot in shots:
            one = self._extract(shot.image, shot.camera, budget)
            if isinstance(one, _Taken):
                enough = check_keypoints(len(one.view.features), self.estimator.config.limits)
                if enough.passed:
                    taken[shot.name] = one
                    continue
                one = LocalizationResult(
                    enough.status,
                    enough.reason,
                    num_keypoints=len(one.view.features),
                    checks=(enough,),
                )
            refused[shot.name] = one
        extracted = time.perf_counter()
        for shot in shots:
            if shot.name in taken:
                observation = self.observer.observe(taken[shot.name].view)
                place = shot.rig_from_camera.inverse()
                seen.append(CameraOnRig(shot.name, observation, place))
        observed = time.perf_counter()
        features_ms = 1e3 * (extracted - started)
        latency = {
            'features': features_ms,
            'network': 1e3 * (observed - extracted),
            'pose': 0.0,
            'total': features_ms,
        }
        if not seen:
            first = next(iter(refused.values()), None)
            if first is None:
                first = LocalizationResult(
                    LocalizationStatus.BAD_IMAGE, 'no camera of the rig gave an image'
                )
            result, shares = replace(first, latency_ms=latency), []
        else:
            outcome = self.rig.estimate(seen, relative_to(self._origin, prior))
            latency['pose'] = 1e3 * (time.perf_counter() - observed)
            latency['total'] = features_ms + latency['network'] + latency['pose']
            best = seen[outcome.best]
            result = outcome.result(best.observation.view.features, latency, details=details)
            result = taken[best.name].at_full_size(result)
            if self._origin.any():
                result = result.moved(self._origin)
            shares = list(result.cameras)
        shares += [
            CameraShare(name, one.status.value, one.reason, one.num_keypoints)
            for name, one in refused.items()
        ]
        order = {shot.name: index for index, shot in enumerate(shots)}
        shares.sort(key=lambda share: order[share.name])
        return replace(result, cameras=tuple(shares))

    def _extract(
        self, image: NDArray[np.uint8] | None, camera: Camera | None, budget: ComputeBudget
    ) -> _Taken | LocalizationResult:
        """Return what an image shows, or why it cannot be used."""
        started = time.perf_counter()
        # A thread of its own; see there.
        num_threads()
        status = LocalizationStatus
        if image is None:
            return LocalizationResult(status.BAD_IMAGE, 'the image could not be read')
        if camera is None:
            return LocalizationResult(
                status.NO_CALIBRATION, 'there is no valid camera calibration for the image'
            )
        try:
            given = to_grey(image)
            grey = budget.shrunken(given)
            height, width = grey.shape
            if (camera.width, camera.height) != (width, height):
                camera = camera.resized(width, height)
            features = self.extractor.extract(grey)
        except UnsupportedImageError as error:
            return LocalizationResult(status.BAD_IMAGE, str(error))
        except CalibrationError as error:
            return LocalizationResult(status.CALIBRATION_MISMATCH, str(error))
        if not budget.is_full:
            count = round(budget.keypoints * self.extractor.config.max_keypoints)
            features = features.strongest(max(count, self.estimator.config.limits.min_keypoints))
        elapsed = 1e3 * (time.perf_counter() - started)
        return _Taken(View(features, camera, grey), given.shape, elapsed)

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
