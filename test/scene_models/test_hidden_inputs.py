"""Inputs hidden from the landmark network for ablations."""

from __future__ import annotations

import pytest
import torch

from d2s_ros.errors import ConfigError
from d2s_ros.scene_models.landmark.config import HIDEABLE_INPUTS, LandmarkConfig
from d2s_ros.scene_models.landmark.network import LandmarkNetwork

TENSORS = {
    'descriptors': ['descriptors'],
    'candidate_points': ['candidate_points'],
    'keypoints': ['keypoints', 'log_scales'],
}


def random_inputs():
    torch.manual_seed(0)
    return {
        'descriptors': torch.randn(1, 9, 128) / 11,
        'evidence': torch.randn(1, 9, 6, 4),
        'candidate_points': torch.randn(1, 9, 6, 3),
        'keypoints': torch.randn(1, 9, 2),
        'log_scales': torch.randn(1, 9),
    }


@pytest.mark.parametrize('hidden', [(), *((name,) for name in HIDEABLE_INPUTS)])
def test_only_hidden_inputs_lose_their_influence(hidden):
    torch.manual_seed(1)
    network = LandmarkNetwork(LandmarkConfig(hidden_inputs=hidden)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    inputs = random_inputs()
    before = network(**inputs)
    for name, tensors in TENSORS.items():
        changed = {**inputs, **{tensor: inputs[tensor] + 0.3 for tensor in tensors}}
        moved = (network(**changed) - before).abs().max() > 1e-4
        assert moved == (name not in hidden), name


def test_unknown_inputs_are_an_error():
    with pytest.raises(ConfigError, match='weather'):
        LandmarkConfig(hidden_inputs=('weather',))
