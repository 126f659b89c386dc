"""What does not fit is refused by both implementations, before memory is touched."""

from __future__ import annotations

import numpy as np
import pytest


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def maxima(kernels, **changes):
    options = {'border': 1, 'threshold': 0.0, 'allowed': None, 'threads': 1, **changes}
    return kernels.strongest_maxima(zeros(9, 9), 2, options.pop('count', 3), **options)


@pytest.mark.parametrize(
    ('call', 'match'),
    [
        (lambda k: k.score_map(zeros(2, 2, 65), 17, 16, threads=1), 'do not cover'),
        (lambda k: k.score_map(zeros(2, 2, 65), 0, 16, threads=1), 'do not cover'),
        (lambda k: k.score_map(zeros(0, 2, 65), 8, 8, threads=1), 'do not cover'),
        (lambda k: k.score_map(zeros(2, 2, 64), 8, 8, threads=1), 'expected logits'),
        (lambda k: k.score_map(zeros(2, 2, 65), 8, 8, threads=0), '0 threads'),
        (lambda k: maxima(k, threads=-1), '-1 threads'),
        (lambda k: maxima(k, count=-1), 'at least 0'),
        (lambda k: maxima(k, border=-1), 'at least 0'),
        (lambda k: maxima(k, threshold=float('nan')), 'at least 0'),
        (lambda k: maxima(k, allowed=zeros(9, 8, dtype=np.uint8)), 'allowed is'),
        (lambda k: maxima(k, threads=10**5), '100000 threads'),
        (lambda k: k.strongest_maxima(zeros(9, 9), -1, 3, 1, 0.0, None, 1), 'at least 0'),
        (lambda k: k.refine_keypoints(zeros(81), np.array([13])), 'of 2 dimensions'),
        (lambda k: k.refine_keypoints(zeros(9, 9), np.array([[13]])), 'of 1 dimensions'),
        (lambda k: k.refine_keypoints(zeros(9, 9), np.array([3])), 'edge'),
        (lambda k: k.refine_keypoints(zeros(9, 9), np.array([78])), 'edge'),
        (lambda k: k.cells_around(np.full((3, 2), np.nan, np.float32), 4, 5), 'not finite'),
        (lambda k: k.cells_around(np.full((3, 2), np.inf, np.float32), 4, 5), 'not finite'),
        (lambda k: k.cells_around(zeros(3, 2), 0, 5), 'no cells'),
        (lambda k: k.cells_around(zeros(3, 2), 4, 0), 'no cells'),
        (lambda k: k.cells_around(zeros(3, 2), 2**20, 2**20), 'too many'),
        (lambda k: k.cells_around(zeros(3), 4, 5), r'\(3, 2\), found \(3,\)'),
        (
            lambda k: k.gather_around(zeros(4, 5, dtype=np.uint8), np.array([1]), 1, threads=1),
            '3 dim',
        ),
        (lambda k: gather(k, [0.0], 1), 'rows of cells'),
        (lambda k: gather(k, [6], 1), 'cells 6 to 6'),
        (lambda k: gather(k, [-1, 2], 2), 'cells -1 to 2'),
        (lambda k: gather(k, [0, 1, 2], 2), 'no room'),
        (lambda k: gather(k, [0], 1, threads=0), '0 threads'),
        (lambda k: close(k, [[0, 7]]), 'landmarks 0 to 7'),
        (lambda k: close(k, [[-1, 0]]), 'landmarks -1 to 0'),
        (
            lambda k: k.key_index(np.eye(3, dtype=np.float32)).search(zeros(1, 3), 4, threads=1),
            '4 of',
        ),
    ],
)
def test_what_does_not_fit_is_refused(implementation, call, match):
    with pytest.raises(ValueError, match=match):
        call(implementation)


def gather(kernels, cells, num_rows, threads=1):
    values = zeros(2, 3, 4, dtype=np.uint8)
    return kernels.gather_around(values, np.array(cells), num_rows, threads=threads)


def close(kernels, landmark_idx):
    rows = np.array(landmark_idx)
    return kernels.first_close(
        np.zeros((len(rows), 2)), np.ones((7, 3)), rows, np.eye(3), np.zeros(3), (1, 1, 0, 0), 9.0
    )


def test_a_square_larger_than_the_map_suppresses_all_else(implementation):
    scores = np.random.default_rng(0).random((9, 9)).astype(np.float32)
    found = implementation.strongest_maxima(scores, 2**40, 1, 0, 0.0, None, 1)
    np.testing.assert_array_equal(found, [scores.argmax()])


def test_nothing_at_all_is_fine(implementation):
    assert close(implementation, np.zeros((0, 4), np.int64)).shape == (0,)
    assert gather(implementation, np.zeros(0, np.int64), 0).shape == (0, 36)
    assert maxima(implementation, count=0).shape == (0,)
