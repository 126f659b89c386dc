"""The network of the D2S paper against its equations, by an implementation in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2s_ros.scene_models.attention import AttentionLayer
from d2s_ros.scene_models.regression.network import D2SNetwork, RegressionConfig

SMALL = RegressionConfig(descriptor_dim=16, num_layers=3, num_heads=4, hidden=(24, 20))


def network_of(config: RegressionConfig) -> D2SNetwork:
    torch.manual_seed(3)
    network = D2SNetwork(config).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def linear(layer, x):
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def attention_layer(layer: AttentionLayer, d: np.ndarray) -> np.ndarray:
    """Equations (5) to (7), keypoint by keypoint and head by head."""
    q, k, v = linear(layer.query, d), linear(layer.key, d), linear(layer.value, d)
    width = d.shape[1] // layer.num_heads
    message = np.zeros_like(d)
    for head in range(layer.num_heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(d)):
            score = np.array([q[i, part] @ k[j, part] for j in range(len(d))]) / np.sqrt(width)
            alpha = np.exp(score) / np.exp(score).sum()
            message[i, part] = sum(alpha[j] * v[j, part] for j in range(len(d)))
    joined = np.concatenate([d, linear(layer.merge, message)], axis=1)
    return d + linear(layer.mlp_out, np.maximum(linear(layer.mlp_in, joined), 0))


def test_published_size():
    """SuperPoint's 256 numbers, 5 layers: the 22 MB of the paper in float32."""
    network = D2SNetwork(RegressionConfig())
    assert sum(p.numel() for p in network.parameters()) == 5_519_108
    assert sum(p.numel() for p in network.layers[0].parameters()) == 657_152
    assert sum(p.numel() for p in network.mlp.parameters()) == 2_233_348


def test_equations_1_to_7(rng):
    network = network_of(SMALL)
    d = rng.normal(size=(7, 16))
    x = d
    for layer in network.layers:
        assert isinstance(layer, AttentionLayer)
        x = attention_layer(layer, x)
    for index, module in enumerate(m for m in network.mlp if isinstance(m, torch.nn.Linear)):
        x = linear(module, np.maximum(x, 0) if index else x)
    points, p = network(torch.from_numpy(d)[None])
    np.testing.assert_allclose(points[0].detach().numpy(), x[:, :3], atol=1e-10)
    np.testing.assert_allclose(p[0].detach().numpy(), x[:, 3], atol=1e-10)


def test_context_matters(rng):
    """Without attention each descriptor would be judged alone."""
    d = torch.from_numpy(rng.normal(size=(1, 9, 16)))
    changed = d.clone()
    changed[0, 8] += 1.0
    network = network_of(SMALL)
    assert (network(d)[0][0, 0] - network(changed)[0][0, 0]).abs().max() > 1e-4
    alone = network_of(RegressionConfig(descriptor_dim=16, num_layers=0, hidden=(24, 20)))
    torch.testing.assert_close(alone(d)[0][0, :8], alone(changed)[0][0, :8])


def test_order_of_keypoints_does_not_matter(rng):
    network = network_of(SMALL)
    d = torch.from_numpy(rng.normal(size=(2, 11, 16)))
    order = torch.from_numpy(rng.permutation(11))
    for value, permuted in zip(network(d), network(d[:, order]), strict=True):
        torch.testing.assert_close(value[:, order], permuted, atol=1e-11, rtol=1e-11)


def test_padding_changes_nothing(rng):
    network = network_of(SMALL)
    d = torch.from_numpy(rng.normal(size=(1, 6, 16)))
    padded = torch.cat([d, torch.full((1, 5, 16), 7.0, dtype=d.dtype)], dim=1)
    mask = torch.arange(11)[None] < 6
    for value, other in zip(network(d), network(padded, mask), strict=True):
        torch.testing.assert_close(value, other[:, :6], atol=1e-11, rtol=1e-11)
    assert (network(d)[0] - network(padded)[0][:, :6]).abs().max() > 1e-4


@pytest.mark.parametrize('beta', [1.0, 100.0])
def test_reliability_is_equation_2(beta):
    network = D2SNetwork(RegressionConfig(beta=beta))
    p = torch.tensor([-1e30, -2.0, -0.01, 0.0, 0.01, 2.0, 1e30], dtype=torch.float64)
    z = network.reliability(p)
    expected = [1 / (1 + abs(beta * value)) for value in p.tolist()]
    np.testing.assert_allclose(z.numpy(), expected, rtol=1e-12)
    assert z.min() >= 0
    assert z.max() == 1


def test_gradient_of_the_reliability():
    """-beta sign(p) / (1 + |beta p|)^2, and zero at p = 0 rather than not a number."""
    beta = 100.0
    network = D2SNetwork(RegressionConfig(beta=beta))
    p = torch.tensor([-0.03, 0.0, 0.002, 1.0], dtype=torch.float64, requires_grad=True)
    network.reliability(p).sum().backward()
    value = p.detach().numpy()
    expected = -beta * np.sign(value) / (1 + np.abs(beta * value)) ** 2
    np.testing.assert_allclose(p.grad.numpy(), expected, rtol=1e-12)


def test_coordinates_are_centred_and_scaled(rng):
    network = network_of(SMALL)
    d = torch.from_numpy(rng.normal(size=(1, 5, 16)))
    raw, p = network(d)
    network.center.copy_(torch.tensor([1.0, -2.0, 30.0]))
    network.scale.fill_(4.0)
    points, same_p = network(d)
    torch.testing.assert_close(points, 4.0 * raw + torch.tensor([1.0, -2.0, 30.0]).double())
    torch.testing.assert_close(p, same_p)
