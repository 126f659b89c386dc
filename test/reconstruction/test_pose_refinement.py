"""Approximate poses: made precise, and the map frame stays where it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scene_models.made_up_scene import made_up_reconstruction

from d2s_ros.errors import InputError
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.transforms import RigidTransform, pose_error, rotation_from_vector
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.reconstruction.pipeline import reconstruct
from d2s_ros.reconstruction.pose_refinement import align_poses
from d2s_ros.reconstruction.reconstruction import ImageInput, ReconstructionConfig


def disturbed(pose, rng, metres=0.05, degrees=1.0):
    """Return the pose moved by exactly that far, in a random direction."""
    shift, axis = rng.normal(size=(2, 3))
    turn = rotation_from_vector(axis / np.linalg.norm(axis) * np.radians(degrees))
    return RigidTransform(
        pose.rotation @ turn, pose.translation + metres * shift / np.linalg.norm(shift)
    )


def errors(poses, truth):
    return np.array([pose_error(p, t) for p, t in zip(poses, truth, strict=True)])


def random_poses(rng, count, line=False):
    poses = []
    for index in range(count):
        place = np.array([0.3 * index, 0, 0]) if line else rng.uniform(-3, 3, 3)
        poses.append(RigidTransform(rotation_from_vector(rng.normal(size=3) * 0.5), place))
    return poses


@pytest.mark.parametrize('line', [False, True])
def test_alignment_finds_the_similarity(rng, line):
    """Also from places on one straight line, and with a quarter of outliers."""
    poses = random_poses(rng, 40, line)
    turn, shift = rotation_from_vector([0.3, -0.8, 0.5]), np.array([4.0, -2.0, 1.0])
    targets = [RigidTransform(turn @ p.rotation, 1.3 * turn @ p.translation + shift) for p in poses]
    exact = align_poses(poses, targets)
    assert exact.scale == pytest.approx(1.3, abs=1e-9)
    np.testing.assert_allclose(exact.rotation, turn, atol=1e-9)
    np.testing.assert_allclose(exact.translation, shift, atol=1e-9)
    noisy = [disturbed(target, rng, 0.02, 0.5) for target in targets]
    for index in range(0, 40, 4):
        noisy[index] = disturbed(targets[index], rng, 2.0, 60.0)
    robust = align_poses(poses, noisy)
    good = [index for index in range(40) if index % 4]
    found = errors([robust(poses[index]) for index in good], [targets[index] for index in good])
    assert found[:, 0].max() < 0.03
    assert found[:, 1].max() < 0.4


def made_up_inputs(rng, **options):
    truth = made_up_reconstruction(**options)
    images = [
        ImageInput(
            image.name,
            image.stamp_ns,
            image.camera,
            disturbed(image.map_from_camera, rng),
            image.features,
        )
        for image in truth.images
    ]
    return images, [image.map_from_camera for image in truth.images]


def test_poses_and_tracks_become_better(rng):
    images, truth = made_up_inputs(rng, num_images=30, num_points=250, num_clutter=50, noise_px=0.3)
    config = ReconstructionConfig(refine_poses=True)
    refined = reconstruct(images, config)
    as_given = reconstruct(images, replace(config, refine_poses=False))
    poses = [image.map_from_camera for image in refined.images]
    found = errors(poses, truth)
    # Up to the frame, which is only as good as the mean of the given poses.
    assert np.median(found[:, 0]) < 0.025
    assert np.median(found[:, 1]) < 0.4
    align = align_poses(poses, truth)
    inner = errors([align(pose) for pose in poses], truth)
    assert np.median(inner[:, 0]) < 0.004
    assert np.median(inner[:, 1]) < 0.1
    # Neither scale nor frame has moved.
    assert align.scale == pytest.approx(1, abs=0.02)
    assert np.linalg.norm(align(poses[0]).translation - poses[0].translation) < 0.03
    seen = [int((image.point_idx >= 0).sum()) for image in refined.images]
    before = [int((image.point_idx >= 0).sum()) for image in as_given.images]
    assert np.median(seen) > 1.2 * np.median(before)


def test_a_wrong_pose_is_put_right(rng):
    """One image is a metre off: it comes back, and the frame does not follow it."""
    images, truth = made_up_inputs(rng, num_images=30, num_points=250, num_clutter=50, noise_px=0.3)
    lost = disturbed(truth[7], rng, 1.0, 5.0)
    images[7] = replace(images[7], map_from_camera=lost)
    refined = reconstruct(images, ReconstructionConfig(refine_poses=True))
    found = errors([image.map_from_camera for image in refined.images], truth)
    assert found[7, 0] < 0.05
    assert np.median(found[:, 0]) < 0.025


def test_images_that_do_not_match_are_an_error(rng):
    images, _ = made_up_inputs(rng, num_images=4, num_points=60, num_clutter=5)
    others = [
        replace(
            image,
            features=replace(
                image.features,
                descriptors=unit(rng.normal(size=image.features.descriptors.shape)),
            ),
        )
        for image in images
    ]
    with pytest.raises(InputError, match='match'):
        reconstruct(others, ReconstructionConfig(refine_poses=True))


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.slow
def test_maps_from_odometry(small_map, query_frames, tmp_path):
    """Rendered images, poses off by 5 cm and 1 degree: the refined map localizes better."""
    rng = np.random.default_rng(2)
    frames = [
        replace(frame, map_from_camera=disturbed(frame.map_from_camera, rng))
        for frame in small_map.frames
    ]
    truth = [frame.map_from_camera for frame in small_map.frames]
    figures = {}
    for refine in (False, True):
        config = BuildConfig(
            features=FeatureConfig(max_keypoints=700),
            reconstruction=ReconstructionConfig(refine_poses=refine),
        )
        config = replace(config, training=replace(config.training, steps=60, images_per_step=2))
        target = tmp_path / str(refine)
        result = build_map(Frames(frames), target, config, device='cpu', progress=False)
        poses = [image.map_from_camera for image in result.reconstruction.images]
        align = align_poses(poses, truth)
        localizer = Localizer.from_map(target, device='cpu')
        found = [
            pose_error(align(answer.map_from_camera), frame.map_from_camera)[0]
            for frame in query_frames
            if (answer := localizer.localize(frame.image, frame.camera)).localized
        ]
        figures[refine] = {
            'poses': np.median(errors([align(pose) for pose in poses], truth), axis=0),
            'localized': len(found),
            'error': np.median(found) if found else np.inf,
            'track': localizer.scene_map.manifest.metrics['mean_track_length'],
            'moved': localizer.scene_map.manifest.metrics.get('refined_poses'),
        }
    as_given, refined = figures[False], figures[True]
    assert as_given['moved'] is None
    assert 0.02 < refined['moved']['median_m'] < 0.06
    assert refined['poses'][0] < 0.01 < as_given['poses'][0]
    assert refined['poses'][1] < 0.1 < as_given['poses'][1]
    assert refined['track'] > 1.1 * as_given['track']
    assert refined['localized'] >= as_given['localized']
    assert refined['localized'] >= 4
    assert refined['error'] < 0.5 * as_given['error']


class Frames(list):
    """A FrameSource."""
