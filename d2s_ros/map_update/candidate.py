"""From grown images to a candidate map: the incumbent's scene model, updated and calibrated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.features.types import FeatureExtractor
from d2s_ros.map_building.calibration import calibrate, calibration_images
from d2s_ros.map_update.config import UpdateConfig
from d2s_ros.map_update.growth import GrownMap
from d2s_ros.map_update.label_database import LabelledFrame
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.scene_models.base import LabelledView, View
from d2s_ros.scene_models.growth import Growth, UpdateTraining

#: As in map building: old images that no training sees, for the gate.
_HOLDOUT_EVERY = 8


@dataclass(frozen=True, eq=False)
class Candidate:
    """A map that might replace the incumbent.

    Attributes:
        scene_map: Not written yet.
        grown: The images it was made from.
        figures: Of the training and calibration.
    """

    scene_map: SceneMap
    grown: GrownMap
    figures: dict[str, Any]


def train_candidate(
    incumbent: SceneMap,
    grown: GrownMap,
    extractor: FeatureExtractor,
    config: UpdateConfig,
    *,
    device: str = 'cpu',
    checkpoint: Path | None = None,
    keep: NDArray[np.int64] | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> Candidate:
    """Update the scene model of the incumbent with old and new images.

    Args:
        incumbent: The live map.
        grown: Old and new images with their points.
        extractor: Of the map's features.
        config: Options.
        device: To train on.
        checkpoint: File from which an interrupted training goes on.
        keep: (K,) points of the incumbent's landmarks, for a candidate that only adds: these stay
            unless they were forgotten, and so does the network. If None, landmarks compete by
            their use and the network is trained.
        progress: Show a progress bar.
        on_step: Called with step and loss.

    Raises:
        InputError: the scene model of the incumbent cannot be updated.
    """
    priority = grown.priority
    if keep is not None:
        priority = priority.copy()
        priority[keep[priority[keep] >= 0]] = np.inf
    images = grown.reconstruction.images
    held_out = list(range(_HOLDOUT_EVERY // 2, grown.num_old_images, _HOLDOUT_EVERY))
    growth = Growth(
        grown.reconstruction,
        priority,
        held_out,
        calibration_images(len(images), held_out).tolist(),
        config.growth.max_landmarks,
        config.growth.landmark_growth,
    )
    training = _training(config, device, checkpoint, progress)
    if keep is not None:
        training = replace(training, steps=0)
    built = incumbent.model.updated(growth, replace(training, on_step=on_step))
    cameras = dict.fromkeys([*incumbent.manifest.cameras, *(image.camera for image in images)])
    manifest = replace(
        incumbent.manifest, network=built.model.network_config, cameras=tuple(cameras), metrics={}
    )
    scene_map = SceneMap(manifest, built.model)
    calibration, accuracy = calibrate(scene_map, extractor, grown.reconstruction, held_out)
    scene_map = replace(scene_map, manifest=replace(manifest, calibration=calibration))
    return Candidate(scene_map, grown, {**built.figures, **accuracy})


def train_as_published(
    incumbent: SceneMap,
    frames: Sequence[LabelledFrame],
    points: NDArray[np.float64],
    config: UpdateConfig,
    *,
    device: str = 'cpu',
    checkpoint: Path | None = None,
    progress: bool = False,
) -> SceneMap:
    """Train a scene model on copied labels, with nothing verified and no new landmark.

    Args:
        incumbent: The live map; its model can leave images out.
        frames: Labelled frames.
        points: (P, 3) that they are labelled with.
        config, device, checkpoint, progress: As for `train_candidate`.
    """
    views = [
        LabelledView(
            View(frame.keyframe.features, frame.keyframe.camera),
            points[frame.point_idx],
            frame.point_idx >= 0,
        )
        for frame in frames
        if frame.usable and not frame.held_out
    ]
    built = incumbent.model.updated_as_published(
        views, _training(config, device, checkpoint, progress)
    )
    return SceneMap(replace(incumbent.manifest, metrics=built.figures), built.model)


def _training(
    config: UpdateConfig, device: str, checkpoint: Path | None, progress: bool
) -> UpdateTraining:
    return UpdateTraining(
        config.steps,
        config.steps_per_image,
        config.learning_rate,
        config.seed,
        device,
        checkpoint,
        progress,
    )
