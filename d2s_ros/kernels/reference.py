"""The kernels in NumPy and PyTorch: what the compiled ones are compared with."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from d2s_ros.kernels import checks, tensors
from d2s_ros.kernels.interface import (
    Array,
    Bytes,
    Floats,
    Indices,
    Intrinsics,
    Linearised,
    Mask,
    ScorerInputs,
    ScorerParts,
    influence_slope,
)
from d2s_ros.kernels.maxima import strongest_maxima
from d2s_ros.threads import one_thread

__all__ = [
    'candidate_scorer',
    'cells_around',
    'first_close',
    'gather_around',
    'key_index',
    'refine_keypoints',
    'residuals',
    'score_map',
    'strongest_maxima',
]


def score_map(logits: Floats, height: int, width: int, *, threads: int) -> Floats:
    """As `Kernels.score_map`."""
    checks.score_map(logits, height, width, threads)
    scores = tensors.score_map(torch.from_numpy(logits).permute(2, 0, 1)[None])
    return scores[0, :height, :width].contiguous().numpy()


def refine_keypoints(scores: Floats, index: Indices) -> Floats:
    """As `Kernels.refine_keypoints`."""
    checks.refinement(scores, index)
    rows, columns = np.divmod(index, scores.shape[1])
    pixels = torch.from_numpy(np.stack([columns, rows], axis=1))
    with one_thread():
        return tensors.refine_keypoints(torch.from_numpy(scores), pixels).numpy()


def cells_around(keypoints: Floats, height: int, width: int) -> tuple[Indices, Indices, Floats]:
    """As `Kernels.cells_around`."""
    checks.cells(keypoints, height, width)
    with one_thread():
        rows, weights = tensors.neighbouring_cells(torch.from_numpy(keypoints), height, width)
        used = torch.zeros(height * width, dtype=torch.bool)
        used[rows.flatten()] = True
        positions = used.cumsum(0) - 1
        return used.nonzero()[:, 0].numpy(), positions[rows].numpy(), weights.numpy()


def gather_around(values: Bytes, cells: Indices, num_rows: int, *, threads: int) -> Bytes:
    """As `Kernels.gather_around`."""
    checks.gather(values, cells, num_rows, threads)
    _, width, channels = values.shape
    with one_thread():
        index = functional.pad(torch.from_numpy(cells), (0, num_rows - len(cells)))
        padded = functional.pad(torch.from_numpy(values), (0, 0, 1, 1, 1, 1))
        # Three neighbours in a row follow each other in memory: three pieces are all nine.
        length = 3 * channels
        pieces = padded.as_strided((padded.numel() // channels - 2, length), (channels, 1))
        first = index + 2 * torch.div(index, width, rounding_mode='floor')
        starts = first[:, None] + torch.arange(3) * (width + 2)
        return pieces.index_select(0, starts.flatten()).view(num_rows, 3 * length).numpy()


class ExactKeys:
    """A `KeyIndex` that compares queries with all keys in float32."""

    def __init__(self, keys: Floats) -> None:
        self._keys = np.ascontiguousarray(keys)

    def search(
        self, queries: Floats, count: int, *, threads: int
    ) -> tuple[Indices, Floats, Floats]:
        """As `KeyIndex.search`."""
        checks.search(count, len(self._keys), threads)
        found = tensors.search(torch.from_numpy(queries), torch.from_numpy(self._keys), count)
        idx, similarity, best = (tensor.numpy() for tensor in found)
        return idx, similarity, best

    def replaced(self, rows: Indices, keys: Floats) -> ExactKeys:
        """As `KeyIndex.replaced`."""
        result = ExactKeys(self._keys.copy())
        result._keys[rows] = keys
        return result


class FloatScorer:
    """A `CandidateScorer` in float32."""

    def __init__(self, parts: ScorerParts) -> None:
        self._parts = ScorerParts._make(
            torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in parts
        )

    def __call__(self, inputs: ScorerInputs, *, threads: int) -> tuple[Floats, Indices]:
        """As `CandidateScorer.__call__`."""
        parts = self._parts
        num_inputs, num_landmarks = parts.input_weight.shape[1], parts.of_points.shape[1]
        checks.scores(inputs, num_inputs, num_landmarks, parts.num_frequencies, threads)
        with one_thread(), torch.inference_mode():
            logits = tensors.scores(parts, *map(torch.from_numpy, inputs))
            reliability, choice = tensors.reliability_of(logits)
        return reliability.numpy(), choice.numpy()

    def with_points(self, of_points: Floats) -> FloatScorer:
        """As `CandidateScorer.with_points`."""
        return FloatScorer(self._parts._replace(of_points=torch.from_numpy(of_points)))


class NumpyResiduals:
    """`Residuals` of correspondences; arguments as for `Kernels.residuals`."""

    def __init__(
        self,
        keypoints: Array,
        points: Array,
        intrinsics: Intrinsics,
        variances: Array,
        point_covariances: Array | None,
        cauchy_scale: float,
    ) -> None:
        self._keypoints, self._points = keypoints, points
        self._focal, self._center = np.array(intrinsics[:2]), np.array(intrinsics[2:])
        self._variances, self._covariances = variances, point_covariances
        self._scale = cauchy_scale**2
        self._weights = np.zeros((len(points), 2, 2))

    def whiten(self, rotation: Array, translation: Array) -> None:
        """As `Residuals.whiten`."""
        in_camera, _ = self._in_camera(rotation, translation)
        noise = self._variances[:, [[0, 1], [1, 2]]]
        if self._covariances is not None:
            by_point = self._by_point(in_camera) @ rotation
            noise = noise + by_point @ self._covariances @ by_point.transpose(0, 2, 1)
        # Closed form of the inverse of a 2x2 Cholesky factor.
        first = np.sqrt(np.maximum(noise[:, 0, 0], 1e-12))
        mixed = noise[:, 0, 1] / first
        second = np.sqrt(np.maximum(noise[:, 1, 1] - np.square(mixed), 1e-12))
        self._weights[:, 0, 0], self._weights[:, 1, 1] = 1 / first, 1 / second
        self._weights[:, 1, 0] = -mixed / (first * second)

    def _in_camera(self, rotation: Array, translation: Array) -> tuple[Array, Array]:
        """Return the points (N, 3), no nearer than a limit, and their depths (N,)."""
        in_camera = self._points @ rotation.T + translation
        depths = in_camera[:, 2].copy()
        in_camera[:, 2] = np.maximum(depths, 1e-6)
        return in_camera, depths

    def _by_point(self, in_camera: Array) -> Array:
        """Return d pixel / d point in the camera (N, 2, 3)."""
        x, y, z = in_camera.T
        fx, fy = self._focal
        result = np.zeros((len(in_camera), 2, 3))
        result[:, 0, 0], result[:, 0, 2] = fx / z, -fx * x / z**2
        result[:, 1, 1], result[:, 1, 2] = fy / z, -fy * y / z**2
        return result

    def _whitened(self, rotation: Array, translation: Array) -> tuple[Array, Array, Array]:
        """Return residuals (N, 2), points in the camera (N, 3) and depths (N,)."""
        in_camera, depths = self._in_camera(rotation, translation)
        pixels = in_camera[:, :2] / in_camera[:, 2:] * self._focal
        error = pixels + self._center - self._keypoints
        return np.einsum('nij,nj->ni', self._weights, error), in_camera, depths

    def _jacobian(self, in_camera: Array, parameters: int) -> Array:
        """Return the derivatives (N, 2, P) of the residuals."""
        x, y, z = in_camera.T
        by_tangent = np.zeros((len(in_camera), 3, 6))
        by_tangent[:, 0, 1], by_tangent[:, 0, 2] = z, -y
        by_tangent[:, 1, 0], by_tangent[:, 1, 2] = -z, x
        by_tangent[:, 2, 0], by_tangent[:, 2, 1] = y, -x
        by_tangent[:, :, 3:] = np.eye(3)
        by_parameters = self._by_point(in_camera) @ by_tangent
        if parameters == 7:
            by_focal = in_camera[:, :2] / in_camera[:, 2:] * self._focal
            by_parameters = np.concatenate([by_parameters, by_focal[:, :, None]], axis=2)
        return np.asarray(self._weights @ by_parameters)

    def squared(self, rotation: Array, translation: Array) -> Array:
        """As `Residuals.squared`."""
        return np.asarray(np.square(self._whitened(rotation, translation)[0]).sum(axis=1))

    def linearise(
        self, rotation: Array, translation: Array, *, with_focal: bool = False
    ) -> Linearised:
        """As `Residuals.linearise`."""
        residual, in_camera, depths = self._whitened(rotation, translation)
        jacobian = self._jacobian(in_camera, 7 if with_focal else 6)
        growth = 1.0 + np.square(residual).sum(axis=1) / self._scale
        weight = 1.0 / growth
        weighted = jacobian * weight[:, None, None]
        return Linearised(
            self._scale * float(np.log(growth).sum()),
            influence_slope(float(weight.sum()), float(weight @ weight)),
            bool((depths > 0).all()),
            np.einsum('nrp,nr->p', weighted, residual),
            np.einsum('nrp,nrq->pq', weighted, jacobian),
        )

    def gradient_scatter(
        self, rotation: Array, translation: Array, slope: float, inverse: Array
    ) -> Array:
        """As `Residuals.gradient_scatter`."""
        checks.inverse(inverse)
        residual, in_camera, _ = self._whitened(rotation, translation)
        jacobian = self._jacobian(in_camera, len(inverse))
        weight = 1.0 / (1.0 + np.square(residual).sum(axis=1) / self._scale)
        weighted = jacobian * weight[:, None, None]
        scores = np.einsum('nrp,nr->np', weighted, residual)
        share = np.einsum('nrp,pq,nrq->n', weighted, inverse, jacobian)
        scores /= (np.maximum(1.0 - share, 0.5) * slope)[:, None]
        return np.asarray(scores.T @ scores)


def first_close(
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
    """As `Kernels.first_close`."""
    checks.close(keypoints, landmarks, landmark_idx, skipped, taken)
    fx, fy, cx, cy = intrinsics
    in_camera = landmarks[landmark_idx.reshape(-1)] @ rotation.T + translation
    x, y, depth = in_camera.T.reshape(3, *landmark_idx.shape)
    # Keypoints without an ideal pixel are NaN.
    with np.errstate(invalid='ignore', divide='ignore', over='ignore'):
        u = fx * x / depth + (cx - keypoints[:, :1])
        v = fy * y / depth + (cy - keypoints[:, 1:])
        close = np.square(u) + np.square(v) <= radius_px**2
    close &= depth > 1e-6
    if skipped is not None:
        close[skipped] = False
    if taken is not None:
        close &= ~taken[landmark_idx]
    return np.where(close.any(axis=1), close.argmax(axis=1), -1)


key_index, candidate_scorer, residuals = ExactKeys, FloatScorer, NumpyResiduals
