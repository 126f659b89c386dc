"""Rigid transforms against scipy's rotations and against their own algebra."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from d2s_ros.errors import InputError
from d2s_ros.geometry.transforms import (
    RigidTransform,
    interpolate,
    pose_error,
    quaternion_from_rotation,
    rotation_from_quaternion,
    rotation_from_vector,
    skew,
    vector_from_rotation,
)


def random_transform(rng: np.random.Generator) -> RigidTransform:
    rotation = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    return RigidTransform(rotation, rng.uniform(-5, 5, 3))


def assert_same(first: RigidTransform, second: RigidTransform, atol: float = 1e-12) -> None:
    np.testing.assert_allclose(first.matrix, second.matrix, atol=atol)


@pytest.fixture
def transform(rng):
    return random_transform(rng)


def test_apply_rotates_then_translates():
    # A quarter turn about z takes x to y.
    quarter = RigidTransform.from_quaternion([0, 0, np.sqrt(0.5), np.sqrt(0.5)], [10, 0, 0])
    np.testing.assert_allclose(
        quarter.apply([[1, 0, 0], [0, 2, 0]]), [[10, 1, 0], [8, 0, 0]], atol=1e-12
    )


def test_inverse(rng, transform):
    points = rng.normal(size=(5, 3))
    np.testing.assert_allclose(transform.inverse().apply(transform.apply(points)), points)
    assert_same(transform @ transform.inverse(), RigidTransform.identity())
    assert_same(transform.inverse() @ transform, RigidTransform.identity())
    np.testing.assert_allclose(transform.inverse().matrix, np.linalg.inv(transform.matrix))


def test_composition_is_the_matrix_product_and_applies_right_to_left(rng, transform):
    other = random_transform(rng)
    points = rng.normal(size=(5, 3))
    np.testing.assert_allclose((transform @ other).matrix, transform.matrix @ other.matrix)
    np.testing.assert_allclose(
        (transform @ other).apply(points), transform.apply(other.apply(points))
    )


def test_composition_is_associative(rng):
    a, b, c = (random_transform(rng) for _ in range(3))
    assert_same((a @ b) @ c, a @ (b @ c))


def test_matrix_round_trip(transform):
    assert_same(RigidTransform.from_matrix(transform.matrix), transform)
    assert_same(RigidTransform.from_matrix(transform.matrix[:3]), transform)


def test_tum_round_trip_and_order(transform):
    values = transform.to_tum()
    assert_same(RigidTransform.from_tum(values), transform)
    np.testing.assert_allclose(values[:3], transform.translation)
    expected = Rotation.from_matrix(transform.rotation).as_quat(canonical=True)
    np.testing.assert_allclose(values[3:], expected, atol=1e-12)


@pytest.mark.parametrize('seed', range(5))
def test_quaternions_agree_with_scipy(seed):
    rng = np.random.default_rng(seed)
    rotation = Rotation.from_quat(rng.normal(size=4))
    np.testing.assert_allclose(
        rotation_from_quaternion(3.7 * rotation.as_quat()), rotation.as_matrix(), atol=1e-12
    )
    np.testing.assert_allclose(
        quaternion_from_rotation(rotation.as_matrix()),
        rotation.as_quat(canonical=True),
        atol=1e-12,
    )


@pytest.mark.parametrize('axis', [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, -2, 3]])
@pytest.mark.parametrize('angle', [0.0, 1e-12, 1e-7, 1e-3, 1.0, np.pi - 1e-7, np.pi])
def test_quaternion_and_vector_of_every_angle(axis, angle):
    vector = angle * np.array(axis) / np.linalg.norm(axis)
    rotation = rotation_from_vector(vector)
    np.testing.assert_allclose(rotation, Rotation.from_rotvec(vector).as_matrix(), atol=1e-12)
    quaternion = quaternion_from_rotation(rotation)
    assert np.linalg.norm(quaternion) == pytest.approx(1)
    np.testing.assert_allclose(rotation_from_quaternion(quaternion), rotation, atol=1e-12)
    # At half a turn v and -v are the same rotation, so compare rotations.
    recovered = vector_from_rotation(rotation)
    np.testing.assert_allclose(Rotation.from_rotvec(recovered).as_matrix(), rotation, atol=1e-9)
    assert np.linalg.norm(recovered) == pytest.approx(angle, abs=1e-9)


def test_skew_is_the_cross_product(rng):
    first, second = rng.normal(size=(2, 3))
    np.testing.assert_allclose(skew(first) @ second, np.cross(first, second))


def test_pose_error(transform):
    change = RigidTransform(rotation_from_vector([0, np.radians(30), 0]), np.array([3.0, 4, 0]))
    distance, degrees = pose_error(transform @ change, transform)
    assert distance == pytest.approx(5)
    assert degrees == pytest.approx(30)
    assert pose_error(transform, transform) == pytest.approx((0, 0), abs=1e-6)
    half = RigidTransform(rotation_from_vector([np.pi, 0, 0]), np.zeros(3))
    assert pose_error(half, RigidTransform.identity())[1] == pytest.approx(180)


def test_interpolation_agrees_with_slerp(rng, transform):
    other = random_transform(rng)
    slerp = Slerp([0, 1], Rotation.from_matrix([transform.rotation, other.rotation]))
    for fraction in (0.0, 0.3, 0.5, 1.0):
        between = interpolate(transform, other, fraction)
        np.testing.assert_allclose(between.rotation, slerp(fraction).as_matrix(), atol=1e-9)
        np.testing.assert_allclose(
            between.translation,
            transform.translation + fraction * (other.translation - transform.translation),
        )


@pytest.mark.parametrize(
    ('rotation', 'translation', 'message'),
    [
        (np.eye(4), np.zeros(3), r'\(4, 4\)'),
        (np.eye(3), np.zeros(2), r'\(2,\)'),
        (2 * np.eye(3), np.zeros(3), 'orthonormal'),
        (np.diag([1, 1, -1.0]), np.zeros(3), 'orthonormal'),
        (np.eye(3), [0, np.nan, 0], 'finite'),
        (np.full((3, 3), np.inf), np.zeros(3), 'finite'),
    ],
)
def test_invalid_transforms_are_refused(rotation, translation, message):
    with pytest.raises(InputError, match=message):
        RigidTransform(rotation, translation)


@pytest.mark.parametrize('quaternion', [[0, 0, 0, 0], [np.nan, 0, 0, 1], [1, 0, 0]])
def test_invalid_quaternions_are_refused(quaternion):
    with pytest.raises(InputError, match='quaternion'):
        RigidTransform.from_quaternion(quaternion, [0, 0, 0])


def test_tum_of_the_wrong_length_is_refused():
    with pytest.raises(InputError, match='7 numbers'):
        RigidTransform.from_tum([0, 0, 0, 0, 0, 1])
