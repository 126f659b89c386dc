"""COLMAP models: cameras.txt and images.txt (or their binary twins) and the images beside them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from d2s_ros.data.colmap_binary import read_binary_cameras, read_binary_images
from d2s_ros.data.image_folder import (
    ImageEntry,
    ImageFiles,
    list_images,
    natural_key,
    photographs,
    read_poses_for_images,
    select_names,
    stamps_for_names,
)
from d2s_ros.data.tum import data_lines, read_text
from d2s_ros.errors import CalibrationError, InputError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ColmapImage:
    """A registered image.

    Attributes:
        name: As in the model, relative to the image folder.
        camera_id: Key into the model's cameras.
        map_from_camera: Pose of the optical frame (the inverse of what COLMAP stores).
    """

    name: str
    camera_id: int
    map_from_camera: RigidTransform


@dataclass(frozen=True, eq=False)
class ColmapModel:
    """Cameras (pixel origin already ours) and registered images of a model."""

    cameras: dict[int, Camera]
    images: tuple[ColmapImage, ...]


def find_colmap_model(folder: str | os.PathLike[str]) -> Path | None:
    """Return the folder of the model in `folder`, `folder/sparse` or `folder/sparse/0`, if any."""
    root = Path(folder)
    for place in (root, root / 'sparse', root / 'sparse' / '0'):
        for suffix in ('.txt', '.bin'):
            if (place / f'cameras{suffix}').is_file() and (place / f'images{suffix}').is_file():
                return place
    return None


def read_colmap_model(folder: str | os.PathLike[str]) -> ColmapModel:
    """Read a model, text preferred over binary.

    Raises:
        InputError: missing or malformed files, with file and, of text, line.
        CalibrationError: a camera model that is not supported.
    """
    place = Path(folder)
    if (place / 'cameras.txt').is_file() and (place / 'images.txt').is_file():
        path = place / 'cameras.txt'
        try:
            cameras = {int(key): camera for key, camera in read_cameras(path, 'CAMERA_ID').items()}
        except ValueError as error:
            raise InputError(f'{path}: a CAMERA_ID is not a number: {error}') from error
        return ColmapModel(cameras, _read_images(place / 'images.txt', cameras))
    if (place / 'cameras.bin').is_file() and (place / 'images.bin').is_file():
        binary = read_binary_cameras(place / 'cameras.bin')
        images = [
            ColmapImage(name, camera_id, camera_from_map.inverse())
            for name, camera_id, camera_from_map in read_binary_images(place / 'images.bin', binary)
        ]
        return ColmapModel(binary, tuple(sorted(images, key=lambda item: natural_key(item.name))))
    raise InputError(f'{folder} holds no COLMAP model (cameras.txt and images.txt)')


class ColmapSource(ImageFiles):
    """`images/` with a COLMAP model in the folder, in `sparse` or in `sparse/0`.

    Images on disk that the model does not know have no pose, and its camera only if it has
    exactly one.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        names: Iterable[str] | None = None,
        poses: str | os.PathLike[str] | Mapping[str, RigidTransform] | None = None,
    ) -> None:
        """Read the model and list the images.

        Args:
            folder: Folder of model and images.
            names: Only these images.
            poses: Pose file or poses by name to use instead of the model's.

        Raises:
            InputError: no model, malformed files, no images, names that do not exist.
        """
        root = Path(folder)
        place = find_colmap_model(root)
        if place is None:
            raise InputError(f'{folder} holds no COLMAP model (cameras.txt and images.txt)')
        model = read_colmap_model(place)
        images = root / 'images' if (root / 'images').is_dir() else root
        registered = {image.name: image for image in model.images}
        on_disk = list_images(images)
        known = [name for name in on_disk if name in registered]
        others = [name for name in on_disk if name not in registered]
        on_disk = sorted([*known, *photographs(images, others)], key=natural_key)
        if not on_disk:
            raise InputError(f'{images} holds no .jpg or .png images')
        if not known:
            raise InputError(
                f'none of the {len(registered)} images of the model in {place} has a file in '
                f'{images}: the model has {min(registered)}, the folder {on_disk[0]}; give the '
                'files the names of the model (with folder and suffix)'
            )
        absent = sorted(set(registered) - set(on_disk))
        if absent:
            _logger.warning(
                '%d images of %s have no file in %s, for example %s',
                len(absent),
                place,
                images,
                absent[0],
            )
        # Times count over model and disk together, so that a missing file moves no other.
        stamps = stamps_for_names(sorted({*on_disk, *registered}, key=natural_key))
        override: Mapping[str, RigidTransform] | None = None
        if poses is not None:
            override = (
                poses if isinstance(poses, Mapping) else read_poses_for_images(poses, on_disk)
            )
        only_camera = next(iter(model.cameras.values())) if len(model.cameras) == 1 else None
        entries = []
        for name in select_names(on_disk, names, images):
            image = registered.get(name)
            camera = model.cameras[image.camera_id] if image else only_camera
            pose = image.map_from_camera if image else None
            if override is not None:
                pose = override.get(name)
            error = '' if camera else 'not in the COLMAP model, which has several cameras'
            entries.append(ImageEntry(name, images / name, stamps[name], camera, pose, error))
        super().__init__(entries)
        self.model = model


def read_cameras(path: Path, key: str) -> dict[str, Camera]:
    """Return the cameras of a file with lines `KEY MODEL WIDTH HEIGHT PARAMS[]` by their key.

    Args:
        path: The file.
        key: What the first field is, for messages.

    Raises:
        InputError: a line is not a camera, a key comes twice, or there is no camera.
        CalibrationError: a model is unknown or its parameters are wrong.
    """
    cameras: dict[str, Camera] = {}
    for number, line in data_lines(path):
        where = f'{path}:{number}'
        fields = line.split()
        if len(fields) < 5:
            raise InputError(f'{where}: expected {key} MODEL WIDTH HEIGHT PARAMS[]')
        try:
            width, height = int(fields[2]), int(fields[3])
            params = [float(field) for field in fields[4:]]
        except ValueError as error:
            raise InputError(f'{where}: not a camera: {error}') from error
        if fields[0] in cameras:
            raise InputError(f'{where}: {key} {fields[0]} appears twice')
        try:
            cameras[fields[0]] = Camera.from_colmap(fields[1], width, height, params)
        except CalibrationError as error:
            raise CalibrationError(f'{where}: {error}') from error
    if not cameras:
        raise InputError(f'{path} holds no cameras')
    return cameras


def _read_images(path: Path, cameras: Mapping[int, Camera]) -> tuple[ColmapImage, ...]:
    images: list[ColmapImage] = []
    seen: set[str] = set()
    points_expected = False
    for number, raw in enumerate(read_text(path).splitlines(), start=1):
        line = raw.strip()
        if line.startswith('#'):
            continue
        if points_expected:
            # Each image has a second line with its 2D points, which may be empty; some tools
            # leave it out, so a line that is no list of numbers starts the next image.
            points_expected = False
            if not line or _is_points_line(line):
                continue
        if not line:
            continue
        image = _parse_image(line, f'{path}:{number}')
        if image.camera_id not in cameras:
            raise InputError(f'{path}:{number}: camera {image.camera_id} is not in cameras.txt')
        if image.name in seen:
            raise InputError(f'{path}:{number}: image {image.name} appears twice')
        seen.add(image.name)
        images.append(image)
        points_expected = True
    if not images:
        raise InputError(f'{path} holds no images')
    return tuple(images)


def _is_points_line(line: str) -> bool:
    fields = line.split()
    if len(fields) % 3:
        return False
    try:
        for field in fields:
            float(field)
    except ValueError:
        return False
    return True


def _parse_image(line: str, where: str) -> ColmapImage:
    fields = line.split(maxsplit=9)
    if len(fields) != 10:
        raise InputError(f'{where}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME')
    try:
        int(fields[0])
        w, x, y, z, *translation = (float(field) for field in fields[1:8])
        camera_from_map = RigidTransform.from_quaternion([x, y, z, w], translation)
        return ColmapImage(fields[9], int(fields[8]), camera_from_map.inverse())
    except (ValueError, InputError) as error:
        raise InputError(f'{where}: not an image: {error}') from error
