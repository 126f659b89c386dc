"""Images in a folder with one calibration file and, if known, poses.

A calibration file is what ROS's camera_calibration writes (`image_width`, `camera_matrix.data`,
`distortion_model`, `distortion_coefficients.data`) or the result of `Camera.to_dict`, as YAML or
JSON. A pose file has lines `stamp tx ty tz qx qy qz qw` (TUM; the images' names must then be
times) or `name tx ty tz qx qy qz qw`; both are map_from_camera.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2s_ros.data.depth_files import COLOUR_FOLDER, DepthFiles, depth_files
from d2s_ros.data.frames import Frame
from d2s_ros.data.image_codec import decode_compressed
from d2s_ros.data.image_times import times_from_names
from d2s_ros.data.safe_yaml import load_yaml
from d2s_ros.data.tum import associate, data_lines, parse_pose, read_text, read_tum
from d2s_ros.errors import CalibrationError, InputError, UnsupportedImageError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform

_logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')
CALIBRATION_NAMES = (
    'calibration.yaml',
    'camera.yaml',
    'calibration.json',
    'camera.json',
    'calibration.yml',
    'camera.yml',
)
#: Words in the names of files and folders of depth images.
_DEPTH_WORDS = frozenset(('depth', 'depths', 'depthmap', 'depthmaps', 'disparity', 'disp'))
#: A calibration has a few hundred bytes.
_MAX_CALIBRATION_BYTES = 65_536
#: An image takes the pose of a TUM file whose stamp is this near.
MAX_STAMP_DIFFERENCE_S = 0.02


def read_calibration(path: str | os.PathLike[str]) -> Camera:
    """Read a calibration file.

    Raises:
        InputError: if the file cannot be read.
        CalibrationError: if it is no valid calibration.
    """
    text = read_text(path)
    try:
        values = load_yaml(text, str(path), _MAX_CALIBRATION_BYTES)
    except InputError as error:
        raise CalibrationError(str(error)) from error
    if not isinstance(values, Mapping):
        raise CalibrationError(f'{path} holds no calibration (a mapping of names to values)')
    try:
        if 'camera_matrix' not in values:
            return Camera.from_dict(dict(values))
        distortion = values.get('distortion_coefficients') or {'data': []}
        model = values.get('distortion_model')
        return Camera.from_camera_info(
            _number(values, 'image_width'),
            _number(values, 'image_height'),
            '' if model is None else str(model),
            distortion['data'],
            values['camera_matrix']['data'],
        )
    except CalibrationError as error:
        raise CalibrationError(f'{path}: {error}') from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CalibrationError(f'{path}: no valid value: {error}') from error


def list_images(folder: Path) -> list[str]:
    """Return the names (relative, with /) of the images below a folder, sorted naturally."""
    names = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    ]
    return sorted((name for name in names if not _hidden(name)), key=natural_key)


def photographs(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the names without depth images, which RGB-D recorders put beside the photographs.

    Depth is a PNG of one channel and 16 bits, or has `depth` in its name or folder, beside other
    images. Where there are no others, all are kept: thermal cameras write such files too.
    """
    depth = {name for name in names if _named_depth(name) or _is_16_bit_grey(folder / name)}
    left = [name for name in names if name not in depth]
    if depth and left:
        _logger.warning(
            '%s: %d depth images (for example %s) are left out, %d photographs are used',
            folder,
            len(depth),
            min(depth),
            len(left),
        )
        return left
    if depth:
        _logger.warning(
            'all images in %s look like depth images (16-bit grey, for example %s); they are used '
            'as photographs, which only those of thermal or grey cameras are',
            folder,
            min(depth),
        )
    return list(names)


def _named_depth(name: str) -> bool:
    return bool(_DEPTH_WORDS & set(re.split(r'[^a-z]+', name.rpartition('.')[0].lower())))


def _is_16_bit_grey(path: Path) -> bool:
    if path.suffix.lower() != '.png':
        return False
    try:
        with path.open('rb') as stream:
            head = stream.read(26)
    except OSError:
        return False
    return head[12:16] == b'IHDR' and head[24:26] == b'\x10\x00'


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts frame2 before frame10."""
    parts = re.split(r'(\d+)', name)
    return [(1, int(part), part) if part.isdigit() else (0, 0, part) for part in parts]


def stamps_for_names(names: Sequence[str]) -> dict[str, int]:
    """Return a time (ns) per image: its name if all names are times, else its place in the list.

    Places count from one and become whole seconds, so that trajectories stay well formed.
    """
    stamps = times_from_names(names)
    if stamps is None:
        stamps = [(index + 1) * 10**9 for index in range(len(names))]
    return dict(zip(names, stamps, strict=True))


def read_poses_for_images(
    path: str | os.PathLike[str], names: Sequence[str]
) -> dict[str, RigidTransform]:
    """Read a pose file (TUM or by name) and return map_from_camera per image name.

    Raises:
        InputError: malformed lines, names that are no times with a TUM file, no match at all.
    """
    lines = data_lines(path)
    if not lines:
        raise InputError(f'{path} holds no poses')
    known = set(names)
    first = lines[0][1].split()
    poses: dict[str, RigidTransform] = {}
    if first[0] in known or not re.fullmatch(r'[-+]?[\d.]+([eE][-+]?\d+)?', first[0]):
        for number, line in lines:
            where = f'{path}:{number}'
            fields = line.rsplit(maxsplit=7)
            if len(fields) != 8:
                raise InputError(f'{where}: expected name tx ty tz qx qy qz qw')
            if fields[0] in poses:
                raise InputError(f'{where}: image {fields[0]} appears twice')
            poses[fields[0]] = parse_pose(fields[1:], where)
        poses = {name: pose for name, pose in poses.items() if name in known}
    else:
        trajectory = read_tum(path)
        stamps = times_from_names(names)
        if stamps is None:
            raise InputError(
                f'{path} gives poses by time, but the image names are not times; name the images '
                f'after their stamps or write lines "name tx ty tz qx qy qz qw"'
            )
        indices = associate(stamps, trajectory, MAX_STAMP_DIFFERENCE_S)
        poses = {
            name: trajectory.poses[index]
            for name, index in zip(names, indices, strict=True)
            if index is not None
        }
    if not poses:
        raise InputError(f'no pose of {path} belongs to any of the {len(names)} images')
    return poses


def select_names(
    names: Sequence[str], wanted: Iterable[str] | None, folder: str | os.PathLike[str]
) -> list[str]:
    """Return the wanted names in the order of `names`; all if `wanted` is None.

    Raises:
        InputError: saying which wanted names do not exist.
    """
    if wanted is None:
        return list(names)
    chosen = set(wanted)
    missing = sorted(chosen - set(names))
    if missing:
        shown = ', '.join(missing[:5]) + (', ...' if len(missing) > 5 else '')
        raise InputError(f'{len(missing)} images of the list are not in {folder}: {shown}')
    if not chosen:
        raise InputError(f'the image list selects no image of {folder}')
    return [name for name in names if name in chosen]


@dataclass(frozen=True, eq=False)
class ImageEntry:
    """What is known about one image file before it is read.

    Attributes:
        name: Unique name.
        path: Image file.
        stamp_ns: Time in nanoseconds.
        camera: Intrinsics, at any size of the image's aspect; None if unknown.
        map_from_camera: Pose; None if unknown.
        error: Why the camera is None; empty otherwise.
    """

    name: str
    path: Path
    stamp_ns: int
    camera: Camera | None = None
    map_from_camera: RigidTransform | None = None
    error: str = ''


class ImageFiles:
    """A FrameSource over image files, each read when its turn comes."""

    def __init__(self, entries: Sequence[ImageEntry]) -> None:
        """Take the entries in the order of time."""
        self.entries = tuple(sorted(entries, key=lambda entry: entry.stamp_ns))

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Frame]:
        for entry in self.entries:
            yield load_frame(entry)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all images, in order."""
        return tuple(entry.name for entry in self.entries)


class ImageFolderSource(ImageFiles):
    """Images of `folder` or `folder/images` with a calibration and, if given, poses.

    Attributes:
        camera_is_guess: Whether the calibration is a first guess that mapping must refine.
        depth: Registered depth images of a folder in the layout of TUM RGB-D; else None.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        calibration: Camera | str | os.PathLike[str] | None = None,
        poses: str | os.PathLike[str] | Mapping[str, RigidTransform] | None = None,
        names: Iterable[str] | None = None,
    ) -> None:
        """List the folder.

        Args:
            folder: Folder of .jpg and .png files, searched recursively.
            calibration: Camera or calibration file; by default one of CALIBRATION_NAMES in the
                folder.
            poses: Pose file, or map_from_camera by name.
            names: Only these images.

        Raises:
            InputError: no images, an unusable pose file, names that do not exist.
            CalibrationError: no calibration, or an invalid one.
        """
        root = Path(folder)
        self.camera_is_guess = False
        self.depth: DepthFiles | None = depth_files(root)
        images, all_names = images_of(root)
        camera = find_calibration(root) if calibration is None else calibration
        if camera is None:
            raise CalibrationError(
                f'{folder} has no calibration file; add {CALIBRATION_NAMES[0]} as written by '
                'camera_calibration, or give one with --calibration'
            )
        if not isinstance(camera, Camera):
            camera = read_calibration(camera)
        if poses is None or isinstance(poses, Mapping):
            known = dict(poses or {})
        else:
            known = read_poses_for_images(poses, all_names)
        stamps = stamps_for_names(all_names)
        super().__init__(
            [
                ImageEntry(name, images / name, stamps[name], camera, known.get(name))
                for name in select_names(all_names, names, images)
            ]
        )


def images_of(root: Path) -> tuple[Path, list[str]]:
    """Return the folder of the images of an input, and their names.

    Raises:
        InputError: there are none.
    """
    images = root / 'images' if (root / 'images').is_dir() else root
    if depth_files(root) is not None:
        images = root / COLOUR_FOLDER
    names = photographs(images, list_images(images))
    if not names:
        raise InputError(f'{root} holds no .jpg or .png images')
    return images, names


def find_calibration(folder: Path) -> Path | None:
    """Return the calibration file of an image folder, None if there is none."""
    for place in (folder, folder.parent if folder.name == 'images' else folder):
        for name in CALIBRATION_NAMES:
            if (place / name).is_file():
                return place / name
    return None


def fit_camera(camera: Camera, width: int, height: int) -> tuple[Camera | None, str]:
    """Return the camera at an image's size, or None and the reason why it does not fit."""
    if (camera.width, camera.height) == (width, height):
        return camera, ''
    try:
        return camera.resized(width, height), ''
    except CalibrationError as error:
        return None, str(error)


def load_frame(entry: ImageEntry) -> Frame:
    """Read one image; what goes wrong becomes the frame's error."""
    image, camera, error = None, entry.camera, entry.error
    try:
        image = decode_compressed(entry.path.read_bytes())
    except OSError as problem:
        error = f'cannot read {entry.path}: {problem.strerror}'
    except UnsupportedImageError as problem:
        error = f'{entry.path}: {problem}'
    if image is not None and camera is not None:
        camera, error = fit_camera(camera, image.shape[1], image.shape[0])
    return Frame(entry.name, entry.stamp_ns, image, camera, entry.map_from_camera, error)


def _number(values: Mapping[str, Any], key: str) -> int:
    value = values[key]
    if isinstance(value, bool) or int(value) != value:
        raise ValueError(f'{key} is {value!r}, no number of pixels')
    return int(value)


def _hidden(name: str) -> bool:
    return any(part.startswith('.') for part in name.split('/'))
