"""Whitened reprojection errors of a pose under the Cauchy loss, and their normal equations.

The tangent of a pose is a rotation and translation applied on the left of camera_from_map (camera
axes); the logarithm of the focal length may be a seventh parameter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera
from d2s_ros.kernels.library import is_available
from d2s_ros.kernels.pose import Correspondences

Array = NDArray[np.float64]

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


class Residuals:
    """Reprojection errors of correspondences, in NumPy: what the compiled part is compared with.

    Args:
        keypoints: (N, 2) float64 ideal px.
        points: (N, 3) float64 points in the map.
        camera: Intrinsics; distortion is ignored.
        variances: (N,) float64 of each keypoint, px^2.
        point_covariances: (N, 3, 3) float64, or None for exact points.
        cauchy_scale: Where the loss starts to give way, in sigmas.
    """

    def __init__(
        self,
        keypoints: Array,
        points: Array,
        camera: Camera,
        variances: Array,
        point_covariances: Array | None,
        cauchy_scale: float,
    ) -> None:
        self._keypoints, self._points, self._camera = keypoints, points, camera
        self._variances, self._covariances = variances, point_covariances
        self._scale = cauchy_scale**2
        self._weights = np.zeros((len(points), 2, 2))

    def whiten(self, rotation: Array, translation: Array) -> None:
        """Fix the weights W (2x2 each) to W S W^T = 1 for the covariances S of the residuals."""
        in_camera, _ = self._in_camera(rotation, translation)
        noise = self._variances[:, None, None] * np.eye(2)
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
        result = np.zeros((len(in_camera), 2, 3))
        result[:, 0, 0], result[:, 0, 2] = self._camera.fx / z, -self._camera.fx * x / z**2
        result[:, 1, 1], result[:, 1, 2] = self._camera.fy / z, -self._camera.fy * y / z**2
        return result

    def _whitened(self, rotation: Array, translation: Array) -> tuple[Array, Array, Array]:
        """Return residuals (N, 2), points in the camera (N, 3) and depths (N,)."""
        in_camera, depths = self._in_camera(rotation, translation)
        camera = self._camera
        pixels = in_camera[:, :2] / in_camera[:, 2:] * [camera.fx, camera.fy]
        error = pixels + np.array([camera.cx, camera.cy]) - self._keypoints
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
            by_focal = in_camera[:, :2] / in_camera[:, 2:] * [self._camera.fx, self._camera.fy]
            by_parameters = np.concatenate([by_parameters, by_focal[:, :, None]], axis=2)
        return np.asarray(self._weights @ by_parameters)

    def squared(self, rotation: Array, translation: Array) -> Array:
        """Return the squared lengths (N,) of the residuals at a pose."""
        return np.asarray(np.square(self._whitened(rotation, translation)[0]).sum(axis=1))

    def linearise(
        self, rotation: Array, translation: Array, *, with_focal: bool = False
    ) -> Linearised:
        """Return the cost at a pose and its normal equations by six or seven parameters."""
        residual, in_camera, depths = self._whitened(rotation, translation)
        jacobian = self._jacobian(in_camera, 7 if with_focal else 6)
        growth = 1.0 + np.square(residual).sum(axis=1) / self._scale
        weight = 1.0 / growth
        weighted = jacobian * weight[:, None, None]
        return Linearised(
            self._scale * float(np.log(growth).sum()),
            _slope(float(weight.sum()), float(weight @ weight)),
            bool((depths > 0).all()),
            np.einsum('nrp,nr->p', weighted, residual),
            np.einsum('nrp,nrq->pq', weighted, jacobian),
        )

    def gradient_scatter(
        self, rotation: Array, translation: Array, slope: float, inverse: Array
    ) -> Array:
        """Return the covariance (P, P) of the cost's gradient, from the residuals.

        An M-estimator has the covariance E[psi psi^T] / E[dpsi / dr]^2 (J^T J)^-1 for its influence
        psi = w r; the information is E[w] J^T J. Both expectations are taken from the residuals. A
        residual is smaller than its noise by the share that it had in the parameters (HC3).

        Args:
            rotation, translation: The pose, of which `slope` and `inverse`, (P, P), are the slope
                and the inverse of the information.
        """
        residual, in_camera, _ = self._whitened(rotation, translation)
        jacobian = self._jacobian(in_camera, len(inverse))
        weight = 1.0 / (1.0 + np.square(residual).sum(axis=1) / self._scale)
        weighted = jacobian * weight[:, None, None]
        scores = np.einsum('nrp,nr->np', weighted, residual)
        share = np.einsum('nrp,pq,nrq->n', weighted, inverse, jacobian)
        scores /= (np.maximum(1.0 - share, 0.5) * slope)[:, None]
        return np.asarray(scores.T @ scores)


class CompiledResiduals(Residuals):
    """The same by the compiled part, some twenty times as fast for some hundred correspondences."""

    def __init__(self, *arguments: Any) -> None:
        """Take what `Residuals` takes."""
        super().__init__(*arguments)
        camera, covariances = self._camera, self._covariances
        self._correspondences = Correspondences(
            np.ascontiguousarray(self._keypoints, np.float64),
            np.ascontiguousarray(self._points, np.float64),
            np.ascontiguousarray(self._variances, np.float64),
            None if covariances is None else np.ascontiguousarray(covariances, np.float64),
            (camera.fx, camera.fy, camera.cx, camera.cy),
        )

    def whiten(self, rotation: Array, translation: Array) -> None:  # noqa: D102
        self._correspondences.whiten(rotation, translation)

    def squared(self, rotation: Array, translation: Array) -> Array:  # noqa: D102
        return self._correspondences.squared(rotation, translation)

    def linearise(  # noqa: D102
        self, rotation: Array, translation: Array, *, with_focal: bool = False
    ) -> Linearised:
        count = 7 if with_focal else 6
        numbers = self._correspondences.linearise(rotation, translation, self._scale, count)
        cost, weights, squared_weights, in_front = numbers[:4].tolist()
        return Linearised(
            cost,
            _slope(weights, squared_weights),
            bool(in_front),
            numbers[4 : 4 + count],
            numbers[4 + count :].reshape(count, count),
        )

    def gradient_scatter(  # noqa: D102
        self, rotation: Array, translation: Array, slope: float, inverse: Array
    ) -> Array:
        return self._correspondences.squared_scores(
            rotation, translation, self._scale, slope, np.ascontiguousarray(inverse)
        )


def residuals_kind() -> type[Residuals]:
    """Return the residuals of the compiled part where it is there, else those in NumPy."""
    return CompiledResiduals if is_available() else Residuals


def _slope(weights: float, squared_weights: float) -> float:
    return max(squared_weights / max(weights, 1e-12), _MIN_SLOPE)
