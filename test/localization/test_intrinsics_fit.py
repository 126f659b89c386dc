"""What the correspondences of one image tell of the intrinsics."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.localization.guided_refinement import CandidateMatches, refine_guided
from d2s_ros.localization.intrinsics_error import NAMES
from d2s_ros.localization.intrinsics_fit import with_intrinsics_error
from d2s_ros.localization.limits import Limits
from d2s_ros.localization.pose_solver import PoseSolverConfig, solve_pose

CAMERA = Camera('pinhole', 640, 480, 460.0, 460.0, 319.5, 239.5)
ALLOWED = (Limits.max_intrinsics_error, Limits.intrinsics_sigmas)
BENT = dataclasses.replace(CAMERA, model='plumb_bob', distortion=(-0.2, 0.0, 0.0, 0.0, 0.0))


def seen(rng, given, taken, *, count=300, noise=0.4, flat=False, moved=0):
    """Return the estimate for an image `taken` by one camera, where another is `given`.

    Candidates of each keypoint are the right landmark and a wrong one.
    """
    pixels = rng.uniform([5, 5], [635, 475], (count, 2))
    depth = np.full(count, 4.0) if flat else rng.uniform(2.0, 8.0, count)
    rays = taken.normalize(pixels)
    pose = RigidTransform(rotation_from_vector([0.2, -0.4, 0.1]), np.array([0.5, 1.0, -2.0]))
    in_camera = np.column_stack([rays, np.ones(count)]) * depth[:, None]
    points = pose.inverse().apply(in_camera)
    if moved:
        # A cupboard that was pushed aside.
        points[np.argsort(pixels[:, 0])[:moved]] += [0.05, 0.0, 0.02]
    pixels = pixels + rng.normal(0, noise, pixels.shape)
    ideal, sigmas = given.undistort(pixels), np.full(count, noise)
    order = np.stack([np.arange(count), rng.permutation(count)], axis=1)
    matches = CandidateMatches(
        ideal,
        sigmas,
        np.tile(np.array([0.9, 0.5], np.float32), (count, 1)),
        order.astype(np.int64),
        points,
        np.tile(1e-6 * np.eye(3), (count, 1, 1)),
        given.ideal,
    )
    config = PoseSolverConfig()
    found = solve_pose(ideal, points, given.ideal, sigmas_px=sigmas, config=config)
    assert found is not None
    return with_intrinsics_error(refine_guided(found, matches, config), matches, config)


#: What is given, what took the image, the unknowns that are off and by how much.
WRONG = {
    'principal point': (dataclasses.replace(CAMERA, cx=349.5), CAMERA, {'cx': -30 / 460}),
    'fx alone': (
        dataclasses.replace(CAMERA, fx=506.0),
        CAMERA,
        {'focal length': -np.log(1.1) / 2, 'fx over fy': -np.log(1.1)},
    ),
    'distortion missing': (CAMERA, BENT, {'k1': -0.2}),
    'rectified already': (BENT, CAMERA, {'k1': 0.25}),
}


@pytest.mark.parametrize(('given', 'taken', 'wrong'), WRONG.values(), ids=WRONG.keys())
def test_each_wrong_calibration_is_found(rng, given, taken, wrong):
    error = seen(rng, given, taken).intrinsics_error
    excess = error.excess(*ALLOWED)
    assert error.gain > 3 * Limits.min_intrinsics_gain
    assert {name for name, value in zip(NAMES, excess, strict=True) if value > 1} == wrong.keys()
    for name, value, sigma in zip(NAMES, error.change, error.sigmas, strict=True):
        # That of the ideal image is no polynomial of the one that the lens is given by.
        assert abs(value - wrong.get(name, 0.0)) < 0.012 + 4 * sigma + 0.06 * (name == 'k1'), name


@pytest.mark.parametrize('camera', [CAMERA, BENT])
def test_right_calibrations_are_not_accused(rng, camera):
    changes = []
    for _ in range(10):
        error = seen(rng, camera, camera, count=150).intrinsics_error
        assert error.excess(*ALLOWED).max() < 1
        assert error.gain < Limits.min_intrinsics_gain
        changes.append(error.change / error.sigmas)
    # Sigmas are no smaller than the errors.
    assert np.sqrt(np.mean(np.square(changes))) < 1.5


def test_a_wall_seen_straight_accuses_nothing(rng):
    # The wall turned a little and seen with another principal point looks the same.
    error = seen(rng, WRONG['principal point'][0], CAMERA, flat=True, count=60).intrinsics_error
    assert error.sigmas[2] > 0.02
    assert error.gain < Limits.min_intrinsics_gain
    right = seen(rng, CAMERA, CAMERA, flat=True, count=60).intrinsics_error
    assert right.excess(*ALLOWED).max() < 1


def test_what_was_moved_is_no_lens(rng):
    error = seen(rng, CAMERA, CAMERA, moved=90).intrinsics_error
    assert np.delete(error.excess(*ALLOWED), 0).max() < 1


def test_covariances_scale(rng):
    found = seen(rng, CAMERA, CAMERA)
    scaled = found.scaled(4.0).intrinsics_error
    assert np.allclose(scaled.sigmas, 2 * found.intrinsics_error.sigmas, rtol=0.1)
