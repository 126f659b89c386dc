"""Maps with the head of the D2S paper: written, opened, localized, and refused when useless."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scene_models.made_up_scene import made_up_reconstruction

from d2s_ros.cli.main import main
from d2s_ros.features.types import FeatureConfig, FeatureExtractor
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import BuildConfig, budget
from d2s_ros.map_building.scene_model import train_map
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.verification import verify
from d2s_ros.scene_models.base import View
from d2s_ros.scene_models.regression.model import RegressionModel
from d2s_ros.scene_models.regression.network import RegressionConfig
from d2s_ros.scene_models.regression.trainer import RegressionTrainingConfig
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import simulate_log


class MadeUpFeatures(FeatureExtractor):
    """Stands where an extractor is only asked for its name."""

    config = FeatureConfig()
    dim = 32
    weights_hash = 'made-up'

    def extract(self, image, mask=None):
        raise NotImplementedError


CONFIG = BuildConfig(
    head='regression',
    regression=RegressionConfig(num_layers=2, num_heads=2, hidden=(96, 96)),
    regression_training=RegressionTrainingConfig(
        steps=500,
        images_per_step=4,
        learning_rate=3e-3,
        schedule='one_cycle',
        center_targets=True,
        distance='plain',
        clip_norm=100.0,
    ),
    reliability_threshold=0.6,
    holdout_every=4,
)


@pytest.fixture(scope='module')
def reconstruction():
    return made_up_reconstruction(
        num_images=24, num_points=100, num_clutter=40, origin=(300.0, -200.0, 20.0)
    )


@pytest.fixture(scope='module')
def trained(reconstruction):
    return train_map(reconstruction, MadeUpFeatures(), CONFIG)


def test_map_survives_the_disk_and_localizes(trained, reconstruction, tmp_path):
    scene_map, metrics = trained
    MapStore(tmp_path / 'map').write(scene_map)
    assert verify(tmp_path / 'map') == []
    opened = SceneMap.open(tmp_path / 'map')
    assert opened.manifest.head == 'regression'
    assert opened.manifest.calibration.reliability_threshold == 0.6
    assert isinstance(opened.model, RegressionModel)
    assert metrics['num_parameters'] == sum(p.numel() for p in opened.model.network.parameters())
    # Far from the origin float16 would be off by a quarter of a metre.
    torch.testing.assert_close(opened.model.network.center, scene_map.model.network.center)
    localizer = Localizer(opened, MadeUpFeatures())
    in_memory = Localizer(scene_map, MadeUpFeatures())
    errors = []
    for image in reconstruction.images:
        predicted = localizer.observer.observe(View.of(image)).coordinates
        before = in_memory.observer.observe(View.of(image)).coordinates
        np.testing.assert_allclose(predicted.points_in_map, before.points_in_map, atol=0.03)
        assert predicted.covariances is None
        result = localizer.localize_features(image.features, image.camera)
        if result.localized:
            errors.append(pose_error(result.map_from_camera, image.map_from_camera)[0])
    assert len(errors) >= 20
    # The scene is 3 to 6 m away.
    assert np.median(errors) < 0.15


def test_covariance_comes_from_the_residuals(trained, reconstruction):
    """The normalised error of held-out images is what six degrees of freedom give."""
    scene_map, metrics = trained
    assert metrics['holdout_images'] == 6
    assert metrics['holdout_localized'] >= 5
    localizer = Localizer(scene_map, MadeUpFeatures())
    calibration = scene_map.manifest.calibration
    assert 0.3 < calibration.sigma_px <= 12
    ratios = []
    for index in range(2, 24, 4):
        image = reconstruction.images[index]
        result = localizer.localize_features(image.features, image.camera)
        if result.localized:
            error = result.map_from_camera.translation - image.map_from_camera.translation
            ratios.append(error @ np.linalg.solve(result.covariance[:3, :3], error))
    # Chi-square with three degrees of freedom has the median 2.4; few images, wide bounds.
    assert 0.3 < np.median(ratios) < 12


@pytest.mark.parametrize('damage', ['untrained', 'collapsed', 'not a number', 'unreliable'])
def test_useless_networks_are_refused(trained, reconstruction, damage):
    scene_map, _ = trained
    if damage == 'untrained':
        untrained = replace(
            CONFIG, regression_training=replace(CONFIG.regression_training, steps=0)
        )
        scene_map, metrics = train_map(reconstruction, MadeUpFeatures(), untrained)
        assert metrics['holdout_localized'] == 0
    else:
        network = type(scene_map.model.network)(scene_map.model.network.config)
        network.load_state_dict(scene_map.model.network.state_dict())
        with torch.no_grad():
            last = network.mlp[-1]
            if damage == 'collapsed':
                last.weight.zero_()
                last.bias.zero_()
            elif damage == 'unreliable':
                last.bias[3] = 1e6
            else:
                last.weight.fill_(float('nan'))
        scene_map = replace(scene_map, model=RegressionModel(network.eval()))
    localizer = Localizer(scene_map, MadeUpFeatures())
    for image in reconstruction.images[:4]:
        result = localizer.localize_features(image.features, image.camera, details=True)
        assert not result.localized
        assert result.reason
        assert result.map_from_camera is None
        assert np.isfinite(result.details.points_in_map).all()


def test_recipes():
    paper = budget('quick', recipe='paper', seed=4)
    training = paper.regression_training
    assert paper.head == 'regression'
    assert (training.learning_rate, training.schedule) == (1e-4, 'halving')
    assert (training.images_per_step, training.keypoints_per_image) == (1, 0)
    assert (training.distance, training.center_targets, training.seed) == ('squared', False, 4)
    assert (training.start, training.patience, training.evaluate_every) == ('points', 20, 5)
    assert paper.regression == RegressionConfig()
    assert paper.reliability_threshold == 0.6
    ours = budget('quick', head='regression').regression_training
    assert ours.center_targets
    assert budget('quick').head == 'landmark'


def test_paper_recipe_through_the_command_line(tmp_path, capsys):
    """A handful of steps: the map opens and verifies, and localizes most of its own images."""
    log, scene = tmp_path / 'log', tmp_path / 'map'
    simulate_log(SimulationConfig(seed=3, frames=8, width=320, height=240), log, progress=False)
    command = ['build-map', str(log), '--map', str(scene), '--recipe', 'paper']
    command += ['--budget', 'quick', '--steps', '3', '--max-keypoints', '128', '--quiet']
    # Three steps teach nothing; the start knows enough.
    assert main(command) == 0
    assert main(['map', 'verify', str(scene)]) == 0
    manifest = SceneMap.open(scene).manifest
    assert manifest.head == 'regression'
    assert manifest.build['regression_training']['steps'] == 3
    assert manifest.metrics['training']['steps'] == 3
    assert manifest.metrics['training']['known_points'] > 30
    assert manifest.metrics['training']['held_out_px'] < 50
    report = tmp_path / 'report.json'
    assert main(['localize', str(scene), str(log), '--report', str(report), '--quiet']) == 0
    entries = json.loads(report.read_text())['frames']
    assert len(entries) == 8
    assert sum(entry['map_from_camera'] is not None for entry in entries) >= 4
    assert all(entry['reason'] or entry['map_from_camera'] for entry in entries)
    assert 'localized' in capsys.readouterr().out
