"""Maps in another unit of length: everything of the place is scaled alike, and nothing else."""

from __future__ import annotations

import shutil
from copy import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from maps.test_scene_map import make_map

from d2s_ros.cli.main import main
from d2s_ros.config import to_dict
from d2s_ros.errors import InputError
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.pose_prior import PosePrior
from d2s_ros.maps.rescaling import find_place, rescaled, scale_live_version
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.update_data import MappingData
from d2s_ros.maps.verification import verify
from d2s_ros.scene_models.labels.model import LabelModel
from d2s_ros.scene_models.landmark.model import LandmarkModel
from d2s_ros.scene_models.regression.model import RegressionModel
from d2s_ros.scene_models.regression.network import D2SNetwork, RegressionConfig


@pytest.fixture
def copied_map(small_map, tmp_path):
    """Return a copy of `small_map` that may be changed."""
    shutil.copytree(small_map.path, tmp_path / 'map')
    return tmp_path / 'map'


def test_poses_scale_exactly(copied_map, query_frames, capsys):
    """Twice as large: powers of two are exact, so every position is exactly twice as far."""
    before = Localizer.from_map(copied_map, device='cpu')
    assert main(['map', 'scale', str(copied_map), '--factor', '2']) == 0
    assert 'version 0002 is live, 2 times as large as version 0001' in capsys.readouterr().out
    after = Localizer.from_map(copied_map, device='cpu')
    assert verify(copied_map) == []
    localized = 0
    for frame in query_frames:
        old = before.localize(frame.image, frame.camera)
        new = after.localize(frame.image, frame.camera)
        assert new.status is old.status
        assert (new.num_inliers, new.num_reliable) == (old.num_inliers, old.num_reliable)
        if not old.localized:
            continue
        localized += 1
        np.testing.assert_allclose(
            new.map_from_camera.translation, 2 * old.map_from_camera.translation, atol=1e-6
        )
        np.testing.assert_allclose(
            new.map_from_camera.rotation, old.map_from_camera.rotation, atol=1e-7
        )
        expected = old.covariance * np.outer([2, 2, 2, 1, 1, 1], [2, 2, 2, 1, 1, 1])
        np.testing.assert_allclose(new.covariance, expected, rtol=1e-4, atol=1e-12)
    assert localized >= 4
    # A prior of the same place, in the map's unit, is believed alike.
    frame = query_frames[0]
    features = before.extractor.extract(frame.image).strongest(60)
    truth = frame.map_from_camera
    grown = replace(truth, translation=2 * truth.translation)
    old, new = (
        localizer.localize_features(features, frame.camera, prior=partial(copy, prior))
        for localizer, prior in (
            (before, PosePrior(truth, 0.05, 0.5)),
            (after, PosePrior(grown, 0.1, 0.5)),
        )
    )
    assert new.status is old.status


def test_a_known_distance_brings_a_map_into_metres(copied_map, capsys):
    """The places may be landmarks, coordinates or mapping images; rollback and inverse go back."""
    store = MapStore(copied_map)
    original = SceneMap.open(copied_map)
    arbitrary, data = rescaled(original, original.load_update_data(), 0.37)
    store.write(replace(arbitrary, manifest=replace(arbitrary.manifest, metric=False)), data)
    first, last = (MappingData.from_map(original).images[index] for index in (0, -1))
    metres = np.linalg.norm(first.map_from_camera.translation - last.map_from_camera.translation)
    arguments = ['map', 'scale', str(copied_map), '--metres', f'{metres:.9f}', '--points']
    assert main([*arguments, f'image:{first.name}', f'image:{last.name}']) == 0
    found = SceneMap.open(copied_map)
    assert found.manifest.metric
    assert found.manifest.metrics['scaled_by'] == pytest.approx(1, abs=1e-6)
    assert_same_map(original, found)
    assert main(['map', 'rollback', str(copied_map)]) == 0
    back = SceneMap.open(copied_map)
    assert not back.manifest.metric
    assert back.manifest.version == '0002'
    assert main(['map', 'info', str(copied_map)]) == 0
    assert 'arbitrary scale' in capsys.readouterr().out
    points = original.model.points_in_map.astype(float)
    distance = np.linalg.norm(points[3] - points[17])
    place = '[' + ','.join(f'{value:.9f}' for value in 0.37 * points[17]) + ']'
    assert main([*arguments[:4], f'{distance:.9f}', '--points', '3', place]) == 0
    assert_same_map(original, SceneMap.open(copied_map))


def assert_same_map(expected, found):
    """Check that two maps are the same within the rounding of float32."""
    size = max(1.0, float(np.abs(expected.model.points_in_map).max()))
    for name, value in expected.model.tensors().items():
        other = found.model.tensors()[name]
        if value.dtype.kind == 'f':
            np.testing.assert_allclose(other, value, rtol=1e-5, atol=1e-6 * size, err_msg=name)
        else:
            np.testing.assert_array_equal(other, value, err_msg=name)
    old, new = expected.load_update_data(), found.load_update_data()
    np.testing.assert_allclose(new['points'], old['points'], atol=1e-6 * size)
    np.testing.assert_allclose(new['poses'], old['poses'], atol=1e-5)
    for name in sorted(set(old) - {'points', 'poses'}):
        np.testing.assert_array_equal(new[name], old[name], err_msg=name)
    calibration = to_dict(found.manifest.calibration)
    assert calibration == pytest.approx(to_dict(expected.manifest.calibration), rel=1e-6)
    metrics, of_found = expected.manifest.metrics, found.manifest.metrics
    assert of_found['holdout_median_m'] == pytest.approx(metrics['holdout_median_m'], rel=1e-6)
    assert of_found['holdout_median_deg'] == metrics['holdout_median_deg']


def test_every_length_of_the_manifest_is_scaled():
    scene_map = make_map()
    manifest = replace(
        scene_map.manifest,
        origin=(100.0, -20.0, 3.0),
        calibration=replace(scene_map.manifest.calibration, scene_depth=2.0),
        metrics={
            'holdout_median_m': 0.01,
            'holdout_median_deg': 0.5,
            'refined_poses': {'median_m': None, 'median_deg': 1.0},
            'doubtful_poses': [{'name': 'a', 'distance_m': 2.0, 'angle_deg': 1.0}],
            'update': {'logs': ['monday'], 'promoted': True},
        },
    )
    found, data = rescaled(replace(scene_map, manifest=manifest), None, 3.0)
    assert data is None
    assert found.manifest.origin == (300.0, -60.0, 9.0)
    assert found.manifest.calibration == replace(manifest.calibration, scene_depth=6.0)
    assert found.manifest.metric
    assert found.manifest.metrics == {
        'holdout_median_m': 0.03,
        'holdout_median_deg': 0.5,
        'refined_poses': {'median_m': None, 'median_deg': 1.0},
        'doubtful_poses': [{'name': 'a', 'distance_m': 6.0, 'angle_deg': 1.0}],
        'scaled_by': 3.0,
    }
    place = find_place(found, '4')
    np.testing.assert_allclose(
        place, found.model.points_in_map[4] + np.array([300.0, -60.0, 9.0]), rtol=1e-6
    )


def test_short_keys_labels_and_regression_scale_too(label_map):
    """The other forms of maps: what they decode to grows by the factor."""
    table = make_map().model.table.coded(8)
    grown = table.scaled(5.0)
    np.testing.assert_allclose(grown.points_in_map, 5 * table.points_in_map, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grown.covariances, 25 * table.covariances, rtol=1e-3)
    np.testing.assert_array_equal(grown.keys, table.keys)
    network = D2SNetwork(RegressionConfig(descriptor_dim=8, num_layers=0, hidden=(8,)))
    network.center += torch.tensor([1.0, 2.0, 3.0])
    network.scale *= 4
    descriptors = torch.randn(1, 5, 8)
    points, reliability = network(descriptors)
    again, same = RegressionModel(network).scaled(0.5).network(descriptors)
    torch.testing.assert_close(again, 0.5 * points)
    torch.testing.assert_close(same, reliability)
    labels = SceneMap.open(label_map).model
    assert isinstance(labels, LabelModel)
    large = type(labels).from_tensors(labels.network_config, labels.scaled(2.0).tensors())
    np.testing.assert_allclose(large.table.points_in_map, 2 * labels.table.points_in_map)
    np.testing.assert_allclose(large.table.depths, 2 * labels.table.depths, rtol=1e-5)
    np.testing.assert_allclose(large.table.covariances, 4 * labels.table.covariances, rtol=1e-3)


@pytest.mark.parametrize(
    ('arguments', 'problem'),
    [
        (['--factor', '0'], 'cannot be scaled by 0'),
        (['--factor', 'nan'], 'cannot be scaled by nan'),
        (['--points', '1', '2', '--metres', '-3'], 'cannot be scaled by'),
        (['--points', '1', '2'], 'give either'),
        (['--points', '1', '2', '--metres', '3', '--factor', '2'], 'give either'),
        ([], 'give either'),
        (['--points', '1', '1', '--metres', '2'], 'are the same'),
        (['--points', '1', '40', '--metres', '2'], 'landmark 40 is not in the map, which has 40'),
        (['--points', '1', 'image:hall', '--metres', '2'], 'no update data'),
        (['--points', '1', 'hall', '--metres', '2'], "'hall' is no place"),
    ],
)
def test_wrong_distances_are_refused(tmp_path, capsys, arguments, problem):
    MapStore(tmp_path / 'map').write(make_map())
    assert main(['map', 'scale', str(tmp_path / 'map'), *arguments]) in (2, 3)
    assert problem in capsys.readouterr().err
    assert MapStore(tmp_path / 'map').versions() == ['0001']


def test_options_of_scale_are_for_scale(tmp_path, capsys):
    MapStore(tmp_path / 'map').write(make_map())
    assert main(['map', 'info', str(tmp_path / 'map'), '--factor', '2']) == 2
    assert '--factor is for d2s map scale' in capsys.readouterr().err


def test_a_map_without_update_data_is_scaled(tmp_path):
    store = MapStore(tmp_path / 'map')
    store.write(make_map())
    written = scale_live_version(store, 2.0)
    assert isinstance(written.model, LandmarkModel)
    assert not SceneMap.open(store.root).has_update_data
    with pytest.raises(InputError):
        scale_live_version(store, float('inf'))
