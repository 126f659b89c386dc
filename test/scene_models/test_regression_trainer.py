"""Training of the paper's network: it learns, resumes exactly, and batches as it should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scene_models.made_up_scene import made_up_reconstruction

from d2s_ros.scene_models.regression.augmentation import turned_view
from d2s_ros.scene_models.regression.losses import coordinate_loss, reliability_loss
from d2s_ros.scene_models.regression.network import D2SNetwork, RegressionConfig
from d2s_ros.scene_models.regression.samples import (
    CoordinateFrame,
    make_regression_sample,
    samples_of_images,
    transfer_labels,
)
from d2s_ros.scene_models.regression.trainer import (
    RegressionTrainingConfig,
    draw_regression_batch,
    paper_loss,
    train_regression_network,
)
from d2s_ros.scene_models.training_loop import halving, one_cycle

TINY = RegressionConfig(descriptor_dim=32, num_layers=2, num_heads=2, hidden=(96, 96))


@pytest.fixture(scope='module')
def reconstruction():
    return made_up_reconstruction()


@pytest.fixture(scope='module')
def samples(reconstruction):
    return [[sample] for sample in samples_of_images(reconstruction, CoordinateFrame.identity())]


def reprojection_px(sample, points):
    in_camera = points @ sample.rotation.T + sample.translation
    pixels = in_camera[:, :2] / in_camera[:, 2:] * sample.intrinsics[:2] + sample.intrinsics[2:]
    return torch.linalg.vector_norm(pixels - sample.pixels, dim=-1)


@pytest.mark.parametrize('centred', [False, True])
def test_labels_lie_on_their_keypoints(centred):
    """Through the lens distortion, in the map's coordinates and in the network's."""
    far_away = made_up_reconstruction(num_images=3, noise_px=0.0, origin=(200.0, -100.0, 30.0))
    frame = CoordinateFrame.identity()
    if centred:
        frame = CoordinateFrame.of_points(far_away.points_in_map)
    for sample in samples_of_images(far_away, frame):
        errors = reprojection_px(sample, sample.targets)
        assert sample.z.sum() > 80
        assert errors[sample.z > 0].max() < (0.01 if centred else 0.1)
        assert not sample.targets[sample.z == 0].any()
        if centred:
            assert sample.targets.abs().median() < 1
        in_camera = sample.targets @ sample.rotation.T + sample.translation
        torch.testing.assert_close(
            in_camera[sample.z > 0][:, 2], sample.depths[sample.z > 0], rtol=1e-3, atol=1e-4
        )


def test_views_keep_their_labels(reconstruction):
    """Keypoints of a turned image get the points that project onto them, and no others."""
    exact = made_up_reconstruction(num_images=1, noise_px=0.0, num_points=60)
    mapped = exact.images[0]
    view = turned_view(
        np.zeros((240, 320), np.uint8), mapped.camera, mapped.map_from_camera, angle=0.4, zoom=1.2
    )
    warped = mapped.features.keypoints @ view.view_from_image[:, :2].T + view.view_from_image[:, 2]
    inside = ((warped >= 0) & (warped < [320, 240])).all(axis=1)
    features = replace(
        mapped.features,
        keypoints=warped[inside].astype(np.float32),
        keypoint_scores=mapped.features.keypoint_scores[inside],
        descriptors=mapped.features.descriptors[inside],
        scales=mapped.features.scales[inside],
    )
    found = transfer_labels(mapped, view, features, exact.points_in_map)
    truth = mapped.point_idx[inside]
    assert (truth >= 0).sum() > 20
    # Two points may lie closer together than the distance that a label reaches.
    assert (found[truth >= 0] == truth[truth >= 0]).mean() > 0.9
    assert (found[truth < 0] == -1).mean() > 0.8
    sample = make_regression_sample(
        features,
        view.camera,
        view.map_from_camera,
        found,
        exact.points_in_map,
        CoordinateFrame.identity(),
    )
    assert reprojection_px(sample, sample.targets)[sample.z > 0].max() < 2.3


def test_total_loss_switches_the_reprojection_on(samples):
    """Equation (11): before 0.8 of the run two terms, after it three."""
    torch.manual_seed(0)
    network = D2SNetwork(TINY)
    config = RegressionTrainingConfig(steps=10, alpha_m=2.0, alpha_u=3.0)
    batch = draw_regression_batch(samples, config, torch.Generator().manual_seed(1))
    points, p = network(batch['descriptors'])
    two = 2 * coordinate_loss(points, batch['targets'], batch['z'])
    two = two + 3 * reliability_loss(network.reliability(p), batch['z'])
    losses = [paper_loss(network, batch, config, step).item() for step in range(10)]
    assert losses[:8] == pytest.approx([two.item()] * 8)
    # The last step has tau = tau_min, and an untrained network is off by far more than 1 px.
    assert losses[9] == pytest.approx(two.item() + batch['z'].sum().item(), rel=1e-3)
    assert losses[8] > losses[9]


def test_coordinates_in_pixels(samples):
    """`pixels` puts the logarithm of the error in px in the place of equation (8)."""
    torch.manual_seed(0)
    network = D2SNetwork(TINY)
    config = RegressionTrainingConfig(steps=10, distance='pixels', scale_px=2.0, alpha_u=0.0)
    batch = draw_regression_batch([samples[0]], config, torch.Generator())
    with torch.no_grad():
        # Near the true points: the network's own lie behind the camera.
        last: Any = network.mlp[-1]
        last.weight.zero_()
        last.bias[:3] = torch.tensor([0.1, 0.2, 4.0])
    points, _ = network(batch['descriptors'])
    errors = reprojection_px(samples[0][0], points[0])
    expected = (batch['z'][0] * 2 * torch.log1p(errors / 2)).sum()
    assert paper_loss(network, batch, config, 0).item() == pytest.approx(expected.item(), rel=1e-4)


def test_noise_of_descriptors(samples):
    """Drawn anew for each batch, of the length that is asked for; as published there is none."""
    config = RegressionTrainingConfig(descriptor_noise=0.3)
    plain = draw_regression_batch(samples, RegressionTrainingConfig(), torch.Generator())
    noisy = draw_regression_batch(samples, config, torch.Generator())
    assert torch.equal(plain['targets'], noisy['targets'])
    difference = noisy['descriptors'] - plain['descriptors']
    assert torch.linalg.vector_norm(difference, dim=-1).mean().item() == pytest.approx(
        0.3, rel=0.05
    )


def test_padded_batches_equal_single_images(reconstruction):
    """A batch of images of different lengths has the mean of their losses."""
    samples = samples_of_images(reconstruction, CoordinateFrame.identity())
    cut = make_shorter(samples[1], 40)
    torch.manual_seed(0)
    network = D2SNetwork(TINY)
    config = RegressionTrainingConfig(steps=10, images_per_step=1)
    singles = [
        paper_loss(
            network,
            draw_regression_batch([[sample]], config, torch.Generator()),
            config,
            9,
        ).item()
        for sample in (samples[0], cut)
    ]
    generator = torch.Generator()
    many = replace(config, images_per_step=2)
    for seed in range(100):
        generator.manual_seed(seed)
        if sorted(torch.randint(2, (2,), generator=generator).tolist()) == [0, 1]:
            break
    batch = draw_regression_batch([[samples[0]], [cut]], many, torch.Generator().manual_seed(seed))
    assert not batch['mask'].all()
    assert paper_loss(network, batch, many, 9).item() == pytest.approx(np.mean(singles), rel=1e-4)


def make_shorter(sample, count):
    names = ('descriptors', 'tracks', 'targets', 'z', 'pixels', 'depths')
    return replace(sample, **{name: getattr(sample, name)[:count] for name in names})


def test_views_are_drawn_at_their_share(samples):
    variants = [[variant[0], make_shorter(variant[0], 30)] for variant in samples]
    generator = torch.Generator().manual_seed(0)
    config = RegressionTrainingConfig()
    lengths = [draw_regression_batch(variants, config, generator)['z'].shape[1] for _ in range(200)]
    assert 0.4 < np.mean(np.array(lengths) == 30) < 0.6
    some = replace(config, keypoints_per_image=20)
    assert draw_regression_batch(variants, some, generator)['z'].shape == (1, 20)


def judge(network, samples):
    """Return median error of labelled keypoints, and how often reliability is right for both."""
    errors, reliable, unreliable = [], [], []
    for (sample,) in samples:
        with torch.inference_mode():
            points, p = network(sample.descriptors[None])
        labelled = sample.z > 0
        errors.append(reprojection_px(sample, points[0])[labelled])
        z = network.reliability(p)[0]
        reliable.append((z[labelled] > 0.6).float())
        unreliable.append((z[~labelled] < 0.6).float())
    return (
        torch.cat(errors).median().item(),
        torch.cat(reliable).mean().item(),
        torch.cat(unreliable).mean().item(),
    )


def test_it_learns_and_separates_clutter():
    """Error below 10 px on the training images, and reliability tells points from clutter."""
    scene = made_up_reconstruction(num_points=100, num_clutter=40)
    frame = CoordinateFrame.of_points(scene.points_in_map)
    samples = [[sample] for sample in samples_of_images(scene, frame)]
    config = RegressionTrainingConfig(
        steps=300,
        images_per_step=4,
        learning_rate=3e-3,
        schedule='one_cycle',
        distance='plain',
        clip_norm=100.0,
    )
    network, figures = train_regression_network(samples, TINY, config)
    assert figures['steps'] == 300
    error_px, reliable, unreliable = judge(network, samples)
    assert error_px < 10
    assert reliable > 0.85
    assert unreliable > 0.85


@pytest.mark.slow
def test_the_published_schedule_learns():
    """One image a step, squared distances, halved learning rate, the map's own coordinates."""
    scene = made_up_reconstruction(num_points=100, num_clutter=40)
    samples = [[sample] for sample in samples_of_images(scene, CoordinateFrame.identity())]
    config = RegressionTrainingConfig(steps=4000, learning_rate=1e-3)
    network, _ = train_regression_network(samples, TINY, config)
    error_px, reliable, unreliable = judge(network, samples)
    assert error_px < 10
    assert reliable > 0.7
    assert unreliable > 0.7


@pytest.mark.parametrize(('stop', 'start'), [(1, 'random'), (7, 'random'), (7, 'points')])
def test_a_resumed_run_equals_an_uninterrupted_one(samples, tmp_path, stop, start):
    config = RegressionTrainingConfig(
        steps=12, images_per_step=2, keypoints_per_image=50, start=start
    )
    variants = [[variant[0], make_shorter(variant[0], 60)] for variant in samples]
    whole, _ = train_regression_network(variants, TINY, config)
    path = tmp_path / 'checkpoint'

    def interrupt(step, loss):
        if step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_regression_network(variants, TINY, config, checkpoint=path, on_step=interrupt)
    seen = []
    resumed, figures = train_regression_network(
        variants, TINY, config, checkpoint=path, on_step=lambda step, loss: seen.append(step)
    )
    assert seen == list(range(stop + 1, 13))
    assert figures['steps'] == 12
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def first_weights(network: Any) -> torch.Tensor:
    return network.mlp[0].weight


def test_another_seed_is_another_run(samples):
    config = RegressionTrainingConfig(steps=2)
    one, _ = train_regression_network(samples, TINY, config)
    same, _ = train_regression_network(samples, TINY, config)
    other, _ = train_regression_network(samples, TINY, replace(config, seed=1))
    assert torch.equal(first_weights(one), first_weights(same))
    assert not torch.equal(first_weights(one), first_weights(other))


def test_schedules():
    """Published: halved after every seventh of the run."""
    assert [halving(step, 14) for step in range(14)] == [0.5 ** (step // 2) for step in range(14)]
    assert halving(20, 14) == 0.5**6
    shares = [one_cycle(step, 100) for step in range(100)]
    assert max(shares) == pytest.approx(1.0)
    assert shares[-1] == pytest.approx(0.0)
