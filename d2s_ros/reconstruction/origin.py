"""Coordinates far from zero: a reconstruction is computed relative to a point near its images.

float32, which maps and networks keep points in, tells points of UTM coordinates apart by half a
metre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError
from d2s_ros.reconstruction.reconstruction import ImageInput, Reconstruction

#: Cameras nearer to zero than this need no origin: float32 is exact to 0.1 mm at 1 km.
_NEAR = 1000.0
#: A camera further than this from the middle of all, and than so many times their median
#: distance, has a wrong pose.
_FAR, _FAR_FACTOR = 20_000.0, 1000.0
#: Names in an error.
_MAX_NAMED = 5


def choose_origin(images: Sequence[ImageInput]) -> NDArray[np.float64]:
    """Return the point (3,) that coordinates of a map of these images are kept relative to.

    It is zero where the cameras are near to that, or have no poses; else whole numbers in their
    middle.

    Raises:
        InputError: some cameras are absurdly far from the others.
    """
    poses = [image.map_from_camera for image in images]
    positions = np.array([pose.translation for pose in poses if pose is not None])
    if len(positions) == 0:
        return np.zeros(3)
    middle = np.median(positions, axis=0)
    distances = np.linalg.norm(positions - middle, axis=1)
    limit = max(_FAR, _FAR_FACTOR * float(np.median(distances)))
    names = [image.name for image in images if image.map_from_camera is not None]
    far = [names[index] for index in np.flatnonzero(distances > limit)]
    if far:
        raise InputError(
            f'{len(far)} of {len(images)} mapping poses are more than {limit:.0f} m from the '
            f'others ({", ".join(far[:_MAX_NAMED])}{", ..." if len(far) > _MAX_NAMED else ""}): '
            'remove these images or correct their poses'
        )
    if float(np.abs(positions).max()) <= _NEAR:
        return np.zeros(3)
    return np.asarray(np.rint(middle), np.float64)


def relative_to(images: Sequence[ImageInput], origin: NDArray[np.float64]) -> list[ImageInput]:
    """Return images with poses relative to an origin (3,)."""
    if not origin.any():
        return list(images)
    return [
        image
        if image.map_from_camera is None
        else replace(image, map_from_camera=image.map_from_camera.moved(-origin))
        for image in images
    ]


def moved(reconstruction: Reconstruction, offset: NDArray[np.float64]) -> Reconstruction:
    """Return a reconstruction with all poses and points moved by an offset (3,)."""
    if not offset.any():
        return reconstruction
    return replace(
        reconstruction,
        images=[
            replace(image, map_from_camera=image.map_from_camera.moved(offset))
            for image in reconstruction.images
        ],
        points_in_map=reconstruction.points_in_map + offset,
    )
