"""Keypoints of an image as reports and pages hold them: where they are and what became of them."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.localization.result import FrameDetails

#: What a keypoint is: nothing known of it, given to the pose solver, agreeing with the pose.
UNKNOWN, RELIABLE, INLIER = 0, 1, 2


def packed(keypoints: NDArray[np.float32], kinds: NDArray[np.integer[Any]]) -> str:
    """Return keypoints (N, 2) px and their kinds (N,) as Base64 of (x, y, kind), 16 bits each."""
    rows = np.column_stack([np.rint(keypoints).clip(0, 65535), kinds]).astype('<u2')
    return base64.b64encode(rows.tobytes()).decode()


def marks_of(details: FrameDetails, width: int, height: int) -> dict[str, Any]:
    """Return what a report keeps of the keypoints of an image: the reliable ones and the inliers.

    Args:
        details: Of its localization.
        width, height: Of the image, px.
    """
    kept = details.reliable | details.inlier
    kinds = np.where(details.inlier, INLIER, RELIABLE)
    return {
        'width': width,
        'height': height,
        'keypoints': packed(details.keypoints[kept], kinds[kept]),
    }
