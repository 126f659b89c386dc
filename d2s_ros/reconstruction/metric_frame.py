"""A reconstruction without poses, brought into metres and set upright.

What pycolmap finds of images alone is right up to a similarity: scale, rotation and position are
free. Odometry, depth images or tags tell the scale; odometry, the floor or how cameras are held
tell which way is up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError
from d2s_ros.geometry.transforms import RigidTransform, vector_from_rotation
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction

Array = NDArray[np.float64]

#: Motion between images of which ratios of lengths are taken, as a share of the longest one.
_MIN_MOTION = 0.2
#: Images apart that motion is compared over: further ones have drifted, nearer ones hardly moved.
_MAX_STEPS = 8
#: Fewer measurements tell no scale.
MIN_RATIOS = 8
#: Rounds and width (in robust deviations) of the weights that leave outliers out.
_ROUNDS, _WIDTH = 10, 2.0
#: A floor is within this of level, as cameras are held.
_MAX_TILT_DEG = 25.0
#: Points this close to a plane lie on it, over the median depth of the scene.
_PLANE_TOLERANCE = 0.015
#: A floor has at least so many points, and so large a share of all.
_MIN_FLOOR_POINTS, _MIN_FLOOR_SHARE = 40, 0.02
#: Of the points, how many may lie below a floor.
_MAX_BELOW = 0.05
_PLANE_TRIALS = 600
#: How much cameras that are held upright count beside their horizontal axes.
_UPRIGHT_WEIGHT = 0.1


@dataclass(frozen=True, eq=False)
class Scale:
    """Metres that one unit of a reconstruction is.

    Attributes:
        factor: Metres for a unit.
        sigma: Standard deviation of the factor, over the factor.
        count: Measurements that told it.
        source: 'odometry', 'depth' or 'tag'.
    """

    factor: float
    sigma: float
    count: int
    source: str


def scale_from_ratios(ratios: Array, source: str, weights: Array | None = None) -> Scale:
    """Return the median of ratios (N,) of metres over units, with its uncertainty.

    Raises:
        InputError: too few of them are positive numbers.
    """
    good = np.isfinite(ratios) & (ratios > 0)
    if good.sum() < MIN_RATIOS:
        raise InputError(
            f'the scale cannot be told from the {source}: {int(good.sum())} measurements can be '
            f'used, {MIN_RATIOS} are needed'
        )
    logs = np.log(ratios[good])
    order = np.argsort(logs)
    mass = np.ones(len(logs)) if weights is None else weights[good]
    shares = np.cumsum(mass[order]) / mass.sum()
    middle = float(logs[order][int(np.searchsorted(shares, 0.5))])
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    return Scale(
        float(np.exp(middle)), float(1.2533 * spread / np.sqrt(len(logs))), len(logs), source
    )


def scale_from_poses(
    images: Sequence[MappedImage], poses: Sequence[RigidTransform | None]
) -> Scale:
    """Return the scale by which motion in a reconstruction becomes that of odometry.

    Only motion between images that follow each other closely is compared, so that drift of the
    heading does not count.

    Args:
        images: Of the reconstruction, in order of time.
        poses: odom_from_camera of each, None where unknown.

    Raises:
        InputError: the camera hardly moved, or too few images have a pose.
    """
    known = [index for index, pose in enumerate(poses) if pose is not None]
    centres = np.array([images[index].map_from_camera.translation for index in known])
    given = np.array([pose.translation for pose in poses if pose is not None])
    moved, measured = [np.zeros(0)], [np.zeros(0)]
    for step in range(1, min(_MAX_STEPS, len(known) - 1) + 1):
        moved.append(np.linalg.norm(centres[step:] - centres[:-step], axis=1))
        measured.append(np.linalg.norm(given[step:] - given[:-step], axis=1))
    units, metres = np.concatenate(moved), np.concatenate(measured)
    used = (metres > _MIN_MOTION * metres.max(initial=0.0)) & (units > 0)
    return scale_from_ratios(metres[used] / units[used], 'odometry')


def map_from_unscaled(
    images: Sequence[MappedImage], poses: Sequence[RigidTransform | None], factor: float
) -> RigidTransform:
    """Return the motion that brings a reconstruction, scaled by `factor`, to given poses.

    Rotations and positions are averaged with weights that leave outliers out.
    """
    pairs = [
        (image.map_from_camera, pose)
        for image, pose in zip(images, poses, strict=True)
        if pose is not None
    ]
    turns = np.stack([pose.rotation @ own.rotation.T for own, pose in pairs])
    weights = np.ones(len(pairs))
    rotation = np.eye(3)
    for _ in range(_ROUNDS):
        u, _, vt = np.linalg.svd(np.einsum('n,nij->ij', weights, turns))
        rotation = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
        angles = np.array([np.linalg.norm(vector_from_rotation(r @ rotation.T)) for r in turns])
        weights = _weights(angles)
    own = np.stack([factor * pose.translation for pose, _ in pairs]) @ rotation.T
    offsets = np.stack([pose.translation for _, pose in pairs]) - own
    weights = np.ones(len(pairs))
    middle = np.zeros(3)
    for _ in range(_ROUNDS):
        middle = weights @ offsets / weights.sum()
        weights = _weights(np.linalg.norm(offsets - middle, axis=1))
    return RigidTransform(rotation, middle)


def _weights(residuals: Array) -> Array:
    """Return the weights of Geman and McClure for residuals (N,), all positive."""
    width = _WIDTH * max(float(np.median(residuals)), 1e-9)
    return np.asarray(1.0 / np.square(1.0 + np.square(residuals / width)))


def upward(images: Sequence[MappedImage]) -> Array:
    """Return the unit vector (3,) that points up if cameras are held level on average.

    The horizontal axis of a camera that is not rolled is perpendicular to it, wherever it looks.
    """
    right = np.stack([image.map_from_camera.rotation[:, 0] for image in images])
    top = -np.stack([image.map_from_camera.rotation[:, 1] for image in images]).mean(axis=0)
    # Minimise the sum of (right . up)^2 / N - weight * (top . up)^2.
    cost = right.T @ right / len(right) - _UPRIGHT_WEIGHT * np.outer(top, top)
    _, vectors = np.linalg.eigh(cost)
    up = vectors[:, 0]
    return np.asarray(up if up @ top > 0 else -up)


def find_floor(
    reconstruction: Reconstruction, up: Array, *, seed: int = 0
) -> tuple[Array, float] | None:
    """Return the floor: its unit normal (3,), upwards, and n.x of its points; None without one.

    It is the plane with most points that is about level, below the cameras, and under which hardly
    anything lies.
    """
    points = reconstruction.points_in_map
    cameras = np.stack([image.map_from_camera.translation for image in reconstruction.images])
    depth = _median_depth(reconstruction)
    tolerance = _PLANE_TOLERANCE * depth
    rng = np.random.default_rng(seed)
    # The lower half is enough to draw from.
    height = points @ up
    low = np.flatnonzero(height < np.median(cameras @ up))
    if len(low) < _MIN_FLOOR_POINTS:
        return None
    best, most = None, 0
    for _ in range(_PLANE_TRIALS):
        a, b, c = points[rng.choice(low, 3, replace=False)]
        normal = np.cross(b - a, c - a)
        length = float(np.linalg.norm(normal))
        if length < 1e-6 * depth**2:
            continue
        normal /= length if normal @ up > 0 else -length
        if normal @ up < np.cos(np.radians(_MAX_TILT_DEG)):
            continue
        above = points @ normal - normal @ a
        count = int((np.abs(above) < tolerance).sum())
        if count > most and (above < -2 * tolerance).mean() < _MAX_BELOW:
            best, most = (normal, float(normal @ a)), count
    if best is None or most < max(_MIN_FLOOR_POINTS, _MIN_FLOOR_SHARE * len(points)):
        return None
    normal, offset = best
    for shrink in (1.0, 0.7, 0.5, 0.5, 0.5):
        on = points[np.abs(points @ normal - offset) < shrink * tolerance]
        if len(on) < _MIN_FLOOR_POINTS // 2:
            break
        middle = on.mean(axis=0)
        _, _, axes = np.linalg.svd(on - middle, full_matrices=False)
        normal = axes[2] if axes[2] @ up > 0 else -axes[2]
        offset = float(normal @ middle)
    if normal @ up < np.cos(np.radians(_MAX_TILT_DEG)) or (cameras @ normal < offset).mean() > 0.05:
        return None
    return normal, offset


def _median_depth(reconstruction: Reconstruction) -> float:
    depths = []
    for image in reconstruction.images:
        seen = image.point_idx[image.point_idx >= 0]
        if len(seen):
            points = reconstruction.points_in_map[seen]
            depths.append(float(np.median(image.map_from_camera.inverse().apply(points)[:, 2])))
    return float(np.median(depths))


def level_frame(up: Array, floor: float, camera: RigidTransform) -> RigidTransform:
    """Return level_from_map: z up, the floor at 0, a camera above the origin that looks along x.

    Args:
        up: (3,) unit vector upwards.
        floor: up.x of the floor.
        camera: map_from_camera of that camera.
    """
    forward = camera.rotation[:, 2] - (camera.rotation[:, 2] @ up) * up
    if np.linalg.norm(forward) < 1e-3:
        # It looks up or down: its upper side is ahead then.
        forward = -camera.rotation[:, 1] + (camera.rotation[:, 1] @ up) * up
    x = forward / np.linalg.norm(forward)
    rotation = np.stack([x, np.cross(up, x), up])
    place = rotation @ camera.translation
    return RigidTransform(rotation, np.array([-place[0], -place[1], -floor]))


def transformed(
    reconstruction: Reconstruction,
    factor: float,
    target_from_scaled: RigidTransform,
    *,
    metric: bool,
) -> Reconstruction:
    """Return a reconstruction whose lengths are multiplied by `factor` and that is then moved."""

    def moved(pose: RigidTransform) -> RigidTransform:
        return target_from_scaled @ RigidTransform(pose.rotation, factor * pose.translation)

    return replace(
        reconstruction,
        images=[
            replace(image, map_from_camera=moved(image.map_from_camera))
            for image in reconstruction.images
        ],
        points_in_map=target_from_scaled.apply(factor * reconstruction.points_in_map),
        metric=metric,
    )
