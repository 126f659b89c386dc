"""Keypoints by the compiled part are those of `dense_maps`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2s_ros.features import dense_maps
from d2s_ros.features.dense_maps_cpu import pixels_of
from d2s_ros.kernels import keypoints, library

pytestmark = pytest.mark.skipif(not library.is_available(), reason='no compiled part')


@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize(('height', 'width'), [(8, 8), (5, 7), (40, 64), (41, 59), (33, 80)])
def test_score_map_is_that_of_the_tensors(rng, height, width, threads):
    rows, columns = -(-height // 8), -(-width // 8)
    logits = rng.normal(0, 6, (rows, columns, 65)).astype(np.float32)
    logits[0, 0, :3] = [200.0, -200.0, 90.0]
    found = keypoints.score_map(logits, height, width, threads=threads)
    tensor = torch.from_numpy(logits).permute(2, 0, 1)[None]
    expected = dense_maps.score_map(tensor)[0, :height, :width].numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-30)


def test_maps_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match='do not cover'):
        keypoints.score_map(np.zeros((2, 2, 65), np.float32), 17, 16, threads=1)
    with pytest.raises(ValueError, match='edge'):
        keypoints.refine_keypoints(np.zeros((9, 9), np.float32), np.array([3]), 1e-3)
    with pytest.raises(ValueError, match='no such cells'):
        keypoints.gather_around(np.zeros((2, 3, 4), np.uint8), np.array([6]), 1, threads=1)


def test_refinement_is_that_of_the_tensors(rng):
    scores = rng.random((40, 60)).astype(np.float32)
    scores[10:20, 10:20] = 0.4
    inner = np.zeros((40, 60), bool)
    inner[1:-1, 1:-1] = True
    index = np.flatnonzero(inner)
    found = keypoints.refine_keypoints(scores, index, 1e-3)
    expected = dense_maps.refine_keypoints(
        torch.from_numpy(scores), torch.from_numpy(pixels_of(index, 60))
    )
    # Where the determinant is nearly none, rounding decides.
    close = np.isclose(found, expected.numpy(), atol=1e-3).all(axis=1)
    assert close.mean() > 0.999
    assert np.abs(found - pixels_of(index, 60)).max() <= 0.75


@pytest.mark.parametrize(('rows', 'columns'), [(1, 1), (1, 6), (5, 1), (9, 13)])
def test_cells_around_are_those_of_the_tensors(rng, rows, columns):
    points = rng.uniform(-3, [8 * columns + 3, 8 * rows + 3], (70, 2)).astype(np.float32)
    cells, places, weights = keypoints.cells_around(points, rows, columns)
    expected, shares = dense_maps.neighbouring_cells(torch.from_numpy(points), rows, columns)
    np.testing.assert_array_equal(cells[places], expected.numpy())
    np.testing.assert_allclose(weights, shares.numpy(), atol=1e-6)
    np.testing.assert_array_equal(cells, np.unique(expected.numpy()))


def test_no_keypoints_have_no_cells():
    cells, places, weights = keypoints.cells_around(np.zeros((0, 2), np.float32), 4, 5)
    assert cells.shape == (0,)
    assert places.shape == weights.shape == (0, 4)
    around = keypoints.gather_around(np.zeros((4, 5, 2), np.uint8), cells, 3, threads=2)
    assert around.shape == (3, 18)
    assert not around.any()


@pytest.mark.parametrize(('rows', 'columns'), [(1, 1), (1, 2), (2, 1), (6, 7)])
def test_gathers_what_lies_around(rng, rows, columns):
    values = rng.integers(1, 256, (rows, columns, 3)).astype(np.uint8)
    cells = np.arange(rows * columns)
    found = keypoints.gather_around(values, cells, len(cells) + 2, threads=2)
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)))
    for cell in cells:
        row, column = divmod(int(cell), columns)
        expected = padded[row : row + 3, column : column + 3]
        np.testing.assert_array_equal(found[cell], expected.reshape(-1))
    assert not found[len(cells) :].any()
