"""Printed tags (AprilTag, ArUco) in mapping images: where they are, and how large in the map.

A tag is a square of known size, so its size in a reconstruction tells the scale of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.reconstruction.metric_frame import Scale
from d2s_ros.reconstruction.reconstruction import MappedImage

Array = NDArray[np.float64]

#: A tag is used that is seen in so many images, from rays that span this angle.
_MIN_VIEWS, _MIN_ANGLE_DEG = 3, 4.0
#: Noise of a corner, px.
_CORNER_SIGMA_PX = 0.3
#: A tag whose corners fit worse than this (px, robust) moved, or occurs twice.
_MAX_ERROR_PX = 2.0
#: Corners of a tag of edge 1 in its frame: x to its right, y to its top, z out of it.
_SQUARE = np.array([[-0.5, 0.5, 0], [0.5, 0.5, 0], [0.5, -0.5, 0], [-0.5, -0.5, 0]])


@dataclass(frozen=True, eq=False)
class FittedTag:
    """A tag in a reconstruction.

    Attributes:
        map_from_tag: Its middle and axes: x to its right, y to its top, z out of it.
        size: Edge of its black square, unit of the reconstruction.
        sigma: Standard deviation of the size, over the size.
        views: Images that show it.
    """

    map_from_tag: RigidTransform
    size: float
    sigma: float
    views: int


def fit_tags(
    images: Sequence[MappedImage], seen: Mapping[str, Mapping[int, Array]]
) -> dict[int, FittedTag]:
    """Return the tags whose place and size in a reconstruction are told by several images.

    Args:
        images: Of the reconstruction.
        seen: By name of image, what `TagDetector.detect` found in it.
    """
    views: dict[int, list[tuple[MappedImage, Array]]] = {}
    for image in images:
        for number, corners in seen.get(image.name, {}).items():
            ideal = image.camera.undistort(corners)
            if np.isfinite(ideal).all():
                views.setdefault(number, []).append((image, ideal))
    fitted = {}
    for number, of_tag in sorted(views.items()):
        tag = _fit(of_tag) if len(of_tag) >= _MIN_VIEWS else None
        if tag is not None:
            fitted[number] = tag
    return fitted


def scale_from_tags(tags: Mapping[int, FittedTag], size_m: float) -> Scale | None:
    """Return the scale that tags of a known edge (m) tell; None without tags."""
    if not tags:
        return None
    logs = np.array([np.log(size_m / tag.size) for tag in tags.values()])
    weights = np.array([1 / tag.sigma**2 for tag in tags.values()])
    mean = float(weights @ logs / weights.sum())
    inner = float(1 / np.sqrt(weights.sum()))
    outer = float(np.sqrt(weights @ (logs - mean) ** 2 / weights.sum() / len(logs)))
    return Scale(float(np.exp(mean)), max(inner, outer), len(tags), 'tag')


def _fit(views: Sequence[tuple[MappedImage, Array]]) -> FittedTag | None:
    """Fit place and size of a square to its corners in several images."""
    cameras = [image.camera.ideal for image, _ in views]
    poses = [image.map_from_camera.inverse() for image, _ in views]
    corners = np.stack([ideal for _, ideal in views])
    start = _triangulated(cameras, poses, corners)
    centres = np.stack([image.map_from_camera.translation for image, _ in views])
    rays = start.mean(axis=0) - centres
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    span = np.degrees(np.arccos(np.clip((rays @ rays.T).min(), -1, 1)))
    if not np.isfinite(span) or span < _MIN_ANGLE_DEG:
        return None
    x = start[1] - start[0] + start[2] - start[3]
    y = start[0] - start[3] + start[1] - start[2]
    z = np.cross(x, y)
    y = np.cross(z, x)
    first = np.stack([axis / np.linalg.norm(axis) for axis in (x, y, z)], axis=1)
    edge = float(np.linalg.norm(start - np.roll(start, 1, axis=0), axis=1).mean())

    def square(parameters: Array) -> Array:
        turned = first @ rotation_from_vector(parameters[:3])
        middle = start.mean(axis=0) + edge * parameters[3:6]
        return np.asarray(edge * np.exp(parameters[6]) * _SQUARE @ turned.T + middle)

    def residuals(parameters: Array) -> Array:
        points = square(parameters)
        errors = [
            camera.project(pose.apply(points)) - ideal
            for camera, pose, ideal in zip(cameras, poses, corners, strict=True)
        ]
        return np.nan_to_num(np.stack(errors).ravel(), nan=1e3)

    found = least_squares(residuals, np.zeros(7), loss='soft_l1', f_scale=1.0)
    error = 1.4826 * float(np.median(np.abs(residuals(found.x))))
    if error > _MAX_ERROR_PX:
        return None
    noise = max(error, _CORNER_SIGMA_PX)
    information = found.jac.T @ found.jac / noise**2
    sigma = float(np.sqrt(np.linalg.pinv(information)[6, 6]))
    return FittedTag(
        RigidTransform(
            first @ rotation_from_vector(found.x[:3]), start.mean(axis=0) + edge * found.x[3:6]
        ),
        float(edge * np.exp(found.x[6])),
        max(sigma, 1e-6),
        len(views),
    )


def _triangulated(cameras: Sequence, poses: Sequence[RigidTransform], corners: Array) -> Array:
    """Return the corners (4, 3) where the rays of all images (V, 4, 2) come closest."""
    found = []
    for corner in range(4):
        information, moment = np.zeros((3, 3)), np.zeros(3)
        for camera, pose, pixels in zip(cameras, poses, corners, strict=True):
            u, v = pixels[corner]
            ray = np.array([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, 1.0])
            ray = pose.rotation.T @ (ray / np.linalg.norm(ray))
            across = np.eye(3) - np.outer(ray, ray)
            information += across
            moment += across @ pose.inverse().translation
        found.append(np.linalg.solve(information + 1e-12 * np.eye(3), moment))
    return np.stack(found)
