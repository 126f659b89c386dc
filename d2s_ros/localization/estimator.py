"""From what a scene model says of an image to a pose that is given out, or the reason why not."""

from __future__ import annotations

from dataclasses import dataclass, replace

from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.statistics import median_of
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.covariance import covariance_scale
from d2s_ros.localization.gates import (
    doubt_focal_length,
    doubt_lone_thing,
    judge,
    judge_geometry,
)
from d2s_ros.localization.hypotheses import Hypothesis, PoseSearch
from d2s_ros.localization.pose_prior import PosePrior, PriorSource
from d2s_ros.localization.result import LocalizationResult, LocalizationStatus
from d2s_ros.maps.manifest import Calibration
from d2s_ros.scene_models.base import Observation

#: Refusals that a prior may turn into a pose.
_PRIOR_MAY_HELP = (
    LocalizationStatus.TOO_FEW_RELIABLE,
    LocalizationStatus.NO_POSE,
    LocalizationStatus.TOO_FEW_INLIERS,
    LocalizationStatus.LOW_INLIER_SHARE,
    LocalizationStatus.POOR_SPREAD,
    LocalizationStatus.MOVED_THING,
)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was found, and whether it is given out.

    Attributes:
        found: The pose.
        num_reliable: Keypoints that are reliable.
        status, reason: As in `LocalizationResult`.
        with_prior: The image alone would have been refused.
    """

    found: Hypothesis
    num_reliable: int
    status: LocalizationStatus
    reason: str
    with_prior: bool = False

    def result(
        self, features: LocalFeatures, latency_ms: dict[str, float], *, details: bool
    ) -> LocalizationResult:
        """Return what is told of a frame with these features."""
        found, estimate = self.found, self.found.estimate
        accepted = estimate if self.status is LocalizationStatus.LOCALIZED else None
        error_px, focal_error = float('nan'), (0.0, float('inf'))
        if estimate is not None:
            error_px = median_of(estimate.reprojection_errors_px[estimate.inlier_mask])
            focal_error = estimate.focal_error
        return LocalizationResult(
            self.status,
            self.reason,
            accepted.camera_from_map.inverse() if accepted else None,
            accepted.covariance if accepted else None,
            len(features),
            self.num_reliable,
            len(found.inliers),
            error_px,
            latency_ms,
            found.details(features) if details else None,
            len(found.used),
            focal_error,
            self.with_prior,
        )


class PoseEstimator:
    """Finds the pose of an observation and decides whether it is given out.

    Args:
        calibration: Of the map.
        config: Of the localizer.
        min_error_px: RANSAC allows at least this, px at 1000 px focal length.
    """

    def __init__(
        self, calibration: Calibration, config: LocalizerConfig, min_error_px: float
    ) -> None:
        self._calibration, self.config = calibration, config
        allowed = max(config.solver.max_reprojection_error_px, min_error_px)
        self._solver = replace(config.solver, max_reprojection_error_px=allowed)

    def threshold_px(self, camera: Camera) -> float:
        """Return the RANSAC inlier threshold for images of a camera, px."""
        return self._solver.threshold_px(camera)

    def estimate(self, observation: Observation, prior: PriorSource | None = None) -> Outcome:
        """Find the pose of an observation, near a prior if the image alone would be refused."""
        calibration = self._calibration
        search = PoseSearch(observation, calibration.sigma_px, self.config, self._solver)
        used, num_reliable = search.select(
            self.config.reliability_threshold or calibration.reliability_threshold
        )
        scale = covariance_scale(
            calibration.covariance_scale,
            calibration.reliable_share,
            num_reliable / len(observation.view.features),
        )
        found = search.best(used).scaled(scale)
        status, reason = self._accept(found, observation, num_reliable)
        known = prior() if prior is not None and status in _PRIOR_MAY_HELP else None
        expected = None if known is None else search.near(known, calibration.scene_depth)
        if expected is not None:
            expected = expected.scaled(scale)
            accepted, _ = self._accept(expected, observation, num_reliable, known)
            if accepted is LocalizationStatus.LOCALIZED:
                return Outcome(expected, num_reliable, accepted, '', with_prior=True)
        return Outcome(found, num_reliable, status, reason)

    def _accept(
        self,
        found: Hypothesis,
        observation: Observation,
        num_reliable: int,
        prior: PosePrior | None = None,
    ) -> tuple[LocalizationStatus, str]:
        """Return whether a pose is given out, with the reason if it is not.

        One that was found with a prior must have the geometry and agree with the prior.
        """
        status, estimate = LocalizationStatus, found.estimate
        camera, depth = observation.view.camera, self._calibration.scene_depth
        if prior is None or estimate is None:
            outcome, reason = judge(
                estimate,
                camera,
                len(found.used),
                self.config,
                self._calibration,
                self._solver.threshold_px(camera),
                num_reliable,
                float(found.coordinates.reliability[found.used].sum()),
            )
        else:
            outcome, reason = judge_geometry(estimate, camera, self.config, depth)
            if outcome is status.LOCALIZED and (doubt := prior.disagrees(estimate)):
                return status.UNCERTAIN, doubt
        candidates = observation.candidates
        if outcome is not status.LOCALIZED or estimate is None or candidates is None:
            return outcome, reason
        doubt = doubt_lone_thing(
            estimate,
            observation.view.ideal_keypoints[found.inliers],
            found.coordinates.points_in_map[found.inliers],
            candidates.points_in_map,
            camera,
            self.config,
            depth,
        )
        if doubt:
            return status.MOVED_THING, doubt
        doubt = doubt_focal_length(estimate, self.config)
        return (status.CALIBRATION_MISMATCH, doubt) if doubt else (outcome, '')
