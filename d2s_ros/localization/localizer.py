"""Image and camera in, pose with covariance or a refusal with its reason out.

The only place that chains features, network, pose solver and acceptance.
"""

from __future__ import annotations

import copy
import os
import time
from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from d2s_ros.device import has_fast_bfloat16, resolve_device
from d2s_ros.errors import CalibrationError, MapFormatError, UnsupportedImageError
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.superpoint.extractor import SuperPoint
from d2s_ros.features.types import FeatureExtractor, LocalFeatures, to_grey
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.noise import detection_sigma_px
from d2s_ros.kernels.tensors import reliability_of
from d2s_ros.localization.acceptance import PoseEvidence, check_keypoints, checks
from d2s_ros.localization.compute_budget import FULL, Effort
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.guided_refinement import (
    CandidateMatches,
    find_support,
    refine_guided,
    with_focal_error,
)
from d2s_ros.localization.moved_object import InlierView
from d2s_ros.localization.pose_prior import PosePrior, PriorSource
from d2s_ros.localization.pose_solver import PoseEstimate, first_of_each, median_of, solve_pose
from d2s_ros.localization.result import (
    Check,
    FrameDetails,
    LocalizationResult,
    LocalizationStatus,
    first_failure,
)
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.scene_models.base import SceneCoordinates
from d2s_ros.scene_models.landmark.gpu import DeviceStages, Observation
from d2s_ros.scene_models.landmark.inference import LandmarkScorer
from d2s_ros.scene_models.landmark.kernel_scorer import KernelScorer
from d2s_ros.scene_models.landmark.table import (
    Candidates,
    LandmarkIndex,
    LandmarkTable,
    keypoint_inputs,
)
from d2s_ros.threads import one_thread

#: RANSAC threshold of the D2S authors: regressed coordinates are less exact than points of tracks.
REGRESSION_ERROR_PX = 12.0
#: Poses that are tried for an image.
_MAX_HYPOTHESES = 3
#: Refusals that a prior may turn into a pose.
_PRIOR_MAY_HELP = (
    LocalizationStatus.TOO_FEW_RELIABLE,
    LocalizationStatus.NO_POSE,
    LocalizationStatus.TOO_FEW_INLIERS,
    LocalizationStatus.LOW_INLIER_SHARE,
    LocalizationStatus.POOR_SPREAD,
    LocalizationStatus.MOVED_OBJECT,
)
#: Covariances of such poses are larger by this: what an image hardly shows is placed less exactly
#: than its residuals tell (docs/evaluation.md).
_PRIOR_COVARIANCE = 4.0
#: Covariances grow where the share of reliable keypoints is below so much of the usual one.
_USUAL_SHARE = 0.7


class Localizer:
    """Localizes single images in one map; no initial guess, no memory between images."""

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
        self.config = config or LocalizerConfig()
        manifest = scene_map.manifest
        self._origin = scene_map.origin
        if extractor.weights_hash != manifest.features_hash:
            raise MapFormatError(
                f'the map was built with {manifest.features.name} features '
                f'{manifest.features_hash[:12]}, the extractor is {extractor.weights_hash[:12]}; '
                'use the same weights or build the map again'
            )
        self._solver_config = self.config.solver
        self._index: LandmarkIndex | None = None
        self._scorer: LandmarkScorer | KernelScorer | None = None
        self._device_stages: DeviceStages | None = None
        table, network = scene_map.landmark_table, scene_map.landmark_network
        if table is not None and network is not None:
            exact = precision == 'fp32'
            half = not exact and has_fast_bfloat16(device)
            self._index = LandmarkIndex(table.keys, device=device, exact=exact)
            linear = network.config.num_layers == 0
            by_kernels = device == 'cpu' and not exact and linear
            scorer = LandmarkScorer(
                network,
                torch.from_numpy(table.normalized(table.points_in_map)),
                device=device,
                dtype=torch.bfloat16 if half and not by_kernels else torch.float32,
            )
            self._scorer = KernelScorer(scorer) if by_kernels else scorer
            self._keep_points(table)
            on_one_device = isinstance(extractor, SuperPoint) and extractor.device.type != 'cpu'
            if on_one_device and device != 'cpu' and linear:
                self._use_device_stages()
        elif scene_map.regression is not None:
            scene_map.regression.to(device).eval()
            limit = max(self.config.solver.max_reprojection_error_px, REGRESSION_ERROR_PX)
            self._solver_config = replace(self.config.solver, max_reprojection_error_px=limit)

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

    def with_points(self, table: LandmarkTable) -> Localizer:
        """Return a localizer in whose map landmarks with the same keys have other points."""
        assert self._scorer is not None
        other = copy.copy(self)
        other.scene_map = replace(self.scene_map, landmark_table=table)
        other._scorer = self._scorer.with_points(
            torch.from_numpy(table.normalized(table.points_in_map))
        )
        other._keep_points(table)
        if other._device_stages is not None:
            other._use_device_stages()
        return other

    def _use_device_stages(self) -> None:
        """Compute features, candidates and reliabilities in one go on the extractor's device."""
        network = self.scene_map.landmark_network
        assert isinstance(self.extractor, SuperPoint)
        assert self._index is not None
        assert isinstance(self._scorer, LandmarkScorer)
        assert network is not None
        self._device_stages = DeviceStages(
            self.extractor, self._index, self._scorer, network.config.num_candidates
        )

    def _keep_points(self, table: LandmarkTable) -> None:
        """Keep points and covariances as the pose solver takes them, not converted each frame."""
        variance = self.scene_map.manifest.calibration.sigma_px**2
        self._points = table.points_in_map.astype(np.float64)
        self._point_covariances = table.covariances.astype(np.float64) * variance

    def localize(
        self,
        image: NDArray[np.uint8] | None,
        camera: Camera | None,
        *,
        details: bool = False,
        effort: Effort = FULL,
        prior: PriorSource | None = None,
    ) -> LocalizationResult:
        """Localize one image.

        Args:
            image: (H, W) grey or (H, W, 3) BGR uint8; None is refused as a bad image.
            camera: Its intrinsics; another size of the same aspect is scaled; None is refused.
            details: Also return per-keypoint results.
            effort: Less than full computes on a smaller image or with fewer keypoints.
            prior: Says where the camera should be; asked about images that would be refused.
        """
        started = time.perf_counter()
        # A thread that never asked for it would run convolutions on all cores.
        torch.get_num_threads()
        status = LocalizationStatus
        if image is None:
            return LocalizationResult(status.BAD_IMAGE, 'the image could not be read')
        if camera is None:
            return LocalizationResult(
                status.NO_CALIBRATION, 'there is no valid camera calibration for the image'
            )
        try:
            grey = to_grey(image)
            given_size = grey.shape[1::-1]
            if not effort.is_full:
                image = grey = _shrunken(grey, effort)
            height, width = grey.shape
            if (camera.width, camera.height) != (width, height):
                camera = camera.resized(width, height)
            seen: Observation | None = None
            if self._device_stages is not None and effort.is_full:
                seen = self._device_stages.observe(grey, camera)
                features = seen.features
            else:
                features = self.extractor.extract(image)
            if not effort.is_full:
                count = round(effort.keypoints * self.extractor.config.max_keypoints)
                features = features.strongest(max(count, self.config.limits.min_keypoints))
        except UnsupportedImageError as error:
            return LocalizationResult(status.BAD_IMAGE, str(error))
        except CalibrationError as error:
            return LocalizationResult(status.CALIBRATION_MISMATCH, str(error))
        elapsed = 1e3 * (time.perf_counter() - started)
        result = self.localize_features(
            features,
            camera,
            details=details,
            features_ms=elapsed,
            candidates=None if seen is None else seen.candidates,
            coordinates=None if seen is None else self._coordinates(seen),
            prior=prior,
        )
        if result.details is not None and (width, height) != given_size:
            ratio = np.array(given_size, np.float32) / np.array((width, height), np.float32)
            keypoints = (result.details.keypoints + 0.5) * ratio - 0.5
            result = replace(
                result, details=replace(result.details, keypoints=keypoints.astype(np.float32))
            )
        return result

    def localize_features(
        self,
        features: LocalFeatures,
        camera: Camera,
        *,
        details: bool = False,
        features_ms: float = 0.0,
        candidates: Candidates | None = None,
        coordinates: SceneCoordinates | None = None,
        prior: PriorSource | None = None,
    ) -> LocalizationResult:
        """Localize from features that were extracted before; `camera` is of the image's size.

        Given `candidates` replace the search among the landmarks (mapping images are judged
        without their own observations when a map is calibrated), given `coordinates` of them the
        network.
        """
        status = LocalizationStatus
        latency = {'features': features_ms, 'network': 0.0, 'pose': 0.0, 'total': features_ms}
        enough = check_keypoints(len(features), self.config.limits)
        if not enough.passed:
            return LocalizationResult(
                enough.status,
                enough.reason,
                num_keypoints=len(features),
                latency_ms=latency,
                checks=(enough,),
            )
        started = time.perf_counter()
        if candidates is None:
            candidates = self.find_candidates(features)
        if coordinates is None:
            coordinates = self.predict(features, camera, candidates)
        predicted = time.perf_counter()
        used, num_reliable = self._select(coordinates)
        used, estimate = self._solve_best(features, camera, coordinates, used, candidates)
        scale = self._covariance_scale(num_reliable / len(features))
        if estimate is not None:
            estimate = estimate.scaled(scale)
        made = self._accept(features, camera, coordinates, used, num_reliable, estimate)
        failure = first_failure(made)
        outcome = status.LOCALIZED if failure is None else failure.status
        expected = None
        if prior is not None and candidates is not None and outcome in _PRIOR_MAY_HELP:
            known = prior()
            if known is not None:
                if self._origin.any():
                    known = known.moved(-self._origin)
                expected = self._solve_near(known, features, camera, coordinates, candidates, scale)
        if expected is not None:
            outcome, failure = status.LOCALIZED, None
            coordinates, used, estimate, made = expected
        solved = time.perf_counter()
        latency['network'] = 1e3 * (predicted - started)
        latency['pose'] = 1e3 * (solved - predicted)
        latency['total'] = features_ms + latency['network'] + latency['pose']
        localized = outcome is status.LOCALIZED
        inlier = np.zeros(len(features), bool)
        error_px = float('nan')
        if estimate is not None:
            inlier[used[estimate.inlier_mask]] = True
            error_px = median_of(estimate.reprojection_errors_px[estimate.inlier_mask])
        reliable = np.zeros(len(features), bool)
        reliable[used] = True
        frame_details = None
        if details:
            frame_details = FrameDetails(
                features.keypoints,
                coordinates.reliability,
                reliable,
                inlier,
                coordinates.points_in_map.astype(np.float32),
                estimate,
            )
        result = LocalizationResult(
            outcome,
            '' if failure is None else failure.reason,
            estimate.camera_from_map.inverse() if localized and estimate else None,
            estimate.covariance if localized and estimate else None,
            len(features),
            num_reliable,
            int(inlier.sum()),
            error_px,
            latency,
            frame_details,
            len(used),
            estimate.focal_error if estimate is not None else (0.0, float('inf')),
            with_prior=expected is not None,
            checks=(enough, *made),
        )
        # All is computed relative to the origin; only what comes in and goes out is not.
        return result.moved(self._origin) if self._origin.any() else result

    def _accept(
        self,
        features: LocalFeatures,
        camera: Camera,
        coordinates: SceneCoordinates,
        used: NDArray[np.int64],
        num_reliable: int,
        estimate: PoseEstimate | None,
        prior: PosePrior | None = None,
    ) -> tuple[Check, ...]:
        """Return the checks that decide whether a pose is accepted."""
        calibration, table = self.scene_map.manifest.calibration, self.scene_map.landmark_table
        view = None
        if table is not None and estimate is not None:
            inliers = used[estimate.inlier_mask]
            view = InlierView(
                camera.undistort(features.keypoints[inliers]),
                coordinates.points_in_map[inliers],
                table.points_in_map,
            )
        evidence = PoseEvidence(
            camera,
            estimate,
            len(used),
            self.error_threshold_px(camera),
            num_reliable,
            float(coordinates.reliability[used].sum()),
            calibration.chance_evidence,
            calibration.chance_scale,
            calibration.scene_depth,
            view,
            prior,
        )
        return checks(evidence, self.config.limits)

    @torch.inference_mode()
    def find_candidates(self, features: LocalFeatures) -> Candidates | None:
        """Return each keypoint's nearest landmarks; None if the map holds no landmarks."""
        network = self.scene_map.landmark_network
        if self._index is None or network is None:
            return None
        return self._index.search(features.descriptors, network.config.num_candidates)

    @torch.inference_mode()
    def predict(
        self, features: LocalFeatures, camera: Camera, candidates: Candidates | None = None
    ) -> SceneCoordinates:
        """Return scene coordinates and reliability of each keypoint."""
        regression = self.scene_map.regression
        if regression is not None:
            descriptors = torch.from_numpy(features.descriptors)[None].to(self.device)
            points, p = regression(descriptors)
            points_in_map = points[0].cpu().numpy().astype(np.float64)
            z = regression.reliability(p)[0].cpu().numpy()
            # Training may have diverged: what is not a number is not reliable either.
            finite = np.isfinite(points_in_map).all(axis=1) & np.isfinite(z)
            return SceneCoordinates(
                np.where(finite[:, None], points_in_map, 0.0),
                np.where(finite, z, 0.0).astype(np.float32),
            )
        if candidates is None:
            candidates = self.find_candidates(features)
        assert self._scorer is not None
        assert candidates is not None
        inputs = (
            features.descriptors,
            candidates.landmark_idx,
            candidates.similarity,
            candidates.best_of_landmark,
            *keypoint_inputs(features, camera),
        )
        if isinstance(self._scorer, KernelScorer):
            return self._chosen(candidates, *self._scorer(*inputs))
        with one_thread():
            logits = self._scorer(*(torch.from_numpy(i).to(self.device) for i in inputs))
            reliability, choice = reliability_of(logits)
        return self._chosen(candidates, reliability.cpu().numpy(), choice.cpu().numpy())

    def _coordinates(self, seen: Observation) -> SceneCoordinates:
        return self._chosen(seen.candidates, seen.reliability, seen.choice)

    def _chosen(
        self,
        candidates: Candidates,
        reliability: NDArray[np.float32],
        choice: NDArray[np.int64],
    ) -> SceneCoordinates:
        """Return the points of the chosen columns of the candidates, (N,)."""
        landmark_idx = candidates.landmark_idx[np.arange(len(choice)), choice]
        return SceneCoordinates(
            self._points[landmark_idx],
            reliability,
            self._point_covariances[landmark_idx],
            landmark_idx,
        )

    def error_threshold_px(self, camera: Camera) -> float:
        """Return the RANSAC inlier threshold for images of a camera, px."""
        return self._solver_config.threshold_px(camera)

    def _select(self, coordinates: SceneCoordinates) -> tuple[NDArray[np.int64], int]:
        """Return the keypoints given to the solver, best first, and how many are reliable."""
        reliability = coordinates.reliability
        threshold = (
            self.config.reliability_threshold
            or self.scene_map.manifest.calibration.reliability_threshold
        )
        order = np.argsort(-reliability, kind='stable')
        if coordinates.landmark_idx is not None:
            # A landmark is seen once: its most reliable keypoint speaks for it.
            landmarks = coordinates.landmark_idx[order]
            order = order[first_of_each(landmarks, len(self._points))]
        num_reliable = int((reliability[order] >= threshold).sum())
        count = max(num_reliable, self.config.min_correspondences)
        order = order[:count]
        return order[reliability[order] >= min(threshold, 0.1)], num_reliable

    def _solve_best(
        self,
        features: LocalFeatures,
        camera: Camera,
        coordinates: SceneCoordinates,
        used: NDArray[np.int64],
        candidates: Candidates | None,
    ) -> tuple[NDArray[np.int64], PoseEstimate | None]:
        """Return the pose whose inliers cover most of the image, and what it was chosen from.

        An object that was moved, or that stands somewhere else as well, may hold most of the
        inliers. They lie close together then, while those of the right pose are all over the image.
        """
        ideal = camera.undistort(features.keypoints)
        sigmas = self._sigmas_px(features)
        matches: CandidateMatches | None = None
        if self.config.guided_refinement and candidates is not None:
            matches = self._matches(ideal, sigmas, camera, candidates)
        best: tuple[NDArray[np.int64], PoseEstimate | None] = used, None
        most = 0.0
        for _ in range(_MAX_HYPOTHESES):
            estimate = self._solve(ideal, sigmas, camera.ideal, coordinates, used, matches)
            if best[1] is None:
                best = used, estimate
            if estimate is None or estimate.inlier_mask.sum() < self.config.limits.min_inliers:
                break
            spread = estimate.spread(camera)
            if spread > most:
                best, most = (used, estimate), spread
            if spread >= self.config.limits.doubtful_spread:
                break
            used = used[~estimate.inlier_mask]
        used, estimate = best
        if estimate is not None and matches is not None:
            estimate = with_focal_error(estimate, matches, self._solver_config)
        return used, estimate

    def _solve_near(
        self,
        prior: PosePrior,
        features: LocalFeatures,
        camera: Camera,
        coordinates: SceneCoordinates,
        candidates: Candidates,
        covariance_scale: float,
    ) -> tuple[SceneCoordinates, NDArray[np.int64], PoseEstimate, tuple[Check, ...]] | None:
        """Return an accepted pose found among what can be seen from where the camera should be.

        As little as the network may trust an image, what it shows is asked here of candidates that
        lie in the right place: an image of another place finds a few among them, by chance.
        """
        calibration = self.scene_map.manifest.calibration
        ideal, sigmas = camera.undistort(features.keypoints), self._sigmas_px(features)
        matches = self._matches(ideal, sigmas, camera, candidates)
        threshold = self._solver_config.threshold_px(camera)
        pairs = prior.pairs(matches, calibration.scene_depth, threshold)
        used, landmarks = pairs.T
        points, landmark_idx = coordinates.points_in_map.copy(), coordinates.landmark_idx
        assert landmark_idx is not None
        landmark_idx = landmark_idx.copy()
        points[used], landmark_idx[used] = self._points[landmarks], landmarks
        named = SceneCoordinates(
            points, coordinates.reliability, self._point_covariances[landmark_idx], landmark_idx
        )
        estimate = self._solve(
            matches.ideal_keypoints, matches.sigmas_px, matches.camera, named, used, matches
        )
        if estimate is None:
            return None
        estimate = with_focal_error(estimate, matches, self._solver_config)
        estimate = estimate.scaled(covariance_scale * _PRIOR_COVARIANCE)
        made = self._accept(features, camera, named, used, 0, estimate, prior)
        if first_failure(made) is not None:
            return None
        return named, used, estimate, made

    def _matches(
        self,
        ideal: NDArray[np.float64],
        sigmas: NDArray[np.float64],
        camera: Camera,
        candidates: Candidates,
    ) -> CandidateMatches:
        return CandidateMatches(
            ideal,
            sigmas,
            candidates.similarity,
            candidates.landmark_idx,
            self._points,
            self._point_covariances,
            camera.ideal,
        )

    def _sigmas_px(self, features: LocalFeatures) -> NDArray[np.float64]:
        return self.scene_map.manifest.calibration.sigma_px * detection_sigma_px(features.scales)

    def _covariance_scale(self, reliable_share: float) -> float:
        """Return what the solver's covariance is multiplied by.

        Where far fewer keypoints are recognised than in the mapping images, the place looks
        different, and what moves keypoints (shadows, light) moves neighbours alike: errors are
        larger than the residuals tell.
        """
        calibration = self.scene_map.manifest.calibration
        usual = _USUAL_SHARE * calibration.reliable_share
        change = max(1.0, usual / max(reliable_share, 1e-3)) ** 0.5
        return calibration.covariance_scale * change

    def _solve(
        self,
        all_ideal: NDArray[np.float64],
        all_sigmas: NDArray[np.float64],
        camera: Camera,
        coordinates: SceneCoordinates,
        used: NDArray[np.int64],
        matches: CandidateMatches | None,
    ) -> PoseEstimate | None:
        ideal = all_ideal[used]
        valid = np.isfinite(ideal).all(axis=1)
        covariances = None
        if coordinates.covariances is not None:
            covariances = coordinates.covariances[used[valid]]
        estimate = solve_pose(
            ideal[valid],
            coordinates.points_in_map[used[valid]],
            camera,
            sigmas_px=all_sigmas[used[valid]],
            point_covariances=covariances,
            config=self._solver_config,
            rounds=2 if matches is None else 1,
        )
        if estimate is None:
            return None
        if matches is not None:
            estimate = refine_guided(estimate, matches, self._solver_config)
            inlier_idx = used[valid][estimate.inlier_mask]
            assert coordinates.landmark_idx is not None
            support = find_support(
                estimate.camera_from_map,
                matches,
                inlier_idx,
                coordinates.landmark_idx[inlier_idx],
                self._solver_config,
            )
            estimate = replace(estimate, support=support)
        inliers = np.zeros(len(used), bool)
        inliers[valid] = estimate.inlier_mask
        errors = np.full(len(used), np.inf)
        errors[valid] = estimate.reprojection_errors_px
        return replace(
            estimate,
            inlier_mask=inliers,
            reprojection_errors_px=errors,
        )


def _shrunken(grey: NDArray[np.uint8], effort: Effort) -> NDArray[np.uint8]:
    size = effort.size(grey.shape[1], grey.shape[0])
    if size == grey.shape[1::-1]:
        return grey
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
