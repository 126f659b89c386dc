"""A start for the paper's network: before any training it knows the best points of a scene.

The paper leaves open what its network starts from. From random weights it needs hours to learn by
heart where each descriptor belongs. The same network can be given that knowledge: units of one
layer of the shared MLP are set to recognise the descriptors of one 3D point each, and those after
it to give the point's coordinates. All weights are trained from there.

With s = w (d - mean) a detector's score, 1 for the mean descriptor of its point, 0 on average:

    h = relu((s - threshold) / ramp)        layer k, one unit a point
    e = relu(h - 1), sums of h              layer k + 1
    v = sum over points of value (h - e)    the layers after it, value (x, y, z, 1)

so that h - e rises from 0 to 1 and stays there. p = 1 - sum of (h - e) is 0, and the reliability 1,
where exactly one point is recognised.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from d2s_ros.errors import ConfigError, InputError
from d2s_ros.scene_models.attention import AttentionLayer
from d2s_ros.scene_models.regression.network import D2SNetwork
from d2s_ros.scene_models.regression.samples import RegressionSample

#: Scores rise from the threshold to this much more; wider, fewer are recognised in new images.
_RAMP = 0.1
#: A detector never answers below this score.
_LEAST_THRESHOLD = 0.3
#: Keypoints of other points that a detector may answer to: tracks are incomplete, and some of these
#: show its own point.
_FALSE_ANSWERS = 2
#: Of so many times the points that there is room for, those are taken that can be told from others.
_POOL = 3
#: Share of their mean variance that is added to the variances of descriptors.
_SHRINKAGE = 0.1
#: Positive and negative part of x, y, z and of the number of points recognised.
_NUM_VALUES = 8
#: Descriptors are unit vectors: with this bias ReLU leaves them as they are.
_PASS_BIAS = 1.0
#: Keypoints whose scores are in memory at once.
_CHUNK = 4096


def start_from_he(network: D2SNetwork, seed: int) -> None:
    """Set random weights of the shared MLP that keep the size of what passes through it.

    PyTorch's own shrink it to a sixth, squared, a layer. Biases start at zero. The raw reliability
    starts near zero: far from it, equation (2) is flat.

    Source: K. He et al., Delving deep into rectifiers, ICCV 2015.
    """
    generator = torch.Generator().manual_seed(seed)
    linears = [module for module in network.mlp if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for linear in linears:
            scale = (2.0 / linear.in_features) ** 0.5
            linear.weight.copy_(scale * torch.randn(linear.weight.shape, generator=generator))
            linear.bias.zero_()
        linears[-1].weight[3] *= 0.01


def start_from_points(network: D2SNetwork, samples: Sequence[RegressionSample]) -> Tensor:
    """Set the weights of a network such that it knows the points that the samples show best.

    Attention layers start as the identity: the last layer of their MLP is zero. Units that are not
    needed keep their random weights, and have no influence on the output before it is trained.

    Args:
        network: Of at least two hidden layers; changed in place.
        samples: Mapping images as they are, in the coordinates of the network.

    Returns:
        Points (L,) int64 that the network knows, those that images show best.

    Raises:
        ConfigError: the hidden layers are too narrow.
        InputError: no two images show the same point.
    """
    layer, room = _detector_layer(network)
    per_image = [sample.tracks for sample in samples]
    tracks = torch.cat(per_image)
    pool = choose_points(per_image, _POOL * room)
    if not len(pool):
        raise InputError('no point of the reconstruction is seen in two of the training images')
    weight, bias, separable = _detectors(
        torch.cat([sample.descriptors for sample in samples]), tracks, pool
    )
    row_of = torch.full((int(tracks.max()) + 1,), -1)
    row_of[pool[separable]] = torch.nonzero(separable)[:, 0]
    known = choose_points(
        [torch.where((own >= 0) & (row_of[own] >= 0), own, -1) for own in per_image], room
    )
    rows = row_of[known]
    targets = torch.cat([sample.targets for sample in samples])
    coordinates = targets.new_zeros((len(row_of), 3))
    coordinates[tracks[tracks >= 0]] = targets[tracks >= 0]
    _set_weights(network, layer, weight[rows], bias[rows], coordinates[known])
    return known


def choose_points(tracks: Sequence[Tensor], count: int) -> Tensor:
    """Return at most `count` points (L,) such that every image keeps its most often seen ones.

    Args:
        tracks: For each image the point of each keypoint, -1 for none.
        count: Most points.
    """
    seen = [torch.unique(track[track >= 0]) for track in tracks]
    size = max((int(points.max()) + 1 for points in seen if len(points)), default=0)
    lengths = torch.zeros(size, dtype=torch.int64)
    for points in seen:
        lengths[points] += 1
    best_rank = torch.full((size,), size)
    for points in seen:
        ranked = points[torch.argsort(lengths[points], descending=True, stable=True)]
        best_rank[ranked] = torch.minimum(best_rank[ranked], torch.arange(len(ranked)))
    # A point of a single image has no view of its own to be told from others by.
    usable = torch.nonzero(lengths >= 2)[:, 0]
    order = torch.argsort(best_rank[usable] * (len(tracks) + 1) - lengths[usable], stable=True)
    return usable[order][:count]


def _detector_layer(network: D2SNetwork) -> tuple[int, int]:
    """Return the hidden layer with room for the most detectors, and how many."""
    hidden, dim = network.config.hidden, network.config.descriptor_dim
    rooms = [
        min(width, after - _NUM_VALUES)
        if min(hidden[:index], default=dim) >= dim
        and min(hidden[index + 2 :], default=_NUM_VALUES) >= _NUM_VALUES
        else 0
        for index, (width, after) in enumerate(itertools.pairwise(hidden))
    ]
    room = max(rooms, default=0)
    if room < 1:
        raise ConfigError(
            f'hidden layers {hidden} have no room to start from the points of a scene: they need '
            f'at least {dim} units before, and {_NUM_VALUES} more than detectors after them'
        )
    return rooms.index(room), room


def _detectors(
    descriptors: Tensor, tracks: Tensor, points: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights (L, D) and biases (L,) of detectors, and which tell their point from others.

    A detector is a linear discriminant: descriptors are whitened by the covariance of all. Its
    threshold is the highest score that keypoints of other points have, but for a few.
    """
    descriptors, dim = descriptors.double(), descriptors.shape[1]
    row_of = torch.full((int(tracks.max()) + 1,), -1)
    row_of[points] = torch.arange(len(points))
    rows = torch.where(tracks >= 0, row_of[tracks.clamp_min(0)], -1)
    own = torch.nonzero(rows >= 0)[:, 0]
    sums = descriptors.new_zeros((len(points), dim)).index_add_(0, rows[own], descriptors[own])
    means = sums / torch.bincount(rows[own], minlength=len(points))[:, None]
    common = descriptors.mean(dim=0)
    covariance = torch.cov(descriptors.T)
    covariance += _SHRINKAGE * torch.trace(covariance) / dim * torch.eye(dim)
    weight = torch.linalg.solve(covariance, (means - common).T).T
    weight /= ((means - common) * weight).sum(dim=1, keepdim=True)
    offset = weight @ common
    highest = descriptors.new_full((_FALSE_ANSWERS + 1, len(points)), _LEAST_THRESHOLD)
    lowest_own = torch.full((len(points),), torch.inf, dtype=torch.float64)
    for start in range(0, len(descriptors), _CHUNK):
        scores = descriptors[start : start + _CHUNK] @ weight.T - offset
        row = rows[start : start + _CHUNK]
        index = torch.nonzero(row >= 0)[:, 0]
        lowest_own.scatter_reduce_(0, row[index], scores[index, row[index]], 'amin')
        scores[index, row[index]] = -torch.inf
        best = scores.topk(min(len(highest), len(scores)), dim=0).values
        highest = torch.cat([highest, best]).topk(len(highest), dim=0).values
    threshold = highest[-1]
    bias = -(offset + threshold) / _RAMP
    return weight / _RAMP, bias, lowest_own > threshold + 0.5 * _RAMP


def _set_weights(
    network: D2SNetwork, layer: int, weight: Tensor, bias: Tensor, coordinates: Tensor
) -> None:
    """Write detectors of hidden layer `layer` and what follows from them into the shared MLP."""
    linears = [module for module in network.mlp if isinstance(module, nn.Linear)]
    dim, count = network.config.descriptor_dim, len(weight)
    # Coordinates from their middle: matrices are kept as float16, the last bias is not.
    middle = coordinates.median(dim=0).values
    values = torch.cat([coordinates - middle, coordinates.new_ones((count, 1))], dim=1).T
    with torch.no_grad():
        for attention in network.layers:
            assert isinstance(attention, AttentionLayer)
            nn.init.zeros_(attention.mlp_out.weight)
            nn.init.zeros_(attention.mlp_out.bias)
        for linear in linears[:layer]:
            _set(linear, torch.eye(dim), linear.bias.new_zeros(dim))
        for linear in linears[: min(layer, 1)]:
            linear.bias[:dim] = _PASS_BIAS
        shift = _PASS_BIAS * weight.sum(dim=1) if layer else 0.0
        _set(linears[layer], weight, bias - shift)
        after = linears[layer + 1]
        _set(
            after,
            torch.cat([torch.eye(count), values, -values]),
            torch.cat([-torch.ones(count), torch.zeros(_NUM_VALUES)]),
        )
        # Of the units before: count excesses, then the two parts of the sums of h.
        part = torch.eye(4)
        sums = torch.cat([-values, part, -part], dim=1)
        for linear in linears[layer + 2 : -1]:
            _set(linear, torch.cat([sums, -sums]), linear.bias.new_zeros(_NUM_VALUES))
            sums = torch.cat([part, -part], dim=1)
        last = linears[-1]
        last.weight.zero_()
        # The fourth value counts the points recognised: p = 1 - count.
        scale = torch.tensor([1.0, 1.0, 1.0, -1.0])
        last.weight[:, : sums.shape[1]] = scale[:, None] * sums
        last.bias.copy_(torch.cat([middle, middle.new_ones(1)]))


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Set the first rows of a layer; they see only the first units of the one before."""
    rows, columns = weight.shape
    linear.weight[:rows] = 0.0
    linear.weight[:rows, :columns] = weight.to(linear.weight.dtype)
    linear.bias[:rows] = bias.to(linear.bias.dtype)
