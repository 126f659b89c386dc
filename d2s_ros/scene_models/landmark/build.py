"""From a reconstruction to landmarks and the network that chooses among them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tqdm import tqdm

from d2s_ros import distributed
from d2s_ros.config import option
from d2s_ros.geometry.statistics import subsample
from d2s_ros.scene_models.base import MAX_VALIDATION_IMAGES, BuildContext
from d2s_ros.scene_models.landmark.config import LandmarkConfig
from d2s_ros.scene_models.landmark.descriptor_training import (
    DescriptorTrainingConfig,
    train_descriptors,
)
from d2s_ros.scene_models.landmark.leave_one_out import LeaveOneOut
from d2s_ros.scene_models.landmark.network import LandmarkNetwork
from d2s_ros.scene_models.landmark.samples import CORRECT_PX, LandmarkSample, make_sample
from d2s_ros.scene_models.landmark.stored_descriptors import StoredDescriptorNetwork
from d2s_ros.scene_models.landmark.table import LandmarkTable, build_landmarks
from d2s_ros.scene_models.landmark.trainer import LandmarkTrainingConfig, train_landmark_network
from d2s_ros.scene_models.shared_samples import pack_sample, share_training, unpack_sample

#: Where the descriptor network of an interrupted build is kept among its samples.
_DESCRIPTORS = 'descriptor_network'


@dataclass(frozen=True)
class LandmarkOptions:
    """Options of a build that are of the landmark head alone."""

    training: LandmarkTrainingConfig = field(default_factory=LandmarkTrainingConfig)
    descriptor_training: DescriptorTrainingConfig = field(default_factory=DescriptorTrainingConfig)
    descriptor_width: int = option(
        128,
        'Hidden width of the network that descriptors pass before they are compared; 0: none.',
        minimum=0,
        maximum=4096,
    )
    steps_per_image: int = option(
        10, 'Small logs get 100 steps and this many for each image, if that is less.', minimum=1
    )
    max_landmarks: int = option(24_576, 'Landmarks kept in the map.', minimum=64)
    short_keys: int = option(
        0,
        'Half the size of the map: so many principal components stand for a key (16 for '
        'superpoint), points and covariances are rounded; 0: as exact as it can be.',
        minimum=0,
        maximum=256,
    )
    num_layers: int = option(0, 'Attention layers.', minimum=0)
    num_candidates: int = option(6, 'Candidate landmarks per keypoint.', minimum=1)
    hidden_inputs: tuple[str, ...] = option((), 'See LandmarkConfig; for ablations.')
    correct_px: float = option(
        CORRECT_PX,
        'Candidates that project this close are right, at 1000 px focal length.',
        unit='px',
    )


def budget(name: str, seed: int) -> dict[str, Any]:
    """Return the fields of `BuildConfig` that differ from their defaults in a budget."""
    steps, images, max_images = {
        'quick': (150, 3, 80),
        'standard': (500, 4, 400),
        'full': (3000, 8, 2000),
    }[name]
    training = LandmarkTrainingConfig(
        steps=steps,
        images_per_step=images,
        seed=seed,
        # Short runs improve on held-out images up to their last step.
        patience=12 if name == 'full' else 0,
    )
    descriptors = DescriptorTrainingConfig()
    if name == 'quick':
        # The whole build of a small log takes some seconds.
        descriptors = replace(descriptors, steps=100)
    return {
        'training': training,
        'descriptor_training': descriptors,
        'max_images': max_images,
    }


def learn_descriptors(context: BuildContext) -> StoredDescriptorNetwork:
    """Train the descriptor network, or read what an interrupted build has trained."""
    options: LandmarkOptions = context.options
    if options.descriptor_width == 0:
        return StoredDescriptorNetwork({})
    state = context.samples.get(_DESCRIPTORS)
    if state is None:
        held_out = set(context.held_out)
        learned_from = [i for i in range(len(context.reconstruction.images)) if i not in held_out]
        network = train_descriptors(
            context.reconstruction,
            learned_from,
            _network_config(context, 1),
            replace(options.descriptor_training, seed=options.training.seed),
            device=context.device,
            progress=context.progress,
        )
        state = {name: value.numpy() for name, value in network.state_dict().items()}
        context.samples.keep(_DESCRIPTORS, state)
    return StoredDescriptorNetwork(state)


def _network_config(context: BuildContext, num_landmarks: int) -> LandmarkConfig:
    options: LandmarkOptions = context.options
    return LandmarkConfig(
        descriptor_dim=context.extractor.dim,
        num_landmarks=num_landmarks,
        num_candidates=options.num_candidates,
        num_layers=options.num_layers,
        hidden_inputs=options.hidden_inputs,
        descriptor_width=options.descriptor_width,
        short_keys=options.short_keys,
    )


def build_table(context: BuildContext) -> tuple[LandmarkTable, LeaveOneOut]:
    """Choose the landmarks of a reconstruction."""
    options: LandmarkOptions = context.options
    table, statistics = build_landmarks(context.reconstruction, max_landmarks=options.max_landmarks)
    table = table.coded(options.short_keys)
    left_out = LeaveOneOut(
        context.reconstruction,
        table,
        statistics,
        options.num_candidates,
        context.calibration_images,
    )
    return table, left_out


def train(
    table: LandmarkTable,
    left_out: LeaveOneOut,
    describe: StoredDescriptorNetwork,
    context: BuildContext,
) -> tuple[LandmarkNetwork, dict[str, Any]]:
    """Train the network that chooses among landmarks; also return figures of the training.

    Args:
        table, left_out: Landmarks, of descriptors that `describe` gave.
        describe: The descriptor network, which becomes a part of it.
        context: With the images whose descriptors `describe` gave.
    """
    options: LandmarkOptions = context.options
    config = _network_config(context, len(table))
    images, held_out = context.reconstruction.images, context.held_out
    validation = subsample(held_out, MAX_VALIDATION_IMAGES)
    train_idx = sorted(set(range(len(images))) - set(held_out))
    steps = min(options.training.steps, 100 + options.steps_per_image * len(train_idx))
    # Of a long log, not more images than the training could look at once.
    train_idx = subsample(train_idx, max(1, steps * options.training.images_per_step))
    samples = _samples({*train_idx, *validation}, table, left_out, context)
    training = replace(options.training, steps=steps)
    share_training(
        'landmark',
        config,
        training,
        [[str(index)] for index in train_idx],
        [str(index) for index in validation],
        context,
    )
    network, figures = train_landmark_network(
        [samples[index] for index in train_idx],
        config,
        training,
        device=context.device,
        checkpoint=context.checkpoint,
        progress=context.progress,
        held_out=[samples[index] for index in validation],
    )
    if network.descriptors is not None:
        network.descriptors.load_state_dict(
            {name: torch.from_numpy(value) for name, value in describe.state.items()}
        )
    return network, figures


def _samples(
    wanted: set[int], table: LandmarkTable, left_out: LeaveOneOut, context: BuildContext
) -> dict[int, LandmarkSample]:
    """Make samples of images, or read those that an interrupted build has made."""
    options: LandmarkOptions = context.options
    log, images = context.samples, context.reconstruction.images
    # Descriptors are in the log of the features already, but other processes see only this one.
    shared = () if distributed.world() > 1 else ('descriptors',)
    samples = {}
    for index in tqdm(sorted(wanted), desc='samples', unit='image', disable=not context.progress):
        if str(index) not in log:
            sample = make_sample(images[index], left_out.nearest(index), table, options.correct_px)
            if not log.keep(str(index), pack_sample(sample, shared)):
                samples[index] = sample
                continue
        arrays = log.get(str(index))
        assert arrays is not None
        arrays.setdefault('descriptors', images[index].features.descriptors)
        samples[index] = unpack_sample(LandmarkSample, arrays)
    return samples
