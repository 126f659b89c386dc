"""A first guess of a camera's intrinsics, which a reconstruction refines."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from d2s_ros.data.image_size import claimed_size
from d2s_ros.errors import InputError, UnsupportedImageError
from d2s_ros.geometry.cameras import Camera

_logger = logging.getLogger(__name__)

#: Field of view over the longer side where nothing is known: between phones and webcams.
_PRIOR_FIELD_OF_VIEW_DEG = 65.0
#: EXIF: the block of the camera, and the focal length that a 35 mm film would need.
_EXIF_IFD, _FOCAL_LENGTH_35MM = 0x8769, 0xA405
#: Diagonal of that film, mm.
_FILM_DIAGONAL = 43.267
#: Images whose EXIF is read; zooms are told by the largest difference of their focal lengths.
_MAX_LOOKED_AT, _MAX_ZOOM = 40, 1.05


def guess_camera(width: int, height: int, focal_px: float | None = None) -> Camera:
    """Return a pinhole camera of an image size; by a usual field of view without `focal_px`."""
    if focal_px is None:
        tangent = np.tan(np.radians(_PRIOR_FIELD_OF_VIEW_DEG) / 2)
        focal_px = 0.5 * max(width, height) / float(tangent)
    return Camera(
        'pinhole', width, height, focal_px, focal_px, (width - 1) / 2.0, (height - 1) / 2.0
    )


def guess_camera_of_images(folder: Path, names: Sequence[str]) -> Camera:
    """Return a first guess for images of one camera, by EXIF where they have it.

    Raises:
        InputError: no image can be read, or EXIF tells of a zoom that moved.
    """
    size, focals = None, []
    rows = np.linspace(0, len(names) - 1, min(len(names), _MAX_LOOKED_AT)).round().astype(int)
    for row in rows.tolist():
        path = folder / names[row]
        size = size or _size(path)
        focal = _focal_length_35mm(path)
        if focal is not None:
            focals.append(focal)
    if size is None:
        raise InputError(f'no image of {folder} can be read')
    if not focals:
        return guess_camera(*size)
    if max(focals) > _MAX_ZOOM * min(focals):
        raise InputError(
            f'the images of {folder} have focal lengths from {min(focals):g} to {max(focals):g} mm '
            '(35 mm equivalent): use those of one lens and zoom, or give a calibration'
        )
    diagonal = float(np.hypot(*size))
    return guess_camera(*size, float(np.median(focals)) * diagonal / _FILM_DIAGONAL)


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return claimed_size(path.read_bytes())
    except (OSError, UnsupportedImageError):
        return None


def _focal_length_35mm(path: Path) -> float | None:
    """Return the focal length that EXIF tells, in mm of a 35 mm film; None if it tells none."""
    # Comes with matplotlib.
    from PIL import Image

    try:
        with Image.open(path) as image:
            value = image.getexif().get_ifd(_EXIF_IFD).get(_FOCAL_LENGTH_35MM)
        focal = 0.0 if value is None else float(value)
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        _logger.debug('%s: EXIF cannot be read: %s', path, error)
        return None
    return focal if 3.0 < focal < 2000.0 else None
