"""Keypoints by the kernels are those of the formulas on tensors, whichever computes."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch

from d2s_ros.kernels import tensors


def pixels_of(index, width):
    return np.stack([index % width, index // width], axis=1)


@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize(('height', 'width'), [(8, 8), (5, 7), (40, 64), (41, 59), (33, 80)])
def test_score_map_is_that_of_the_tensors(rng, implementation, height, width, threads):
    rows, columns = -(-height // 8), -(-width // 8)
    logits = rng.normal(0, 6, (rows, columns, 65)).astype(np.float32)
    logits[0, 0, :3] = [200.0, -200.0, 90.0]
    found = implementation.score_map(logits, height, width, threads=threads)
    tensor = torch.from_numpy(logits).permute(2, 0, 1)[None]
    expected = tensors.score_map(tensor)[0, :height, :width].numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-30)


def test_refinement_is_that_of_the_tensors(rng, implementation):
    scores = rng.random((40, 60)).astype(np.float32)
    scores[10:20, 10:20] = 0.4
    inner = np.zeros((40, 60), bool)
    inner[1:-1, 1:-1] = True
    index = np.flatnonzero(inner)
    found = implementation.refine_keypoints(scores, index)
    expected = tensors.refine_keypoints(
        torch.from_numpy(scores), torch.from_numpy(pixels_of(index, 60))
    )
    # Where the determinant is nearly none, rounding decides.
    close = np.isclose(found, expected.numpy(), atol=1e-3).all(axis=1)
    assert close.mean() > 0.999
    assert np.abs(found - pixels_of(index, 60)).max() <= 0.75


@pytest.mark.parametrize(('rows', 'columns'), [(1, 1), (1, 6), (5, 1), (9, 13)])
def test_cells_around_are_those_of_the_tensors(rng, implementation, rows, columns):
    points = rng.uniform(-3, [8 * columns + 3, 8 * rows + 3], (70, 2)).astype(np.float32)
    cells, places, weights = implementation.cells_around(points, rows, columns)
    expected, shares = tensors.neighbouring_cells(torch.from_numpy(points), rows, columns)
    np.testing.assert_array_equal(cells[places], expected.numpy())
    np.testing.assert_allclose(weights, shares.numpy(), atol=1e-6)
    np.testing.assert_array_equal(cells, np.unique(expected.numpy()))


def test_no_keypoints_have_no_cells(implementation):
    cells, places, weights = implementation.cells_around(np.zeros((0, 2), np.float32), 4, 5)
    assert cells.shape == (0,)
    assert places.shape == weights.shape == (0, 4)
    around = implementation.gather_around(np.zeros((4, 5, 2), np.uint8), cells, 3, threads=2)
    assert around.shape == (3, 18)


@pytest.mark.parametrize(('rows', 'columns'), [(1, 1), (1, 2), (2, 1), (6, 7)])
def test_gathers_what_lies_around(rng, implementation, rows, columns):
    values = rng.integers(1, 256, (rows, columns, 3)).astype(np.uint8)
    cells = np.arange(rows * columns)
    found = implementation.gather_around(values, cells, len(cells) + 2, threads=2)
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)))
    for cell in cells:
        row, column = divmod(int(cell), columns)
        expected = padded[row : row + 3, column : column + 3]
        np.testing.assert_array_equal(found[cell], expected.reshape(-1))


@pytest.mark.parametrize('kind', ['noise', 'equal scores', 'smooth', 'smooth and equal'])
def test_the_strongest_maxima_are_those_of_the_whole_suppression(implementation, kind):
    rng = np.random.default_rng(7)
    by_few_pixels = 0
    for _ in range(60):
        height, width = (int(size) for size in rng.integers(20, 90, 2))
        radius, count = int(rng.integers(0, 6)), int(rng.integers(1, 60))
        border, threshold = int(rng.integers(0, 5)), float(rng.choice([0.0, 0.3]))
        scores: Any = rng.random((height, width)).astype(np.float32)
        if 'smooth' in kind:
            scores = cv2.GaussianBlur(scores, (0, 0), 1.5)
        if 'equal' in kind:
            scores = np.round(scores * 12) / 12 + np.float32(1e-3)
        scores = scores.astype(np.float32)
        allowed = rng.integers(0, 3, scores.shape).astype(np.uint8) if rng.random() < 0.7 else None
        found = implementation.strongest_maxima(
            scores,
            radius,
            count,
            border=border,
            threshold=threshold,
            allowed=allowed,
            threads=2,
        )
        inner = np.zeros(scores.shape, bool)
        inner[border : height - border, border : width - border] = True
        kept = tensors.suppress_non_maxima(torch.from_numpy(scores)[None], radius)[0].numpy()
        counts = inner & (kept > threshold)
        if allowed is not None:
            counts &= allowed > 0
        every = np.flatnonzero(counts)
        best_first = every[np.argsort(-scores.reshape(-1)[every], kind='stable')]
        np.testing.assert_array_equal(found, best_first[:count])
        by_few_pixels += len(every) > count and radius > 0
    assert by_few_pixels > 20
