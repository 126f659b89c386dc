"""Rigid transforms named `target_from_source`.

`a_from_b` maps coordinates in frame b to coordinates in frame a, so compositions read
`a_from_c = a_from_b @ b_from_c`. Quaternions are xyzw with unit norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from d2s_ros.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RigidTransform:
    """A rotation followed by a translation: x_target = rotation @ x_source + translation.

    Attributes:
        rotation: (3, 3) float64, orthonormal with determinant +1.
        translation: (3,) float64, metres (or the unit of the reconstruction).
    """

    rotation: Array
    translation: Array

    def __post_init__(self) -> None:
        rotation = np.asarray(self.rotation, dtype=np.float64)
        translation = np.asarray(self.translation, dtype=np.float64).reshape(-1)
        if rotation.shape != (3, 3) or translation.shape != (3,):
            raise InputError(
                f'a rigid transform needs a (3, 3) rotation and 3 translations, found '
                f'{rotation.shape} and {translation.shape}'
            )
        # Plain numbers: a frame makes some dozen of these, and NumPy's calls would cost more.
        a, b, c = rotation.tolist()
        if not all(map(math.isfinite, (*a, *b, *c, *translation.tolist()))):
            raise InputError('a rigid transform has values that are not finite')
        products = (_dot(a, a) - 1, _dot(b, b) - 1, _dot(c, c) - 1, _dot(a, b), _dot(a, c))
        orthonormal = max(map(abs, (*products, _dot(b, c)))) <= 2e-5
        if not orthonormal or _dot(a, _cross(b, c)) < 0:
            raise InputError('the rotation of a rigid transform is not orthonormal')
        object.__setattr__(self, 'rotation', rotation)
        object.__setattr__(self, 'translation', translation)

    @classmethod
    def identity(cls) -> RigidTransform:
        """Return the transform that changes nothing."""
        return cls(np.eye(3), np.zeros(3))

    @classmethod
    def from_quaternion(cls, xyzw: ArrayLike, translation: ArrayLike) -> RigidTransform:
        """Build from a quaternion (4,) xyzw (normalised here) and a translation (3,).

        Raises:
            InputError: if the quaternion's norm is zero or not finite.
        """
        quaternion = np.asarray(xyzw, dtype=np.float64)
        return cls(rotation_from_quaternion(quaternion), np.asarray(translation, dtype=np.float64))

    @classmethod
    def from_matrix(cls, matrix: ArrayLike) -> RigidTransform:
        """Build from a (4, 4) or (3, 4) homogeneous matrix."""
        array = np.asarray(matrix, dtype=np.float64)
        return cls(array[:3, :3], array[:3, 3])

    @property
    def quaternion(self) -> Array:
        """The rotation as (4,) xyzw, w >= 0."""
        return quaternion_from_rotation(self.rotation)

    @property
    def matrix(self) -> Array:
        """The (4, 4) homogeneous matrix."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.rotation
        matrix[:3, 3] = self.translation
        return matrix

    def inverse(self) -> RigidTransform:
        """Return source_from_target."""
        return RigidTransform(self.rotation.T, -self.rotation.T @ self.translation)

    def __matmul__(self, other: RigidTransform) -> RigidTransform:
        """Compose: a_from_b @ b_from_c = a_from_c."""
        return RigidTransform(
            self.rotation @ other.rotation, self.rotation @ other.translation + self.translation
        )

    def moved(self, offset: ArrayLike) -> RigidTransform:
        """Return the transform into a target frame whose origin lies at -offset in this one's."""
        return RigidTransform(self.rotation, self.translation + np.asarray(offset, np.float64))

    def apply(self, points_in_source: ArrayLike) -> Array:
        """Map points (N, 3) in the source frame to (N, 3) in the target frame."""
        points = np.asarray(points_in_source, dtype=np.float64)
        return points @ self.rotation.T + self.translation

    def to_tum(self) -> list[float]:
        """Return [tx, ty, tz, qx, qy, qz, qw]."""
        return [*map(float, self.translation), *map(float, self.quaternion)]

    @classmethod
    def from_tum(cls, values: ArrayLike) -> RigidTransform:
        """Build from [tx, ty, tz, qx, qy, qz, qw]."""
        array = np.asarray(values, dtype=np.float64)
        if array.shape != (7,):
            raise InputError(f'a pose needs 7 numbers tx ty tz qx qy qz qw, found {array.shape}')
        return cls.from_quaternion(array[3:], array[:3])


def _dot(a: list[float], b: list[float]) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: list[float], b: list[float]) -> list[float]:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def rotation_from_quaternion(xyzw: ArrayLike) -> Array:
    """Return the (3, 3) rotation of a quaternion (4,) xyzw of any non-zero norm."""
    quaternion = np.asarray(xyzw, dtype=np.float64)
    norm = np.linalg.norm(quaternion)
    if quaternion.shape != (4,) or not np.isfinite(norm) or norm < 1e-9:
        raise InputError(f'not a rotation quaternion (xyzw): {np.asarray(xyzw).tolist()}')
    x, y, z, w = quaternion / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_from_rotation(rotation: ArrayLike) -> Array:
    """Return the unit quaternion (4,) xyzw, w >= 0, of a (3, 3) rotation."""
    # Plain numbers, as above. Divided by its largest component, which is at least a half, each
    # quaternion is stable (Shepperd 1978).
    (a, b, c), (d, e, f), (g, h, i) = np.asarray(rotation, dtype=np.float64).tolist()
    products = (
        (1 + a - e - i, b + d, c + g, h - f),
        (b + d, 1 - a + e - i, f + h, c - g),
        (c + g, f + h, 1 - a - e + i, d - b),
        (h - f, c - g, d - b, 1 + a + e + i),
    )
    row = max(range(4), key=lambda k: products[k][k])
    x, y, z, w = products[row]
    norm = math.copysign(math.sqrt(x * x + y * y + z * z + w * w), w if w else 1.0)
    return np.array([x / norm, y / norm, z / norm, w / norm])


def rotation_from_vector(rotation_vector: ArrayLike) -> Array:
    """Return the (3, 3) rotation exp([v]x) of an axis-angle vector (3,) in radians."""
    # Plain numbers, as above: a frame makes some dozen of these.
    x, y, z = np.asarray(rotation_vector, dtype=np.float64).tolist()
    angle = math.sqrt(x * x + y * y + z * z)
    if angle < 1e-8:
        sine, cosine = 1.0, 0.5
    else:
        sine, cosine = math.sin(angle) / angle, (1.0 - math.cos(angle)) / angle**2
    xy, xz, yz = cosine * x * y, cosine * x * z, cosine * y * z
    sx, sy, sz = sine * x, sine * y, sine * z
    xx, yy, zz = cosine * x * x, cosine * y * y, cosine * z * z
    return np.array(
        [
            [1.0 - yy - zz, xy - sz, xz + sy],
            [xy + sz, 1.0 - xx - zz, yz - sx],
            [xz - sy, yz + sx, 1.0 - xx - yy],
        ]
    )


def vector_from_rotation(rotation: ArrayLike) -> Array:
    """Return the axis-angle vector (3,) in radians, the inverse of `rotation_from_vector`."""
    quaternion = quaternion_from_rotation(rotation)
    sine = float(np.linalg.norm(quaternion[:3]))
    if sine < 1e-12:
        return 2 * quaternion[:3]
    angle = 2 * np.arctan2(sine, quaternion[3])
    return np.asarray(quaternion[:3] / sine * angle)


def skew(vector: ArrayLike) -> Array:
    """Return [v]x (3, 3) with [v]x @ u = v x u."""
    x, y, z = np.asarray(vector, dtype=np.float64)
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])


def pose_error(estimate: RigidTransform, truth: RigidTransform) -> tuple[float, float]:
    """Return the translation error (unit of the map) and the rotation error (degrees).

    Both arguments are `map_from_camera` (or any two transforms with the same frames).
    """
    translation_error = float(np.linalg.norm(estimate.translation - truth.translation))
    difference = vector_from_rotation(estimate.rotation.T @ truth.rotation)
    return translation_error, float(np.degrees(np.linalg.norm(difference)))


def covariance_of_body(
    covariance: ArrayLike, map_from_camera: RigidTransform, camera_from_body: RigidTransform
) -> Array:
    """Move a pose covariance from the camera to another body fixed to it.

    Args:
        covariance: (6, 6) of map_from_camera: x y z of the camera's origin, rotation about the
            fixed axes of the map.
        map_from_camera: The pose.
        camera_from_body: Where the body is, without uncertainty of its own.

    Returns:
        (6, 6) of map_from_body in the same order and axes.
    """
    lever_in_map = map_from_camera.rotation @ camera_from_body.translation
    jacobian = np.eye(6)
    # A small rotation of the camera about map axes moves the body by rotation x lever.
    jacobian[:3, 3:] = -skew(lever_in_map)
    moved = jacobian @ np.asarray(covariance, dtype=np.float64) @ jacobian.T
    return np.asarray((moved + moved.T) / 2)


def interpolate(before: RigidTransform, after: RigidTransform, fraction: float) -> RigidTransform:
    """Interpolate between two transforms with the same frames; fraction 0 is `before`."""
    vector = vector_from_rotation(before.rotation.T @ after.rotation)
    rotation = before.rotation @ rotation_from_vector(fraction * vector)
    translation = (1 - fraction) * before.translation + fraction * after.translation
    return RigidTransform(rotation, translation)
