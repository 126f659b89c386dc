"""The search among bytes, against cosines computed as they are."""

from __future__ import annotations

import numpy as np
import pytest

from d2s_ros.kernels import library, reference
from d2s_ros.kernels.compiled_landmarks import ByteKeys

pytestmark = pytest.mark.skipif(not library.is_built(), reason='the compiled kernels are not built')


#: Kinds of instructions in products.c.
KINDS = 5


def unit(rng, count, dim):
    """Unit vectors of which some directions are longer than others, as those of descriptors."""
    values = rng.normal(size=(count, dim)) * np.linspace(2.0, 0.3, dim)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def byte_keys(keys, num_components):
    """Keys searched among the directions in which they are longest."""
    directions = np.linalg.eigh(keys.T @ keys).eigenvectors[:, ::-1][:, :num_components]
    return ByteKeys(keys, np.ascontiguousarray(directions, np.float32))


def near(rng, keys, count, noise=0.05):
    queries = keys[rng.integers(0, len(keys), count)] + rng.normal(0, noise, (count, keys.shape[1]))
    return (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize(
    ('num_keys', 'dim', 'num_queries'),
    [(13, 3, 1), (64, 16, 8), (65, 30, 9), (700, 64, 31), (3001, 128, 100)],
)
def test_finds_the_nearest_by_exact_cosines(rng, num_keys, dim, num_queries, threads):
    keys = unit(rng, num_keys, dim)
    queries = near(rng, keys, num_queries)
    idx, similarity, best = byte_keys(keys, 64).search(queries, 6, threads=threads)
    cosines = queries @ keys.T
    np.testing.assert_allclose(similarity, np.take_along_axis(cosines, idx, 1), atol=1e-6)
    assert (np.diff(similarity, axis=1) <= 0).all()
    assert all(len(set(row)) == 6 for row in idx.tolist())
    order = np.argsort(-cosines, axis=1)[:, :6]
    np.testing.assert_array_equal(idx[:, 0], order[:, 0])
    shares = [len(set(a) & set(b)) / 6 for a, b in zip(idx.tolist(), order.tolist(), strict=True)]
    # Half of the directions of the longest keys are not looked at.
    assert np.mean(shares) > 0.8
    # The highest cosine of any query, within what bytes tell; exact where that is the query's own.
    highest = cosines.max(axis=0)[idx]
    clear = similarity > 0.2
    if dim <= 64:
        np.testing.assert_allclose(best[clear], highest[clear], atol=0.12)
    own = np.isclose(highest, similarity) & (similarity > 0.5)
    assert own.any()
    assert (best[own] >= similarity[own]).all()


@pytest.mark.parametrize('kind', range(KINDS))
def test_every_kind_of_product_gives_the_same_bytes(rng, kind):
    """All are whole numbers, the largest that there are among them."""
    groups, stride = 16, 192
    queries = rng.integers(1, 256, (8, 4 * groups)).astype(np.uint8)
    keys = rng.integers(-127, 128, (stride, 4 * groups)).astype(np.int8)
    queries[0], queries[1], keys[5], keys[6] = 255, 1, 127, -127
    packed = np.ascontiguousarray(keys.reshape(-1, 8, groups, 4).transpose(0, 2, 1, 3))
    offsets = -128 * keys.sum(axis=1, dtype=np.int32)
    bytes_found = np.empty((8, stride), np.uint8)
    shift, factor = 4, 9000
    given = queries, packed, offsets, stride, groups, shift, factor
    if library.call('d2s_products', kind, *given, bytes_found):
        pytest.skip('this processor lacks the instructions')
    sums = queries.astype(np.int64) @ keys.astype(np.int64).T + offsets
    words = np.clip(sums >> shift, -(2**15), 2**15 - 1)
    expected = np.clip((words * factor + 2**14) >> 15, 0, 255)
    assert expected.min() == 0
    assert expected.max() == 255
    assert len(np.unique(expected)) > 50
    np.testing.assert_array_equal(bytes_found, expected)


def test_does_not_depend_on_threads_or_on_other_queries(rng):
    keys = unit(rng, 900, 48)
    queries = near(rng, keys, 77)
    index = byte_keys(keys, 48)
    one = index.search(queries, 4, threads=1)
    many = index.search(queries, 4, threads=5)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a, b)
    alone = index.search(queries[40:41].copy(), 4, threads=2)
    np.testing.assert_array_equal(alone[0][0], one[0][40])
    np.testing.assert_array_equal(alone[1][0], one[1][40])


def test_equal_keys_are_distinct_and_the_first_come_first(rng):
    keys = np.tile(unit(rng, 1, 32), (300, 1))
    idx, similarity, best = byte_keys(keys, 32).search(keys[:5].copy(), 6, threads=2)
    np.testing.assert_array_equal(np.sort(idx, axis=1), np.tile(np.arange(6), (5, 1)))
    np.testing.assert_allclose(similarity, 1.0, atol=1e-6)
    np.testing.assert_allclose(best, similarity, atol=1e-6)


def test_opposite_keys_are_found_too(rng):
    keys = unit(rng, 40, 16)
    idx, similarity, _ = byte_keys(keys, 16).search(-keys, 40, threads=1)
    np.testing.assert_array_equal(np.sort(idx, axis=1), np.tile(np.arange(40), (40, 1)))
    np.testing.assert_allclose(similarity[:, -1], -1.0, atol=1e-6)


def test_replaced_keys_are_found_where_they_are_now(rng):
    keys = unit(rng, 200, 24)
    index = byte_keys(keys, 24)
    other = index.replaced(np.array([7, 150]), keys[[150, 7]])
    queries = keys[[7, 150, 3]].copy()
    assert index.search(queries, 1, threads=1)[0].T.tolist() == [[7, 150, 3]]
    assert other.search(queries, 1, threads=1)[0].T.tolist() == [[150, 7, 3]]


def test_no_queries_and_no_keys(rng):
    index = byte_keys(unit(rng, 20, 8), 8)
    for array in index.search(np.zeros((0, 8), np.float32), 4, threads=2):
        assert array.shape == (0, 4)
    with pytest.raises(ValueError, match='no keys'):
        byte_keys(np.zeros((0, 8), np.float32), 8)


@pytest.mark.parametrize('count', [0, 21, 65])
def test_impossible_numbers_are_errors(rng, count):
    keys = unit(rng, 20, 8)
    for index in (byte_keys(keys, 8), reference.key_index(keys)):
        with pytest.raises(ValueError, match='of 20'):
            index.search(np.ones((1, 8), np.float32), count, threads=1)
        with pytest.raises(ValueError, match='0 threads'):
            index.search(np.ones((1, 8), np.float32), 2, threads=0)
    with pytest.raises(ValueError, match='contiguous'):
        byte_keys(keys, 8).search(np.ones((2, 16), np.float32)[:, ::2], 2, threads=1)
