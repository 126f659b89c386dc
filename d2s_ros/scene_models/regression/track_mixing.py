"""Descriptors of the same point in other images: what makes a network see past one view of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d2s_ros.scene_models.regression.samples import RegressionSample


@dataclass(frozen=True, eq=False)
class TrackDescriptors:
    """The descriptors of each point of a reconstruction.

    Attributes:
        descriptors: (T, D) float32, those of one point after the other.
        first: (P,) int64, where those of a point begin.
        count: (P,) int64, how many there are.
    """

    descriptors: Tensor
    first: Tensor
    count: Tensor

    @classmethod
    def of(cls, samples: Sequence[RegressionSample]) -> TrackDescriptors:
        """Collect the descriptors of labelled keypoints."""
        tracks = torch.cat([sample.tracks for sample in samples])
        descriptors = torch.cat([sample.descriptors for sample in samples])
        order = torch.argsort(tracks, stable=True)
        order = order[tracks[order] >= 0]
        count = torch.bincount(tracks[order], minlength=1)
        return cls(descriptors[order], count.cumsum(0) - count, count)

    def mixed(
        self, descriptors: Tensor, tracks: Tensor, share: float, generator: torch.Generator
    ) -> Tensor:
        """Replace descriptors (..., D) of points `tracks` (...), -1 for none, by others of them."""
        known = (tracks >= 0) & (tracks < len(self.count))
        point = torch.where(known, tracks, 0)
        chosen = torch.rand(tracks.shape, generator=generator)
        position = torch.rand(tracks.shape, generator=generator)
        count = self.count[point]
        replaced = known & (count > 0) & (chosen < share)
        index = self.first[point] + (position * count).long().clamp_max(count - 1)
        return torch.where(
            replaced[..., None],
            self.descriptors[index.clamp(0, len(self.descriptors) - 1)],
            descriptors,
        )
