"""The landmark head: exact search, evidence, and what masks and layers do."""

from __future__ import annotations

import pytest
import torch
from scene_models.networks import awake

from d2s_ros.kernels.tensors import candidate_evidence, fourier, nearest_keys
from d2s_ros.scene_models.attention import AttentionLayer, attention
from d2s_ros.scene_models.landmark.network import (
    LandmarkConfig,
    LandmarkNetwork,
)

CONFIG = LandmarkConfig(
    descriptor_dim=16, num_landmarks=50, num_candidates=4, width=32, num_layers=2, num_frequencies=3
)


def inputs(generator, batch=2, count=20, config=CONFIG):
    def random(*shape):
        return torch.randn(*shape, generator=generator)

    similarity = random(batch, count, config.num_candidates).clamp(-1, 1).sort(descending=True)[0]
    return {
        'descriptors': torch.nn.functional.normalize(random(batch, count, 16), dim=-1),
        'evidence': candidate_evidence(similarity, similarity + 0.1),
        'candidate_points': random(batch, count, config.num_candidates, 3),
        'keypoints': random(batch, count, 2),
        'log_scales': random(batch, count),
    }


@pytest.mark.parametrize('columns', [5, 31, 32, 700, 767, 768, 1000, 4096, 4099])
@pytest.mark.parametrize('count', [1, 6])
def test_nearest_keys_equals_topk(columns, count):
    generator = torch.Generator().manual_seed(columns + count)
    similarity = torch.randn(37, columns, generator=generator)
    values, found = nearest_keys(similarity, count)
    expected_values, expected = similarity.topk(min(count, columns), dim=1)
    assert torch.equal(values, expected_values)
    assert torch.equal(found, expected)


def test_nearest_keys_where_the_best_share_a_group():
    similarity = torch.zeros(3, 2048) - torch.arange(2048.0) / 1e6
    similarity[:, 640:646] = torch.tensor([3.0, 9.0, 5.0, 7.0, 4.0, 8.0])
    similarity[1, 2047] = 10.0
    values, columns = nearest_keys(similarity, 6)
    assert columns[0].tolist() == [641, 645, 643, 642, 644, 640]
    assert columns[1].tolist() == [2047, 641, 645, 643, 642, 644]
    assert torch.equal(values, similarity.gather(1, columns))


def test_nearest_keys_among_equal_values_are_distinct():
    values, columns = nearest_keys(torch.full((2, 1024), 0.5), 6)
    assert (values == 0.5).all()
    assert all(len(set(row.tolist())) == 6 for row in columns)
    assert nearest_keys(torch.zeros(0, 1024), 3)[0].shape == (0, 3)


def test_evidence():
    similarity = torch.tensor([[0.9, 0.7, -1.0]])
    best = torch.tensor([[0.9, 0.8, 0.1]])
    evidence = candidate_evidence(similarity, best)[0]
    assert torch.allclose(evidence[:, 0], similarity[0])
    assert torch.allclose(evidence[:, 1], 0.5 * (1 - similarity[0] + 1e-4).log())
    assert torch.allclose(evidence[:, 2], torch.tensor([0.0, -0.2, -1.9]))
    assert torch.allclose(evidence[:, 3], torch.tensor([0.0, -0.1, -1.1]))
    assert torch.isfinite(candidate_evidence(torch.ones(1, 2) * 1.0001, torch.ones(1, 2))).all()


def test_fourier():
    x = torch.tensor([[0.25, -0.5]])
    found = fourier(x, 2)[0]
    angles = torch.tensor([0.25, 0.5, -0.5, -1.0]) * torch.pi / 2
    expected = torch.cat([x[0], angles.sin(), angles.cos()])
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_fresh_network_is_the_bare_table():
    network = LandmarkNetwork(CONFIG).eval()
    values = inputs(torch.Generator().manual_seed(1))
    logits = network(**values)
    assert logits.shape == (2, 20, 5)
    assert torch.allclose(logits[..., :4], 15.0 * values['evidence'][..., 2])
    assert (logits[..., :4].argmax(-1) == 0).all()


def test_padding_has_no_influence():
    network = awake(CONFIG)
    values = inputs(torch.Generator().manual_seed(2))
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[:, 14:] = False
    padded = network(**values, mask=mask)[:, :14]
    alone = network(**{name: value[:, :14] for name, value in values.items()})
    assert torch.allclose(padded, alone, atol=1e-5)
    changed = {name: value.clone() for name, value in values.items()}
    for value in changed.values():
        value[:, 14:] = 7.0
    assert torch.equal(network(**changed, mask=mask)[:, :14], padded)
    # The test can fail: without the mask what is padded does change the rest.
    assert not torch.allclose(network(**values)[:, :14], alone, atol=1e-3)


def test_the_order_of_keypoints_does_not_matter():
    network = awake(CONFIG)
    values = inputs(torch.Generator().manual_seed(3))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(4))
    shuffled = network(**{name: value[:, order] for name, value in values.items()})
    assert torch.allclose(shuffled, network(**values)[:, order], atol=1e-5)


def test_images_of_a_batch_do_not_mix():
    network = awake(CONFIG)
    values = inputs(torch.Generator().manual_seed(5))
    both = network(**values)
    for index in range(2):
        alone = network(**{name: value[index : index + 1] for name, value in values.items()})
        assert torch.allclose(both[index : index + 1], alone, atol=1e-5)


def test_a_single_candidate_and_no_layers():
    config = LandmarkConfig(
        descriptor_dim=16, num_candidates=1, num_layers=0, width=32, num_frequencies=2
    )
    network = LandmarkNetwork(config)
    logits = network(**inputs(torch.Generator().manual_seed(6), config=config))
    assert logits.shape == (2, 20, 2)


def test_attention_equals_its_formula():
    torch.manual_seed(0)
    layer = AttentionLayer(8, 2).eval()
    x = torch.randn(1, 5, 8)
    heads = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        q, k, v = (linear(x)[0, :, part] for linear in (layer.query, layer.key, layer.value))
        heads.append(torch.softmax(q @ k.T / 2.0, dim=-1) @ v)
    message = layer.merge(torch.cat(heads, dim=-1))
    hidden = torch.relu(layer.mlp_in(torch.cat([x[0], message], dim=-1)))
    assert torch.allclose(layer(x)[0], x[0] + layer.mlp_out(hidden), atol=1e-5)


def test_a_new_zero_layer_changes_nothing():
    layer = AttentionLayer(8, 2, norm=True, zero_init=True)
    x = torch.randn(2, 5, 8)
    assert torch.equal(layer(x), x)
    with pytest.raises(ValueError, match='heads'):
        AttentionLayer(9, 2)


@pytest.mark.parametrize('hidden', [0, 3])
def test_attention_in_bfloat16_and_its_gradient(hidden):
    """On a CPU it is put together from products: as near to float32 as bfloat16 is."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 9, 8, generator=generator) for _ in range(3))
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[..., 9 - hidden :] = False
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    rounded = q8, k8, v8 = tuple(t.bfloat16().requires_grad_() for t in (q, k, v))
    with torch.autocast('cpu', torch.bfloat16):
        found = attention(q8, k8, v8, mask)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=0.03, rtol=0.03)
    found.float().square().sum().backward()
    leaves = [t.requires_grad_() for t in (q, k, v)]
    torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask
    ).square().sum().backward()
    for a, b in zip(rounded, leaves, strict=True):
        assert (a.grad.float() - b.grad).norm() < 0.03 * b.grad.norm()
