"""The network that descriptors pass before they are compared, learned for one place.

What makes two keypoints of one place alike, and those of others unlike, differs from place to
place: a residual block moves the descriptors of images and the keys of landmarks alike.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from d2s_ros.scene_models.landmark.config import LandmarkConfig


class DescriptorNetwork(nn.Module):
    """A residual block; at the start it changes nothing."""

    def __init__(self, config: LandmarkConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.descriptor_dim, config.descriptor_width)
        self.outer = nn.Linear(config.descriptor_width, config.descriptor_dim)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, descriptors: Tensor) -> Tensor:
        """Return L2-normalised descriptors (..., D) of such descriptors."""
        # Unit descriptors of many dimensions have small entries: bring them to about 1.
        scaled = descriptors * math.sqrt(descriptors.shape[-1])
        moved = scaled + self.outer(functional.relu(self.inner(scaled)))
        return functional.normalize(moved, dim=-1)
