"""Which features a build takes where nobody has said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from d2s_ros.cli.build_options import config_of, of_places
from d2s_ros.cli.main import main, make_parser
from d2s_ros.errors import InputError
from d2s_ros.features.superpoint.network import SuperPointNet
from d2s_ros.features.types import FeatureConfig
from d2s_ros.map_building import feature_choice
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.feature_choice import clearly_more, decide
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import simulate_log


class Frames(list):
    """Frames in memory; is interrupted when it is read for the n-th time."""

    reads, interrupted = 0, 0

    def __iter__(self):
        self.reads += 1
        if self.reads == self.interrupted:
            raise KeyboardInterrupt
        return super().__iter__()


def placed(first, second):
    """Return what both kinds place of 48 frames: so many the first alone, so many the second."""
    both = np.zeros((2, 48), bool)
    both[:, :10] = True
    both[0, 10 : 10 + first] = True
    both[1, 30 : 30 + second] = True
    return both


@pytest.mark.parametrize(
    ('first', 'second', 'more'),
    [(0, 0, False), (0, 4, False), (0, 5, True), (2, 7, False), (2, 8, False), (2, 9, True)],
)
def test_clearly_more_is_what_a_sign_test_calls_so(first, second, more):
    one, other = placed(first, second)
    assert clearly_more(other, one) is more
    assert not clearly_more(one, other)


@pytest.mark.parametrize(
    ('first', 'second', 'ratio', 'taken', 'why'),
    [
        (0, 0, 1.2, 'superpoint', 'superpoint is 1.2 times as far off'),
        (0, 4, 1.2, 'superpoint', 'neither clearly more'),
        (4, 0, 2.0, 'rootsift', 'superpoint is 2 times as far off'),
        (1, 14, 0.5, 'rootsift', 'clearly more'),
        (14, 1, 3.0, 'superpoint', 'clearly more'),
    ],
)
def test_what_places_clearly_more_is_taken_or_what_is_exact(first, second, ratio, taken, why):
    one, other = placed(first, second).reshape(2, 3, 16)
    errors = {
        'superpoint': np.where(one, 0.01 * ratio, np.inf),
        'rootsift': np.where(other, 0.01, np.inf),
    }
    kind, reason = decide(errors)
    assert kind == taken
    assert f'superpoint places {10 + first}, rootsift {10 + second}' in reason
    assert why in reason


def test_nothing_is_compared_that_takes_too_long(small_map, config, tmp_path, monkeypatch):
    frames = Frames(small_map.frames[:8])
    monkeypatch.setattr(feature_choice, '_MAX_IMAGES', 7)
    manifest = build(frames, tmp_path / 'long', config)
    assert manifest.metrics['feature_choice'] == {
        'taken': 'rootsift',
        'reason': 'the log has 8 images, more than 7 to compare with',
    }
    assert 'comparison' not in manifest.metrics['seconds']


@pytest.mark.parametrize(
    ('options', 'compared', 'reason'),
    [
        ([], True, ''),
        (['--features', 'rootsift'], False, ''),
        (['--budget', 'quick'], False, 'the budget quick compares none'),
        (['--head', 'labels'], False, 'compared for landmark maps only'),
        (['--recipe', 'paper'], False, 'compared for landmark maps only'),
    ],
)
def test_auto_compares_where_it_pays(options, compared, reason):
    config = config_of(make_parser().parse_args(['build-map', 'log', '--map', 'map', *options]))
    assert (config.compare_features, config.features_reason) == (compared, reason)
    assert config.features.name == 'rootsift'


def test_places_of_an_area_have_the_features_of_the_first():
    config = of_places(BuildConfig(compare_features=True), 'superpoint')
    assert (config.features.name, config.compare_features) == ('superpoint', False)
    given = BuildConfig()
    assert of_places(given, 'superpoint') is given


@pytest.fixture(scope='module')
def config():
    config = BuildConfig(
        features=FeatureConfig(max_keypoints=400), compare_features=True, holdout_every=4
    )
    training = replace(config.training, steps=8, images_per_step=2, keypoints_per_image=64)
    return replace(config, training=training)


def build(source, target, config):
    return build_map(source, target, config, device='cpu', progress=False).scene_map.manifest


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_and_gives_the_same_map(
    small_map, config, tmp_path, monkeypatch
):
    frames, target = Frames(small_map.frames[:8]), tmp_path / 'map'
    manifest = build(frames, tmp_path / 'straight', config)
    choice, seconds = manifest.metrics['feature_choice'], manifest.metrics['seconds']
    assert choice['taken'] == manifest.features.name in ('superpoint', 'rootsift')
    assert choice['images'] == 2
    assert all(choice['rootsift'][name] <= 2 for name in ('as taken', 'dark', 'blurred'))
    assert 'of 6 left-out frames' in choice['reason']
    assert 0 < seconds['comparison'] < seconds['total']
    # Both kinds are there, and nothing of the comparison, when the frames are asked for.
    interrupted = Frames(frames)
    interrupted.interrupted = 3
    with pytest.raises(KeyboardInterrupt):
        build(interrupted, target, config)
    kept = tmp_path / 'map.building'
    for kind in ('superpoint', 'rootsift'):
        assert (kept / kind / 'reconstruction.log').exists()

    def reconstruct_again(*args, **kwargs):
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr('d2s_ros.map_building.preparation.reconstruct', reconstruct_again)
        assert build(frames, target, config).files == manifest.files
    assert not kept.exists()


def test_features_that_give_no_map_are_not_taken(small_map, config, tmp_path, monkeypatch):
    prepare = feature_choice.prepare

    def without(*kinds):
        def prepared(source, extractor, config, options, stages, clock):
            made = prepare(source, extractor, config, options, stages, clock)
            if extractor.config.name in kinds:
                raise InputError(f'no structure of {extractor.config.name}')
            return made

        monkeypatch.setattr(feature_choice, 'prepare', prepared)

    frames = Frames(small_map.frames[:8])
    without('superpoint', 'rootsift')
    with pytest.raises(InputError, match='no structure of rootsift'):
        build(frames, tmp_path / 'none', config)
    without('superpoint')
    manifest = build(frames, tmp_path / 'map', config)
    assert manifest.features.name == 'rootsift'
    assert manifest.metrics['feature_choice'] == {
        'taken': 'rootsift',
        'reason': 'no map can be made of the log with superpoint',
    }


def test_a_log_that_gives_no_images_is_read_once(small_map, config, tmp_path):
    frames = Frames(small_map.frames[:1])
    with pytest.raises(InputError, match='mapping needs at least two'):
        build(frames, tmp_path / 'map', config)
    assert frames.reads == 1


@pytest.mark.slow
def test_rootsift_is_taken_where_superpoint_has_learned_nothing(tmp_path, capsys):
    """By the command, with weights that were never trained."""
    log, weights = tmp_path / 'log', tmp_path / 'untrained.pth'
    config = SimulationConfig(seed=11, frames=40, width=480, height=360, trajectory='lawnmower')
    simulate_log(config, log, progress=False)
    torch.manual_seed(0)
    torch.save(SuperPointNet().state_dict(), weights)
    target = tmp_path / 'map'
    options = ['--max-keypoints', '600', '--steps', '60', '--weights', str(weights), '--quiet']
    assert main(['build-map', str(log), '--map', str(target), *options]) == 0
    assert 'features: rootsift, ' in capsys.readouterr().out
    manifest = SceneMap.open(target).manifest
    assert manifest.features.name == 'rootsift'
    assert manifest.metrics['feature_choice']['taken'] == 'rootsift'
    assert manifest.build['compare_features']
