"""Augmented views of mapping images: what another camera at the same place would have seen.

Turning an image about its principal point is the same as turning the camera about its optical axis,
and resizing it about that point is another focal length. A view therefore comes with its own camera
and pose, and every 3D label stays true.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.config import option, validate
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector

#: Detectors see the edge of a turned image: no keypoints this close to it.
_EDGE_PX = 12


@dataclass(frozen=True)
class AugmentationConfig:
    """Ranges of the random changes, as published."""

    copies: int = option(2, 'Augmented views made of each mapping image.', minimum=0)
    share: float = option(
        0.5, 'Share of training images that are augmented views.', minimum=0.0, maximum=1.0
    )
    brightness: float = option(
        0.15, 'Largest change of brightness, share of the full range.', minimum=0.0, maximum=1.0
    )
    contrast: float = option(0.15, 'Largest change of contrast.', minimum=0.0, maximum=0.9)
    rotation_deg: float = option(30.0, 'Largest rotation.', unit='deg', minimum=0.0, maximum=180.0)
    resize: float = option(0.3, 'Largest change of size.', minimum=0.0, maximum=0.9)

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, eq=False)
class AugmentedView:
    """An augmented image with the camera and pose that it would have been taken with.

    Attributes:
        image: (H, W) or (H, W, 3) uint8, of the original's size.
        mask: (H, W) uint8, zero where the original does not reach and along that edge.
        camera: Camera of the view.
        map_from_camera: Pose of the turned camera.
        view_from_image: (2, 3) float64, pixels of the original to pixels of the view.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    camera: Camera
    map_from_camera: RigidTransform
    view_from_image: NDArray[np.float64]


def draw_view(
    image: NDArray[np.uint8],
    camera: Camera,
    map_from_camera: RigidTransform,
    config: AugmentationConfig,
    rng: np.random.Generator,
) -> AugmentedView:
    """Return a random view within the ranges of `config`."""
    angle = math.radians(config.rotation_deg) * rng.uniform(-1, 1)
    zoom = 1 + config.resize * rng.uniform(-1, 1)
    contrast = 1 + config.contrast * rng.uniform(-1, 1)
    brightness = config.brightness * rng.uniform(-1, 1)
    # First the brightness: the empty corners of a turned image are no part of its mean.
    image = change_brightness(image, contrast=contrast, brightness=brightness)
    return turned_view(image, camera, map_from_camera, angle=angle, zoom=zoom)


def turned_view(
    image: NDArray[np.uint8],
    camera: Camera,
    map_from_camera: RigidTransform,
    *,
    angle: float,
    zoom: float,
) -> AugmentedView:
    """Turn the image by `angle` (radians, x towards y) and resize it, about its principal point."""
    turn = rotation_from_vector([0.0, 0.0, angle])
    if _has_tilt(camera):
        # A tilted sensor does not look the same turned; its images are only resized.
        turn = np.eye(3)
    turned = turned_camera(camera, turn, zoom)
    matrix = turned.matrix @ turn @ np.linalg.inv(camera.matrix)
    view_from_image = np.ascontiguousarray(matrix[:2])
    size = (camera.width, camera.height)
    warped = cv2.warpAffine(image, view_from_image, size, flags=cv2.INTER_LINEAR)
    inside = cv2.warpAffine(
        np.full((camera.height, camera.width), 255, np.uint8),
        view_from_image,
        size,
        flags=cv2.INTER_NEAREST,
    )
    if (inside == 0).any():
        inside = cv2.erode(
            inside,
            np.ones((2 * _EDGE_PX + 1, 2 * _EDGE_PX + 1), np.uint8),
            borderType=cv2.BORDER_CONSTANT,
            borderValue=255,
        )
    camera_turned_from_camera = RigidTransform(turn, np.zeros(3))
    return AugmentedView(
        np.asarray(warped, np.uint8),
        np.asarray(inside, np.uint8),
        turned,
        map_from_camera @ camera_turned_from_camera.inverse(),
        view_from_image,
    )


def turned_camera(camera: Camera, turn: NDArray[np.float64], zoom: float) -> Camera:
    """Return the camera of an image that was turned (3, 3) and resized about its principal point.

    Radial distortion does not change; the coefficients that have a direction turn with the image.
    """
    distortion = list(camera.distortion)

    def rotate(x: int, y: int) -> None:
        distortion[x], distortion[y] = (turn[:2, :2] @ [distortion[x], distortion[y]]).tolist()

    if camera.model in ('plumb_bob', 'rational_polynomial') and distortion:
        rotate(3, 2)  # Tangential: p2 acts along x, p1 along y.
    if len(distortion) >= 12:
        rotate(8, 10)  # Thin prism: s1 r^2 and s2 r^4 along x, s3 r^2 and s4 r^4 along y.
        rotate(9, 11)
    return replace(camera, fx=camera.fx * zoom, fy=camera.fy * zoom, distortion=tuple(distortion))


def change_brightness(
    image: NDArray[np.uint8], *, contrast: float, brightness: float
) -> NDArray[np.uint8]:
    """Scale the image about its mean by `contrast` and add `brightness` times 255."""
    mean = float(image.mean())
    changed = (image.astype(np.float32) - mean) * contrast + mean + 255.0 * brightness
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def _has_tilt(camera: Camera) -> bool:
    return len(camera.distortion) == 14 and any(camera.distortion[12:])
