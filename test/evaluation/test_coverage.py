"""Predicted coverage: what views show, verdicts, advice in words, and the command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from maps.test_scene_map import make_map

from d2s_ros.cli.main import main
from d2s_ros.errors import MapFormatError
from d2s_ros.evaluation.coverage import (
    HEADINGS,
    Coverage,
    CoverageCell,
    PlannedView,
    ViewPredictor,
    coverage_advice,
    measure_coverage,
)
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
    for image in data.images[::6]:
        rows = predicted.visible(image.map_from_camera)
        own = len(np.unique(image.point_idx[image.point_idx >= 0]))
        assert 0.95 * own <= len(rows)
        without = predicted.visible(image.map_from_camera, without=data.images.index(image))
        assert set(without) < set(rows)


def test_views_of_nothing_are_bad_and_covariance_is_that_of_the_rays(predictor):
    data, predicted = predictor
    image = data.images[3]
    good = predicted.predict(image.map_from_camera, 0.8)
    assert good.verdict == 'good'
    assert 0 < good.sigma < 0.1
    half = predicted.predict(image.map_from_camera, 0.2)
    assert half.sigma == pytest.approx(2 * good.sigma, rel=1e-3)
    away = replace(image.map_from_camera, translation=image.map_from_camera.translation + 500.0)
    assert predicted.predict(away, 0.8).verdict == 'bad'


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
                30.0 * turn, 9.0, 0.1, 0.1, 'bad' if 3 < x < 9 and 6 <= turn < 9 else 'good'
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
