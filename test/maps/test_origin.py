"""Maps far from zero, and maps of the format that had no origin."""

from __future__ import annotations

import itertools
import json
import shutil
from copy import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from maps.test_scene_map import make_map

from d2s_ros.cli.main import main
from d2s_ros.errors import InputError, MapFormatError
from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.pose_prior import PosePrior
from d2s_ros.maps.files import LOCALIZATION_FILE
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.verification import verify
from d2s_ros.reconstruction.origin import choose_origin, moved, relative_to
from d2s_ros.reconstruction.reconstruction import ImageInput, MappedImage, Reconstruction
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import frames

UTM = (500_123.0, 4_600_321.0, 112.0)


def images_at(positions):
    camera = Camera('pinhole', 64, 48, 50.0, 50.0, 31.5, 23.5)
    empty = np.zeros((0, 2), np.float32)
    features = LocalFeatures(
        empty, np.zeros(0, np.float32), np.zeros((0, 8), np.float32), (64, 48), empty[:, 0]
    )
    return [
        ImageInput(
            f'image{n}',
            n,
            camera,
            None if position is None else RigidTransform(np.eye(3), np.array(position, float)),
            features,
        )
        for n, position in enumerate(positions)
    ]


def test_the_origin_is_zero_unless_the_cameras_are_far_from_it():
    for positions in ([None, None], [(0, 0, 0), (3, 4, 5)], [(900, -900, 0), (950, -990, 3)]):
        assert not choose_origin(images_at(positions)).any()
    far = np.add(UTM, [[0.25, 0, 0], [1.25, 3, 0], [2.4, 1, 1]])
    origin = choose_origin(images_at(far))
    np.testing.assert_array_equal(origin, np.rint(np.median(far, axis=0)))
    near = relative_to(images_at(far), origin)
    assert max(np.abs(image.map_from_camera.translation).max() for image in near) < 4
    mapped = [
        MappedImage(**vars(one), ideal_keypoints=np.zeros((0, 2)), point_idx=np.zeros(0, int))
        for one in near
    ]
    reconstruction = Reconstruction(mapped, np.ones((1, 3)), np.zeros(1), np.ones(1, int), True)
    back = moved(reconstruction, origin)
    np.testing.assert_array_equal(back.points_in_map[0], origin + 1)
    np.testing.assert_allclose([i.map_from_camera.translation for i in back.images], far, atol=1e-9)


def test_poses_absurdly_far_from_the_others_are_named():
    positions = np.add(UTM, np.random.default_rng(0).normal(0, 30, (30, 3)))
    positions[[4, 17]] = 0.0
    with pytest.raises(InputError, match=r'2 of 30 mapping poses .*\(image4, image17\)'):
        choose_origin(images_at(positions))
    # A wide area is none.
    assert choose_origin(images_at(positions[20:] * [1, 1, 0] * [1, 1, 50])).any()


def test_the_origin_is_written_and_read(tmp_path, capsys):
    scene_map = make_map()
    scene_map = replace(scene_map, manifest=replace(scene_map.manifest, origin=UTM))
    MapStore(tmp_path / 'map').write(scene_map)
    found = SceneMap.open(tmp_path / 'map')
    assert found.manifest.origin == UTM
    np.testing.assert_array_equal(found.origin, UTM)
    assert found.in_local_frame().manifest.origin == (0.0, 0.0, 0.0)
    assert verify(tmp_path / 'map') == []
    assert main(['map', 'info', str(tmp_path / 'map')]) == 0
    assert 'origin         500123 4600321 112\n' in capsys.readouterr().out


def test_poses_leave_and_priors_come_in_the_map_frame(small_map, query_frames):
    """Exactly the same poses, moved: nothing in between knows of the origin."""
    near = SceneMap.open(small_map.path)
    far = replace(near, manifest=replace(near.manifest, origin=UTM))
    by_zero, by_utm = (Localizer.from_map(found, device='cpu') for found in (near, far))
    localized = 0
    for frame in query_frames:
        expected = by_zero.localize(frame.image, frame.camera, details=True)
        result = by_utm.localize(frame.image, frame.camera, details=True)
        assert result.status is expected.status
        np.testing.assert_array_equal(
            result.details.points_in_map, expected.details.points_in_map + np.array(UTM)
        )
        if expected.localized:
            localized += 1
            pose = expected.map_from_camera
            np.testing.assert_array_equal(result.map_from_camera.rotation, pose.rotation)
            np.testing.assert_array_equal(
                result.map_from_camera.translation, pose.translation + np.array(UTM)
            )
            np.testing.assert_array_equal(result.covariance, expected.covariance)
    assert localized >= 4
    # So few keypoints prove nothing alone, so the prior is asked.
    frame = query_frames[0]
    features = by_zero.extractor.extract(frame.image).strongest(60)
    truth = frame.map_from_camera
    priors = [
        (by_zero, PosePrior(truth, 0.05, 0.5)),
        (by_utm, PosePrior(truth.moved(UTM), 0.05, 0.5)),
    ]
    results = [
        localizer.localize_features(features, frame.camera, prior=partial(copy, prior))
        for localizer, prior in priors
    ]
    assert [result.with_prior for result in results] == [True, True]
    np.testing.assert_array_equal(
        results[1].map_from_camera.translation, results[0].map_from_camera.translation + UTM
    )


@pytest.fixture
def format_2(repo_root, tmp_path):
    return shutil.copytree(repo_root / 'test' / 'data' / 'map_format_2', tmp_path / 'map')


def test_maps_of_format_2_open_and_localize(format_2):
    assert verify(format_2) == []
    scene_map = SceneMap.open(format_2)
    assert scene_map.manifest.format_version == 2
    assert scene_map.manifest.origin == (0.0, 0.0, 0.0)
    localizer = Localizer.from_map(scene_map, device='cpu')
    config = SimulationConfig(
        seed=4, width=480, height=360, frames=24, trajectory='lawnmower', rate_hz=1.0
    )
    for frame in itertools.islice(frames(config), 3):
        result = localizer.localize(frame.image, frame.camera)
        assert result.localized, result.reason
        metres, degrees = pose_error(result.map_from_camera, frame.map_from_camera)
        assert metres < 0.02
        assert degrees < 0.2


def test_what_follows_a_map_of_format_2_is_of_format_3(format_2):
    old = SceneMap.open(format_2)
    MapStore(format_2).write(old)
    new = SceneMap.open(format_2)
    assert (new.manifest.format_version, new.manifest.parent) == (3, '0001')
    assert new.manifest.files[LOCALIZATION_FILE] == old.manifest.files[LOCALIZATION_FILE]
    assert MapStore(format_2).rollback() == '0001'
    document = json.loads((format_2 / 'versions' / '0001' / 'manifest.json').read_bytes())
    assert 'origin' not in document
    with pytest.raises(MapFormatError, match='no parent'):
        MapStore(format_2).rollback()
