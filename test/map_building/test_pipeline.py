"""The stages of a map build on a simulated place, against its truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from d2s_ros.data.frames import Frame
from d2s_ros.errors import InputError, MapFormatError
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.localization.covariance import COVERAGE_MARGIN
from d2s_ros.map_building.calibration import pose_difference, scale_of_covariances
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.maps.files import LOCALIZATION_FILE, UPDATE_FILE
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.verification import verify

# Builds several maps: minutes on a busy computer.


class FrameList:
    def __init__(self, frames):
        self.frames = frames

    def __len__(self):
        return len(self.frames)

    def __iter__(self):
        return iter(self.frames)


def tiny(seed=0):
    config = BuildConfig(features=FeatureConfig(max_keypoints=400), num_layers=1)
    training = replace(
        config.training, steps=8, images_per_step=2, keypoints_per_image=64, seed=seed
    )
    return replace(config, training=training)


def test_points_lie_on_the_surfaces_of_the_scene(small_map):
    """Each observation's depth equals the rendered one."""
    reconstruction = small_map.result.reconstruction
    assert len(reconstruction.images) == 24
    assert len(reconstruction.points_in_map) > 1000
    assert reconstruction.metric
    found = []
    for image, depth in zip(reconstruction.images, small_map.depths, strict=True):
        seen = np.flatnonzero(image.point_idx >= 0)
        points = reconstruction.points_in_map[image.point_idx[seen]]
        in_camera = image.map_from_camera.inverse().apply(points)
        columns, rows = np.rint(image.features.keypoints[seen]).astype(int).T
        truth = depth[rows.clip(0, 359), columns.clip(0, 479)]
        found.append(np.abs(in_camera[:, 2] - truth) / truth)
    errors = np.concatenate(found)
    assert np.median(errors) < 0.005
    # Points that only two near images see may be wrong in depth: their covariance says so.
    assert (errors < 0.05).mean() > 0.7


def test_tracks_are_consistent(small_map):
    reconstruction = small_map.result.reconstruction
    lengths = np.zeros(len(reconstruction.points_in_map), int)
    for image, frame in zip(reconstruction.images, small_map.frames, strict=True):
        assert (image.map_from_camera.matrix == frame.map_from_camera.matrix).all()
        seen = image.point_idx >= 0
        lengths[np.unique(image.point_idx[seen])] += 1
        projected = image.camera.project(
            image.map_from_camera.inverse().apply(
                reconstruction.points_in_map[image.point_idx[seen]]
            )
        )
        assert np.linalg.norm(projected - image.ideal_keypoints[seen], axis=1).max() <= 3.0
    assert (lengths == reconstruction.track_lengths).all()
    assert lengths.min() >= 2


def test_the_calibration_is_measured(small_map):
    manifest = small_map.result.scene_map.manifest
    # Simulated images are sharp: their keypoints are better than half a pixel.
    assert 0.1 <= manifest.calibration.sigma_px < 0.5
    assert 0.25 <= manifest.calibration.covariance_scale < 10
    metrics = manifest.metrics
    assert metrics['holdout_images'] == metrics['holdout_localized'] == 3
    assert metrics['holdout_median_m'] < 0.01
    assert metrics['num_images'] == 24


def test_update_data(small_map):
    scene_map = SceneMap.open(small_map.path)
    data = scene_map.load_update_data()
    assert len(data['offsets']) == 25
    assert data['offsets'][-1] == len(data['descriptors']) == len(data['keypoints'])
    np.testing.assert_allclose(
        data['poses'], [frame.map_from_camera.to_tum() for frame in small_map.frames]
    )
    assert data['stamps_ns'].tolist() == [frame.stamp_ns for frame in small_map.frames]
    assert data['point_idx'].max() < len(data['points'])


def test_the_same_seed_gives_the_same_bytes(small_map, tmp_path):
    frames = FrameList(small_map.frames[:6])
    files = {}
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        result = build_map(frames, tmp_path / name, tiny(seed), device='cpu', progress=False)
        files[name] = result.scene_map.manifest.files
    assert files['a'] == files['b']
    assert files['a'][LOCALIZATION_FILE] != files['c'][LOCALIZATION_FILE]
    assert files['a'][UPDATE_FILE] == files['c'][UPDATE_FILE]
    # A second build becomes a new version of the same map.
    build_map(frames, tmp_path / 'a', tiny(), device='cpu', progress=False)
    assert SceneMap.open(tmp_path / 'a').manifest.version == '0002'
    assert verify(tmp_path / 'a') == []


def test_unusable_images_are_dropped_with_their_reason(small_map, tmp_path):
    good = small_map.frames[:5]
    dark = replace_image(good[0], np.zeros_like(good[0].image))
    frames = [
        *good,
        dark,
        Frame('broken', 5, None, error='the JPEG is truncated'),
        replace_image(good[1], good[1].image, camera=None),
        replace_image(good[2], good[2].image, pose=None),
    ]
    result = build_map(FrameList(frames), tmp_path / 'm', tiny(), device='cpu', progress=False)
    assert len(result.reconstruction.images) == 5
    assert sum(result.dropped.values()) == 4
    assert result.dropped['the JPEG is truncated'] == 1
    assert result.dropped['no pose'] == 1
    assert any('keypoints' in reason for reason in result.dropped)
    assert result.scene_map.manifest.metrics['dropped_images'] == result.dropped


def replace_image(frame, image, **changes):
    camera = changes.get('camera', frame.camera)
    pose = changes.get('pose', frame.map_from_camera)
    return Frame(frame.name + 'x', frame.stamp_ns + 1, image, camera, pose)


def fail(frames, target, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        build_map(FrameList(frames), target, tiny(), device='cpu', progress=False, **options)
    assert '\n' not in str(caught.value)
    assert not target.exists()


def test_what_cannot_be_mapped(small_map, tmp_path):
    frames = small_map.frames
    target = tmp_path / 'm'
    fail([], target, 'no images')
    fail(frames[:1], target, 'at least two')
    fail([replace_image(f, np.zeros_like(f.image)) for f in frames[:3]], target, 'dark')
    one = [frames[0], *(replace_image(f, f.image, pose=None) for f in frames[1:3])]
    fail(one, target, '1 of 3 images have a pose')
    none = [replace_image(f, f.image, pose=None) for f in frames[:3]]
    fail(none, target, '0 of 3 images have a pose', require_poses=True)
    wrong = RigidTransform(rotation_from_vector([0, 2.0, 0]), np.array([30.0, 0, 0]))
    turned = [
        replace_image(f, f.image, pose=f.map_from_camera if i % 2 else wrong)
        for i, f in enumerate(frames[:2])
    ]
    fail(turned, target, 'poses')


def test_pose_problems_of_a_log_are_raised(small_map, tmp_path):
    source: Any = FrameList(small_map.frames[:3])
    source.pose_problem = 'several pose topics (/a, /b); choose one'
    with pytest.raises(InputError, match='/a, /b'):
        build_map(source, tmp_path / 'm', tiny(), device='cpu', progress=False)


def test_a_folder_with_other_things_is_refused_at_once(small_map, tmp_path):
    (tmp_path / 'thesis.tex').write_text('x')

    class Unread(FrameList):
        def __iter__(self):
            raise AssertionError('read before the target was checked')

    with pytest.raises(MapFormatError, match=r'thesis\.tex'):
        build_map(Unread(small_map.frames), tmp_path, tiny(), device='cpu', progress=False)


def test_pose_difference_is_in_ros_order():
    truth = RigidTransform(rotation_from_vector([0.3, -0.2, 1.0]), np.array([1.0, 2.0, 3.0]))
    change = np.array([0.01, -0.02, 0.03, 0.004, 0.005, -0.006])
    moved = RigidTransform(
        rotation_from_vector(change[3:]) @ truth.rotation, truth.translation + change[:3]
    )
    np.testing.assert_allclose(pose_difference(moved, truth), change, atol=1e-12)


def test_the_quantiles_of_chi_square():
    from d2s_ros.map_building import calibration

    assert pytest.approx(stats.chi2(6).median(), abs=1e-3) == calibration._CHI2_6_MEDIAN
    assert pytest.approx(stats.chi2(6).ppf(0.9), abs=1e-3) == calibration._CHI2_6_90


def test_covariances_hold_the_images_left_out():
    rng = np.random.default_rng(0)
    # Over what is published, whose region is larger than errors like normal ones ask for.
    normal = rng.chisquare(6, 400) / COVERAGE_MARGIN
    assert scale_of_covariances(normal) == pytest.approx(1.0, abs=0.1)
    assert scale_of_covariances(4.0 * normal) == pytest.approx(4.0, abs=0.4)
    # A few images whose errors are heavy: the region of 90 % holds as many of them.
    heavy = normal[:20].copy()
    heavy[:3] = 40.0
    scale = scale_of_covariances(heavy)
    assert (heavy / scale <= 10.646).mean() >= 0.9
    # Of nine errors none may be outside.
    nine = np.append(normal[:8], 30.0)
    assert scale_of_covariances(nine) == pytest.approx(30.0 / 10.645)
