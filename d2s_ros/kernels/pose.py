"""Whitened reprojection errors of a pose, their normal equations, and what a pose brings close.

Poses are camera_from_map, a rotation (3, 3) and a translation (3,); all arrays are contiguous
float64 unless said otherwise. See `d2s_ros.localization.residuals` for what is computed.
"""

from __future__ import annotations

from ctypes import c_double, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.kernels.library import address, function

Array = NDArray[np.float64]

#: Focal lengths and principal point, px.
Intrinsics = tuple[float, float, float, float]

_PIXELS = (c_double,) * 4


class Correspondences:
    """Keypoints and points whose reprojection errors are computed over and over.

    Args:
        keypoints: (N, 2) px.
        points: (N, 3).
        variances: (N,) of the keypoints, px^2.
        covariances: (N, 3, 3) of the points, or None.
        intrinsics: Of the camera.
    """

    def __init__(
        self,
        keypoints: Array,
        points: Array,
        variances: Array,
        covariances: Array | None,
        intrinsics: Intrinsics,
    ) -> None:
        count = self._count = len(keypoints)
        self._whitening = np.zeros((count, 3))
        # Kept alive: only where they lie is passed on.
        self._arrays = keypoints, points, variances, covariances
        self._intrinsics = intrinsics
        self._points = address(points, np.float64, count, 3)
        self._variances = address(variances, np.float64, count)
        self._covariances = 0
        if covariances is not None:
            self._covariances = address(covariances, np.float64, count, 3, 3)
        self._residuals = (
            address(keypoints, np.float64, count, 2),
            self._points,
            address(self._whitening, np.float64, count, 3),
            count,
        )

    def whiten(self, rotation: Array, translation: Array) -> None:
        """Fix the weights of the residuals by their covariances at a pose."""
        pose = _packed(rotation, translation)
        function(
            'd2s_whiten', *(c_void_p,) * 3, c_int64, c_void_p, c_double, c_double, c_void_p
        )(
            self._points,
            self._covariances,
            self._variances,
            self._count,
            address(pose, np.float64, 12),
            *self._intrinsics[:2],
            self._residuals[2],
        )  # fmt: skip

    def squared(self, rotation: Array, translation: Array) -> Array:
        """Return the squared lengths (N,) of the whitened residuals."""
        result = np.empty(self._count)
        pose = _packed(rotation, translation)
        _of_residuals('d2s_squared_residuals', c_void_p)(
            *self._residuals,
            address(pose, np.float64, 12),
            *self._intrinsics,
            address(result, np.float64, self._count),
        )
        return result

    def linearise(
        self, rotation: Array, translation: Array, scale: float, parameters: int
    ) -> Array:
        """Return (4 + P + P^2,): see `d2s_linearise` in pose.c.

        Args:
            rotation, translation: The pose.
            scale: Squared scale of the Cauchy loss.
            parameters: P: 6, or 7 with the focal length.
        """
        size = 4 + parameters + parameters**2
        result = np.empty(size)
        pose = _packed(rotation, translation)
        _of_residuals('d2s_linearise', c_double, c_int32, c_void_p)(
            *self._residuals,
            address(pose, np.float64, 12),
            *self._intrinsics,
            scale,
            parameters,
            address(result, np.float64, size),
        )
        return result

    def squared_scores(
        self, rotation: Array, translation: Array, scale: float, slope: float, inverse: Array
    ) -> Array:
        """Return the sum (P, P) of squares of what each residual adds to the gradient.

        Args:
            rotation, translation, scale: As for `linearise`.
            slope: Mean slope of the influence.
            inverse: (P, P) of the information.
        """
        parameters = len(inverse)
        result = np.empty((parameters, parameters))
        pose = _packed(rotation, translation)
        _of_residuals('d2s_squared_scores', c_double, c_double, c_void_p, c_int32, c_void_p)(
            *self._residuals,
            address(pose, np.float64, 12),
            *self._intrinsics,
            scale,
            slope,
            address(inverse, np.float64, parameters, parameters),
            parameters,
            address(result, np.float64, parameters, parameters),
        )
        return result


def first_close(
    keypoints: Array,
    landmarks: Array,
    landmark_idx: NDArray[np.int64],
    rotation: Array,
    translation: Array,
    intrinsics: Intrinsics,
    radius_px: float,
    *,
    skipped: NDArray[np.bool_] | None = None,
    taken: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Return the first candidate (N,) of each keypoint that a pose brings close, -1 for none.

    Args:
        keypoints: (N, 2) px, not a number where there is none.
        landmarks: (M, 3).
        landmark_idx: (N, C) rows of them; not checked.
        rotation, translation: The pose.
        intrinsics: Of the camera.
        radius_px: How close, px.
        skipped: (N,) keypoints that have no candidate.
        taken: (M,) landmarks that are none.
    """
    (count, candidates), num_landmarks = landmark_idx.shape, len(landmarks)
    choice = np.empty(count, np.int64)
    pose = _packed(rotation, translation)
    array = c_void_p
    call = function(
        'd2s_first_close', array, c_int64, array, array, c_int64, c_void_p, *_PIXELS, c_double,
        array, array, array,
    )  # fmt: skip
    call(
        address(keypoints, np.float64, count, 2),
        count,
        address(landmarks, np.float64, num_landmarks, 3),
        address(landmark_idx, np.int64, count, candidates),
        candidates,
        address(pose, np.float64, 12),
        *intrinsics,
        radius_px,
        0 if skipped is None else address(skipped, np.bool_, count),
        0 if taken is None else address(taken, np.bool_, num_landmarks),
        address(choice, np.int64, count),
    )
    return choice


def _of_residuals(name: str, *kinds: Any) -> Any:
    return function(name, *(c_void_p,) * 3, c_int64, c_void_p, *_PIXELS, *kinds)


def _packed(rotation: Array, translation: Array) -> Array:
    """Return a pose as the compiled part takes it, (12,)."""
    return np.concatenate([rotation.reshape(9), translation])
