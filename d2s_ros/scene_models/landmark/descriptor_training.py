"""Training of the descriptor network: a keypoint is like other views of its point, and no other.

Each anchor, one observation of a point, is told apart from the other points of the batch by the
mean of the other observations of each (cross-entropy over cosines, as in InfoNCE; A. van den Oord
et al., Representation Learning with Contrastive Predictive Coding, 2018). Half of a batch and more
are points that were alike before, since those are mixed up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from d2s_ros.config import option
from d2s_ros.reconstruction.reconstruction import Reconstruction
from d2s_ros.scene_models.landmark.config import LandmarkConfig
from d2s_ros.scene_models.landmark.descriptor_network import DescriptorNetwork
from d2s_ros.scene_models.optimizers import AdamW
from d2s_ros.scene_models.training_loop import new_network, one_cycle

#: Points of a long log that are told apart: the neighbours of all would take minutes.
_MAX_POINTS = 16_384
#: Points that were alike before, from which a seed's companions in the batch are drawn.
_NEIGHBOURS = 8
#: Other observations whose mean stands for a point.
_OTHERS = 3
#: Points this close to each other, as seen from the anchor's camera, are one place, radians: they
#: are no mistake of a pose (a candidate at 4 px of 1000 px focal length is right, too).
_SAME_PLACE = 4e-3
#: Factor of cosines in the softmax at the start.
_FIRST_GAIN = 20.0


@dataclass(frozen=True)
class DescriptorTrainingConfig:
    """Options of the training."""

    steps: int = option(300, 'Optimiser steps.', minimum=0)
    seeds: int = option(256, 'Points that are drawn for a batch.', minimum=1)
    companions: int = option(3, 'Points drawn for each that were alike before.', minimum=0)
    learning_rate: float = option(1e-3, 'Peak of the one-cycle schedule.', minimum=0.0)
    weight_decay: float = option(0.01, 'Of AdamW.', minimum=0.0)
    noise: float = option(0.02, 'Standard deviation of noise added to descriptors.', minimum=0.0)
    seed: int = option(0, 'Seed of all randomness.', minimum=0)


class _Observations:
    """Observations of a reconstruction, sorted by point; only points with two of them.

    Attributes:
        descriptors: (K, D) float32.
        depths: (K,) float32 distance of the point from the camera.
        first, count: (P,) int64 where the observations of a point begin, and how many they are.
        points: (P, 3) float32.
    """

    def __init__(self, reconstruction: Reconstruction, images: list[int], seed: int) -> None:
        point_idx, descriptors, depths = [], [], []
        for index in images:
            image = reconstruction.images[index]
            seen = np.flatnonzero(image.point_idx >= 0)
            points = reconstruction.points_in_map[image.point_idx[seen]]
            point_idx.append(image.point_idx[seen])
            descriptors.append(image.features.descriptors[seen])
            depths.append(np.linalg.norm(points - image.map_from_camera.translation, axis=1))
        of_point = np.concatenate(point_idx)
        counts = np.bincount(of_point, minlength=len(reconstruction.points_in_map))
        chosen: NDArray[np.int64] = np.flatnonzero(counts >= 2)
        if len(chosen) > _MAX_POINTS:
            rng = np.random.default_rng(seed)
            chosen = np.sort(rng.choice(chosen, _MAX_POINTS, replace=False))
        row_of_point = np.full(len(counts), -1)
        row_of_point[chosen] = np.arange(len(chosen))
        rows = row_of_point[of_point]
        order = np.argsort(rows, kind='stable')
        order = order[rows[order] >= 0]
        self.descriptors = torch.from_numpy(np.concatenate(descriptors)[order])
        self.depths = torch.from_numpy(np.concatenate(depths)[order].astype(np.float32))
        self.count = torch.from_numpy(counts[chosen])
        self.first = torch.cumsum(self.count, 0) - self.count
        self.points = torch.from_numpy(reconstruction.points_in_map[chosen].astype(np.float32))

    def __len__(self) -> int:
        return len(self.points)

    def neighbours(self) -> Tensor:
        """Return the points (P, _NEIGHBOURS) whose mean descriptors are most alike, int64."""
        rows = torch.repeat_interleave(torch.arange(len(self)), self.count)
        means = torch.zeros(len(self), self.descriptors.shape[1])
        means.index_add_(0, rows, self.descriptors)
        means = functional.normalize(means, dim=1)
        found = []
        for start in range(0, len(means), 2048):
            cosines = means[start : start + 2048] @ means.T
            inside = torch.arange(len(cosines))
            cosines[inside, start + inside] = -1.0
            found.append(cosines.topk(min(_NEIGHBOURS, len(self) - 1), dim=1).indices)
        return torch.cat(found)


def train_descriptors(
    reconstruction: Reconstruction,
    images: list[int],
    network_config: LandmarkConfig,
    config: DescriptorTrainingConfig,
    *,
    device: str = 'cpu',
    progress: bool = False,
) -> DescriptorNetwork:
    """Learn what tells the points of a reconstruction apart.

    Args:
        reconstruction: Images with descriptors as they were extracted, and points.
        images: Indices of those that are learned from.
        network_config: Shape of the network.
        config: Options.
        device: 'cpu' or 'cuda'.
        progress: Show a progress bar.

    Returns:
        The network on the CPU in eval mode. Where no two points are seen twice it changes nothing.
    """
    network = new_network(DescriptorNetwork, network_config, config.seed, None).to(device)
    observations = _Observations(reconstruction, images, config.seed)
    if len(observations) < 2 or config.steps == 0:
        return network.cpu().eval()
    neighbours = observations.neighbours()
    log_gain = nn.Parameter(torch.tensor(math.log(_FIRST_GAIN), device=device))
    parameters = [*network.parameters(), log_gain]
    optimizer = AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: one_cycle(step, config.steps)
    )
    generator = torch.Generator().manual_seed(config.seed)
    bar = tqdm(range(config.steps), desc='descriptors', unit='step', disable=not progress)
    for _ in bar:
        descriptors, mistakes = _draw(observations, neighbours, config, generator)
        moved = network(descriptors.to(device))
        anchors, others = moved[0], functional.normalize(moved[1:].mean(dim=0), dim=-1)
        cosines = log_gain.exp() * anchors @ others.T
        cosines = cosines.masked_fill(~mistakes.to(device), -math.inf)
        loss = functional.cross_entropy(cosines, torch.arange(len(cosines), device=device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        bar.set_postfix({'loss': f'{float(loss.detach()):.3f}'}, refresh=False)
    # As a map keeps matrices, so that keys are made by the very network that queries pass.
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half().float()
    return network.cpu().eval()


def _draw(
    observations: _Observations,
    neighbours: Tensor,
    config: DescriptorTrainingConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw points and observations.

    Returns:
        Descriptors (1 + _OTHERS, B, D) of the anchors and of other observations of their points,
        with noise, and (B, B) bool: which points an anchor is told apart from, and its own.
    """
    seeds = torch.randint(len(observations), (config.seeds,), generator=generator)
    columns = torch.randint(
        neighbours.shape[1], (config.seeds, config.companions), generator=generator
    )
    points = torch.unique(torch.cat([seeds, neighbours[seeds].gather(1, columns).reshape(-1)]))
    first, count = observations.first[points], observations.count[points]

    def drawn(limit: Tensor) -> Tensor:
        uniform = torch.rand(len(limit), generator=generator, dtype=torch.float64)
        return (uniform * limit).long()

    anchor = drawn(count)
    rows = [first + anchor]
    # Any observation of the point but the anchor.
    rows += [first + (anchor + 1 + drawn(count - 1)) % count for _ in range(_OTHERS)]
    descriptors = observations.descriptors[torch.stack(rows)]
    noise = torch.randn(descriptors.shape, generator=generator)
    descriptors = functional.normalize(descriptors + config.noise * noise, dim=-1)
    places = observations.points[points]
    distances = torch.cdist(places, places, compute_mode='donot_use_mm_for_euclid_dist')
    mistakes = distances > _SAME_PLACE * observations.depths[rows[0]][:, None]
    mistakes.fill_diagonal_(True)
    return descriptors, mistakes
