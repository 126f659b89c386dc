"""How exact keypoints are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera

Array = NDArray[np.float64]

#: Square of the smallest ratio of areas that distortion makes of a pixel.
_LEAST_AREA = 1e-4


def detection_sigma_px(scales: NDArray[np.float32], exponent: float = 0.3) -> NDArray[np.float64]:
    """Return the relative detection noise (N,) of keypoints of given scales (N,).

    Measured on four scenes: the residual of tracks grows from scale 1 to scale 20 by a factor of
    about two, far less than in proportion.
    """
    return np.asarray(np.maximum(scales, 1.0), dtype=np.float64) ** exponent


def ideal_variances(variances: Array, ideal_keypoints: Array, camera: Camera) -> Array:
    """Return the covariances (N, 3), xx, xy, yy, of undistorted keypoints, px^2.

    A detector is as exact anywhere in the image that it looks at. Where the ideal image is
    stretched, as at the border of a fisheye's, the noise is stretched too, most along the radius.

    Args:
        variances: (N,) of the keypoints in the image, one axis, px^2.
        ideal_keypoints: (N, 2) undistorted px of `camera.ideal`, NaN if none.
        camera: With its distortion.
    """
    if camera.model == 'pinhole':
        return np.column_stack([variances, np.zeros(len(variances)), variances])
    jacobian = camera.distortion_jacobian(ideal_keypoints)
    (a, b), (c, d) = jacobian.transpose(1, 2, 0)
    # Where an image is folded over, a pixel has no area.
    factor = variances / np.maximum(np.square(a * d - b * c), _LEAST_AREA)
    return np.column_stack(
        [factor * (b * b + d * d), -factor * (a * b + c * d), factor * (a * a + c * c)]
    )


def in_image_px(vectors: Array, ideal_keypoints: Array, camera: Camera) -> Array:
    """Return what vectors (N, 2, ...) in ideal px are in px of the image, where the noise is even.

    Args:
        vectors: Residuals (N, 2), or their derivatives (N, 2, P).
        ideal_keypoints: (N, 2) undistorted px of `camera.ideal`, NaN if none.
        camera: With its distortion.
    """
    if camera.model == 'pinhole':
        return vectors
    jacobian = camera.distortion_jacobian(ideal_keypoints)
    return np.asarray(np.einsum('nij,nj...->ni...', jacobian, vectors))


def scaled_px(px: float, camera: Camera, least: float) -> float:
    """Return a distance given in px at 1000 px focal length for a camera, at least `least` px."""
    return max(least, px * 0.5 * (camera.fx + camera.fy) / 1000.0)
