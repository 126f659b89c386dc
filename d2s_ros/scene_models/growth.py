"""What a scene model is given when a map is updated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2s_ros.reconstruction.reconstruction import Reconstruction


@dataclass(frozen=True, eq=False)
class Growth:
    """What a scene model grows into when a map is updated.

    Attributes:
        reconstruction: Old and new images, and points; prototypes of one point share coordinates.
        priority: (P,) usefulness of each point; negative for those that are gone, infinite for
            those that must stay.
        held_out, calibration_images: As in `base.BuildContext`.
        max_landmarks, max_factor: Most landmarks, and most over those that the model has; it may
            keep as many as it has in any case.
    """

    reconstruction: Reconstruction
    priority: NDArray[np.float64]
    held_out: Sequence[int]
    calibration_images: Sequence[int]
    max_landmarks: int
    max_factor: float


@dataclass(frozen=True, eq=False)
class UpdateTraining:
    """How a network is trained on when a map is updated.

    Attributes:
        steps: Optimiser steps at most; 0 trains nothing.
        steps_per_image: Few images get 50 steps and this many for each, if that is less.
        learning_rate, seed: Of the training.
        device, checkpoint, progress: As in `base.BuildContext`.
        on_step: Called with step and loss.
    """

    steps: int
    steps_per_image: int
    learning_rate: float
    seed: int
    device: str = 'cpu'
    checkpoint: Path | None = None
    progress: bool = False
    on_step: Callable[[int, float], None] | None = None
