"""Labels learned as SegLoc learns them, on frozen features: docs/design/segloc_decisions.md.

Prototypes of clusters give the first targets; in later epochs predictions are their own targets,
over the square root of how frequent labels are. Matched pixels of two images must have the same
labels, and images taken near each other must have pooled labels that are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from d2s_ros.config import option
from d2s_ros.reconstruction.clustering import k_means, nearest_centroids
from d2s_ros.scene_models.labels import paper_losses as losses
from d2s_ros.scene_models.labels.assignment import mean_by_point
from d2s_ros.scene_models.labels.image_pairs import ImagePair, Neighbours, find_pairs
from d2s_ros.scene_models.labels.network import LabelConfig, LabelHead, LabelNetwork
from d2s_ros.scene_models.labels.samples import LabelSample
from d2s_ros.scene_models.labels.standard import Standard
from d2s_ros.scene_models.labels.table import POOLED_LEVELS
from d2s_ros.scene_models.labels.trainer import entropy_bits, share_seen
from d2s_ros.scene_models.training_loop import LoopOptions, new_network, run_loop

#: The five losses, by the names that the supplementary material gives them.
LOSSES = ('CE', 'CC', 'PC', 'PF', 'MS')
#: Observations and other places of each image that prototypes and frequencies are taken from.
_REFERENCE = 192


@dataclass(frozen=True)
class LabelPaperConfig(LoopOptions):
    """Options of the training as SegLoc does it."""

    steps: int = option(300, 'Optimiser steps.', minimum=0)
    epochs: int = option(6, 'Epochs that the steps are divided into.', minimum=1)
    pairs_per_step: int = option(2, 'Pairs of images in a batch.', minimum=1)
    matches: int = option(192, 'Matched pixels of a pair in a step.', minimum=8)
    places: int = option(64, 'Other places of each image in a step.', minimum=8)
    learning_rate: float = option(2e-3, 'Of Adam.', minimum=0.0)
    weight_decay: float = option(1e-4, 'Of Adam.', minimum=0.0)
    temperature: float = option(0.1, 'Mean concentration, and of L_PF.', minimum=1e-3)
    losses: tuple[str, ...] = option(LOSSES, 'Losses that are added up, CE among them.')


class _Heads(nn.Module):
    """The network in training, with what an epoch keeps: a checkpoint has all of it.

    Attributes:
        norms: Batch normalisation of the logits of each level.
        prototypes: (L, K, D), concentrations: (L, K), distribution: (L, K).
        similarity: (I, I) cosines of the pooled labels of images.
    """

    prototypes: Tensor
    concentrations: Tensor
    distribution: Tensor
    similarity: Tensor

    def __init__(self, network: LabelNetwork, num_images: int) -> None:
        super().__init__()
        self.network = network
        config = network.config
        levels, count = len(config.levels), config.num_labels
        self.norms = nn.ModuleList(nn.BatchNorm1d(count) for _ in config.levels)
        self.register_buffer('prototypes', torch.zeros(levels, count, config.hidden))
        self.register_buffer('concentrations', torch.ones(levels, count))
        self.register_buffer('distribution', torch.full((levels, count), 1.0 / count))
        self.register_buffer('similarity', torch.zeros(num_images, num_images))

    def tell(self, level: int, columns: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return features (N, D) of length 1, and logits (N, K)."""
        head = self.network.heads[level]
        assert isinstance(head, LabelHead)
        embedding = head.embedded(columns)
        return functional.normalize(embedding, dim=1), self.norms[level](head.classified(embedding))

    @torch.no_grad()
    def fold(self) -> None:
        """Put the normalisation into the last layers, so that maps need not know of it."""
        for head, norm in zip(self.network.heads, self.norms, strict=True):
            assert isinstance(head, LabelHead)
            assert isinstance(norm, nn.BatchNorm1d)
            assert norm.running_var is not None
            assert norm.running_mean is not None
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            head.last.weight.mul_(factor[:, None])
            head.last.bias.sub_(norm.running_mean).mul_(factor).add_(norm.bias)


class _Training:
    """One training: images, pairs, and what each step draws from them."""

    def __init__(
        self,
        heads: _Heads,
        samples: Sequence[LabelSample],
        standard: Standard,
        neighbours: Neighbours,
        config: LabelPaperConfig,
        generator: torch.Generator,
    ) -> None:
        self.heads, self.samples, self.standard = heads, samples, standard
        self.neighbours, self.config, self.generator = neighbours, config, generator
        self.pairs = find_pairs(samples)

    def drawn(self, count: int, most: int) -> Tensor:
        """Return at most `most` of `count` rows."""
        return torch.randperm(count, generator=self.generator)[:most]

    def places(self, sample: LabelSample, count: int) -> Tensor:
        """Return pixels (count, 2) anywhere in an image."""
        camera = sample.image.camera
        size = torch.tensor([camera.width, camera.height], dtype=torch.float32)
        return torch.rand((count, 2), generator=self.generator) * size - 0.5

    def columns(self, level: int, parts: Sequence[_Part]) -> list[Tensor]:
        """Return what a level sees of parts of images, one below the other."""
        shape = self.heads.network.levels[level]
        read = [part.columns(self.standard, shape) for part in parts]
        return [torch.cat(columns) for columns in zip(*read, strict=True)]

    @torch.no_grad()
    def begin_epoch(self, first: bool) -> None:
        """Find prototypes, concentrations and frequencies, and compare images."""
        self.heads.eval()
        parts = []
        for sample in self.samples:
            rows = self.drawn(len(sample.pixels), _REFERENCE)
            parts += [_Part(sample, rows=rows), _Part(sample, self.places(sample, _REFERENCE))]
        pooled = []
        for level in range(len(self.heads.network.levels)):
            features, logits = self.heads.tell(level, self.columns(level, parts))
            count = logits.shape[1]
            if first:
                rows = self.drawn(len(features), len(features))
                start = features[rows[torch.arange(count) % len(rows)]]
                prototypes = functional.normalize(k_means(features, start), dim=1)
                assigned = nearest_centroids(features, prototypes)
            else:
                assigned = logits.argmax(dim=1)
                means, seen = mean_by_point(features, assigned, count)
                kept = self.heads.prototypes[level]
                prototypes = torch.where(seen[:, None] > 0, functional.normalize(means), kept)
            self.heads.prototypes[level] = prototypes
            self.heads.concentrations[level] = losses.concentrations_of(
                features, prototypes, assigned, self.config.temperature
            )
            probability = torch.softmax(logits, dim=1)
            self.heads.distribution[level] = probability.mean(dim=0)
            if level < POOLED_LEVELS:
                sizes = [len(part) for part in parts]
                # Every second part is of places all over an image.
                pooled.append([_root_mean(part) for part in probability.split(sizes)[1::2]])
        vectors = functional.normalize(
            torch.cat([torch.stack(vectors) for vectors in pooled], dim=1), dim=1
        )
        self.heads.similarity.copy_(vectors @ vectors.T)
        self.heads.train()

    def loss(self, first_epoch: bool) -> Tensor:
        """Return the loss of a batch of pairs."""
        config = self.config
        total = torch.zeros(())
        chosen = torch.randint(len(self.pairs), (config.pairs_per_step,), generator=self.generator)
        batch = [self._drawn_pair(self.pairs[number]) for number in chosen.tolist()]
        parts = [part for pair in batch for part in pair.parts]
        sizes = [len(part) for part in parts]
        pooled: list[list[Tensor]] = []
        for level in range(len(self.heads.network.levels)):
            features, logits = self.heads.tell(level, self.columns(level, parts))
            by_part = list(zip(features.split(sizes), logits.split(sizes), strict=True))
            if level < POOLED_LEVELS:
                pooled.append([_root_mean(torch.softmax(part, dim=1)) for _, part in by_part])
            begin = 0
            for pair in batch:
                total = total + self._pair_loss(level, by_part[begin : begin + 4], first_epoch)
                begin += len(pair.parts)
        total = total / (len(batch) * len(self.heads.network.levels))
        if 'MS' in config.losses:
            begin, found = 0, []
            for pair in batch:
                vectors = [
                    functional.normalize(torch.cat([level[begin + row] for level in pooled]), dim=0)
                    for row in range(len(pair.parts))
                ]
                found += pair.similarity_losses(vectors)
                begin += len(pair.parts)
            total = total + torch.stack(found).mean()
        return total

    def _pair_loss(
        self, level: int, parts: Sequence[tuple[Tensor, Tensor]], first_epoch: bool
    ) -> Tensor:
        """Return the sum of the losses of a pair at one level; L_MS is of all levels together."""
        heads, names = self.heads, self.config.losses
        features, logits = (torch.cat(values) for values in zip(*parts, strict=True))
        prototypes, widths = heads.prototypes[level], heads.concentrations[level]
        if first_epoch:
            target = losses.prototype_target(features, prototypes, widths)
        else:
            target = losses.self_target(logits, heads.distribution[level])
        total = losses.classification_loss(logits, target)
        (features_a, logits_a), (features_b, logits_b) = parts[:2]
        if 'CC' in names:
            total = total + losses.correspondence_loss(logits_a, logits_b)
        if 'PC' in names:
            total = total + losses.prototype_loss(features_a, features_b, prototypes, widths)
        if 'PF' in names:
            total = total + losses.feature_loss(features_a, features_b, self.config.temperature)
        return total

    def _drawn_pair(self, pair: ImagePair) -> _DrawnPair:
        rows = self.drawn(len(pair.rows_first), self.config.matches)
        images = (pair.first, pair.second)
        samples = [self.samples[index] for index in images]
        parts = [
            _Part(samples[0], rows=pair.rows_first[rows]),
            _Part(samples[1], rows=pair.rows_second[rows]),
            *(_Part(sample, self.places(sample, self.config.places)) for sample in samples),
        ]
        positives: list[list[int]] = [[3], [2]]
        negatives: list[list[int]] = [[], []]
        for number, index in enumerate(images):
            hard_positive, hard_negative = self.neighbours.hard(
                index, self.heads.similarity.numpy()
            )
            far = np.flatnonzero(self.neighbours.far[index])
            others = [(hard_positive, positives), (hard_negative, negatives)]
            if len(far):
                drawn = torch.randint(len(far), (1,), generator=self.generator)
                others.append((int(far[int(drawn)]), negatives))
            for other, rows_of in others:
                if other is not None:
                    sample = self.samples[other]
                    rows_of[number].append(len(parts))
                    parts.append(_Part(sample, self.places(sample, self.config.places)))
        return _DrawnPair(parts, positives, negatives)


@dataclass(frozen=True, eq=False)
class _Part:
    """Places of one image: any pixels (N, 2), or rows (N,) of its observations."""

    sample: LabelSample
    pixels: Tensor | None = None
    rows: Tensor | None = None

    def __len__(self) -> int:
        found = self.rows if self.pixels is None else self.pixels
        assert found is not None
        return len(found)

    def columns(self, standard: Standard, level: Any) -> list[Tensor]:
        if self.pixels is None:
            return standard.columns(level, self.sample.features[self.rows])
        return standard.read(level, self.sample, self.pixels)


@dataclass(frozen=True, eq=False)
class _DrawnPair:
    """A pair in a batch: parts 0 and 1 are matched, 2 and 3 lie all over the two images.

    Attributes:
        parts: They, and places of positive and negative images.
        positives, negatives: Parts of the two images, for L_MS.
    """

    parts: list[_Part]
    positives: list[list[int]]
    negatives: list[list[int]]

    def similarity_losses(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return L_MS of both images, from the pooled vectors of all parts."""
        return [
            losses.multi_similarity_loss(
                vectors[2 + number],
                torch.stack([vectors[part] for part in self.positives[number]]),
                torch.stack([vectors[part] for part in self.negatives[number]])
                if self.negatives[number]
                else torch.zeros(0, len(vectors[0])),
            )
            for number in range(2)
        ]


def _root_mean(probability: Tensor) -> Tensor:
    """Return the pooled labels (K,) of places (N, K), as maps pool them, of length 1."""
    return functional.normalize(probability.clamp_min(1e-9).sqrt().mean(dim=0), dim=0)


def train_as_published(
    samples: Sequence[LabelSample],
    num_points: int,
    config: LabelConfig,
    channels: dict[int, int],
    training: LabelPaperConfig,
    neighbours: Neighbours,
    *,
    voters: Sequence[tuple[LabelSample, float]],
    checkpoint: Path | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[LabelNetwork, Tensor, dict[str, Any]]:
    """Learn labels, and the heads that tell them; as `trainer.train_labels`.

    Args:
        neighbours: Of `samples`.
    """
    standard = Standard.of(samples, channels)
    network = new_network(lambda shape: LabelNetwork(shape, channels), config, training.seed, None)
    heads = _Heads(network, len(samples))
    generator = torch.Generator().manual_seed(training.seed)
    run = _Training(heads, samples, standard, neighbours, training, generator)
    optimizer = torch.optim.Adam(
        [*network.parameters(), *heads.norms.parameters()],
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
    )
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    every = max(1, -(-training.steps // training.epochs))

    def loss_of_step(step: int) -> Tensor:
        if step % every == 0:
            run.begin_epoch(step == 0)
        return run.loss(step < every)

    figures = run_loop(
        heads,
        optimizer,
        constant,
        generator,
        loss_of_step,
        training,
        checkpoint=checkpoint,
        progress=progress,
        on_step=on_step,
    )
    heads.fold()
    labels = point_distributions(network, voters, standard, num_points).argmax(dim=2)
    figures['pairs'] = len(run.pairs)
    figures['label_bits'] = [round(entropy_bits(column), 2) for column in labels.T]
    figures['label_seen'] = share_seen(network, [sample for sample, _ in voters], standard, labels)
    network.fold(standard.means, standard.scales)
    return network, labels, figures


@torch.no_grad()
def point_distributions(
    network: LabelNetwork,
    voters: Sequence[tuple[LabelSample, float]],
    standard: Standard,
    num_points: int,
) -> Tensor:
    """Return the mean probabilities (P, L, K) that the images of points tell of their labels."""
    points = torch.cat([sample.point_idx for sample, _ in voters])
    weights = torch.cat([torch.full((len(s.point_idx),), weight) for s, weight in voters])
    found = []
    for level, head in zip(network.levels, network.heads, strict=True):
        probabilities = [
            torch.softmax(head(standard.columns(level, sample.features)), dim=1)
            for sample, _ in voters
        ]
        found.append(mean_by_point(torch.cat(probabilities), points, num_points, weights)[0])
    return torch.stack(found, dim=1)


def scene_depth(
    poses: Sequence[Any], samples: Sequence[LabelSample], points: NDArray[Any]
) -> float:
    """Return the median depth of what images see: map_from_camera, observations, (P, 3) points."""
    depths = [
        pose.inverse().apply(points[sample.point_idx.numpy()])[:, 2]
        for pose, sample in zip(poses, samples, strict=True)
    ]
    return float(np.median(np.concatenate(depths)))
