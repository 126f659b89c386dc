"""Dense features over their mean and size in a scene, as heads are trained on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from d2s_ros.features.dense import STRIDES
from d2s_ros.scene_models.labels.network import Level
from d2s_ros.scene_models.labels.samples import LabelSample


class Standard:
    """What heads in training read.

    Args:
        means, scales: Of features, by stride (C,).
    """

    def __init__(self, means: dict[int, Tensor], scales: dict[int, Tensor]) -> None:
        self.means, self.scales = means, scales
        self._starts: dict[int, slice] = {}
        begin = 0
        for stride in STRIDES:
            self._starts[stride] = slice(begin, begin + len(means[stride]))
            begin += len(means[stride])

    @classmethod
    def of(cls, samples: Sequence[LabelSample], channels: dict[int, int]) -> Standard:
        """Take mean and size from the features at observations."""
        features = torch.cat([sample.features[::4].float() for sample in samples])
        parts = torch.split(features, [channels[stride] for stride in STRIDES], dim=1)
        return cls(
            {s: part.mean(dim=0) for s, part in zip(STRIDES, parts, strict=True)},
            {s: part.std(dim=0).clamp_min(1e-3) for s, part in zip(STRIDES, parts, strict=True)},
        )

    @classmethod
    def none(cls, channels: dict[int, int]) -> Standard:
        """Leave features as they are, for heads of a map."""
        return cls(
            {stride: torch.zeros(channels[stride]) for stride in STRIDES},
            {stride: torch.ones(channels[stride]) for stride in STRIDES},
        )

    def columns(self, level: Level, features: Tensor) -> list[Tensor]:
        """Return what a level sees of features (N, C) of all strides."""
        return [
            (features[:, self._starts[stride]].float() - self.means[stride]) / self.scales[stride]
            for stride in level.inputs
        ]

    def read(self, level: Level, sample: LabelSample, pixels: Tensor) -> list[Tensor]:
        """Return what a level sees at pixels (N, 2) of an image."""
        return [
            (sample.read(stride, pixels) - self.means[stride]) / self.scales[stride]
            for stride in level.inputs
        ]
