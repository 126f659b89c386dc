"""cameras.bin and images.bin of COLMAP; every count is checked against the size of its file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from d2s_ros.errors import CalibrationError, InputError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform

#: Name and number of parameters by COLMAP's id of a camera model.
_MODELS = (
    ('SIMPLE_PINHOLE', 3),
    ('PINHOLE', 4),
    ('SIMPLE_RADIAL', 4),
    ('RADIAL', 5),
    ('OPENCV', 8),
    ('OPENCV_FISHEYE', 8),
    ('FULL_OPENCV', 12),
    ('FOV', 5),
    ('SIMPLE_RADIAL_FISHEYE', 4),
    ('RADIAL_FISHEYE', 5),
    ('THIN_PRISM_FISHEYE', 12),
    ('RAD_TAN_THIN_PRISM_FISHEYE', 16),
)
#: Bytes of a 2D point: x, y and the id of its 3D point.
_POINT_BYTES = 24
_MAX_FILE_BYTES = 2**31
_MAX_NAME_BYTES = 4096


def read_binary_cameras(path: Path) -> dict[int, Camera]:
    """Return the cameras of a cameras.bin by their id.

    Raises:
        InputError: the file is damaged or no cameras.bin.
        CalibrationError: a camera model that is not supported.
    """
    reader = _Reader(path)
    cameras: dict[int, Camera] = {}
    for _index in range(reader.count(24)):
        camera_id, model_id, width, height = reader.take('<IiQQ')
        if not 0 <= model_id < len(_MODELS):
            raise InputError(f'{path} has a camera of the unknown model {model_id}')
        name, num_params = _MODELS[model_id]
        params = reader.take(f'<{num_params}d')
        try:
            cameras[camera_id] = Camera.from_colmap(name, width, height, np.array(params))
        except CalibrationError as error:
            raise CalibrationError(f'{path}: camera {camera_id}: {error}') from error
    if not cameras:
        raise InputError(f'{path} holds no cameras')
    return cameras


def read_binary_images(
    path: Path, cameras: dict[int, Camera]
) -> list[tuple[str, int, RigidTransform]]:
    """Return name, camera id and camera_from_map of the images of an images.bin with poses.

    Raises:
        InputError: the file is damaged, no images.bin, or holds no image with a pose.
    """
    reader = _Reader(path)
    images: list[tuple[str, int, RigidTransform]] = []
    seen: set[str] = set()
    for _index in range(reader.count(73)):
        _image_id, w, x, y, z, tx, ty, tz, camera_id = reader.take('<I7dI')
        name = reader.text()
        reader.skip(_POINT_BYTES * reader.count(_POINT_BYTES))
        if name in seen:
            raise InputError(f'{path}: image {name} appears twice')
        seen.add(name)
        if not np.isfinite([w, x, y, z, tx, ty, tz]).all():
            # COLMAP writes what it did not register without numbers.
            continue
        if camera_id not in cameras:
            raise InputError(f'{path}: camera {camera_id} of {name} is not in cameras.bin')
        try:
            pose = RigidTransform.from_quaternion([x, y, z, w], [tx, ty, tz])
        except InputError as error:
            raise InputError(f'{path}: image {name} has no valid pose: {error}') from error
        images.append((name, camera_id, pose))
    if not images:
        raise InputError(f'{path} holds no images with poses')
    return images


class _Reader:
    """Takes values off the bytes of a file; the file's end is an error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise InputError(f'{path} is larger than {_MAX_FILE_BYTES / 1e9:.1f} GB')
        self._data = path.read_bytes()
        self._position = 0

    def take(self, form: str) -> tuple[Any, ...]:
        try:
            values = struct.unpack_from(form, self._data, self._position)
        except struct.error as error:
            raise self._damaged() from error
        self._position += struct.calcsize(form)
        return values

    def count(self, smallest: int) -> int:
        """Return a number of things that need at least `smallest` bytes each."""
        (number,) = self.take('<Q')
        if number * smallest > len(self._data) - self._position:
            raise self._damaged(f': {number} entries in a file of {len(self._data)} bytes')
        return int(number)

    def text(self) -> str:
        end = self._data.find(b'\0', self._position, self._position + _MAX_NAME_BYTES)
        if end < 0:
            raise self._damaged()
        text = self._data[self._position : end].decode('utf-8', 'replace')
        self._position = end + 1
        return text

    def skip(self, size: int) -> None:
        self._position += size

    def _damaged(self, why: str = '') -> InputError:
        return InputError(
            f'{self._path} is damaged, cut off or no readable binary COLMAP file{why}; export the '
            'model again, or as text'
        )
