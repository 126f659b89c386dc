"""What the kernels compute: the contract that both implementations keep.

Arrays are contiguous where a dtype is given. `threads` is how many a kernel may use, at least 1;
the reference leaves that to PyTorch. Arguments that do not fit raise ValueError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]
#: Focal lengths and principal point (fx, fy, cx, cy), px.
Intrinsics = tuple[float, float, float, float]

#: Side of a cell in px: dense maps have one descriptor per cell.
CELL = 8
#: Added to scores before their logarithm is taken: what is below is noise.
REFINEMENT_FLOOR = 1e-3
#: Told of each call of compiled kernels: its name, or '' and the arithmetic of the call before.
observers: list[Callable[[str, int], None]] = []
#: Where most residuals are outliers the robust loss is flat: the covariance ends here.
_MIN_SLOPE = 0.1


class Linearised(NamedTuple):
    """The cost at a pose and its normal equations by P parameters.

    Attributes:
        cost: Of all residuals.
        slope: Mean slope of the influence over the mean weight. The slope of w r with
            w = 1 / (1 + r^2 / c^2) along r is w (2 w - 1), across it w: w^2 on average.
        all_in_front: Whether all points are in front of the camera.
        gradient: (P,) float64.
        information: (P, P) float64, weighted.
    """

    cost: float
    slope: float
    all_in_front: bool
    gradient: Array
    information: Array


class Residuals(Protocol):
    """Whitened reprojection errors of correspondences under the Cauchy loss.

    Poses are camera_from_map, a rotation (3, 3) and a translation (3,). The tangent of a pose is a
    rotation and translation applied on its left (camera axes); the logarithm of the focal length
    may be a seventh parameter.
    """

    def whiten(self, rotation: Array, translation: Array) -> None:
        """Fix the weights W (2x2 each) to W S W^T = 1 for the covariances S of the residuals."""
        ...

    def squared(self, rotation: Array, translation: Array) -> Array:
        """Return the squared lengths (N,) of the residuals at a pose."""
        ...

    def linearise(
        self, rotation: Array, translation: Array, *, with_focal: bool = False
    ) -> Linearised:
        """Return the cost at a pose and its normal equations by six or seven parameters."""
        ...

    def gradient_scatter(
        self, rotation: Array, translation: Array, slope: float, inverse: Array
    ) -> Array:
        """Return the covariance (P, P) of the cost's gradient, from the residuals.

        An M-estimator has the covariance E[psi psi^T] / E[dpsi / dr]^2 (J^T J)^-1 for its influence
        psi = w r; the information is E[w] J^T J. Both expectations are taken from the residuals. A
        residual is smaller than its noise by the share that it had in the parameters (HC3).

        Args:
            rotation, translation: The pose, of which `slope` and `inverse`, (P, P) with P of 6 or
                7, are the slope and the inverse of the information.
        """
        ...


class KeyIndex(Protocol):
    """Keys of landmarks, arranged for search."""

    def search(
        self, queries: Floats, count: int, *, threads: int
    ) -> tuple[Indices, Floats, Floats]:
        """Return the keys that are nearest to queries.

        Args:
            queries: (N, D) float32, L2-normalised.
            count: Keys of each query, C; at most as many as there are.
            threads: To compute with.

        Returns:
            Rows of the keys, their cosines, best first, and the highest cosine that any of the
            queries has to each of them (the compiled kernels may tell it within a step of a byte,
            exactly for mutual neighbours); (N, C) each.
        """
        ...

    def replaced(self, rows: Indices, keys: Floats) -> KeyIndex:
        """Return an index in which some rows (R,) are other keys (R, D)."""
        ...


class ScorerParts(NamedTuple):
    """The network that scores candidate landmarks, where it has no attention layers.

    Float32 NumPy arrays at the door of the kernels; within PyTorch, tensors of one device.

    Attributes:
        input_weight, input_bias: (W, inputs) and (W,): keypoints to tokens. Inputs are descriptor,
            evidence of the candidates (`tensors.candidate_evidence`), Fourier features of the
            normalized point, logarithm of the scale.
        final_weight, final_bias: (W + 2, W) and (W + 2,): tokens to the query of the candidates, a
            constant and the logit of 'none of them'.
        of_points: (3, M, W) what a landmark adds to the token as the best candidate, as the
            second, and to the hidden layer of a candidate.
        evidence_weight: (4, W) evidence to that layer.
        gain: Of the cosine below that of the best candidate.
        num_frequencies: Of the Fourier features.
        ignores_keypoints: Whether points and scales count as zeros.
    """

    input_weight: Any
    input_bias: Any
    final_weight: Any
    final_bias: Any
    of_points: Any
    evidence_weight: Any
    gain: float
    num_frequencies: int
    ignores_keypoints: bool


class ScorerInputs(NamedTuple):
    """What `CandidateScorer` looks at of N keypoints.

    Attributes:
        descriptors: (N, D) float32, L2-normalised.
        landmark_idx: (N, C) int64 candidate landmarks, below M.
        similarity, best_of_landmark: (N, C) float32 cosines, best first, and the highest of any
            keypoint of the image to each landmark.
        normalized_points: (N, 2) float32 undistorted x/z, y/z.
        log_scales: (N,) float32.
    """

    descriptors: Floats
    landmark_idx: Indices
    similarity: Floats
    best_of_landmark: Floats
    normalized_points: Floats
    log_scales: Floats


class CandidateScorer(Protocol):
    """Scores the candidate landmarks of one image's keypoints."""

    def __call__(self, inputs: ScorerInputs, *, threads: int) -> tuple[Floats, Indices]:
        """Return the reliability (N,) of each keypoint's likeliest candidate, and its column."""
        ...

    def with_points(self, of_points: Floats) -> CandidateScorer:
        """Return a scorer with other `ScorerParts.of_points`."""
        ...


class Kernels(Protocol):
    """The functions that each implementation has, a module each."""

    def score_map(self, logits: Floats, height: int, width: int, *, threads: int) -> Floats:
        """Return the keypoint probabilities (height, width) of logits (h, w, 65) of h x w cells."""
        ...

    def strongest_maxima(
        self,
        scores: Floats,
        radius: int,
        count: int,
        border: int,
        threshold: float,
        allowed: Bytes | None,
        threads: int,
    ) -> Indices:
        """Return the strongest local maxima: flat indices (K,), best first, of equals the first.

        A maximum suppresses the square of side 2 * radius + 1 around it. As published, two more
        rounds look for maxima among what no kept maximum suppresses.

        Args:
            scores: (H, W) float32.
            radius: Of the suppression, px; 0 keeps all pixels.
            count: Most maxima.
            border: Those that are closer to the edge do not count, but suppress their neighbours
                alike; px.
            threshold: Those that are not stronger do not count; at least 0.
            allowed: (H, W) uint8, zero where they do not count; None: they count everywhere.
            threads: To compute with.
        """
        ...

    def refine_keypoints(self, scores: Floats, index: Indices) -> Floats:
        """Move keypoints (K,), flat indices off the edge of (H, W), below the pixel: (K, 2) x, y.

        To the top of a parabola with a mixed term through the logarithm of the 3x3 scores around.
        """
        ...

    def cells_around(
        self, keypoints: Floats, height: int, width: int
    ) -> tuple[Indices, Indices, Floats]:
        """Return which of (height, width) cells, each of 8x8 px, are around keypoints (K, 2) px.

        Returns:
            The cells (M,), ascending, the four of each keypoint as positions among them (K, 4), and
            their bilinear weights (K, 4).
        """
        ...

    def gather_around(self, values: Bytes, cells: Indices, num_rows: int, *, threads: int) -> Bytes:
        """Return the nine cells around each of some cells of a map, zeros beyond its edge.

        Args:
            values: (h, w, C) uint8.
            cells: (M,) row after row.
            num_rows: At least M; rows beyond M mean nothing.
            threads: To compute with.

        Returns:
            (num_rows, 9 C).
        """
        ...

    def key_index(self, keys: Floats) -> KeyIndex:
        """Return keys (M, D), L2-normalised float32, arranged for search."""
        ...

    def candidate_scorer(self, parts: ScorerParts) -> CandidateScorer:
        """Return the scorer of a network without attention layers."""
        ...

    def residuals(
        self,
        keypoints: Array,
        points: Array,
        intrinsics: Intrinsics,
        variances: Array,
        point_covariances: Array | None,
        cauchy_scale: float,
    ) -> Residuals:
        """Return the residuals of correspondences.

        Args:
            keypoints: (N, 2) float64 px without distortion.
            points: (N, 3) float64 points in the map.
            intrinsics: Of the camera.
            variances: (N, 3) float64 xx, xy, yy of the covariance of each keypoint, px^2.
            point_covariances: (N, 3, 3) float64, or None for exact points.
            cauchy_scale: Where the loss starts to give way, in sigmas.
        """
        ...

    def first_close(
        self,
        keypoints: Array,
        landmarks: Array,
        landmark_idx: Indices,
        rotation: Array,
        translation: Array,
        intrinsics: Intrinsics,
        radius_px: float,
        *,
        skipped: Mask | None = None,
        taken: Mask | None = None,
    ) -> Indices:
        """Return the first candidate (N,) of each keypoint that a pose brings close, -1 for none.

        Args:
            keypoints: (N, 2) float64 px without distortion, NaN where there is none.
            landmarks: (M, 3) float64 points in the map.
            landmark_idx: (N, C) int64 rows of them.
            rotation, translation: The pose camera_from_map.
            intrinsics: Of the camera.
            radius_px: How close.
            skipped: (N,) keypoints that have no candidate.
            taken: (M,) landmarks that are none.
        """
        ...


def influence_slope(weights: float, squared_weights: float) -> float:
    """Return `Linearised.slope` from the sums of weights and of their squares."""
    return max(squared_weights / max(weights, 1e-12), _MIN_SLOPE)
