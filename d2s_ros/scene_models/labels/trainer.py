"""Learning the labels of a scene from its tracks, without any classes given.

Labels are codes: of a place they should say the same in all images, and something else than of the
places around it. Heads learn to tell the labels of points; now and then all points get the labels
that the heads tell most clearly apart from what lies around them, all labels equally often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2s_ros.config import option
from d2s_ros.reconstruction.clustering import k_means, nearest_centroids
from d2s_ros.scene_models.labels.assignment import balanced_labels, mean_by_point
from d2s_ros.scene_models.labels.network import LabelConfig, LabelNetwork, Level
from d2s_ros.scene_models.labels.samples import LabelSample
from d2s_ros.scene_models.labels.standard import Standard
from d2s_ros.scene_models.optimizers import AdamW
from d2s_ros.scene_models.training_loop import LoopOptions, new_network, one_cycle, run_loop

#: Places around an observation that its label is told apart from.
_AROUND, _AROUND_IN_VOTES = 8, 4
#: Points that the first labels are clustered from.
_CLUSTERED = 8192


@dataclass(frozen=True)
class LabelTrainingConfig(LoopOptions):
    """Options of the training loop."""

    steps: int = option(300, 'Optimiser steps.', minimum=0)
    images_per_step: int = option(3, 'Images in a batch.', minimum=1)
    observations: int = option(256, 'Random observations of each image.', minimum=16)
    votes: int = option(6, 'Times that points get new labels.', minimum=1)
    learning_rate: float = option(3e-3, 'Peak of the one-cycle schedule.', minimum=0.0)
    weight_decay: float = option(1e-3, 'Of AdamW.', minimum=0.0)
    max_images: int = option(
        48, 'Images whose dense features are kept for the training, 10 MB each.', minimum=1
    )


class _Trained(nn.Module):
    """The network with the labels that points have meanwhile: a checkpoint keeps both."""

    labels: Tensor

    def __init__(self, network: LabelNetwork, labels: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer('labels', labels)


def pixels_around(pixels: Tensor, count: int, level: Level, generator: torch.Generator) -> Tensor:
    """Return places (N, count, 2) around pixels (N, 2), as far off as a level tells apart."""
    shape = (len(pixels), count)
    near, far = torch.log(torch.tensor([level.near_px, level.far_px]))
    radius = torch.exp(near + (far - near) * torch.rand(shape, generator=generator))
    angle = 2 * torch.pi * torch.rand(shape, generator=generator)
    offsets = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return pixels[:, None] + offsets


def label_loss(at: Tensor, around: Tensor, labels: Tensor) -> Tensor:
    """Return what heads are trained on.

    A label should be told at its point, should be told more clearly there than around it, and all
    labels should be told equally often.

    Args:
        at: (N, K) logits at observations.
        around: (N, A, K) logits around them.
        labels: (N,) of their points.
    """
    log_at = torch.log_softmax(at, dim=-1)
    log_around = torch.log_softmax(around, dim=-1)
    rows = labels[:, None]
    own = log_at.gather(1, rows)
    others = log_around.gather(2, rows[:, None].expand(-1, around.shape[1], 1))[..., 0]
    apart = own[:, 0] - torch.cat([own, others], dim=1).logsumexp(dim=1)
    mean = log_at.exp().mean(dim=0)
    balance = (mean * torch.log(mean * at.shape[1] + 1e-9)).sum()
    return -own.mean() - apart.mean() + balance


def train_labels(
    samples: Sequence[LabelSample],
    num_points: int,
    config: LabelConfig,
    channels: dict[int, int],
    training: LabelTrainingConfig,
    *,
    voters: Sequence[tuple[LabelSample, float]],
    checkpoint: Path | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[LabelNetwork, Tensor, dict[str, Any]]:
    """Learn labels, and the heads that tell them.

    Args:
        samples: Images to train on, with dense features.
        num_points: Points of the map.
        config: Shape.
        channels: Of the dense features, by stride.
        training: Options.
        voters: Images whose observations decide on the labels at the end, all of the map, and
            how much each counts.
        checkpoint: File to resume from and to save to.
        progress: Show a progress bar.
        on_step: Called with step and loss.

    Returns:
        The network, labels (P, L) int64 of all points, and figures of the run.
    """
    standard = Standard.of(samples, channels)
    network = new_network(lambda shape: LabelNetwork(shape, channels), config, training.seed, None)
    generator = torch.Generator().manual_seed(training.seed)
    first = [
        _clustered(level, samples, standard, num_points, config.num_labels, generator)
        for level in network.levels
    ]
    trained = _Trained(network, torch.stack(first))
    optimizer = AdamW(
        network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: one_cycle(step, training.steps)
    )
    equal = [(sample, 1.0) for sample in samples]
    every = max(1, training.steps // (training.votes + 1))

    def loss_of_step(step: int) -> Tensor:
        if step and step % every == 0 and step <= every * training.votes:
            trained.labels.copy_(
                torch.stack(voted(network, equal, standard, num_points, generator))
            )
        chosen = torch.randint(len(samples), (training.images_per_step,), generator=generator)
        total = torch.zeros(())
        for index in chosen.tolist():
            sample = samples[index]
            subset = torch.randperm(len(sample.pixels), generator=generator)
            subset = subset[: training.observations]
            pixels, points = sample.pixels[subset], sample.point_idx[subset]
            for number, (level, head) in enumerate(zip(network.levels, network.heads, strict=True)):
                nearby = pixels_around(pixels, _AROUND, level, generator)
                at = head(standard.columns(level, sample.features[subset]))
                around = head(standard.read(level, sample, nearby.reshape(-1, 2)))
                around = around.reshape(len(subset), _AROUND, at.shape[-1])
                total = total + label_loss(at, around, trained.labels[number, points])
        return total / (len(chosen) * len(network.levels))

    figures = run_loop(
        trained,
        optimizer,
        scheduler,
        generator,
        loss_of_step,
        training,
        clip_norm=1.0,
        checkpoint=checkpoint,
        progress=progress,
        on_step=on_step,
    )
    labels = torch.stack(voted(network, voters, standard, num_points, generator), dim=1)
    figures['label_bits'] = [round(entropy_bits(column), 2) for column in labels.T]
    figures['label_seen'] = share_seen(network, [sample for sample, _ in voters], standard, labels)
    network.fold(standard.means, standard.scales)
    return network, labels, figures


def _clustered(
    level: Level,
    samples: Sequence[LabelSample],
    standard: Standard,
    num_points: int,
    num_labels: int,
    generator: torch.Generator,
) -> Tensor:
    """Return first labels (P,): clusters of the mean features of points."""
    columns = torch.cat(
        [torch.cat(standard.columns(level, sample.features), dim=1) for sample in samples]
    )
    points = torch.cat([sample.point_idx for sample in samples])
    means, counts = mean_by_point(columns, points, num_points)
    seen = torch.nonzero(counts)[:, 0]
    seen = seen[torch.randperm(len(seen), generator=generator)][:_CLUSTERED]
    start = means[seen[torch.arange(num_labels) % len(seen)]]
    centroids = k_means(means[seen], start)
    return nearest_centroids(means, centroids)


@torch.no_grad()
def voted(
    network: LabelNetwork,
    voters: Sequence[tuple[LabelSample, float]],
    standard: Standard,
    num_points: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """Return for each level the labels (P,) that tell points most clearly from what is around."""
    found = []
    for level, head in zip(network.levels, network.heads, strict=True):
        scores, points, weights = [], [], []
        for sample, weight in voters:
            at = torch.log_softmax(head(standard.columns(level, sample.features)), dim=-1)
            score = at
            if sample.cells:
                nearby = pixels_around(sample.pixels, _AROUND_IN_VOTES, level, generator)
                around = head(standard.read(level, sample, nearby.reshape(-1, 2)))
                around = torch.log_softmax(around, dim=-1)
                around = around.reshape(len(at), _AROUND_IN_VOTES, at.shape[-1])
                both = torch.cat([at[:, None], around], dim=1)
                score = at + (at - both.logsumexp(dim=1))
            scores.append(score)
            points.append(sample.point_idx)
            weights.append(torch.full((len(at),), weight))
        means, _ = mean_by_point(
            torch.cat(scores), torch.cat(points), num_points, torch.cat(weights)
        )
        found.append(balanced_labels(means))
    return found


@torch.no_grad()
def share_seen(
    network: LabelNetwork, samples: Sequence[LabelSample], standard: Standard, labels: Tensor
) -> list[float]:
    """Return for each level how often the likeliest label at an observation is its point's."""
    shares = []
    for number, (level, head) in enumerate(zip(network.levels, network.heads, strict=True)):
        right = total = 0
        for sample in samples:
            likeliest = head(standard.columns(level, sample.features)).argmax(dim=1)
            right += int((likeliest == labels[sample.point_idx, number]).sum())
            total += len(likeliest)
        shares.append(round(right / max(total, 1), 3))
    return shares


def entropy_bits(labels: Tensor) -> float:
    """Return how many bits labels (P,) tell."""
    share = torch.bincount(labels).float() / max(len(labels), 1)
    share = share[share > 0]
    return float(-(share * share.log2()).sum())
