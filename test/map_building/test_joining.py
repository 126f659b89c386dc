"""Two maps that overlap become one area; those that do not are refused with figures."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from conftest import FrameList

from d2s_ros.cli.main import main
from d2s_ros.data.sources import open_source
from d2s_ros.errors import InputError, UsageError
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.transforms import RigidTransform, pose_error, rotation_from_vector
from d2s_ros.localization.area_localizer import AreaLocalizer
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.joining import merge_maps
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.maps.rescaling import rescaled
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.scene_models.landmark.trainer import LandmarkTrainingConfig
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import frames

#: Where the frame of the second log lies in that of the first.
FIRST_FROM_SECOND = RigidTransform(
    rotation_from_vector([0.0, 0.0, 0.7]), np.array([12.0, -3.0, 0.5])
)
#: The second walk through the building of `day_map`.
WALK = SimulationConfig(seed=4, width=320, height=240, frames=14, rate_hz=1.0, trajectory_seed=5)


@pytest.fixture(scope='module')
def second_map(tmp_path_factory):
    """A map of the building of `day_map` by another walk, in a frame of its own."""
    second_from_first = FIRST_FROM_SECOND.inverse()
    seen = [
        replace(frame, map_from_camera=second_from_first @ frame.map_from_camera)
        for frame in frames(WALK)
    ]
    config = BuildConfig(
        features=FeatureConfig(name='rootsift', max_keypoints=1024),
        training=LandmarkTrainingConfig(steps=30, images_per_step=2),
        num_layers=1,
    )
    path = tmp_path_factory.mktemp('maps') / 'second'
    build_map(FrameList(seen), path, config, device='cpu', progress=False)
    return path


def test_maps_that_overlap_become_one_frame(day_map, second_map, building_logs, tmp_path, capsys):
    assert main(['map', 'merge', str(day_map), str(second_map), '--map', str(tmp_path / 'c')]) == 0
    said = capsys.readouterr().out
    assert 'mapping images are localized in the other map' in said
    area = AreaLocalizer.from_area(tmp_path / 'c', device='cpu')
    assert list(area.area.places) == ['map', 'second']
    assert area.area.frames() == ['map']
    found = area.area.places['second'].area_from_place
    metres, degrees = pose_error(found, FIRST_FROM_SECOND)
    assert metres < 0.15
    assert degrees < 0.6
    # Poses are in the frame of the first, whichever map gives them.
    places, errors = set(), []
    for frame in [*open_source(building_logs / 'map'), *list(frames(WALK))[::2]]:
        result = area.localize(frame.image, frame.camera)
        if result.localized:
            errors.append(pose_error(result.map_from_camera, frame.map_from_camera)[0])
            places.add(result.place)
    assert places == {'map', 'second'}
    assert len(errors) >= 14
    assert np.median(errors) < 0.05
    # The area has copies.
    shutil.rmtree(tmp_path / 'c')
    assert SceneMap.open(day_map).manifest.version == '0001'


def test_a_map_without_scale_takes_that_of_the_other(day_map, second_map, tmp_path):
    known = SceneMap.open(second_map)
    small, data = rescaled(known, known.load_update_data(), 0.5)
    small = replace(small, manifest=replace(small.manifest, metric=False))
    MapStore(tmp_path / 'phone').write(small, data)
    # The frame is that of the map in metres, whichever is named first.
    area, junction = merge_maps(tmp_path / 'phone', day_map, tmp_path / 'c')
    assert list(area.places) == ['map', 'phone']
    assert junction.scale == pytest.approx(2.0, rel=0.01)
    assert pose_error(junction.first_from_second, FIRST_FROM_SECOND)[0] < 0.15
    assert SceneMap.open(area.folder('phone')).manifest.metric
    assert json.loads(json.dumps(junction.to_json()))['agreeing'] == junction.agreeing


def test_what_cannot_be_joined_is_refused(day_map, small_area, second_map, tmp_path):
    other = small_area / 'places' / 'annex'
    join = partial(merge_maps, path=tmp_path / 'c')
    with pytest.raises(InputError, match=r'do not overlap enough.* of .* mapping images'):
        join(day_map, other)
    with pytest.raises(UsageError, match='is an area: name two of its maps'):
        join(day_map, small_area)
    known = SceneMap.open(second_map)
    large, data = rescaled(known, known.load_update_data(), 1.2)
    MapStore(tmp_path / 'large').write(large, data)
    with pytest.raises(InputError, match=r'contradict each other|lengths in the second map'):
        join(day_map, tmp_path / 'large')
    assert not (tmp_path / 'c').exists()
    (tmp_path / 'c').mkdir()
    with pytest.raises(UsageError, match='is there already'):
        join(day_map, second_map)
    assert main(['map', 'merge', str(day_map), '--map', str(tmp_path / 'd')]) == 2
    assert main(['map', 'info', str(day_map), str(second_map)]) == 2
