"""The attack end to end, in small: report, resumption, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from d2s_ros.cli.main import main
from d2s_ros.data.array_log import StageLog
from d2s_ros.data.sources import open_source
from d2s_ros.errors import InputError, UsageError
from d2s_ros.features.extractor import create_extractor
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.privacy.config import AttackConfig
from d2s_ros.privacy.metrics import psnr
from d2s_ros.privacy.pipeline import attack
from d2s_ros.privacy.registry import contents_of, kinds
from d2s_ros.privacy.shots import read_photographs, shots_of_map
from d2s_ros.privacy.sparse import SparseView, central_window
from d2s_ros.privacy.training import Example, Training, steps_within
from d2s_ros.scene_models.landmark.model import LandmarkModel

TINY = AttackConfig(
    size=48, steps=4, width=4, pictures_per_step=2, photographs=3, own_photographs=6
)


@pytest.fixture(scope='module')
def place(building_logs):
    """Return the frames of the mapped place."""
    return list(open_source(building_logs / 'map'))


@pytest.fixture(scope='module')
def own(building_logs):
    """Return the attacker's frames, of another building."""
    folder = building_logs / 'other'
    return list(open_source(folder, poses=folder / 'groundtruth_tum.txt'))


def run(day_map, place, own, output, **options):
    return attack([day_map], place, [own], output, TINY, wanted=['depth', 'keys'], **options)


@pytest.fixture(scope='module')
def done(day_map, place, own, tmp_path_factory):
    """Return the folder and the report of an attack that was not interrupted."""
    output = tmp_path_factory.mktemp('privacy') / 'report'
    return output, run(day_map, place, own, output)


def test_it_writes_report_page_and_pictures(done):
    output, report = done
    assert json.loads((output / 'report.json').read_text()) == report
    assert list(report['kinds']) == ['depth', 'landmark keys']
    assert report['kinds']['depth']['dim'] == 0
    assert report['kinds']['landmark keys']['dim'] == 128
    assert report['kinds']['depth']['points'] == report['kinds']['landmark keys']['points']
    assert report['attack']['steps'] == 4
    assert len(report['photographs']) == 3
    page = (output / 'report.html').read_text()
    assert 'landmark keys' in page
    assert page.count('<img') == 3
    picture = cv2.imread(str(output / 'pictures.png'))
    assert picture is not None
    assert picture.std() > 1
    assert '| depth |' in (output / 'table.md').read_text()
    assert not output.with_name('report.building').exists()


def test_an_interrupted_attack_goes_on_and_gives_the_same(day_map, place, own, tmp_path, done):
    output = tmp_path / 'report'
    calls = []

    def stop(name, step):
        calls.append((name, step))
        if (name, step) == ('landmark keys', 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(day_map, place, own, output, on_step=stop)
    assert not output.exists()
    assert calls[-1] == ('landmark keys', 2)
    later = []
    report = run(day_map, place, own, output, on_step=lambda name, step: later.append((name, step)))
    assert later == [('landmark keys', 3), ('landmark keys', 4)]
    assert report == done[1]


def test_poses_of_another_frame_are_refused(day_map, place, own, tmp_path):
    turn = RigidTransform.from_quaternion([0, 0, 0.6, 0.8], [3.0, -2.0, 0.5])
    wrong = [replace(frame, map_from_camera=turn @ frame.map_from_camera) for frame in place]
    with pytest.raises(InputError, match='not in the frame of the map'):
        run(day_map, wrong, own, tmp_path / 'report')


def test_photographs_without_poses_are_refused(day_map, place, own, tmp_path):
    unposed = [replace(frame, map_from_camera=None) for frame in place]
    with pytest.raises(InputError, match='pose'):
        run(day_map, unposed, own, tmp_path / 'report')


def test_update_data_of_other_photographs_is_refused_before_any_training(
    day_map, place, own, tmp_path
):
    renamed = [replace(frame, name=f'copy of {frame.name}') for frame in place]
    steps = []
    with pytest.raises(InputError, match='nothing is kept of any'):
        attack(
            [day_map],
            renamed,
            [own],
            tmp_path / 'report',
            TINY,
            wanted=['depth', 'update'],
            on_step=lambda name, step: steps.append(step),
        )
    assert steps == []


def test_maps_without_points_and_unknown_kinds_are_refused(day_map, place, own, tmp_path):
    scene_map = SceneMap.open(day_map)
    manifest = replace(scene_map.manifest, head='regression')
    with pytest.raises(UsageError, match='needs points'):
        contents_of(replace(scene_map, manifest=manifest), None, [], 'cpu')
    with pytest.raises(UsageError, match="unknown kind 'faces'"):
        attack([day_map], place, [own], tmp_path / 'report', TINY, wanted=['faces'])
    with pytest.raises(UsageError, match='photographs of the attacker'):
        attack([day_map], place, [], tmp_path / 'report', TINY)
    assert 'depth' in kinds()


def test_the_command_refuses_the_photographs_of_the_place_as_the_attackers(
    day_map, building_logs, tmp_path, capsys
):
    folder = str(building_logs / 'map')
    call = ['privacy', str(day_map), '--images', folder, '--attack-images', folder]
    assert main([*call, '--output', str(tmp_path / 'out')]) == 2
    assert 'needs no map' in capsys.readouterr().err
    call = ['privacy', str(tmp_path), '--images', folder, '--attack-images', str(building_logs)]
    assert main([*call, '--output', str(tmp_path / 'out')]) == 3


def test_time_lowers_the_steps_of_all_kinds_alike():
    assert steps_within(0.0, 400, [1.0, 2.0]) == 400
    assert steps_within(1.0, 400, [1.0, 2.0]) == 20
    assert steps_within(60.0, 400, [1.0, 2.0]) == 400
    with pytest.raises(InputError, match='too few'):
        steps_within(0.1, 400, [1.0, 2.0])


def test_it_learns_what_attributes_tell(rng):
    """Attributes that are the brightness around a point make a better picture than none."""
    blocks = (rng.random((12, 16)) * 255).astype(np.uint8)
    grey = cv2.resize(blocks, (128, 96), interpolation=cv2.INTER_NEAREST)
    pixels = np.stack(np.meshgrid(np.arange(1, 128, 3), np.arange(1, 96, 3)), -1).reshape(-1, 2)
    brightness = grey[pixels[:, 1], pixels[:, 0], None].astype(np.float32) / 255
    depth = np.ones(len(pixels), np.float32)
    config = AttackConfig(size=48, steps=60, width=8, pictures_per_step=2, learning_rate=5e-3)
    window = central_window(128, 96, (48, 32))
    truth = window.cut(grey, (48, 32))
    found = []
    for attributes in (brightness, np.zeros((len(pixels), 0), np.float32)):
        view = SparseView(pixels.astype(np.float32), depth, attributes)
        training = Training([Example(grey, view)], (48, 32), config)
        training.run(60)
        found.append(psnr(training.picture(view, window), truth))
    assert found[0] > found[1] + 2.0


def test_each_photograph_is_shown_with_its_own_points(day_map, place):
    scene_map = SceneMap.open(day_map)
    frames = read_photographs(place, 2, names=None)
    extractor = create_extractor(scene_map.manifest.features)
    assert isinstance(scene_map.model, LandmarkModel)
    points_in_map = scene_map.model.points_in_map.astype(np.float64)
    shots = shots_of_map(frames, points_in_map, extractor, StageLog(None))
    for shot in shots:
        points = scene_map.model.points_in_map[shot.point_idx]
        in_camera = shot.map_from_camera.inverse().apply(points)
        error = np.linalg.norm(shot.camera.project(in_camera) - shot.pixels, axis=1)
        assert error.max() <= 1.5
        assert np.allclose(in_camera[:, 2], shot.depth)
        # The descriptors agree: these are the landmarks, not others that project there.
        keys = scene_map.model.table.keys[shot.point_idx]
        described = scene_map.model.stored.describe(shot.features.descriptors)
        alike = (keys * described[shot.keypoint_idx]).sum(axis=1)
        assert np.median(alike) > 0.7
