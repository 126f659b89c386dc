"""From what a scene model says of an image to a pose that is accepted, or the reason why not."""

from __future__ import annotations

from dataclasses import dataclass, replace

from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.statistics import median_of
from d2s_ros.localization.acceptance import PoseEvidence, checks
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.covariance import COVERAGE_MARGIN, covariance_scale
from d2s_ros.localization.hypotheses import Hypothesis, PoseSearch
from d2s_ros.localization.moved_object import InlierView
from d2s_ros.localization.pose_prior import PosePrior, PriorSource
from d2s_ros.localization.result import (
    Check,
    LocalizationResult,
    LocalizationStatus,
    first_failure,
)
from d2s_ros.maps.manifest import Calibration
from d2s_ros.scene_models.base import Observation

#: Refusals that a prior may turn into a pose.
_PRIOR_MAY_HELP = (
    LocalizationStatus.TOO_FEW_RELIABLE,
    LocalizationStatus.NO_POSE,
    LocalizationStatus.TOO_FEW_INLIERS,
    LocalizationStatus.LOW_INLIER_SHARE,
    LocalizationStatus.POOR_SPREAD,
    LocalizationStatus.MOVED_OBJECT,
)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was found, and whether it is accepted.

    Attributes:
        found: The pose.
        num_reliable: Keypoints that are reliable.
        checks: What decided.
        with_prior: The image alone would have been refused.
    """

    found: Hypothesis
    num_reliable: int
    checks: tuple[Check, ...]
    with_prior: bool = False

    @property
    def status(self) -> LocalizationStatus:
        """That of the first check that failed."""
        failure = first_failure(self.checks)
        return LocalizationStatus.LOCALIZED if failure is None else failure.status

    def result(
        self, features: LocalFeatures, latency_ms: dict[str, float], *, details: bool
    ) -> LocalizationResult:
        """Return the result of a frame with these features."""
        found, estimate = self.found, self.found.estimate
        failure = first_failure(self.checks)
        accepted = estimate if failure is None else None
        error_px, focal_error = float('nan'), (0.0, float('inf'))
        if estimate is not None:
            error_px = median_of(estimate.reprojection_errors_px[estimate.inlier_mask])
            focal_error = estimate.focal_error
        return LocalizationResult(
            self.status,
            '' if failure is None else failure.reason,
            accepted.camera_from_map.inverse() if accepted else None,
            accepted.covariance * COVERAGE_MARGIN if accepted else None,
            len(features),
            self.num_reliable,
            len(found.inliers),
            error_px,
            latency_ms,
            found.details(features) if details else None,
            len(found.used),
            focal_error,
            None if estimate is None else estimate.intrinsics_error,
            self.with_prior,
            self.checks,
        )


class PoseEstimator:
    """Finds the pose of an observation and decides whether it is accepted.

    Args:
        calibration: Of the map.
        config: Of the localizer.
        min_error_px: RANSAC allows at least this, px at 1000 px focal length.

    Attributes:
        solver: Options of the pose solver, with the RANSAC threshold of the scene model.
    """

    def __init__(
        self, calibration: Calibration, config: LocalizerConfig, min_error_px: float
    ) -> None:
        self.calibration, self.config = calibration, config
        allowed = max(config.solver.max_reprojection_error_px, min_error_px)
        self.solver = replace(config.solver, max_reprojection_error_px=allowed)

    def threshold_px(self, camera: Camera) -> float:
        """Return the RANSAC inlier threshold for images of a camera, px."""
        return self.solver.threshold_px(camera)

    def estimate(self, observation: Observation, prior: PriorSource | None = None) -> Outcome:
        """Find the pose of an observation, near a prior if the image alone would be refused."""
        calibration = self.calibration
        search = PoseSearch(observation, calibration.sigma_px, self.config, self.solver)
        used, num_reliable = search.select(
            self.config.reliability_threshold or calibration.reliability_threshold
        )
        scale = covariance_scale(
            calibration.covariance_scale,
            calibration.reliable_share,
            num_reliable / max(1, len(observation.view.features)),
        )
        found = search.best(used).scaled(scale)
        made = self._accept(found, observation, num_reliable)
        alone = Outcome(found, num_reliable, made)
        known = prior() if prior is not None and alone.status in _PRIOR_MAY_HELP else None
        expected = None if known is None else search.near(known, calibration.scene_depth)
        if expected is not None:
            expected = expected.scaled(scale)
            made = self._accept(expected, observation, 0, known)
            if first_failure(made) is None:
                return Outcome(expected, num_reliable, made, with_prior=True)
        return alone

    def _accept(
        self,
        found: Hypothesis,
        observation: Observation,
        num_reliable: int,
        prior: PosePrior | None = None,
    ) -> tuple[Check, ...]:
        """Return the checks that decide whether a pose is accepted."""
        calibration, camera = self.calibration, observation.view.camera
        view, candidates = None, observation.candidates
        if candidates is not None and found.estimate is not None:
            view = InlierView(
                observation.view.ideal_keypoints[found.inliers],
                found.coordinates.points_in_map[found.inliers],
                candidates.points_in_map,
            )
        evidence = PoseEvidence(
            camera,
            found.estimate,
            len(found.used),
            self.threshold_px(camera),
            num_reliable,
            float(found.coordinates.reliability[found.used].sum()),
            calibration.chance_evidence,
            calibration.chance_scale,
            calibration.scene_depth,
            view,
            prior,
            observation.place,
        )
        return checks(evidence, self.config.limits)
