"""Where points fall in an image, against where they were seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera


def reprojection_residuals(
    camera: Camera, in_camera: NDArray[np.float64], ideal_keypoints: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return projections less keypoints (N, 2) in px; NaN for points that are not in front.

    Args:
        camera: Of the image; distortion is ignored.
        in_camera: (N, 3) points in the camera's optical frame.
        ideal_keypoints: (N, 2) undistorted px of `camera.ideal`.
    """
    return camera.ideal.project(in_camera) - ideal_keypoints
