"""Builds from poses that are far from zero, and from poses that are wrong."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from d2s_ros.cli.main import main
from d2s_ros.config import from_dict
from d2s_ros.data.sources import open_source
from d2s_ros.data.tum import write_tum
from d2s_ros.errors import InputError
from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.update_data import MappingData

#: 500 km east and 4,600 km north, as UTM coordinates are.
FAR = np.array([500_000.0, 4_600_000.0, 100.0])


class FrameList(list):
    """Frames in memory as a source."""


def errors_of(path, frames, offset):
    """Return the errors (N, 2) in metres and degrees of the frames; NaN where not localized."""
    localizer = Localizer.from_map(path, device='cpu')
    rows = []
    for frame in frames:
        result = localizer.localize(frame.image, frame.camera)
        if result.localized:
            rows.append(pose_error(result.map_from_camera, frame.map_from_camera.moved(offset)))
        else:
            rows.append((np.nan, np.nan))
    return np.array(rows)


def test_poses_are_as_exact_500_km_from_zero(small_map, query_frames, tmp_path):
    config = from_dict(BuildConfig, SceneMap.open(small_map.path).manifest.build)
    moved = FrameList(
        replace(frame, map_from_camera=frame.map_from_camera.moved(FAR))
        for frame in small_map.frames
    )
    result = build_map(moved, tmp_path / 'map', config, device='cpu', progress=False)
    # What the build returns is in the map frame, like the poses that it was given.
    given = [frame.map_from_camera.translation for frame in moved]
    mapped = [image.map_from_camera.translation for image in result.reconstruction.images]
    np.testing.assert_allclose(mapped, given, atol=1e-8)
    assert np.abs(np.median(result.reconstruction.points_in_map, axis=0) - FAR).max() < 30
    scene_map = SceneMap.open(tmp_path / 'map')
    assert np.abs(scene_map.origin - FAR).max() < 30
    assert np.median(np.abs(scene_map.model.points_in_map)) < 100
    data = MappingData.from_map(scene_map)
    assert np.median(np.abs(data.points_in_map)) < 100
    near = errors_of(small_map.path, query_frames, np.zeros(3))
    far = errors_of(tmp_path / 'map', query_frames, FAR)
    assert (np.isfinite(near) == np.isfinite(far)).all()
    assert np.isfinite(near[:, 0]).sum() >= 4
    for column in (0, 1):
        ratio = np.nanmedian(far[:, column]) / np.nanmedian(near[:, column])
        assert ratio <= 1.05


def body_poses(log):
    """Return poses of the camera's body (x forward, z up) instead of those of the optical frame."""
    body_from_optical = RigidTransform.from_quaternion([-0.5, 0.5, -0.5, 0.5], np.zeros(3))
    frames = list(open_source(log))
    poses = [frame.map_from_camera @ body_from_optical.inverse() for frame in frames]
    return [frame.stamp_ns for frame in frames], poses


def test_a_build_that_localizes_nothing_says_so(building_logs, day_map, tmp_path, capsys):
    log = building_logs / 'map'
    stamps, poses = body_poses(log)
    file = tmp_path / 'body.txt'
    write_tum(file, stamps, poses)
    path = tmp_path / 'map'
    command = ['build-map', str(log), '--poses', str(file), '--budget', 'quick', '--steps', '5']
    command += ['--device', 'cpu', '--quiet', '--map']
    code = main([*command, str(path)])
    printed = capsys.readouterr()
    assert code == 4, printed
    assert 'held-out images: 0/' in printed.out
    assert 'optical frame' in printed.out
    # It does not take the place of a map that works.
    right = ['build-map', str(log), *command[4:-1], '--map']
    other = tmp_path / 'other'
    assert main([*right, str(other)]) == 0
    assert main([*command, str(other)]) == 4
    assert MapStore(other).versions() == ['0001', '0002']
    assert MapStore(other).current() == '0001'


def test_images_with_wrong_poses_are_named(small_map, tmp_path, caplog):
    config = from_dict(BuildConfig, SceneMap.open(small_map.path).manifest.build)
    config = replace(config, training=replace(config.training, steps=5))
    frames = FrameList(
        replace(frame, map_from_camera=frame.map_from_camera.moved([1.5, -2.0, 0.0]))
        if index in (5, 14)
        else frame
        for index, frame in enumerate(small_map.frames)
    )
    with caplog.at_level(logging.WARNING):
        result = build_map(frames, tmp_path / 'map', config, device='cpu', progress=False)
    wrong = [frames[index].name for index in (5, 14)]
    found = result.scene_map.manifest.metrics['doubtful_poses']
    assert [doubt['name'] for doubt in found] == wrong
    assert [doubt['distance_m'] for doubt in found] == pytest.approx([2.5, 2.5], abs=0.1)
    (said,) = [r.message for r in caplog.records if 'contradict what they show' in r.message]
    assert all(name in said for name in wrong)
    assert small_map.result.scene_map.manifest.metrics['doubtful_poses'] == []


def test_a_pose_on_the_other_side_of_the_world_is_refused(small_map, tmp_path):
    frames = FrameList(
        replace(frame, map_from_camera=frame.map_from_camera.moved(0 * FAR if n == 7 else FAR))
        for n, frame in enumerate(small_map.frames[:10])
    )
    config = from_dict(BuildConfig, SceneMap.open(small_map.path).manifest.build)
    with pytest.raises(InputError, match=f'1 of 10 mapping poses .*{frames[7].name}'):
        build_map(frames, tmp_path / 'map', config, device='cpu', progress=False)
    assert not (tmp_path / 'map').exists()
