"""Predicted coverage: what views show, verdicts, advice in words, and the command."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from maps.test_scene_map import make_map

from d2s_ros.cli.coverage_lines import say_coverage
from d2s_ros.cli.main import main
from d2s_ros.errors import MapFormatError, UsageError
from d2s_ros.evaluation import view_prediction
from d2s_ros.evaluation.coverage import (
    HEADINGS,
    Coverage,
    CoverageCell,
    coverage_advice,
    measure_coverage,
    measured_predictor,
)
from d2s_ros.evaluation.view_prediction import PlannedView, ViewPredictor, tilt_and_zoom, unhidden
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_update.report import report_html
from d2s_ros.map_update.result import UpdateResult
from d2s_ros.maps.files import COVERAGE_FILE
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.update_data import MappingData
from d2s_ros.maps.verification import verify


@pytest.fixture(scope='module')
def predictor(small_map):
    scene_map = SceneMap.open(small_map.path)
    data = MappingData.from_map(scene_map)
    return data, ViewPredictor(data, scene_map.manifest.cameras[0], 0.5)


def test_a_mapping_image_shows_its_own_points(predictor):
    data, predicted = predictor
    for index, image in list(enumerate(data.images))[::6]:
        pose = image.map_from_camera
        around = predicted.around(pose.translation)
        rows, in_camera = predicted.in_view(pose.rotation, around)
        assert (in_camera[:, 2] > 0).all()
        assert (around.at_best >= around.anyway).all()
        own = np.unique(image.point_idx[image.point_idx >= 0])
        # What an image saw looks as it saw it, and little of it is taken for hidden.
        assert (around.at_best[rows] > 0.999).sum() >= 0.75 * len(own)
        assert 0.1 * len(rows) < (around.anyway[rows] > 0).sum() < len(rows)
        without = predicted.around(pose.translation, index)
        assert set(without.numbers) <= set(around.numbers)
        assert without.anyway.sum() < around.anyway.sum()


def test_views_of_nothing_are_bad_and_covariance_is_that_of_the_rays(predictor):
    data, predicted = predictor
    pose = data.images[3].map_from_camera
    around = predicted.around(pose.translation)
    good = predicted.predict(pose.rotation, around, 0.8)
    assert good.verdict == 'good'
    assert 0 < good.sigma < 0.1
    half = predicted.predict(pose.rotation, around, 0.2)
    assert half.sigma == pytest.approx(2 * good.sigma, rel=1e-3)
    away = predicted.around(pose.translation + 500.0)
    assert predicted.predict(pose.rotation, away, 0.8).verdict == 'bad'


def test_of_many_points_a_share_stands_for_all(small_map, monkeypatch):
    scene_map = SceneMap.open(small_map.path)
    data = MappingData.from_map(scene_map)
    pose = data.images[3].map_from_camera

    def inliers():
        predicted = ViewPredictor(data, scene_map.manifest.cameras[0], 0.5)
        around = predicted.around(pose.translation)
        view = predicted.predict(pose.rotation, around, 1 / predicted.share)
        return predicted.share, view.most_inliers

    all_of_them, expected = inliers()
    assert all_of_them == 1.0
    monkeypatch.setattr(view_prediction, '_MAX_POINTS', 500)
    share, found = inliers()
    assert 0 < share < 0.6
    assert found == pytest.approx(expected, rel=0.35)


def test_what_is_behind_a_wall_is_hidden():
    """From one side of two dense parallel walls, the nearer one is seen and no point behind it."""
    grid = np.stack(np.meshgrid(np.linspace(-3, 3, 40), np.linspace(-3, 3, 40)), axis=-1)
    near = np.column_stack([grid.reshape(-1, 2), np.full(1600, 2.0)])
    far = np.column_stack([0.4 * grid.reshape(-1, 2), np.full(1600, 3.0)])
    place = np.zeros(3)
    seen = unhidden(np.concatenate([near, far]), place, 10.0)
    assert seen[:1600].mean() > 0.95
    assert not seen[1600:].any()
    assert unhidden(far, place, 10.0).mean() > 0.95
    assert unhidden(far[:2], place, 10.0).all()
    # A few near points may hide what is behind them, and a larger sphere says that they do not.
    few = near.reshape(40, 40, 3)[::3, ::3].reshape(-1, 3)
    sparse = np.concatenate([few, far])
    assert unhidden(sparse, place, 10.0)[len(few) :].mean() < 0.5
    assert unhidden(sparse, place, 200.0)[len(few) :].mean() > 0.8


def test_tilt_and_zoom_are_those_of_images_of_a_plane():
    """By differences of the projections themselves, for planes seen from everywhere."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        normal = rng.normal(size=3)
        normal /= np.linalg.norm(normal)
        basis = np.linalg.svd(normal[None])[2][1:].T
        rays, maps, distances = [], [], []
        for _view in range(2):
            ray = rng.normal(size=3)
            ray *= -np.sign(ray @ normal) / np.linalg.norm(ray)
            distance = rng.uniform(1, 4)
            across = np.linalg.svd(ray[None])[2][1:]
            rays.append(ray)
            distances.append(distance)
            maps.append(across @ basis / distance)
        values = np.linalg.svd(maps[1] @ np.linalg.inv(maps[0]))[1]
        cosines = [np.array([-(ray @ normal)]) for ray in rays]
        if min(cosines) < 0.05:
            continue
        tilt, zoom = tilt_and_zoom(
            np.array([rays[0] @ rays[1]]),
            cosines[1],
            cosines[0],
            np.array([distances[1] / distances[0]]),
        )
        assert tilt[0] == pytest.approx(np.log2(values[0] / values[1]), abs=1e-6)
        assert zoom[0] == pytest.approx(0.5 * np.log2(values[0] * values[1]), abs=1e-6)
    behind, _ = tilt_and_zoom(np.array([0.5]), np.array([0.5]), np.array([-0.5]), np.ones(1))
    assert np.isinf(behind[0])


def test_the_command_writes_what_it_found(small_map, tmp_path, capsys):
    place = tmp_path / 'map'
    shutil.copytree(small_map.path, place)
    picture = tmp_path / 'plan.png'
    arguments = ['map', 'coverage', str(place), '--json', '--cell', '1.0']
    assert main([*arguments, '--picture', str(picture)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document['unit'] == 'm'
    assert document['localized'] > 0.7 * document['held_out']
    assert sum(document['shares'].values()) == pytest.approx(1, abs=1e-3)
    assert len(document['cells'][0]['views']) == HEADINGS
    assert cv2.imread(str(picture)).shape[0] > 400
    written = json.loads((place / 'versions' / '0001' / COVERAGE_FILE).read_text())
    assert written == document
    # It is no part of the map.
    assert verify(place) == []
    # Where images were taken, looking as they did, is not bad.
    coverage = measure_coverage(SceneMap.open(place), cell=1.0, held_out=4)
    verdicts = []
    for frame in small_map.frames:
        axis = frame.map_from_camera.rotation[:, 2]
        heading = np.degrees(np.arctan2(axis[1], axis[0])) % 360
        verdicts.append(coverage.view_at(frame.map_from_camera.translation, heading).verdict)
    assert verdicts.count('bad') <= 0.1 * len(verdicts)
    assert coverage.view_at(np.array([99.0, 99.0, 0.0]), 0.0) is None


def test_maps_without_update_data_are_refused(tmp_path, capsys):
    MapStore(tmp_path / 'map').write(make_map())
    with pytest.raises(MapFormatError, match='no update data'):
        measure_coverage(SceneMap.open(tmp_path / 'map'))
    assert main(['map', 'coverage', str(tmp_path / 'map'), '--cell', '-1']) == 2
    assert main(['map', 'info', str(tmp_path / 'map'), '--cell', '1']) == 2
    assert '--cell is for d2s map coverage' in capsys.readouterr().err


def test_advice_names_where_and_which_way():
    """A corridor of ten cells, mapped in one direction only from x = 3 to 9."""

    def views(x):
        return tuple(
            PlannedView(
                30.0 * turn, 9.0, 9.0, 0.1, 0.1, 'bad' if 3 < x < 9 and 6 <= turn < 9 else 'good'
            )
            for turn in range(HEADINGS)
        )

    cells = tuple(CoverageCell(np.array([x + 0.5, 0.5, 1.0]), views(x + 0.5)) for x in range(10))
    path = np.stack([cell.middle for cell in cells])
    coverage = Coverage(1.0, 'm', cells, path, 0.5, 10, 9)
    assert coverage_advice(coverage) == [
        'walk x 3.0 to 9.0, y 0.0 to 1.0 m again, facing 210 deg (towards -x)'
    ]
    assert coverage.view_at(np.array([4.4, 0.4, 9.0]), 185.0).verdict == 'bad'
    assert coverage.view_at(np.array([4.4, 0.4, 9.0]), 355.0).verdict == 'good'


def test_weights_that_are_not_at_hand_are_not_needed(small_map):
    """The features of mapping images are in the map; other images of it need the extractor."""
    scene_map = SceneMap.open(small_map.path)
    other = replace(scene_map, manifest=replace(scene_map.manifest, features_hash='of-my-own'))
    with pytest.raises(MapFormatError, match='the same weights'):
        Localizer.from_map(other, device='cpu')
    assert measured_predictor(other, 6).localized == measured_predictor(scene_map, 6).localized > 0
    stored = MappingData.from_map(scene_map).extractor(scene_map.manifest)
    assert stored.dim == 128
    with pytest.raises(UsageError, match='no images'):
        stored.extract(np.zeros((48, 64), np.uint8))


def test_builds_and_updates_say_it_in_short(small_map, tmp_path, capsys):
    """Few cells, weak places in words, the report of the update with a picture."""
    place = tmp_path / 'map'
    shutil.copytree(small_map.path, place)
    summary = say_coverage(SceneMap.open(place))
    said = capsys.readouterr().out.splitlines()
    assert said == summary.sentences()
    assert re.match(r'coverage: of the views along the mapping path \d+% good, \d+% fair', said[0])
    assert all(line.startswith('weak place: walk x ') for line in said[1:])
    assert len(summary.coverage.cells) <= 24
    written = place / 'versions' / '0001' / COVERAGE_FILE
    assert len(json.loads(written.read_text())['cells']) == len(summary.coverage.cells)
    result = UpdateResult('promoted', ('better',), '0002', '0002', None, [], {})
    page = report_html(result, 'Update', coverage=summary)
    assert 'Where the map localizes' in page
    assert said[0] in page
    assert page.count('<img') == report_html(result, 'Update').count('<img') + 1
    # Cells lie where images were taken: a stripped map must not tell.
    MapStore(place).strip()
    assert not written.exists()
    assert say_coverage(SceneMap.open(place)) is None
    assert 'coverage: not predicted: ' in capsys.readouterr().out
