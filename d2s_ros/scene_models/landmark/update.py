"""Landmarks of a map that has grown, and the network trained on for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from d2s_ros.reconstruction.reconstruction import make_reconstruction, point_groups
from d2s_ros.scene_models.base import LabelledView
from d2s_ros.scene_models.growth import Growth, UpdateTraining
from d2s_ros.scene_models.landmark.config import LandmarkConfig
from d2s_ros.scene_models.landmark.leave_one_out import LeaveOneOut
from d2s_ros.scene_models.landmark.network import LandmarkNetwork
from d2s_ros.scene_models.landmark.samples import LandmarkSample, make_sample, network_inputs
from d2s_ros.scene_models.landmark.table import (
    LandmarkStatistics,
    LandmarkTable,
    build_landmarks,
    find_training_candidates,
)
from d2s_ros.scene_models.landmark.trainer import LandmarkTrainingConfig, train_landmark_network


def grown_table(
    before: LandmarkTable, config: LandmarkConfig, growth: Growth
) -> tuple[LandmarkTable, LeaveOneOut]:
    """Choose landmarks among old and new points; they may be more than before."""
    limit = min(growth.max_landmarks, round(growth.max_factor * len(before)))
    table, statistics = landmarks_of(growth, max(limit, len(before)))
    # Coordinates stay centred as the network learned them.
    table = replace(table, center=before.center, extent=before.extent).coded(config.short_keys)
    left_out = LeaveOneOut(
        growth.reconstruction, table, statistics, config.num_candidates, growth.calibration_images
    )
    return table, left_out


def landmarks_of(growth: Growth, max_landmarks: int) -> tuple[LandmarkTable, LandmarkStatistics]:
    """Choose the landmarks; prototypes of a point share what all of them know about it."""
    reconstruction = growth.reconstruction
    table, statistics = build_landmarks(
        reconstruction, max_landmarks=max_landmarks, priority=growth.priority
    )
    groups = point_groups(reconstruction.points_in_map)
    _, first = np.unique(groups, return_index=True)
    merged_images = [
        replace(
            image,
            point_idx=np.where(image.point_idx >= 0, groups[image.point_idx], -1),
        )
        for image in reconstruction.images
    ]
    merged = make_reconstruction(
        merged_images, reconstruction.points_in_map[first], reconstruction.metric
    )
    shared, shared_statistics = build_landmarks(merged, max_landmarks=len(first))
    point_of_landmark = np.full(len(table), -1, np.int64)
    chosen = np.flatnonzero(statistics.landmark_of_point >= 0)
    point_of_landmark[statistics.landmark_of_point[chosen]] = chosen
    covariances = shared.covariances[shared_statistics.landmark_of_point[groups[point_of_landmark]]]
    return replace(table, covariances=covariances), statistics


def train_on_growth(
    network: LandmarkNetwork,
    table: LandmarkTable,
    left_out: LeaveOneOut,
    growth: Growth,
    training: UpdateTraining,
) -> tuple[LandmarkNetwork, dict[str, Any]]:
    """Train a network on for a table that has grown; also return figures of the training.

    Every old image is replayed with its labels, so that the network does not forget.
    """
    held_out = set(growth.held_out)
    samples = [
        make_sample(image, left_out.nearest(index), table)
        for index, image in enumerate(growth.reconstruction.images)
        if index not in held_out
    ]
    config = replace(network.config, num_landmarks=len(table))
    return _train_on(network, config, samples, training)


def train_on_labels(
    network: LandmarkNetwork,
    table: LandmarkTable,
    left_out: LeaveOneOut,
    views: Sequence[LabelledView],
    training: UpdateTraining,
) -> tuple[LandmarkNetwork, dict[str, Any]]:
    """Train a network on copied labels; also return figures of the training.

    A candidate landmark is right for a keypoint if it is at the copied coordinates.
    """
    samples = [
        make_sample(image, left_out.nearest(index), table)
        for index, image in enumerate(left_out.reconstruction.images)
    ]
    for labelled in views:
        view = labelled.view
        nothing = np.full(len(view.features), -1, np.int64)
        candidates = find_training_candidates(
            view.features, nothing, table, left_out.statistics, network.config.num_candidates
        )
        wanted = labelled.points_in_map.astype(np.float32)
        found = table.points_in_map[candidates.landmark_idx]
        correct = (np.abs(found - wanted[:, None]) < 1e-6).all(axis=2)
        correct &= labelled.labelled[:, None]
        inputs = network_inputs(view, candidates, table)
        samples.append(LandmarkSample(**inputs, correct=torch.from_numpy(correct)))
    return _train_on(network, network.config, samples, training)


def _train_on(
    network: LandmarkNetwork,
    config: LandmarkConfig,
    samples: Sequence[LandmarkSample],
    training: UpdateTraining,
) -> tuple[LandmarkNetwork, dict[str, Any]]:
    steps = min(training.steps, 50 + training.steps_per_image * len(samples))
    return train_landmark_network(
        samples,
        config,
        LandmarkTrainingConfig(
            steps=steps, learning_rate=training.learning_rate, seed=training.seed
        ),
        device=training.device,
        initial=network.state_dict(),
        checkpoint=training.checkpoint,
        progress=training.progress,
        on_step=training.on_step,
    )
