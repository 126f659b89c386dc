"""Training of the paper's network: coordinates and reliability regressed from descriptors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2s_ros import distributed
from d2s_ros.config import option
from d2s_ros.scene_models.regression.augmentation import AugmentationConfig
from d2s_ros.scene_models.regression.losses import (
    annealed,
    coordinate_loss,
    curriculum_tau,
    linear_errors,
    log_reprojection_loss,
    reliability_loss,
    reprojection_errors,
    reprojection_weight,
    robust_reprojection_loss,
)
from d2s_ros.scene_models.regression.network import D2SNetwork, RegressionConfig
from d2s_ros.scene_models.regression.samples import RegressionSample
from d2s_ros.scene_models.regression.start import start_from_he, start_from_points
from d2s_ros.scene_models.regression.track_mixing import TrackDescriptors
from d2s_ros.scene_models.training_loop import (
    LoopOptions,
    halving,
    new_network,
    one_cycle,
    run_loop,
)

_PER_KEYPOINT = ('descriptors', 'targets', 'z', 'pixels', 'depths')
_PER_IMAGE = ('rotation', 'translation', 'intrinsics')


@dataclass(frozen=True)
class RegressionTrainingConfig(LoopOptions):
    """Options of the training loop; the defaults are published but for the number of steps."""

    steps: int = option(600, 'Optimiser steps; 1.5 million as published.', minimum=0)
    images_per_step: int = option(1, 'Images in a batch.', minimum=1)
    keypoints_per_image: int = option(0, 'Random keypoints of each image; 0 takes all.', minimum=0)
    learning_rate: float = option(1e-4, 'Of Adam, at its highest.', minimum=0.0)
    schedule: str = option(
        'halving', 'Learning rate over the run.', choices=('halving', 'one_cycle')
    )
    start: str = option(
        'random',
        "Weights before training: PyTorch's random ones, random ones of He et al. that keep the "
        "size of what passes, or such that the network knows the scene's best points.",
        choices=('random', 'he', 'points'),
    )
    distance: str = option(
        'squared',
        'Of coordinates in the loss: as published, not squared, or the logarithm of it in px, '
        'projected or linear about the true point.',
        choices=('squared', 'plain', 'pixels', 'linear_pixels'),
    )
    scale_px: float = option(
        3.0, 'Errors far above it count by their logarithm (pixels).', unit='px', minimum=0.1
    )
    scale_first_px: float = option(
        0.0, 'Its value at the start, from where it falls; 0: constant.', unit='px', minimum=0.0
    )
    track_mixing: float = option(
        0.0,
        'Share of descriptors that are replaced by another of the same point.',
        minimum=0.0,
        maximum=1.0,
    )
    labelled_share: float = option(
        0.0,
        'Share of the keypoints drawn that have a label, if there are so many; 0: as it comes.',
        minimum=0.0,
        maximum=1.0,
    )
    average: float = option(
        0.0,
        'What a step keeps of the running mean of weights, which is the result; 0: no mean.',
        minimum=0.0,
        maximum=0.99999,
    )
    descriptor_noise: float = option(
        0.0, 'Length of the noise added to descriptors, which are of length 1.', minimum=0.0
    )
    alpha_m: float = option(1.0, 'Weight of the coordinates.', minimum=0.0)
    alpha_u: float = option(1.0, 'Weight of the reliability.', minimum=0.0)
    alpha_r: float = option(1.0, 'Weight of the reprojection, once it is on.', minimum=0.0)
    reprojection_start: float = option(
        0.8, 'Share of the run after which the reprojection counts.', minimum=0.0, maximum=1.0
    )
    tau_max_px: float = option(50.0, 'Curriculum of the reprojection.', unit='px', minimum=0.0)
    tau_min_px: float = option(1.0, 'Its last value.', unit='px', minimum=1e-3)
    min_depth_share: float = option(
        0.1, 'Smallest depth in the reprojection, share of the true one.', minimum=1e-6
    )
    center_targets: bool = option(False, 'Centre and scale the coordinates.')
    clip_norm: float = option(0.0, 'Largest norm of the gradient; 0 for no limit.', minimum=0.0)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    patience: int = option(
        0, 'Evaluations without improvement before training stops; 0 never stops.', minimum=0
    )


def draw_regression_batch(
    samples: Sequence[Sequence[RegressionSample]],
    config: RegressionTrainingConfig,
    generator: torch.Generator,
    descriptors_of: TrackDescriptors | None = None,
) -> dict[str, Tensor]:
    """Draw random images, each as it is or as one of its augmented views.

    Args:
        samples: For each mapping image, its own sample first and then those of its views.
        config: Options.
        generator: Source of all randomness.
        descriptors_of: What `track_mixing` draws from.

    Returns:
        The fields of `RegressionSample` stacked (B, N, ...), and mask (B, N), False for padding.
    """
    chosen = []
    for index in torch.randint(
        len(samples), (config.images_per_step,), generator=generator
    ).tolist():
        variants = samples[index]
        number = 0
        if len(variants) > 1:
            augmented = float(torch.rand((), generator=generator)) < config.augmentation.share
            other = int(torch.randint(1, len(variants), (), generator=generator))
            number = other if augmented else 0
        chosen.append(variants[number])
    subsets = []
    for sample in chosen:
        order = torch.arange(len(sample))
        if 0 < config.keypoints_per_image < len(sample):
            order = torch.randperm(len(sample), generator=generator)
            if config.labelled_share:
                order = _labelled_first(order, sample.z[order] > 0, config)
            order = order[: config.keypoints_per_image]
        subsets.append(order)
    count = max(len(subset) for subset in subsets)
    batch = {
        name: torch.stack(
            [
                _pad(getattr(sample, name)[subset], count)
                for sample, subset in zip(chosen, subsets, strict=True)
            ]
        )
        for name in _PER_KEYPOINT
    }
    for name in _PER_IMAGE:
        batch[name] = torch.stack([getattr(sample, name) for sample in chosen])
    lengths = torch.tensor([len(subset) for subset in subsets])
    batch['mask'] = torch.arange(count)[None, :] < lengths[:, None]
    if config.track_mixing and descriptors_of is not None:
        tracks = torch.stack(
            [
                _pad(sample.tracks[subset] + 1, count) - 1
                for sample, subset in zip(chosen, subsets, strict=True)
            ]
        )
        batch['descriptors'] = descriptors_of.mixed(
            batch['descriptors'], tracks, config.track_mixing, generator
        )
    if config.descriptor_noise:
        descriptors = batch['descriptors']
        noise = torch.randn(descriptors.shape, generator=generator)
        scale = config.descriptor_noise / descriptors.shape[-1] ** 0.5
        batch['descriptors'] = descriptors + scale * noise
    return batch


def _labelled_first(order: Tensor, labelled: Tensor, config: RegressionTrainingConfig) -> Tensor:
    wanted = round(config.labelled_share * config.keypoints_per_image)
    first, rest = order[labelled], order[~labelled]
    return torch.cat([first[:wanted], rest, first[wanted:]])


def _pad(values: Tensor, count: int) -> Tensor:
    missing = count - len(values)
    if not missing:
        return values
    return torch.cat([values, values.new_zeros((missing, *values.shape[1:]))])


def paper_loss(
    network: D2SNetwork,
    batch: dict[str, Tensor],
    config: RegressionTrainingConfig,
    step: int,
) -> Tensor:
    """Return L of equation (11) for a batch at a step of the run."""
    mask = batch['mask']
    # Attention without a mask is faster, and exact where nothing is padded.
    points, p = network(batch['descriptors'], None if bool(mask.all()) else mask)
    z = batch['z']
    if config.distance in ('pixels', 'linear_pixels'):
        scale = config.scale_px
        if config.scale_first_px:
            scale = annealed((step + 1) / config.steps, config.scale_first_px, scale)
        if config.distance == 'pixels':
            errors = _errors_px(points, batch, config)
        else:
            errors = linear_errors(
                points,
                batch['targets'],
                batch['rotation'],
                batch['translation'],
                batch['intrinsics'],
            )
        loss = log_reprojection_loss(errors, z, scale)
    else:
        squared = config.distance == 'squared'
        loss = coordinate_loss(points, batch['targets'], z, squared=squared)
    loss = config.alpha_m * loss
    loss = loss + config.alpha_u * reliability_loss(network.reliability(p), z, mask)
    alpha_r = config.alpha_r * reprojection_weight(
        step + 1, config.steps, config.reprojection_start
    )
    if alpha_r:
        errors = _errors_px(points, batch, config)
        tau = curriculum_tau((step + 1) / config.steps, config.tau_max_px, config.tau_min_px)
        loss = loss + alpha_r * robust_reprojection_loss(errors, z, tau)
    return loss


def _errors_px(
    points: Tensor, batch: dict[str, Tensor], config: RegressionTrainingConfig
) -> Tensor:
    return reprojection_errors(
        points,
        batch['rotation'],
        batch['translation'],
        batch['intrinsics'],
        batch['pixels'],
        (config.min_depth_share * batch['depths']).clamp_min(1e-6),
    )


def train_regression_network(
    samples: Sequence[Sequence[RegressionSample]],
    network_config: RegressionConfig,
    config: RegressionTrainingConfig,
    *,
    device: str = 'cpu',
    initial: dict[str, Tensor] | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    held_out: Sequence[RegressionSample] = (),
    on_evaluation: Callable[[D2SNetwork], None] | None = None,
) -> tuple[D2SNetwork, dict[str, Any]]:
    """Train from scratch, from given weights, or on from a checkpoint of the same run.

    Args:
        samples: For each mapping image, its own sample first and then those of its views.
        network_config: Shape of the network.
        config: Options.
        device: 'cpu' or 'cuda'.
        initial: State dict to start from (a previous map).
        checkpoint: File to resume from and to save to; the result of a resumed run equals that of
            an uninterrupted one.
        progress: Show a progress bar.
        on_step: Called with (step, loss) after each step; an exception ends training.
        held_out: Samples that are not trained on. With `patience`, the weights with the lowest
            `held_out_error_px` are kept, those before training among them.
        on_evaluation: Called with the network at each of these evaluations.

    Returns:
        The network on the CPU in eval mode, in the coordinates of the samples, and figures of the
        run (steps, seconds, loss, held_out_px, and known_points of the start).
    """
    network = new_network(D2SNetwork, network_config, config.seed, initial)
    figures: dict[str, Any] = {}
    if config.start == 'points' and samples and initial is None:
        known = start_from_points(network, [variants[0] for variants in samples])
        samples = [[sample.labelled_only(known) for sample in variants] for variants in samples]
        held_out = [sample.labelled_only(known) for sample in held_out]
        figures['known_points'] = len(known)
    if config.start == 'he' and initial is None:
        start_from_he(network, config.seed)
    descriptors_of = None
    if config.track_mixing and samples:
        descriptors_of = TrackDescriptors.of(
            [sample for variants in samples for sample in variants]
        )
    network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    share = halving if config.schedule == 'halving' else one_cycle
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step, config.steps))
    generator = torch.Generator().manual_seed(config.seed)

    own = distributed.share_of(config.images_per_step, equal=True)

    def loss_of_step(step: int) -> Tensor:
        batch = draw_regression_batch(samples, config, generator, descriptors_of)
        batch = {name: value[own].to(device) for name, value in batch.items()}
        return paper_loss(network, batch, config, step)

    def error_px() -> float:
        if on_evaluation is not None:
            on_evaluation(network)
        return held_out_error_px(network, held_out, config, device)

    figures |= run_loop(
        network,
        optimizer,
        scheduler,
        generator,
        loss_of_step,
        config if samples else replace(config, steps=0),
        clip_norm=config.clip_norm,
        average=config.average,
        checkpoint=checkpoint,
        progress=progress,
        on_step=on_step,
        evaluate=error_px if held_out else None,
        patience=config.patience,
    )
    if held_out:
        figures['held_out_px'] = round(held_out_error_px(network, held_out, config), 2)
    return network, figures


@torch.no_grad()
def held_out_error_px(
    network: D2SNetwork,
    samples: Sequence[RegressionSample],
    config: RegressionTrainingConfig,
    device: str = 'cpu',
) -> float:
    """Return how far labelled keypoints are from where their predicted coordinates project, px.

    The mean over the keypoints of all samples. Those that are further off than `tau_max_px`, or
    that the network calls less than half reliable, count as that much.
    """
    found = []
    for sample in samples:
        batch = {
            name: getattr(sample, name)[None].to(device) for name in (*_PER_KEYPOINT, *_PER_IMAGE)
        }
        points, p = network(batch['descriptors'])
        errors = _errors_px(points, batch, config).clamp_max(config.tau_max_px)
        errors[network.reliability(p) < 0.5] = config.tau_max_px
        found.append(errors[batch['z'] > 0])
    errors = torch.cat(found)
    return float(errors.mean()) if len(errors) else config.tau_max_px
