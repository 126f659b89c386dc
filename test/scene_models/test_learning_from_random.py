"""What makes the network of the paper learn from random weights: start, loss, mixing, mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from scene_models.made_up_scene import made_up_reconstruction

from d2s_ros.scene_models.regression.build import learning, shape_of
from d2s_ros.scene_models.regression.losses import annealed, linear_errors, reprojection_errors
from d2s_ros.scene_models.regression.network import D2SNetwork, RegressionConfig
from d2s_ros.scene_models.regression.samples import CoordinateFrame, samples_of_images
from d2s_ros.scene_models.regression.start import start_from_he
from d2s_ros.scene_models.regression.track_mixing import TrackDescriptors
from d2s_ros.scene_models.regression.trainer import (
    RegressionTrainingConfig,
    draw_regression_batch,
    train_regression_network,
)

TINY = RegressionConfig(descriptor_dim=32, num_layers=2, num_heads=2, hidden=(96, 96))


def first_weights(network: Any) -> torch.Tensor:
    return network.mlp[0].weight


@pytest.fixture(scope='module')
def samples():
    scene = made_up_reconstruction(num_points=100, num_clutter=40)
    frame = CoordinateFrame.of_points(scene.points_in_map)
    return [[sample] for sample in samples_of_images(scene, frame)]


def mean_error_px(network, samples):
    errors = []
    for (sample,) in samples:
        points, _ = network(sample.descriptors[None])
        args = (sample.rotation[None], sample.translation[None], sample.intrinsics[None])
        error = reprojection_errors(points, *args, sample.pixels[None], sample.depths[None] * 0.1)
        errors.append(error[0][sample.z > 0])
    return float(torch.cat(errors).mean())


def test_it_learns_more_in_the_same_steps_than_from_the_published_start(samples):
    published = RegressionTrainingConfig(steps=150, images_per_step=4, center_targets=True)
    ours = replace(learning(published), keypoints_per_image=64, learning_rate=3e-3)
    errors = {}
    for name, config in (('published', published), ('ours', ours)):
        network, _ = train_regression_network(samples, shape_of(TINY, config, 32), config)
        with torch.no_grad():
            errors[name] = mean_error_px(network, samples)
    assert errors['ours'] < 25
    assert errors['ours'] < errors['published'] / 3


def test_he_start_keeps_the_size_of_what_passes():
    config = RegressionTrainingConfig(start='he')
    network = D2SNetwork(shape_of(RegressionConfig(num_layers=0), config, 128))
    start_from_he(network, 0)
    descriptors = torch.nn.functional.normalize(torch.randn(1, 500, 128), dim=-1)
    points, p = network(descriptors)
    assert 0.3 < float(points.detach().std()) < 5
    # Near zero, where the reliability has a slope.
    assert float(p.detach().abs().median()) < 0.05
    other = D2SNetwork(network.config)
    start_from_he(other, 1)
    assert not torch.equal(first_weights(network), first_weights(other))


def test_linear_errors_are_the_projection_near_the_target(samples):
    (sample,) = samples[0]
    labelled = sample.z > 0
    targets = sample.targets[None]
    view = (sample.rotation[None], sample.translation[None], sample.intrinsics[None])
    in_camera = sample.targets @ sample.rotation.T + sample.translation
    across = torch.linalg.cross(in_camera, torch.tensor([1.0, 2.0, 0.5]).expand_as(in_camera))
    across = across / torch.linalg.vector_norm(across, dim=-1, keepdim=True)
    moved = targets + 1e-3 * (across @ sample.rotation)[None]
    pixels = sample.intrinsics[:2] * in_camera[:, :2] / in_camera[:, 2:] + sample.intrinsics[2:]
    exact = reprojection_errors(moved, *view, pixels[None], sample.depths[None] * 0.1)
    linear = linear_errors(moved, targets, *view, ray_share=0.0)
    torch.testing.assert_close(linear[0][labelled], exact[0][labelled], rtol=0.02, atol=0.02)
    # Along the ray a projection says nothing; here it counts a tenth.
    along = targets + 1e-2 * (in_camera @ sample.rotation)[None]
    error = linear_errors(along, targets, *view)[0][labelled]
    expected = 0.1 * 1e-2 * sample.intrinsics[0]
    torch.testing.assert_close(error, expected.expand_as(error), rtol=0.02, atol=0.02)


def test_annealing_is_geometric():
    assert annealed(0.0, 50.0, 1.0) == pytest.approx(50.0)
    assert annealed(0.5, 50.0, 1.0) == pytest.approx(50.0**0.5)
    assert annealed(1.0, 50.0, 1.0) == pytest.approx(1.0)


def test_mixed_descriptors_are_of_the_same_point(samples):
    everything = [sample for variants in samples for sample in variants]
    descriptors_of = TrackDescriptors.of(everything)
    (sample,) = samples[0]
    mixed = descriptors_of.mixed(
        sample.descriptors[None], sample.tracks[None], 1.0, torch.Generator().manual_seed(0)
    )[0]
    labelled = sample.tracks >= 0
    assert torch.equal(mixed[~labelled], sample.descriptors[~labelled])
    assert (mixed[labelled] != sample.descriptors[labelled]).any(dim=1).float().mean() > 0.5
    for row in labelled.nonzero()[:, 0].tolist():
        own = torch.cat([s.descriptors[s.tracks == sample.tracks[row]] for s in everything])
        assert (own == mixed[row]).all(dim=1).any()
    same = descriptors_of.mixed(
        sample.descriptors[None], sample.tracks[None], 0.0, torch.Generator().manual_seed(0)
    )
    assert torch.equal(same[0], sample.descriptors)


def test_a_share_of_the_keypoints_has_a_label(samples):
    config = RegressionTrainingConfig(images_per_step=3, keypoints_per_image=20, labelled_share=0.7)
    batch = draw_regression_batch(samples, config, torch.Generator().manual_seed(0))
    assert batch['z'].sum(dim=1).tolist() == [14, 14, 14]


def test_the_mean_of_weights_is_kept_and_resumed(samples, tmp_path):
    config = RegressionTrainingConfig(steps=12, keypoints_per_image=50, average=0.9)
    seen = []
    whole, _ = train_regression_network(
        samples, TINY, config, on_step=lambda step, loss: seen.append(step)
    )
    plain, _ = train_regression_network(samples, TINY, replace(config, average=0.0))
    assert not torch.equal(first_weights(whole), first_weights(plain))
    path = tmp_path / 'checkpoint'

    def interrupt(step, loss):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_regression_network(samples, TINY, config, checkpoint=path, on_step=interrupt)
    resumed, _ = train_regression_network(samples, TINY, config, checkpoint=path)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
