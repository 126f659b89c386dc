"""A scene model that the package does not know goes all the way, by one line in the registry."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from scene_models.toy_model import ToyModel

from d2s_ros.data.sources import open_source
from d2s_ros.errors import ConfigError, InputError, MapFormatError
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import BuildConfig, budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.map_update.config import (
    LABEL_LIMITS,
    GateConfig,
    KeyframeConfig,
    LabelConfig,
    UpdateConfig,
)
from d2s_ros.map_update.pipeline import update_map
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.verification import verify
from d2s_ros.scene_models import registry

UPDATE = UpdateConfig(
    keyframes=KeyframeConfig(min_keypoints=100),
    labels=LabelConfig(limits=replace(LABEL_LIMITS, min_inliers=20)),
    gate=GateConfig(min_new_frames=1),
    min_free_megabytes=1,
)


@pytest.fixture(scope='module')
def registered():
    patch = pytest.MonkeyPatch()
    patch.setitem(registry.MODELS, ToyModel.name, ToyModel)
    yield
    patch.undo()


@pytest.fixture(scope='module')
def built(registered, building_logs, tmp_path_factory):
    path = tmp_path_factory.mktemp('toy') / 'map'
    features = FeatureConfig(name='rootsift', max_keypoints=1024)
    config = budget('quick', head='toy', features=features)
    result = build_map(
        open_source(building_logs / 'map'), path, config, device='cpu', progress=False
    )
    return path, result


def test_it_is_built_and_calibrated(built):
    _, result = built
    scene_map = result.scene_map
    assert scene_map.manifest.head == 'toy'
    assert scene_map.manifest.metrics['num_landmarks'] == len(scene_map.model.points_in_map) > 200
    calibration = scene_map.manifest.calibration
    # Images were left out of it, and it was asked what chance finds.
    assert calibration.covariance_scale != 1.0
    assert calibration.chance_scale > 0


def test_it_is_read_as_it_was_written(built):
    path, result = built
    opened = SceneMap.open(path)
    assert isinstance(opened.model, ToyModel)
    for name, value in result.scene_map.model.tensors().items():
        np.testing.assert_array_equal(opened.model.tensors()[name], value)
    assert verify(path) == []


def test_it_localizes(built, building_logs):
    path, _ = built
    localizer = Localizer.from_map(path, device='cpu')
    errors = []
    for frame in open_source(building_logs / 'map'):
        result = localizer.localize(frame.image, frame.camera, details=True)
        if result.localized:
            errors.append(pose_error(result.map_from_camera, frame.map_from_camera)[0])
    assert len(errors) >= 10
    assert max(errors) < 0.05


def test_it_is_updated(built, building_logs, tmp_path):
    path = shutil.copytree(built[0], tmp_path / 'map')
    result = update_map(path, [building_logs / 'dusk'], UPDATE, device='cpu')
    assert result.verdict in ('promoted', 'refused')
    assert result.figures['used'] >= 2
    assert result.decision.metrics['old']['frames'] == 14
    store = MapStore(path)
    assert store.versions() == ['0001', '0002']
    before, after = (SceneMap.open(path / 'versions' / name) for name in store.versions())
    assert isinstance(after.model, ToyModel)
    assert len(after.model.points_in_map) > len(before.model.points_in_map)
    # The recipe of the paper trains a network, which this model has not.
    paper = replace(UPDATE, recipe='paper')
    with pytest.raises(InputError, match='toy head cannot be updated'):
        update_map(path, [building_logs / 'dusk'], paper, device='cpu', dry_run=True)


def test_without_its_line_it_is_unknown(built, monkeypatch):
    monkeypatch.delitem(registry.MODELS, ToyModel.name)
    with pytest.raises(MapFormatError, match="'toy', it must be one of landmark, regression"):
        SceneMap.open(built[0])
    with pytest.raises(ConfigError, match="'toy', it must be one of landmark, regression"):
        BuildConfig(head='toy')
