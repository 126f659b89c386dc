"""Training samples of the landmark head: one per mapping image, computed once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from d2s_ros.reconstruction.reconstruction import MappedImage
from d2s_ros.scene_models.landmark.table import (
    Candidates,
    LandmarkStatistics,
    LandmarkTable,
    candidate_errors_px,
    find_training_candidates,
    network_inputs,
)

S = TypeVar('S')

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


def make_sample(
    image: MappedImage,
    table: LandmarkTable,
    statistics: LandmarkStatistics,
    *,
    num_candidates: int,
    correct_px: float = CORRECT_PX,
) -> tuple[LandmarkSample, Candidates]:
    """Make the sample of a mapping image, with its own observations left out of the keys.

    Args:
        image: The image after reconstruction.
        table: The map's landmarks.
        statistics: Sums behind the keys.
        num_candidates: C.
        correct_px: A candidate is right if it projects at most this far from the keypoint, at
            1000 px focal length; never less than 2 px.
    """
    candidates = find_training_candidates(
        image.features, image.point_idx, table, statistics, num_candidates
    )
    errors = candidate_errors_px(
        candidates, table, image.ideal_keypoints, image.camera, image.map_from_camera
    )
    inputs = network_inputs(image.features, image.camera, candidates, table)
    limit = max(2.0, correct_px * 0.5 * (image.camera.fx + image.camera.fy) / 1000.0)
    return LandmarkSample(**inputs, correct=torch.from_numpy(errors <= limit)), candidates


def pack_sample(sample: Any, without: Collection[str] = ()) -> dict[str, NDArray[Any]]:
    """Return the tensors of a sample (a dataclass of tensors) as arrays."""
    names = [field.name for field in fields(sample) if field.name not in without]
    return {name: getattr(sample, name).numpy() for name in names}


def unpack_sample(kind: type[S], arrays: Mapping[str, NDArray[Any]]) -> S:
    """Return the sample that `pack_sample` was given."""
    return kind(**{name: torch.from_numpy(value) for name, value in arrays.items()})
