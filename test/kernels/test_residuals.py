"""Residuals: derivatives against differences, and the compiled kernels against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.kernels import reference

CAMERA = Camera('pinhole', 640, 480, 500.0, 505.0, 325.0, 236.0)
SCALE = 1.3


def problem(rng, implementation, *, camera=CAMERA, count=40, covariances=True, behind=0):
    """Return residuals that are whitened at a pose near the right one, and that pose."""
    pose = RigidTransform(rotation_from_vector(rng.normal(0, 1, 3)), rng.normal(0, 3, 3))
    in_camera = rng.uniform([-2, -1.5, 2], [2, 1.5, 8], (count, 3))
    pixels = CAMERA.project(in_camera) + rng.normal(0, 2, (count, 2))
    in_camera[:behind, 2] *= -1
    points = pose.inverse().apply(in_camera)
    roots = 0.02 * rng.normal(size=(count, 3, 3))
    noise = roots @ roots.transpose(0, 2, 1) if covariances else None
    variances = drawn_noise(rng, count)[1]
    return residuals_of(implementation, pixels, points, camera, variances, noise), pose


def drawn_noise(rng, count):
    """Return roots (count, 2, 2) of the covariances of keypoints, and these as xx, xy, yy."""
    roots = np.linalg.cholesky(
        [
            [[v, c * np.sqrt(v * w)], [c * np.sqrt(v * w), w]]
            for v, w, c in zip(
                *rng.uniform(0.5, 3.0, (2, count)), rng.uniform(-0.8, 0.8, count), strict=True
            )
        ]
    )
    covariances = roots @ roots.transpose(0, 2, 1)
    return roots, covariances[:, [0, 0, 1], [0, 1, 1]]


def residuals_of(implementation, pixels, points, camera, variances, noise):
    intrinsics = camera.fx, camera.fy, camera.cx, camera.cy
    return implementation.residuals(pixels, points, intrinsics, variances, noise, SCALE)


def moved(pose, step):
    turn = rotation_from_vector(step[:3])
    return turn @ pose.rotation, turn @ pose.translation + step[3:]


def test_the_gradient_is_half_the_slope_of_the_cost(rng, implementation):
    residuals, pose = problem(rng, implementation)
    residuals.whiten(pose.rotation, pose.translation)
    at = residuals.linearise(pose.rotation, pose.translation)
    assert at.all_in_front
    for axis in range(6):
        step = np.zeros(6)
        step[axis] = 1e-6
        more = residuals.linearise(*moved(pose, step)).cost
        less = residuals.linearise(*moved(pose, -step)).cost
        assert (more - less) / 4e-6 == pytest.approx(at.gradient[axis], rel=1e-4, abs=1e-3)


def test_the_last_derivative_is_by_the_focal_length(rng, implementation):
    costs = []
    state = rng.bit_generator.state
    for change in (1e-6, -1e-6):
        rng.bit_generator.state = state
        residuals, pose = problem(rng, implementation, covariances=False)
        zoomed = replace(CAMERA, fx=CAMERA.fx * np.exp(change), fy=CAMERA.fy * np.exp(change))
        rng.bit_generator.state = state
        other, _ = problem(rng, implementation, camera=zoomed, covariances=False)
        other.whiten(pose.rotation, pose.translation)
        costs.append(other.linearise(pose.rotation, pose.translation).cost)
    residuals.whiten(pose.rotation, pose.translation)
    at = residuals.linearise(pose.rotation, pose.translation, with_focal=True)
    assert at.gradient.shape == (7,)
    assert (costs[0] - costs[1]) / 4e-6 == pytest.approx(at.gradient[6], rel=1e-4, abs=1e-3)


def test_whitened_residuals_of_drawn_noise_have_unit_variance(rng, implementation):
    """Pixels and points moved by the noise they are given: two squared sigmas in the mean."""
    count = 4000
    pose = RigidTransform(rotation_from_vector([0.3, -0.2, 0.5]), np.array([0.1, 0.2, 0.3]))
    in_camera = rng.uniform([-2, -1.5, 2], [2, 1.5, 8], (count, 3))
    points = pose.inverse().apply(in_camera)
    roots = 0.01 * rng.normal(size=(count, 3, 3))
    pixel_roots, variances = drawn_noise(rng, count)
    seen = points + np.einsum('nij,nj->ni', roots, rng.normal(size=(count, 3)))
    pixels = CAMERA.project(in_camera)
    pixels += np.einsum('nij,nj->ni', pixel_roots, rng.normal(size=(count, 2)))
    noise = roots @ roots.transpose(0, 2, 1)
    residuals = residuals_of(implementation, pixels, seen, CAMERA, variances, noise)
    residuals.whiten(pose.rotation, pose.translation)
    squared = residuals.squared(pose.rotation, pose.translation)
    assert squared.mean() == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize('covariances', [True, False])
@pytest.mark.parametrize('behind', [0, 3])
def test_the_compiled_kernels_give_what_numpy_gives(rng, compiled_kernels, covariances, behind):
    state = rng.bit_generator.state
    both = []
    for implementation in (reference, compiled_kernels):
        rng.bit_generator.state = state
        residuals, pose = problem(rng, implementation, covariances=covariances, behind=behind)
        residuals.whiten(pose.rotation, pose.translation)
        step = np.array([0.01, -0.02, 0.005, 0.03, 0.01, -0.02])
        there = moved(pose, step)
        found = [residuals.squared(*there)]
        for with_focal in (False, True):
            at = residuals.linearise(*there, with_focal=with_focal)
            inverse = np.linalg.inv(at.information + np.eye(len(at.gradient)))
            found += [*at, residuals.gradient_scatter(*there, at.slope, inverse)]
        both.append(found)
        assert at.all_in_front == (behind == 0)
    # Behind the camera covariances are huge, and rounding shows.
    within = 1e-2 if behind else 1e-9
    for numpy_s, compiled in zip(*both, strict=True):
        limit = within * np.abs(numpy_s).max()
        np.testing.assert_allclose(compiled, numpy_s, rtol=within, atol=limit)


def test_rotations_of_any_memory_order_are_taken(rng, implementation):
    residuals, pose = problem(rng, implementation)
    as_views = np.asfortranarray(pose.rotation), np.repeat(pose.translation, 2)[::2]
    residuals.whiten(*as_views)
    first = residuals.linearise(*as_views)
    second = residuals.linearise(pose.rotation, pose.translation)
    np.testing.assert_array_equal(first.information, second.information)


def test_only_six_or_seven_parameters_are_taken(rng, implementation):
    residuals, pose = problem(rng, implementation)
    residuals.whiten(pose.rotation, pose.translation)
    with pytest.raises(ValueError, match='6 or 7'):
        residuals.gradient_scatter(pose.rotation, pose.translation, 1.0, np.eye(8))
