"""The network arranged for single images gives what the network gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scene_models.networks import awake

from d2s_ros.device import has_fast_bfloat16
from d2s_ros.kernels.tensors import candidate_evidence
from d2s_ros.scene_models.landmark.config import LandmarkConfig
from d2s_ros.scene_models.landmark.inference import LandmarkScorer, attention
from d2s_ros.scene_models.landmark.stored_network import StoredNetwork

CONFIG = LandmarkConfig(
    descriptor_dim=16,
    num_landmarks=50,
    num_candidates=4,
    width=32,
    num_layers=2,
    num_frequencies=3,
    max_context=24,
)


def one_image(count, config=CONFIG, seed=1):
    """Return the landmarks' points and what the scorer is called with."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    shape = count, config.num_candidates
    similarity = random(*shape).clamp(-1, 1).sort(descending=True)[0]
    return random(config.num_landmarks, 3), (
        torch.nn.functional.normalize(random(count, config.descriptor_dim), dim=-1),
        torch.randint(config.num_landmarks, shape, generator=generator),
        similarity,
        similarity + 0.1,
        random(count, 2),
        random(count),
    )


@torch.inference_mode()
def by_network(network, points, inputs):
    descriptors, landmark_idx, similarity, best, keypoints, log_scales = inputs
    evidence = candidate_evidence(similarity, best)
    arguments = (descriptors, evidence, points[landmark_idx], keypoints, log_scales)
    return network(*(argument[None] for argument in arguments))[0]


@torch.inference_mode()
def by_scorer(network, points, inputs, dtype=torch.float32):
    return LandmarkScorer(StoredNetwork.of(network), points, device='cpu', dtype=dtype)(*inputs)


@pytest.mark.parametrize('count', [1, 24, 70])
@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'num_layers': 0},
        {'num_candidates': 1},
        {'hidden_inputs': ('descriptors',)},
        {'hidden_inputs': ('candidate_points', 'keypoints')},
    ],
)
def test_scorer_equals_the_network(count, changes):
    config = replace(CONFIG, **changes)
    network = awake(config)
    points, inputs = one_image(count, config)
    expected = by_network(network, points, inputs)
    assert expected.std() > 0.2
    torch.testing.assert_close(by_scorer(network, points, inputs), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.skipif(not has_fast_bfloat16('cpu'), reason='CPU without bfloat16')
def test_scorer_in_bfloat16_is_as_near_as_the_network_in_bfloat16():
    network = awake(CONFIG)
    points, inputs = one_image(70)
    exact = by_network(network, points, inputs).softmax(-1)
    with torch.autocast('cpu', torch.bfloat16):
        plain = by_network(network, points, inputs).float().softmax(-1)
    fast = by_scorer(network, points, inputs, torch.bfloat16).softmax(-1)
    error = (fast - exact).square().mean().sqrt()
    assert 0 < error < 1.5 * (plain - exact).square().mean().sqrt() + 1e-3


@pytest.mark.parametrize('scale', [1.0, 40.0, 1000.0])
def test_attention_out_of_the_range_of_exponentials(scale):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 9, 8, generator=generator) for _ in range(3))
    query = (scale * query).bfloat16().float()
    key, value = key.bfloat16().float(), value.bfloat16().float()
    expected = torch.softmax(query @ key.transpose(1, 2), dim=-1) @ value
    found = attention(query.bfloat16(), key.bfloat16(), value.bfloat16()).float()
    assert torch.isfinite(found).all()
    # Where scores are large, bfloat16 rounds them by much; a winner stays the winner.
    assert (found - expected).abs().median() < 0.02


def test_points_can_be_moved():
    network = awake(CONFIG)
    points, inputs = one_image(40)
    moved = points.clone()
    moved[::3] += 0.5
    scorer = LandmarkScorer(StoredNetwork.of(network), points, device='cpu', dtype=torch.float32)
    with torch.inference_mode():
        before = scorer(*inputs)
        after = scorer.with_points(moved)(*inputs)
        assert torch.equal(scorer(*inputs), before)
    torch.testing.assert_close(after, by_network(network, moved, inputs), atol=2e-5, rtol=1e-5)
    assert (after - before).abs().max() > 0.05


def test_scorer_does_not_follow_later_training():
    network = awake(CONFIG)
    points, inputs = one_image(40)
    scorer = LandmarkScorer(StoredNetwork.of(network), points, device='cpu', dtype=torch.float32)
    with torch.inference_mode():
        before = scorer(*inputs)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.0)
    with torch.inference_mode():
        assert torch.equal(scorer(*inputs), before)
