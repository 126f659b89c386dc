"""The start of the paper's network: what it knows of a scene before any training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scene_models.made_up_scene import made_up_reconstruction

from d2s_ros.errors import ConfigError, InputError
from d2s_ros.scene_models.regression.network import D2SNetwork, RegressionConfig
from d2s_ros.scene_models.regression.samples import CoordinateFrame, samples_of_images
from d2s_ros.scene_models.regression.start import _detector_layer, choose_points, start_from_points
from d2s_ros.scene_models.regression.trainer import (
    RegressionTrainingConfig,
    held_out_error_px,
    train_regression_network,
)

#: Descriptors pass through the first hidden layer, as in the published network.
SMALL = RegressionConfig(descriptor_dim=32, num_layers=2, num_heads=2, hidden=(48, 160, 176, 40))
HELD_OUT = (3, 9)


def scene_samples(origin=(0.0, 0.0, 0.0), centred=False):
    scene = made_up_reconstruction(num_points=100, num_clutter=40, origin=origin)
    frame = CoordinateFrame.identity()
    if centred:
        frame = CoordinateFrame.of_points(scene.points_in_map)
    samples = samples_of_images(scene, frame)
    train = [sample for index, sample in enumerate(samples) if index not in HELD_OUT]
    return train, [samples[index] for index in HELD_OUT]


def started(config=SMALL, **scene):
    train, held_out = scene_samples(**scene)
    torch.manual_seed(0)
    network = D2SNetwork(config).eval()
    return network, start_from_points(network, train), train, held_out


def errors_and_reliability(network, sample):
    with torch.inference_mode():
        points, p = network(sample.descriptors[None])
    in_camera = points[0] @ sample.rotation.T + sample.translation
    pixels = in_camera[:, :2] / in_camera[:, 2:] * sample.intrinsics[:2] + sample.intrinsics[2:]
    errors = torch.linalg.vector_norm(pixels - sample.pixels, dim=-1)
    return errors, network.reliability(p)[0]


def test_the_published_network_has_room_for_a_thousand_points():
    for dim in (128, 256):
        assert _detector_layer(D2SNetwork(RegressionConfig(descriptor_dim=dim))) == (1, 1016)


@pytest.mark.parametrize('hidden', [(48, 160, 176, 40), (160, 168), (40, 40, 160, 176)])
@pytest.mark.parametrize(
    ('origin', 'centred'), [((0, 0, 0), False), ((300, -200, 20), False), ((300, -200, 20), True)]
)
def test_new_images_are_known_without_training(hidden, origin, centred):
    """Held-out keypoints of points lie where they should, and clutter is called unreliable."""
    network, known, _, held_out = started(
        replace(SMALL, hidden=hidden), origin=origin, centred=centred
    )
    assert len(known) == 100
    for sample in held_out:
        errors, reliability = errors_and_reliability(network, sample)
        labelled = sample.z > 0
        recognised = reliability > 0.6
        assert recognised[labelled].float().mean() > 0.9
        assert recognised[~labelled].float().mean() < 0.2
        # The noise of the keypoints is 0.5 px on each axis.
        assert errors[labelled & recognised].median() < 1.0


def test_only_points_that_there_is_room_for():
    network, known, train, _ = started(replace(SMALL, hidden=(48, 40, 60, 16)))
    assert len(known) == 40
    for sample in train:
        own = torch.isin(sample.tracks, known)
        errors, reliability = errors_and_reliability(network, sample)
        assert (reliability[own] > 0.6).float().mean() > 0.9
        assert errors[own].median() < 1.0
        assert (reliability[~own] > 0.6).float().mean() < 0.2


def test_attention_starts_as_the_identity(rng):
    network, *_ = started()
    x = torch.from_numpy(rng.normal(size=(2, 7, 32)).astype(np.float32))
    for layer in network.layers:
        assert torch.equal(layer(x), x)


def test_every_weight_can_be_trained():
    """Nothing is cut off: after a few steps the gradient reaches all layers."""
    network, _, train, _ = started()
    sample = train[0]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    for _ in range(4):
        points, p = network(sample.descriptors[None])
        optimizer.zero_grad()
        ((points[0] - sample.targets).square().sum() + p.square().sum()).backward()
        optimizer.step()
    for name, parameter in network.named_parameters():
        # A constant added to all keys changes no softmax.
        if not name.endswith('key.bias'):
            assert parameter.grad.abs().max() > 0, name


def test_every_image_keeps_its_points():
    """By track length alone, the image that shares few points with others would keep none."""
    many = [torch.arange(20) for _ in range(5)]
    few = [torch.tensor([-1, 20, 21, 22]), torch.tensor([20, 21, 22, 23])]
    chosen = choose_points([*many, *few], 6)
    assert len(chosen) == 6
    assert len(np.intersect1d(chosen, [20, 21, 22])) == 3
    # Nothing is known of a point that one image shows.
    assert 23 not in choose_points([*many, *few], 100)


def test_what_it_cannot_start_from():
    train, _ = scene_samples()
    for hidden in ((160,), (160, 8)):
        with pytest.raises(ConfigError, match='no room'):
            start_from_points(D2SNetwork(replace(SMALL, hidden=hidden)), train)
    with pytest.raises(InputError, match='two of the training images'):
        start_from_points(D2SNetwork(SMALL), train[:1])


@pytest.mark.parametrize('rate', [1e-5, 0.3])
def test_training_never_ends_worse_than_it_began(rate):
    """The best weights on held-out images are kept, those of the start among them."""
    train, held_out = scene_samples()
    network, known, *_ = started()
    config = RegressionTrainingConfig(
        steps=6, start='points', learning_rate=rate, patience=20, evaluate_every=2
    )
    before = held_out_error_px(
        network, [sample.labelled_only(known) for sample in held_out], config
    )
    assert before < 5
    trained, figures = train_regression_network(
        [[sample] for sample in train], SMALL, config, held_out=held_out
    )
    assert figures['known_points'] == 100
    assert figures['held_out_px'] <= round(before, 2)
    if rate > 0.1:
        assert figures['best_step'] == 0
        for name, value in network.state_dict().items():
            assert torch.equal(value, trained.state_dict()[name]), name
