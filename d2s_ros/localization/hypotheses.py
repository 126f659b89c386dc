"""From what a scene model says of an image to a pose: which correspondences, and which pose."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.statistics import first_of_each
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.guided_refinement import (
    CandidateMatches,
    find_support,
    refine_guided,
)
from d2s_ros.localization.intrinsics_fit import with_intrinsics_error
from d2s_ros.localization.pose_prior import PosePrior
from d2s_ros.localization.pose_solver import PoseEstimate, PoseSolverConfig, solve_pose
from d2s_ros.localization.result import FrameDetails
from d2s_ros.scene_models.base import Observation, SceneCoordinates

#: Poses that are tried for an image.
MAX_HYPOTHESES = 3
#: Correspondences of a lower reliability are never tried, however few there are.
_LEAST_RELIABILITY = 0.1
#: Covariances of such poses are larger by this: what an image hardly shows is placed less exactly
#: than its residuals tell (docs/design/evaluation.md).
_PRIOR_COVARIANCE = 4.0


@dataclass(frozen=True, eq=False)
class Correspondences:
    """Keypoints with a pixel and what they show, as the pose solver takes them.

    Attributes:
        ideal_keypoints: (N, 2) float64 undistorted px, finite.
        points_in_map: (N, 3) float64.
        sigmas_px: (N,) noise of each keypoint in px of the image.
        covariances: (N, 3, 3) of the points; None for exact ones.
        given: (K,) bool of the keypoints that were asked for, N of them: the others have no pixel.
    """

    ideal_keypoints: NDArray[np.float64]
    points_in_map: NDArray[np.float64]
    sigmas_px: NDArray[np.float64]
    covariances: NDArray[np.float64] | None
    given: NDArray[np.bool_]

    def rows(self, mask: NDArray[np.bool_]) -> Correspondences:
        """Return some of them (N,)."""
        return Correspondences(
            self.ideal_keypoints[mask],
            self.points_in_map[mask],
            self.sigmas_px[mask],
            None if self.covariances is None else self.covariances[mask],
            np.ones(int(np.count_nonzero(mask)), bool),
        )

    def spread_out(self, estimate: PoseEstimate) -> PoseEstimate:
        """Return an estimate over these as one over all keypoints that were asked for."""
        inliers = np.zeros(len(self.given), bool)
        inliers[self.given] = estimate.inlier_mask
        errors = np.full(len(self.given), np.inf)
        errors[self.given] = estimate.reprojection_errors_px
        return replace(estimate, inlier_mask=inliers, reprojection_errors_px=errors)


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A pose and what it was found from.

    Attributes:
        coordinates: Of all keypoints.
        used: (K,) int64 keypoints that were given to the solver, best first.
        estimate: Over `used`; None if there is no pose.
    """

    coordinates: SceneCoordinates
    used: NDArray[np.int64]
    estimate: PoseEstimate | None

    @property
    def inliers(self) -> NDArray[np.int64]:
        """The keypoints that agree with the pose."""
        if self.estimate is None:
            return np.empty(0, np.int64)
        return self.used[self.estimate.inlier_mask]

    def details(self, features: LocalFeatures) -> FrameDetails:
        """Return what is known of each keypoint."""
        reliable, inlier = np.zeros(len(features), bool), np.zeros(len(features), bool)
        reliable[self.used], inlier[self.inliers] = True, True
        return FrameDetails(
            features.keypoints,
            self.coordinates.reliability,
            reliable,
            inlier,
            self.coordinates.points_in_map.astype(np.float32),
            self.estimate,
        )

    def scaled(self, factor: float) -> Hypothesis:
        """Return the hypothesis with the covariance of its pose multiplied by a factor."""
        if self.estimate is None:
            return self
        return replace(self, estimate=self.estimate.scaled(factor))


class PoseSearch:
    """Looks for poses that explain an observation.

    Args:
        observation: What the scene model said of the image.
        sigma_px: Noise of a keypoint of scale 1, one axis.
        config: Of the localizer.
        solver: Of the pose solver, with the RANSAC threshold of the scene model.

    Attributes:
        camera: Of the image.
        coordinates: Of all keypoints.
    """

    def __init__(
        self,
        observation: Observation,
        sigma_px: float,
        config: LocalizerConfig,
        solver: PoseSolverConfig,
    ) -> None:
        self.coordinates = observation.coordinates
        self._config, self._solver = config, solver
        view, candidates = observation.view, observation.candidates
        self.camera, self._ideal = view.camera, view.ideal_keypoints
        self._sigmas = sigma_px * view.detection_sigmas
        self._matches = (
            None
            if candidates is None
            else CandidateMatches(
                self._ideal,
                self._sigmas,
                candidates.similarity,
                # Kernels read memory as it lies; models need not know.
                np.ascontiguousarray(candidates.landmark_idx),
                np.ascontiguousarray(candidates.points_in_map),
                candidates.point_covariances,
                self.camera,
            )
        )

    def select(self, threshold: float) -> tuple[NDArray[np.int64], int]:
        """Return the keypoints given to the solver, best first, and how many are reliable.

        Args:
            threshold: Reliability from which a keypoint is reliable.
        """
        reliability = self.coordinates.reliability
        order = np.argsort(-reliability, kind='stable')
        landmark_idx = self.coordinates.landmark_idx
        if landmark_idx is not None and self._matches is not None:
            # A landmark is seen once: its most reliable keypoint speaks for it.
            order = order[first_of_each(landmark_idx[order], len(self._matches.points_in_map))]
        num_reliable = int((reliability[order] >= threshold).sum())
        order = order[: max(num_reliable, self._config.min_correspondences)]
        return order[reliability[order] >= min(threshold, _LEAST_RELIABILITY)], num_reliable

    def best(self, used: NDArray[np.int64]) -> Hypothesis:
        """Return the pose whose inliers cover most of the image, and what it was chosen from.

        An object that was moved, or that stands somewhere else as well, may hold most of the
        inliers. They lie close together then, while those of the right pose are all over the image.
        """
        matches = self._matches if self._config.guided_refinement else None
        best, most = Hypothesis(self.coordinates, used, None), 0.0
        for _ in range(MAX_HYPOTHESES):
            estimate = self._solve(self.coordinates, used, matches)
            if best.estimate is None:
                best = Hypothesis(self.coordinates, used, estimate)
            if estimate is None or estimate.inlier_mask.sum() < self._config.limits.min_inliers:
                break
            spread = estimate.spread(self.camera)
            if spread > most:
                best, most = Hypothesis(self.coordinates, used, estimate), spread
            if spread >= self._config.limits.doubtful_spread:
                break
            used = used[~estimate.inlier_mask]
        if best.estimate is None or matches is None:
            return best
        return replace(best, estimate=with_intrinsics_error(best.estimate, matches, self._solver))

    def near(self, prior: PosePrior, scene_depth: float) -> Hypothesis | None:
        """Return a pose found among what can be seen from where the camera should be.

        As little as the network may trust an image, what it shows is asked here of candidates that
        lie in the right place: an image of another place finds a few among them, by chance.
        """
        matches = self._matches
        if matches is None:
            return None
        threshold = self._solver.threshold_px(self.camera)
        used, landmarks = prior.pairs(matches, scene_depth, threshold).T
        points, landmark_idx = (
            self.coordinates.points_in_map.copy(),
            self.coordinates.landmark_idx,
        )
        assert landmark_idx is not None
        landmark_idx = landmark_idx.copy()
        points[used], landmark_idx[used] = matches.points_in_map[landmarks], landmarks
        named = SceneCoordinates(
            points,
            self.coordinates.reliability,
            matches.point_covariances[landmark_idx],
            landmark_idx,
        )
        estimate = self._solve(named, used, matches)
        if estimate is None:
            return None
        estimate = with_intrinsics_error(estimate, matches, self._solver)
        return Hypothesis(named, used, estimate.scaled(_PRIOR_COVARIANCE))

    def _solve(
        self,
        coordinates: SceneCoordinates,
        used: NDArray[np.int64],
        matches: CandidateMatches | None,
    ) -> PoseEstimate | None:
        given = self._correspondences(coordinates, used)
        estimate = solve_pose(
            given.ideal_keypoints,
            given.points_in_map,
            self.camera,
            sigmas_px=given.sigmas_px,
            point_covariances=given.covariances,
            config=self._solver,
            rounds=2 if matches is None else 1,
        )
        if estimate is None:
            return None
        if matches is not None:
            estimate = refine_guided(estimate, matches, self._solver)
            inlier_idx = used[given.given][estimate.inlier_mask]
            assert coordinates.landmark_idx is not None
            support = find_support(
                estimate.camera_from_map,
                matches,
                inlier_idx,
                coordinates.landmark_idx[inlier_idx],
                self._solver,
            )
            estimate = replace(estimate, support=support)
        return given.spread_out(estimate)

    def _correspondences(
        self, coordinates: SceneCoordinates, used: NDArray[np.int64]
    ) -> Correspondences:
        valid: NDArray[np.bool_] = np.asarray(np.isfinite(self._ideal[used]).all(axis=1))
        given, covariances = used[valid], coordinates.covariances
        return Correspondences(
            self._ideal[given],
            coordinates.points_in_map[given],
            self._sigmas[given],
            None if covariances is None else covariances[given],
            valid,
        )

    # What the solver of a rig asks of each of its cameras.

    @property
    def guided(self) -> bool:
        """Whether poses are refined on candidates."""
        return self._matches is not None and self._config.guided_refinement

    @property
    def candidate_matches(self) -> CandidateMatches:
        """The candidates of all keypoints, of models that have some."""
        assert self._matches is not None
        return self._matches

    def correspondences(self, used: NDArray[np.int64]) -> Correspondences:
        """Return what the scene model says of some keypoints (K,)."""
        return self._correspondences(self.coordinates, used)

    def named(self, pairs: NDArray[np.int64]) -> Correspondences:
        """Return pairs (K, 2) of keypoint and candidate landmark."""
        ideal, points, _, sigmas, covariances = self.candidate_matches.correspondences(pairs)
        return Correspondences(ideal, points, sigmas, covariances, np.ones(len(pairs), bool))

    def landmarks_of(self, keypoints: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the landmark that each of some keypoints (K,) shows."""
        assert self.coordinates.landmark_idx is not None
        return self.coordinates.landmark_idx[keypoints]
