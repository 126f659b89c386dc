"""Compiled convolutions give what PyTorch's give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from d2s_ros.kernels import library
from d2s_ros.kernels.convolution import Convolution, ImageConvolution, Product

pytestmark = pytest.mark.skipif(not library.is_built(), reason='the compiled part is missing')


def by_torch(given, weight, bias):
    """Return (rows, columns, outputs) of (rows, columns, inputs)."""
    x = torch.from_numpy(given).permute(2, 0, 1)[None]
    x = functional.conv2d(x, torch.from_numpy(weight), torch.from_numpy(bias), padding=1)
    return functional.relu(x)


def as_rows(x):
    return x[0].permute(1, 2, 0).numpy()


def drawn(rng, *shape, scale=1.0):
    return (scale * rng.normal(size=shape)).astype(np.float32)


@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize(
    ('rows', 'columns', 'inputs', 'outputs'),
    [(1, 1, 16, 16), (4, 4, 16, 1), (9, 14, 32, 48), (30, 41, 64, 65), (8, 200, 16, 32)],
)
def test_convolutions_are_those_of_torch(rng, rows, columns, inputs, outputs, threads):
    given = drawn(rng, rows, columns, inputs)
    weight = drawn(rng, outputs, inputs, 3, 3, scale=(9 * inputs) ** -0.5)
    bias = drawn(rng, outputs)
    layer, expected = Convolution(weight, bias), as_rows(by_torch(given, weight, bias))
    found = layer(given, threads=threads)
    np.testing.assert_allclose(found[..., :outputs], expected, atol=1e-4)
    # What fills the channels up is zero.
    assert not found[..., outputs:].any()
    if rows > 4:
        some = layer(given, threads=threads, first=3, count=rows - 4)
        np.testing.assert_allclose(some[..., :outputs], expected[3:-1], atol=1e-4)


def test_maxima_of_two_by_two(rng):
    given, weight, bias = (
        drawn(rng, 10, 12, 16),
        drawn(rng, 16, 16, 3, 3, scale=0.1),
        drawn(rng, 16),
    )
    expected = as_rows(functional.max_pool2d(by_torch(given, weight, bias), 2))
    layer = Convolution(weight, bias)
    np.testing.assert_allclose(layer(given, threads=2, pool=True), expected, atol=1e-4)
    part = layer(given, threads=1, pool=True, first=2, count=6)
    np.testing.assert_allclose(part, expected[1:4], atol=1e-4)


def test_an_image(rng):
    image = rng.integers(0, 256, (21, 17)).astype(np.uint8)
    weight, bias = drawn(rng, 20, 1, 3, 3), drawn(rng, 20)
    expected = as_rows(by_torch((image[..., None] / 255).astype(np.float32), weight, bias))
    found = ImageConvolution(weight, bias)(image, first=2, count=15, threads=2)
    np.testing.assert_allclose(found[..., :20], expected[2:17], atol=1e-5)


@pytest.mark.parametrize('rows', [0, 1, 4, 131])
def test_products(rng, rows):
    values, weight, bias = drawn(rng, rows, 24), drawn(rng, 65, 24), drawn(rng, 65)
    np.testing.assert_allclose(
        Product(weight, bias)(values, threads=2), values @ weight.T + bias, atol=1e-4
    )
    np.testing.assert_allclose(Product(weight)(values, threads=1), values @ weight.T, atol=1e-4)


def test_what_does_not_fit_is_refused(rng):
    layer = Convolution(drawn(rng, 16, 16, 3, 3), drawn(rng, 16))
    given = drawn(rng, 6, 5, 16)
    with pytest.raises(ValueError, match='do not fit'):
        layer(given, threads=1, first=4, count=3)
    with pytest.raises(ValueError, match='do not fit'):
        layer(given, threads=1, pool=True)
    with pytest.raises(ValueError, match='expected an array'):
        layer(drawn(rng, 6, 5, 32), threads=1)
    with pytest.raises(ValueError, match='0 threads'):
        layer(given, threads=0)
    with pytest.raises(ValueError, match='multiple of 16'):
        Convolution(drawn(rng, 16, 8, 3, 3), drawn(rng, 16))
    with pytest.raises(ValueError, match='do not fit'):
        ImageConvolution(drawn(rng, 16, 1, 3, 3), drawn(rng, 16))(
            np.zeros((4, 4), np.uint8), first=-1, count=2, threads=1
        )
    with pytest.raises(ValueError, match='expected an array'):
        Product(drawn(rng, 3, 8))(drawn(rng, 2, 9), threads=1)
