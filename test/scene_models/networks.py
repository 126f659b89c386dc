"""Networks to test with."""

from __future__ import annotations

import torch

from d2s_ros.scene_models.landmark.config import LandmarkConfig
from d2s_ros.scene_models.landmark.network import LandmarkNetwork


def awake(config: LandmarkConfig, seed: int = 0) -> LandmarkNetwork:
    """Return a network whose zero-initialised parts are not zero."""
    torch.manual_seed(seed)
    network = LandmarkNetwork(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return network
