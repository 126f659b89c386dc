"""The scorer of the kernels gives what the network gives, whichever computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scene_models.networks import awake
from scene_models.test_landmark_inference import CONFIG, by_network, one_image

from d2s_ros.kernels.interface import ScorerInputs
from d2s_ros.scene_models.landmark.kernel_scorer import KernelScorer
from d2s_ros.scene_models.landmark.scorer_weights import ScorerWeights
from d2s_ros.scene_models.landmark.stored_network import StoredNetwork

PLAIN = replace(CONFIG, num_layers=0)


@pytest.fixture(params=['reference', 'compiled'], autouse=True)
def each_implementation(request, use_kernels):
    use_kernels(request.param)


def parts_of(network, points):
    return ScorerWeights(StoredNetwork.of(network)).parts(points.numpy())


def make(network, points):
    return KernelScorer(StoredNetwork.of(network), points.numpy())


def asked(scorer, inputs):
    return scorer(*(value.numpy() for value in inputs))


@pytest.mark.parametrize('count', [0, 1, 3, 4, 70])
@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'num_candidates': 1},
        {'num_candidates': 2, 'width': 17},
        {'num_frequencies': 1, 'descriptor_dim': 9},
        {'hidden_inputs': ('descriptors',)},
        {'hidden_inputs': ('candidate_points', 'keypoints')},
    ],
)
def test_reliabilities_are_those_of_the_network(count, changes):
    config = replace(PLAIN, **changes)
    network = awake(config)
    points, inputs = one_image(count, config)
    reliability, choice = asked(make(network, points), inputs)
    assert reliability.shape == choice.shape == (count,)
    if not count:
        return
    probability = torch.softmax(by_network(network, points, inputs), dim=-1)[:, :-1].numpy()
    # Tables of landmarks are kept in bfloat16.
    np.testing.assert_allclose(reliability, probability.max(axis=1), atol=0.03)
    chosen = probability[np.arange(count), choice]
    assert (chosen >= probability.max(axis=1) - 0.03).all()
    assert (choice == probability.argmax(axis=1)).mean() > 0.9


def test_does_not_depend_on_threads_or_on_other_keypoints(compiled_kernels):
    points, inputs = one_image(50, PLAIN)
    scorer = compiled_kernels.candidate_scorer(parts_of(awake(PLAIN), points))
    arrays = ScorerInputs(*(value.numpy() for value in inputs))
    one, many = (scorer(arrays, threads=threads) for threads in (1, 3))
    np.testing.assert_array_equal(one[0], many[0])
    np.testing.assert_array_equal(one[1], many[1])
    alone = scorer(ScorerInputs._make(array[20:21] for array in arrays), threads=1)
    assert alone[0][0] == one[0][20]


def test_landmarks_at_other_points():
    network = awake(PLAIN)
    points, inputs = one_image(40, PLAIN)
    other = points.clone()
    other[5:30] += 0.4
    moved = make(network, points).with_points(other.numpy())
    # Products of other numbers of rows are rounded otherwise.
    expected = asked(make(network, other), inputs)[0]
    np.testing.assert_allclose(asked(moved, inputs)[0], expected, atol=1e-6)
    assert np.abs(asked(moved, inputs)[0] - asked(make(network, points), inputs)[0]).max() > 1e-3


def test_landmarks_that_stay():
    points, inputs = one_image(9, PLAIN)
    scorer = make(awake(PLAIN), points)
    same = scorer.with_points(points.numpy().copy())
    np.testing.assert_array_equal(asked(same, inputs)[0], asked(scorer, inputs)[0])


def test_extreme_inputs_give_numbers():
    points, inputs = one_image(8, PLAIN)
    descriptors, landmark_idx, similarity, _, keypoints, log_scales = inputs
    similarity = torch.ones_like(similarity)
    found, _ = asked(
        make(awake(PLAIN), points),
        (descriptors, landmark_idx, similarity, similarity, 4.0 * keypoints.sign(), log_scales),
    )
    assert np.isfinite(found).all()
    assert ((found >= 0) & (found <= 1)).all()


def test_attention_is_not_linear():
    points, _ = one_image(1)
    with pytest.raises(ValueError, match='attention'):
        make(awake(CONFIG), points)


def test_what_does_not_fit_is_an_error(implementation):
    points, inputs = one_image(6, PLAIN)
    scorer = implementation.candidate_scorer(parts_of(awake(PLAIN), points))
    arrays = ScorerInputs(*(value.numpy() for value in inputs))
    with pytest.raises(ValueError, match='do not fit'):
        scorer(arrays._replace(descriptors=np.zeros((6, 3), np.float32)), threads=1)
    with pytest.raises(ValueError, match='expected an array'):
        scorer(arrays._replace(log_scales=arrays.log_scales[:5]), threads=1)
    with pytest.raises(ValueError, match='0 threads'):
        scorer(arrays, threads=0)
    for row in (-1, PLAIN.num_landmarks):
        wrong = arrays.landmark_idx.copy()
        wrong[2, 1] = row
        with pytest.raises(ValueError, match='landmarks'):
            scorer(arrays._replace(landmark_idx=wrong), threads=1)
