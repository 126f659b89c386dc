"""Training samples of the landmark head: one per mapping image, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from d2s_ros.geometry.noise import scaled_px
from d2s_ros.kernels import tensors
from d2s_ros.reconstruction.reconstruction import MappedImage
from d2s_ros.scene_models.base import View
from d2s_ros.scene_models.landmark.table import (
    LandmarkTable,
    NearestLandmarks,
    candidate_errors_px,
    log_scales_of,
)

#: See `make_sample`.
CORRECT_PX = 4.0


@dataclass(frozen=True, eq=False)
class LandmarkSample:
    """Network inputs of the N keypoints of one image, and which of the C candidates are right.

    Attributes:
        descriptors: (N, D) float32.
        evidence: (N, C, 4) float32, see `candidate_evidence`.
        candidate_points: (N, C, 3) float32, normalised.
        keypoints: (N, 2) float32 undistorted image-plane coordinates.
        log_scales: (N,) float32.
        correct: (N, C) bool: the candidate projects onto the keypoint.
    """

    descriptors: Tensor
    evidence: Tensor
    candidate_points: Tensor
    keypoints: Tensor
    log_scales: Tensor
    correct: Tensor

    def __len__(self) -> int:
        return len(self.descriptors)


def network_inputs(
    view: View, candidates: NearestLandmarks, table: LandmarkTable
) -> dict[str, torch.Tensor]:
    """Return the inputs of `LandmarkNetwork` for one image, without the batch dimension."""
    similarity = torch.from_numpy(candidates.similarity)
    points = table.normalized(table.points_in_map[candidates.landmark_idx])
    return {
        'descriptors': torch.from_numpy(view.features.descriptors),
        'evidence': tensors.candidate_evidence(
            similarity, torch.from_numpy(candidates.best_of_landmark)
        ),
        'candidate_points': torch.from_numpy(points),
        'keypoints': torch.from_numpy(view.normalized_points),
        'log_scales': torch.from_numpy(log_scales_of(view)),
    }


def make_sample(
    image: MappedImage,
    candidates: NearestLandmarks,
    table: LandmarkTable,
    correct_px: float = CORRECT_PX,
) -> LandmarkSample:
    """Make the sample of a mapping image.

    Args:
        image: The image after reconstruction.
        candidates: Its nearest landmarks, with its own observations left out of the keys.
        table: The map's landmarks.
        correct_px: A candidate is right if it projects at most this far from the keypoint, at
            1000 px focal length; never less than 2 px.
    """
    errors = candidate_errors_px(
        candidates, table, image.ideal_keypoints, image.camera, image.map_from_camera
    )
    inputs = network_inputs(View.of(image), candidates, table)
    limit = scaled_px(correct_px, image.camera, 2.0)
    return LandmarkSample(**inputs, correct=torch.from_numpy(errors <= limit))
