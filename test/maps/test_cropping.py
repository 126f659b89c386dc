"""Maps and areas without a region: what stays localizes as before, what goes is in no byte."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from d2s_ros.cli.main import main
from d2s_ros.errors import InputError, UsageError
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.localization.localizer import Localizer
from d2s_ros.maps.area import locked, read_area, verify_area, write_area
from d2s_ros.maps.cropping import Region, crop_area, cropped
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.update_data import MappingData
from d2s_ros.scene_models.landmark.model import LandmarkModel


@pytest.fixture
def half(day_map, tmp_path):
    """A copy of a map, its landmarks, and where they are cut in two."""
    root = tmp_path / 'map'
    shutil.copytree(day_map, root)
    points = SceneMap.open(root).model.points_in_map
    return root, points, float(np.median(points[:, 0]))


def words(values) -> list[str]:
    return [f'{value:.6f}' for value in values]


def test_a_map_keeps_a_region_and_goes_back(half, capsys):
    root, points, middle = half
    box = [middle, -1e3, 1e3, 1e3]
    assert main(['map', 'crop', str(root), '--keep', *words(box)]) == 0
    assert 'd2s map rollback goes back' in capsys.readouterr().out
    live = SceneMap.open(root)
    stays = points[points[:, 0] >= middle]
    assert (live.model.points_in_map == stays).all()
    assert live.manifest.metrics['num_landmarks'] == len(stays)
    assert live.manifest.metrics['cropped'][0]['kept'] == 'inside'
    assert main(['map', 'verify', str(root)]) == 0
    data = MappingData.from_map(live)
    assert (data.points_in_map[:, 0] >= middle - 1e-5).all()
    for image in data.images:
        assert (image.point_idx >= 0).sum() >= 20
        assert len(image.features) == len(image.point_idx)
    assert main(['map', 'rollback', str(root)]) == 0
    assert (SceneMap.open(root).model.points_in_map == points).all()


def test_keeping_and_dropping_divide_a_map(half):
    root, points, middle = half
    box = [-1e3, -1e3, middle, 1e3]
    scene_map = SceneMap.open(root)
    parts = [
        cropped(scene_map, scene_map.load_update_data(), Region.of(box, inside=inside))
        for inside in (True, False)
    ]
    assert sum(len(part.model.points_in_map) for part, _ in parts) == len(points)
    whole_model, *models = [one.model for one in (scene_map, *(part for part, _ in parts))]
    assert isinstance(whole_model, LandmarkModel)
    keys = []
    for model in models:
        assert isinstance(model, LandmarkModel)
        keys.append(set(map(bytes, model.table.keys)))
    assert keys[0] | keys[1] == set(map(bytes, whole_model.table.keys))
    # A keypoint of what was left out is in no tensor of the other part.
    whole = scene_map.load_update_data()
    gone = whole['points'][whole['point_idx']][:, 0] > middle
    gone &= whole['point_idx'] >= 0
    assert gone.sum() > 1000
    assert not rows_of(parts[0][1]) & {
        row for row, left_out in zip(ordered_rows_of(whole), gone, strict=True) if left_out
    }


def ordered_rows_of(tensors) -> list[bytes]:
    """Return position and descriptor of each keypoint."""
    return [
        bytes(keypoint) + bytes(descriptor)
        for keypoint, descriptor in zip(tensors['keypoints'], tensors['descriptors'], strict=True)
    ]


def rows_of(tensors) -> set[bytes]:
    return set(ordered_rows_of(tensors))


def test_images_of_what_stays_are_localized_as_before(half, building_logs):
    from d2s_ros.data.sources import open_source

    root = half[0]
    before = Localizer.from_map(root, device='cpu')
    assert (
        main(['map', 'crop', str(root), '--drop', *words([-1e3, -1e3, -1e3, -1e2, 1e3, 1e3])]) == 0
    )
    after = Localizer.from_map(root, device='cpu')
    for frame in list(open_source(building_logs / 'map'))[:2]:
        first = before.localize(frame.image, frame.camera)
        second = after.localize(frame.image, frame.camera)
        assert first.localized
        assert (first.map_from_camera.matrix == second.map_from_camera.matrix).all()


def test_places_are_cropped_in_the_frame_of_the_area(small_area, tmp_path, capsys):
    root = tmp_path / 'area'
    shutil.copytree(small_area, root)
    with pytest.raises(UsageError, match='has a frame of its own'):
        crop_area(read_area(root), Region.of([0, 0, 1, 1], inside=True))
    annex = RigidTransform(rotation_from_vector([0.0, 0.0, 1.2]), np.array([300.0, -4.0, 3.5]))
    known = {'hall': RigidTransform.identity(), 'annex': annex}
    with locked(root):
        area = read_area(root)
        places = [replace(area.places[name], area_from_place=known[name]) for name in area.places]
        write_area(root, frame='site', places=places, index=area.read_index())
    points = annex.apply(SceneMap.open(area.folder('annex')).model.points_in_map.astype(float))
    middle = float(np.median(points[:, 1]))
    # Half of the annex goes, and all of the hall stays: it is 300 m away.
    box = words([200.0, middle, 400.0, 1e3])
    assert main(['map', 'crop', str(root), '--drop', *box]) == 0
    after = read_area(root)
    assert verify_area(root) == []
    left = annex.apply(SceneMap.open(after.folder('annex')).model.points_in_map.astype(float))
    assert abs(len(left) - len(points) / 2) <= 10
    near = np.abs(left[:, 0] - 300.0) < 100.0
    assert (left[near, 1] <= middle + 1e-5).all()
    # The area in another unit: all its maps, and where they stand.
    assert main(['map', 'scale', str(root), '--factor', '2']) == 0
    scaled = read_area(root)
    assert (scaled.places['annex'].area_from_place.translation == 2 * annex.translation).all()
    twice = SceneMap.open(scaled.folder('annex')).model.points_in_map.astype(float)
    assert scaled.places['annex'].area_from_place.apply(twice) == pytest.approx(2 * left, rel=1e-5)
    assert main(['map', 'rollback', str(root), '--place', 'annex']) == 2
    assert 'another unit of length' in capsys.readouterr().err
    assert main(['map', 'scale', str(root), '--place', 'annex', '--factor', '2']) == 2
    measured = ['--points', '0,0,0', '0,0,4', '--metres', '2']
    assert main(['map', 'scale', str(root), *measured]) == 0
    capsys.readouterr()
    # Nothing but the annex: the hall leaves the area.
    assert main(['map', 'crop', str(root), '--keep', *words([200.0, -1e3, 400.0, 1e3])]) == 0
    assert 'hall: not in the area any more' in capsys.readouterr().out
    after = read_area(root)
    assert list(after.places) == ['annex']
    assert after.read_index().num_places == 1
    assert verify_area(root) == []
    with pytest.raises(InputError, match='nothing would be left'):
        crop_area(after, Region.of([0, 0, 1, 1], inside=True))


def test_regions_that_are_none_are_refused(half, capsys):
    root, _, _ = half
    assert main(['map', 'crop', str(root)]) == 2
    assert main(['map', 'crop', str(root), '--keep', '0', '0', '1']) == 2
    assert main(['map', 'crop', str(root), '--keep', '1', '0', '0', '1']) == 2
    assert main(['map', 'crop', str(root), '--keep', '0', '0', '1e-3', '1e-3']) == 3
    assert main(['map', 'info', str(root), '--keep', '0', '0', '1', '1']) == 2
    assert 'landmarks would be left' in capsys.readouterr().err
    assert len(MapStore(root).versions()) == 1
