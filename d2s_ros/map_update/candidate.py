"""From grown images to a candidate map: landmarks and a network trained on from the incumbent's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from d2s_ros.config import from_dict, to_dict
from d2s_ros.errors import InputError
from d2s_ros.features.types import FeatureExtractor
from d2s_ros.map_building.pipeline import calibrate
from d2s_ros.map_update.config import UpdateConfig
from d2s_ros.map_update.growth import GrownMap, landmarks_of
from d2s_ros.map_update.label_database import LabelledFrame
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.reconstruction.reconstruction import MappedImage
from d2s_ros.scene_models.landmark.network import LandmarkConfig
from d2s_ros.scene_models.landmark.samples import LandmarkSample, make_sample
from d2s_ros.scene_models.landmark.table import (
    Candidates,
    LandmarkStatistics,
    find_training_candidates,
    network_inputs,
)
from d2s_ros.scene_models.landmark.trainer import LandmarkTrainingConfig, train_landmark_network

#: As in map building: old images that no training sees, for the gate.
_HOLDOUT_EVERY = 8


@dataclass(frozen=True, eq=False)
class Candidate:
    """A map that might replace the incumbent.

    Attributes:
        scene_map: Not written yet.
        statistics: Sums behind its keys.
        grown: The images it was made from.
        held_out_old: Indices of old images that it was not trained on.
        figures: Of the training and calibration.
    """

    scene_map: SceneMap
    statistics: LandmarkStatistics
    grown: GrownMap
    held_out_old: list[int]
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
    """Make landmarks of old and new images and train the incumbent's network on for them.

    Every old image is replayed with its labels, so that the network does not forget.

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
        InputError: the incumbent has the regression head, which has no landmarks to update.
    """
    table, network = incumbent.landmark_table, incumbent.landmark_network
    if table is None or network is None:
        raise InputError(
            'maps with the regression head cannot be updated; build a map with landmarks'
        )
    limit = min(config.growth.max_landmarks, round(config.growth.landmark_growth * len(table)))
    if keep is not None:
        priority = grown.priority.copy()
        priority[keep[priority[keep] >= 0]] = np.inf
        grown = replace(grown, priority=priority)
    new_table, statistics = landmarks_of(grown, max(limit, len(table)))
    # Coordinates stay centred as the network learned them.
    new_table = replace(new_table, center=table.center, extent=table.extent).coded()
    network_config = replace(
        from_dict(LandmarkConfig, incumbent.manifest.network), num_landmarks=len(new_table)
    )
    samples: list[LandmarkSample] = []
    all_candidates: list[Candidates] = []
    held_out: list[int] = []
    for index, image in enumerate(grown.reconstruction.images):
        sample, candidates = make_sample(
            image,
            new_table,
            statistics,
            num_candidates=network_config.num_candidates,
        )
        all_candidates.append(candidates)
        is_old = index < grown.num_old_images
        if is_old and index % _HOLDOUT_EVERY == _HOLDOUT_EVERY // 2:
            held_out.append(index)
        else:
            samples.append(sample)
    steps = 0 if keep is not None else min(config.steps, 50 + config.steps_per_image * len(samples))
    new_network, figures = train_landmark_network(
        samples,
        network_config,
        LandmarkTrainingConfig(steps=steps, learning_rate=config.learning_rate, seed=config.seed),
        device=device,
        initial=network.state_dict(),
        checkpoint=checkpoint,
        progress=progress,
        on_step=on_step,
    )
    cameras = dict.fromkeys(
        [*incumbent.manifest.cameras, *(image.camera for image in grown.reconstruction.images)]
    )
    manifest = replace(
        incumbent.manifest, network=to_dict(network_config), cameras=tuple(cameras), metrics={}
    )
    scene_map = SceneMap(manifest, landmark_table=new_table, landmark_network=new_network)
    calibration, accuracy = calibrate(
        scene_map, extractor, grown.reconstruction, all_candidates, held_out, statistics
    )
    scene_map = replace(scene_map, manifest=replace(manifest, calibration=calibration))
    figures = {'training': figures, 'num_landmarks': len(new_table), **accuracy}
    return Candidate(scene_map, statistics, grown, held_out, figures)


def train_as_published(
    incumbent: SceneMap,
    old_images: Sequence[MappedImage],
    frames: Sequence[LabelledFrame],
    points: np.ndarray,
    statistics: LandmarkStatistics,
    config: UpdateConfig,
    *,
    device: str = 'cpu',
    checkpoint: Path | None = None,
    progress: bool = False,
) -> SceneMap:
    """Train the incumbent's network on copied labels, with nothing verified and no new landmark.

    A candidate landmark is right for a keypoint if it is at the copied coordinates.
    """
    table, network = incumbent.landmark_table, incumbent.landmark_network
    if table is None or network is None:
        raise InputError(
            'maps with the regression head cannot be updated; build a map with landmarks'
        )
    samples = []
    for image in old_images:
        sample, _ = make_sample(
            image,
            table,
            statistics,
            num_candidates=network.config.num_candidates,
        )
        samples.append(sample)
    for frame in frames:
        if not frame.usable or frame.held_out:
            continue
        features, camera = frame.keyframe.features, frame.keyframe.camera
        nothing = np.full(len(features), -1, np.int64)
        candidates = find_training_candidates(
            features, nothing, table, statistics, network.config.num_candidates
        )
        inputs = network_inputs(features, camera, candidates, table)
        wanted = points[frame.point_idx].astype(np.float32)
        found = table.points_in_map[candidates.landmark_idx]
        correct = (np.abs(found - wanted[:, None]) < 1e-6).all(axis=2)
        correct &= (frame.point_idx >= 0)[:, None]
        samples.append(LandmarkSample(**inputs, correct=torch.from_numpy(correct)))
    steps = min(config.steps, 50 + config.steps_per_image * len(samples))
    new_network, figures = train_landmark_network(
        samples,
        network.config,
        LandmarkTrainingConfig(steps=steps, learning_rate=config.learning_rate, seed=config.seed),
        device=device,
        initial=network.state_dict(),
        checkpoint=checkpoint,
        progress=progress,
    )
    manifest = replace(incumbent.manifest, metrics={'training': figures})
    return SceneMap(manifest, landmark_table=table, landmark_network=new_network)
