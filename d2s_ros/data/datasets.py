"""Public relocalization data sets in the layout in which they are published.

Each loader returns the mapping frames and the query frames. Times are positions in the list of all
images of the scene, in whole seconds, so that they are unique over both parts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2s_ros.data.colmap_model import find_colmap_model, read_cameras, read_colmap_model
from d2s_ros.data.image_codec import decode_compressed
from d2s_ros.data.image_folder import ImageEntry, ImageFiles, list_images, natural_key
from d2s_ros.data.tum import data_lines, read_text
from d2s_ros.errors import CalibrationError, InputError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform

#: 7-Scenes: nominal intrinsics of the colour camera, 640x480 px.
_SEVEN_SCENES_SIZE = (640, 480)
_SEVEN_SCENES_FOCAL_PX = 525.0


@dataclass(frozen=True, eq=False)
class Dataset:
    """The mapping and the query frames of one scene; queries may lack poses."""

    mapping: ImageFiles
    queries: ImageFiles


def load_cambridge(folder: str | os.PathLike[str], focal_px: float | None = None) -> Dataset:
    """Load a scene of Cambridge Landmarks.

    `dataset_train.txt` and `dataset_test.txt` have three header lines and then
    `name X Y Z W P Q R`: the camera's centre and the rotation camera_from_map, w first. Focal
    lengths come from `reconstruction.nvm` (VisualSFM), where names may end in .jpg instead of
    .png; the principal point is the middle of the image and distortion is left out.

    Args:
        folder: Scene folder.
        focal_px: Focal length of images that the .nvm file lacks, or if there is none.

    Raises:
        InputError: missing files, malformed lines.
        CalibrationError: a focal length that is not known.
    """
    root = Path(folder)
    focals = _read_nvm_focals(root / 'reconstruction.nvm')
    parts = [_read_cambridge(root / f'dataset_{part}.txt') for part in ('train', 'test')]
    stamps = _list_times(name for part in parts for name in part)
    sizes: dict[str, tuple[int, int]] = {}

    def entry(name: str, pose: RigidTransform) -> ImageEntry:
        focal = focals.get(_without_suffix(name), focal_px)
        if focal is None:
            raise CalibrationError(
                f'{root}: no focal length of {name}; add reconstruction.nvm or give one'
            )
        # Images of one sequence have one size; read it once.
        sequence = str(Path(name).parent)
        if sequence not in sizes:
            sizes[sequence] = _image_size(root / name)
        width, height = sizes[sequence]
        camera = _centred_camera(width, height, focal)
        return ImageEntry(name, root / name, stamps[name], camera, pose)

    mapping, queries = (
        ImageFiles([entry(name, pose) for name, pose in part.items()]) for part in parts
    )
    return Dataset(mapping, queries)


def load_seven_scenes(
    folder: str | os.PathLike[str],
    pseudo_ground_truth: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
) -> Dataset:
    """Load a scene of 7-Scenes with its original or its pseudo ground truth.

    The original poses (`seq-01/frame-000000.pose.txt`, 4x4 map_from_camera) are those of the depth
    camera and go with a focal length of 525 px. The pseudo ground truth (published as
    `<scene>_train.txt` and `<scene>_test.txt`) has lines `name qw qx qy qz tx ty tz focal`,
    camera_from_map.

    Args:
        folder: Scene folder with TrainSplit.txt and TestSplit.txt.
        pseudo_ground_truth: Its files for training and test; None for the original poses.

    Raises:
        InputError: missing files, malformed lines.
    """
    root = Path(folder)
    splits = []
    for part in ('Train', 'Test'):
        names: list[str] = []
        for number, line in data_lines(root / f'{part}Split.txt'):
            match = re.fullmatch(r'\D*(\d+)', line)
            if match is None:
                raise InputError(f'{root / f"{part}Split.txt"}:{number}: expected sequenceN')
            sequence = root / f'seq-{int(match.group(1)):02d}'
            found = sorted(sequence.glob('frame-*.color.png'))
            if not found:
                raise InputError(f'{sequence} holds no frame-XXXXXX.color.png')
            names += [path.relative_to(root).as_posix() for path in found]
        splits.append(names)
    stamps = _list_times(name for names in splits for name in names)
    known: list[Mapping[str, tuple[RigidTransform, float]] | None] = [None, None]
    if pseudo_ground_truth is not None:
        known = [_read_pseudo_ground_truth(path) for path in pseudo_ground_truth]
    sources = []
    for names, poses in zip(splits, known, strict=True):
        entries = []
        for name in names:
            focal = _SEVEN_SCENES_FOCAL_PX
            pose: RigidTransform | None
            if poses is None:
                pose = _read_matrix_pose(root / name.replace('.color.png', '.pose.txt'))
            else:
                # Frames that the reconstruction lacks have no pose.
                pose, focal = poses.get(name, (None, focal))
            camera = _centred_camera(*_SEVEN_SCENES_SIZE, focal)
            entries.append(ImageEntry(name, root / name, stamps[name], camera, pose))
        sources.append(ImageFiles(entries))
    return Dataset(*sources)


def load_indoor6(
    folder: str | os.PathLike[str],
    mapping_list: str | os.PathLike[str],
    query_list: str | os.PathLike[str],
) -> Dataset:
    """Load a scene of Indoor6.

    `images/image-000000.color.jpg` comes with `.intrinsics.txt` (`width height focal cx cy k ...`
    in COLMAP's pixels) and `.pose.txt` (3x4 camera_from_map). The published split is a pickle,
    which can run code when it is read and is therefore not read here; write its lists `train`
    and `test` as text files, one image name per line, in an environment that you trust.

    Args:
        folder: Scene folder.
        mapping_list, query_list: Text files of image names.

    Raises:
        InputError: missing files, malformed lines.
    """
    images = Path(folder) / 'images'
    lists = [[line for _number, line in data_lines(path)] for path in (mapping_list, query_list)]
    stamps = _list_times(name for names in lists for name in names)
    sources = []
    for names in lists:
        entries = []
        for name in names:
            stem = name.removesuffix('.color.jpg')
            if stem == name or not (images / name).is_file():
                raise InputError(f'{images} holds no {name} (expected names end in .color.jpg)')
            camera = _read_indoor6_camera(images / f'{stem}.intrinsics.txt')
            pose = _read_matrix_pose(images / f'{stem}.pose.txt').inverse()
            entries.append(ImageEntry(name, images / name, stamps[name], camera, pose))
        sources.append(ImageFiles(entries))
    return Dataset(*sources)


def load_colmap_with_queries(
    folder: str | os.PathLike[str],
    query_list: str | os.PathLike[str],
    query_poses: str | os.PathLike[str] | None = None,
    query_images: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Load a COLMAP model as map and a list of queries with intrinsics.

    Args:
        folder: Folder of the model (here, in `sparse` or `sparse/0`) and of `images/`.
        query_list: Lines `name MODEL width height params...` in COLMAP's pixels.
        query_poses: Lines `name qw qx qy qz tx ty tz`, camera_from_map, for evaluation.
        query_images: Folder of the queries; by default that of the mapping images.

    Raises:
        InputError: missing files, malformed lines, a query that is part of the map.
    """
    root = Path(folder)
    place = find_colmap_model(root)
    if place is None:
        raise InputError(f'{folder} holds no COLMAP model (cameras.txt and images.txt)')
    model = read_colmap_model(place)
    images = root / 'images' if (root / 'images').is_dir() else root
    folder_of_queries = images if query_images is None else Path(query_images)
    cameras = read_cameras(Path(query_list), 'NAME')
    poses = {} if query_poses is None else _read_query_poses(query_poses)
    on_disk = set(list_images(images))
    registered = [image for image in model.images if image.name in on_disk]
    both = sorted({image.name for image in registered} & set(cameras))
    if both and folder_of_queries == images:
        raise InputError(f'{query_list}: {both[0]} is a mapping image, not a query')
    names = sorted((image.name for image in registered), key=natural_key)
    place_of = {name: index for index, name in enumerate(names)}
    mapping = [
        ImageEntry(
            image.name,
            images / image.name,
            (place_of[image.name] + 1) * 10**9,
            model.cameras[image.camera_id],
            image.map_from_camera,
        )
        for image in registered
    ]
    queries = [
        ImageEntry(
            name,
            folder_of_queries / name,
            (len(names) + index + 1) * 10**9,
            camera,
            poses.get(name),
        )
        for index, (name, camera) in enumerate(cameras.items())
    ]
    return Dataset(ImageFiles(mapping), ImageFiles(queries))


def _read_cambridge(path: Path) -> dict[str, RigidTransform]:
    poses: dict[str, RigidTransform] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if number <= 3 or not line.strip():
            continue
        name, values = _numbers(line, 7, f'{path}:{number}')
        # The published quaternion is camera_from_map, the position is the camera's.
        rotation = _rotation(values[3:], f'{path}:{number}').inverse().rotation
        poses[name] = RigidTransform(rotation, np.array(values[:3]))
    if not poses:
        raise InputError(f'{path} names no images')
    return poses


def _read_nvm_focals(path: Path) -> dict[str, float]:
    """Return the focal length per image name without its ending; empty without a file."""
    if not path.is_file():
        return {}
    lines = [(number, line) for number, line in data_lines(path) if line]
    if len(lines) < 2 or not lines[0][1].startswith('NVM_V3') or not lines[1][1].isdigit():
        raise InputError(f'{path} is not an NVM file (NVM_V3 and the number of images)')
    count = int(lines[1][1])
    focals: dict[str, float] = {}
    for number, line in lines[2 : 2 + count]:
        fields = line.split()
        try:
            focals[_without_suffix(fields[0])] = float(fields[1])
        except (IndexError, ValueError) as error:
            raise InputError(f'{path}:{number}: expected name focal ...') from error
    return focals


def _read_pseudo_ground_truth(
    path: str | os.PathLike[str],
) -> dict[str, tuple[RigidTransform, float]]:
    result: dict[str, tuple[RigidTransform, float]] = {}
    for number, line in data_lines(path):
        name, values = _numbers(line, 8, f'{path}:{number}')
        rotation = _rotation(values[:4], f'{path}:{number}').rotation
        camera_from_map = RigidTransform(rotation, np.array(values[4:7]))
        result[name] = (camera_from_map.inverse(), values[7])
    if not result:
        raise InputError(f'{path} holds no poses')
    return result


def _read_query_poses(path: str | os.PathLike[str]) -> dict[str, RigidTransform]:
    result: dict[str, RigidTransform] = {}
    for number, line in data_lines(path):
        name, values = _numbers(line, 7, f'{path}:{number}')
        rotation = _rotation(values[:4], f'{path}:{number}').rotation
        result[name] = RigidTransform(rotation, np.array(values[4:])).inverse()
    return result


def _read_indoor6_camera(path: Path) -> Camera:
    lines = data_lines(path)
    fields = lines[0][1].split() if lines else []
    try:
        width, height = int(fields[0]), int(fields[1])
        focal, cx, cy = (float(field) for field in fields[2:5])
        distortion = float(fields[5]) if len(fields) > 5 else 0.0
    except (IndexError, ValueError) as error:
        raise CalibrationError(f'{path}: expected width height focal cx cy k ...') from error
    if distortion:
        return Camera.from_colmap('SIMPLE_RADIAL', width, height, [focal, cx, cy, distortion])
    return Camera.from_colmap('SIMPLE_PINHOLE', width, height, [focal, cx, cy])


def _read_matrix_pose(path: Path) -> RigidTransform:
    """Read a 3x4 or 4x4 matrix."""
    try:
        rows = [[float(field) for field in line.split()] for _number, line in data_lines(path)]
        matrix = np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise InputError(f'{path}: not a matrix of numbers') from error
    if matrix.shape not in ((3, 4), (4, 4)):
        raise InputError(f'{path}: expected a 3x4 or 4x4 matrix, found {matrix.shape}')
    try:
        # Published poses are rounded; take the nearest rotation.
        left, _singular, right = np.linalg.svd(matrix[:3, :3])
        if not np.allclose(left @ right, matrix[:3, :3], atol=1e-2):
            raise InputError('the rotation is not orthonormal')
        return RigidTransform(left @ right, matrix[:3, 3])
    except (InputError, np.linalg.LinAlgError) as error:
        raise InputError(f'{path}: {error}') from error


def _numbers(line: str, count: int, where: str) -> tuple[str, list[float]]:
    fields = line.split()
    try:
        if len(fields) != count + 1:
            raise ValueError
        return fields[0], [float(field) for field in fields[1:]]
    except ValueError as error:
        raise InputError(f'{where}: expected a name and {count} numbers') from error


def _rotation(wxyz: list[float], where: str) -> RigidTransform:
    try:
        return RigidTransform.from_quaternion([*wxyz[1:], wxyz[0]], [0, 0, 0])
    except InputError as error:
        raise InputError(f'{where}: {error}') from error


def _centred_camera(width: int, height: int, focal: float) -> Camera:
    """Return a pinhole camera whose axis meets the middle of the image."""
    return Camera.from_colmap('SIMPLE_PINHOLE', width, height, [focal, width / 2, height / 2])


def _list_times(names: Iterable[str]) -> dict[str, int]:
    ordered = sorted(set(names), key=natural_key)
    return {name: (index + 1) * 10**9 for index, name in enumerate(ordered)}


def _without_suffix(name: str) -> str:
    return name.rpartition('.')[0].lstrip('./')


def _image_size(path: Path) -> tuple[int, int]:
    try:
        image = decode_compressed(path.read_bytes())
    except OSError as error:
        raise InputError(f'cannot read {path}: {error.strerror}') from error
    return image.shape[1], image.shape[0]
