"""What every scene model returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class SceneCoordinates:
    """Predictions for the keypoints of one image.

    Attributes:
        points_in_map: (N, 3) float64, map frame.
        reliability: (N,) float32 in [0, 1]; higher is better.
        covariances: (N, 3, 3) float64 of each point for the map's keypoint noise, unit of the map
            squared; None if unknown.
        landmark_idx: (N,) int64, the landmark a coordinate was taken from; None for regression.
    """

    points_in_map: NDArray[np.float64]
    reliability: NDArray[np.float32]
    covariances: NDArray[np.float64] | None = None
    landmark_idx: NDArray[np.int64] | None = None
