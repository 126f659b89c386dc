"""Matching near a place: what is close and alike, on both sides."""

from __future__ import annotations

import numpy as np
import torch

from d2s_ros.reconstruction.matching import match_near


def test_only_close_pairs_that_are_alike_match():
    rng = np.random.default_rng(0)
    count = 200
    points = (rng.random((count, 2)) * 640).astype(np.float32)
    descriptors = rng.normal(size=(count, 32)).astype(np.float32)
    # Every descriptor occurs twice: only the place tells which is which.
    descriptors[1::2] = descriptors[::2] + 0.01 * rng.normal(size=(count // 2, 32))
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    order = rng.permutation(count)
    moved = points[order] + rng.normal(0, 1.0, (count, 2)).astype(np.float32)
    moved[0] += 100.0
    moved[1] = np.nan
    pairs, similarity = match_near(
        torch.from_numpy(descriptors),
        torch.from_numpy(descriptors[order]),
        points,
        moved.astype(np.float32),
        max_distance_px=6.0,
        ratio=0.9,
        min_similarity=0.5,
    )
    assert (order[pairs[:, 1]] == pairs[:, 0]).all()
    assert not np.isin(pairs[:, 1], [0, 1]).any()
    assert len(pairs) > 0.85 * count
    assert (similarity > 0.99).all()


def test_nothing_near_is_no_match():
    some = torch.eye(4)
    here = np.zeros((4, 2), np.float32)
    pairs, similarity = match_near(
        some, some, here, here + 50, max_distance_px=5.0, ratio=0.9, min_similarity=0.5
    )
    assert len(pairs) == len(similarity) == 0
