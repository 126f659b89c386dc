"""From dense features to the probability of each label at each place, at several levels.

A level is a stride of its map, the strides of the features it reads, and how far from a place
others lie that its labels tell apart. Its head has two hidden layers on the features at a place.
The first is linear before its activation, so it is computed on each map of features as it is and
enlarged afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from d2s_ros.config import option, validate
from d2s_ros.errors import ConfigError
from d2s_ros.features.dense import BACKBONES, FeaturePyramid


@dataclass(frozen=True)
class Level:
    """What labels of one level look at.

    Attributes:
        stride: Of the map of labels, px of the image of labels.
        inputs: Strides of the features.
        near_px, far_px: Distances of the places that labels are told apart from.
    """

    stride: int
    inputs: tuple[int, ...]
    near_px: float
    far_px: float


#: By the stride of their map, coarse to fine.
LEVELS = {
    8: Level(8, (8, 16, 32), 24.0, 140.0),
    4: Level(4, (4, 8, 16), 8.0, 40.0),
    2: Level(2, (2, 4, 8), 2.5, 12.0),
}


@dataclass(frozen=True)
class LabelConfig:
    """Shape of the labels of a map; stored in its manifest."""

    num_labels: int = option(64, 'Labels of each level.', minimum=4, maximum=256)
    levels: tuple[int, ...] = option((8, 4, 2), 'Strides of the levels, coarse to fine.')
    hidden: int = option(64, 'Width of the hidden layers of a head.', minimum=4, maximum=1024)
    backbone: str = option('superpoint', 'Dense features.', choices=BACKBONES)
    max_size: int = option(
        512,
        'Longest side of the image that labels are told of; features of labels are computed at it.',
        unit='px',
        minimum=64,
        maximum=4096,
    )

    def __post_init__(self) -> None:
        validate(self)
        known = sorted(set(self.levels) & set(LEVELS), reverse=True)
        if not self.levels or list(self.levels) != known:
            raise ConfigError(
                f'levels are {list(self.levels)}, they must be some of '
                f'{list(LEVELS)}, the coarsest first'
            )


class LabelHead(nn.Module):
    """The head of one level.

    Args:
        channels: Channels of the features of each stride it reads.
        hidden, num_labels: See `LabelConfig`.
    """

    def __init__(self, channels: dict[int, int], hidden: int, num_labels: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(
            nn.Linear(count, hidden, bias=False) for count in channels.values()
        )
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, num_labels)

    def forward(self, columns: list[Tensor]) -> Tensor:
        """Return logits (..., K) of features (..., C) at places, one of each stride."""
        return self.classified(self.embedded(columns))

    def embedded(self, columns: list[Tensor]) -> Tensor:
        """Return what the last layer reads, (..., hidden), before its activation."""
        hidden = self.bias
        for layer, column in zip(self.first, columns, strict=True):
            hidden = hidden + layer(column)
        embedding: Tensor = self.second(functional.relu(hidden))
        return embedding

    def classified(self, embedding: Tensor) -> Tensor:
        """Return logits (..., K) of what `embedded` gave."""
        logits: Tensor = self.last(functional.relu(embedding))
        return logits

    def dense(self, maps: list[Tensor]) -> Tensor:
        """Return logits (h, w, K) on the grid of the first of maps (C, h, w) of each stride."""
        height, width = maps[0].shape[1:]
        total = self.bias[:, None, None]
        for layer, values in zip(self.first, maps, strict=True):
            part = torch.einsum('oc,chw->ohw', layer.weight, values)
            factor = 1
            while height > factor * part.shape[1] or width > factor * part.shape[2]:
                factor *= 2
            if factor > 1:
                part = functional.interpolate(
                    part[None], scale_factor=factor, mode='bilinear', align_corners=False
                )[0]
            total = total + part[:, :height, :width]
        return self.classified(self.second(functional.relu(total.permute(1, 2, 0))))


class LabelNetwork(nn.Module):
    """The heads of all levels.

    Args:
        config: Shape.
        channels: Of the features, by stride.
    """

    def __init__(self, config: LabelConfig, channels: dict[int, int]) -> None:
        super().__init__()
        self.config = config
        self.levels = [LEVELS[stride] for stride in config.levels]
        self.heads = nn.ModuleList(
            LabelHead(
                {stride: channels[stride] for stride in level.inputs},
                config.hidden,
                config.num_labels,
            )
            for level in self.levels
        )

    def dense(self, pyramid: FeaturePyramid) -> list[Tensor]:
        """Return the probabilities (h, w, K) of the labels of each level."""
        found = []
        for level, head in zip(self.levels, self.heads, strict=True):
            logits = head.dense([pyramid.maps[stride] for stride in level.inputs])  # type: ignore[operator]
            found.append(torch.softmax(logits, dim=-1))
        return found

    @torch.no_grad()
    def fold(self, means: dict[int, Tensor], scales: dict[int, Tensor]) -> None:
        """Make heads that were trained on (features - mean) / scale read features as they are."""
        for level, head in zip(self.levels, self.heads, strict=True):
            assert isinstance(head, LabelHead)
            for stride, layer in zip(level.inputs, head.first, strict=True):
                assert isinstance(layer, nn.Linear)
                layer.weight.div_(scales[stride])
                head.bias.sub_(layer.weight @ means[stride])
