"""What is fuzzed: a name, bytes to begin with, and what reads the bytes."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tools.fuzz import own_files
from tools.fuzz.mutations import mutate_bytes, mutate_text

#: What reading one input may take.
MAX_CPU_SECONDS = 10.0
MAX_KILOBYTES = 2**20


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        name: Of the kind, and of its folder in the corpus.
        seeds: Makes whole inputs.
        mutate: Changes one.
        read: Reads one; may raise D2SError and nothing else. Is given a folder of its own.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[bytes, Path], None]


def make_input(target: Target, seed: int) -> bytes:
    """Return the input that a seed stands for."""
    rng = random.Random(f'{target.name} {seed}')
    return target.mutate(rng.choice(target.seeds()), rng)


def _messages() -> list[tuple[str, str, int, Any]]:
    from rosbags.typesys import Stores, get_typestore

    types = get_typestore(Stores.ROS2_JAZZY).types
    start = 1_700_000_000 * 10**9
    picture = np.random.default_rng(1).integers(0, 255, (24, 32, 3)).astype(np.uint8)
    jpeg = cv2.imencode('.jpg', picture)[1].reshape(-1)
    found: list[tuple[str, str, int, Any]] = []

    def make(name: str, *arguments: Any) -> Any:
        return types[name](*arguments)

    for index in range(4):
        stamp = start + index * 10**8
        time = make('builtin_interfaces/msg/Time', stamp // 10**9, stamp % 10**9)
        header = make('std_msgs/msg/Header', time, 'camera')
        k = np.array([30.0, 0, 16, 0, 30, 12, 0, 0, 1])
        roi = make('sensor_msgs/msg/RegionOfInterest', 0, 0, 0, 0, False)
        p = np.array([30.0, 0, 16, 0, 0, 30, 12, 0, 0, 0, 1, 0])
        info = make(
            'sensor_msgs/msg/CameraInfo', header, 24, 32, 'plumb_bob', np.zeros(5), k,
            np.eye(3).reshape(-1), p, 0, 0, roi,
        )  # fmt: skip
        image = make('sensor_msgs/msg/CompressedImage', header, 'jpeg', jpeg)
        point = make('geometry_msgs/msg/Vector3', 0.0, 0.0, 0.0)
        turn = make('geometry_msgs/msg/Quaternion', 0.0, 0.0, 0.0, 1.0)
        edge = make(
            'geometry_msgs/msg/TransformStamped',
            make('std_msgs/msg/Header', time, 'map'),
            'camera',
            make('geometry_msgs/msg/Transform', point, turn),
        )
        found += [
            ('/camera/camera_info', 'sensor_msgs/msg/CameraInfo', stamp, info),
            ('/camera/image/compressed', 'sensor_msgs/msg/CompressedImage', stamp, image),
            ('/tf', 'tf2_msgs/msg/TFMessage', stamp, make('tf2_msgs/msg/TFMessage', [edge])),
        ]
    return found


@functools.cache
def _bags() -> dict[str, tuple[bytes, bytes]]:
    """Return storage file and metadata.yaml by kind of log."""
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.rosbag2.enums import CompressionFormat, CompressionMode
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for plugin in (StoragePlugin.SQLITE3, StoragePlugin.MCAP):
            for mode in ('none', 'file', 'message', 'storage'):
                if (plugin, mode) == (StoragePlugin.SQLITE3, 'storage'):
                    continue
                name = f'{plugin.name.lower()}_{mode}'
                path = Path(folder) / name
                writer = Writer(path, version=9, storage_plugin=plugin)
                if mode != 'none':
                    writer.set_compression(CompressionMode[mode.upper()], CompressionFormat.ZSTD)
                with writer:
                    connections: dict[str, Any] = {}
                    for topic, kind, stamp, message in _messages():
                        if topic not in connections:
                            connections[topic] = writer.add_connection(topic, kind, typestore=store)
                        data = store.serialize_cdr(message, kind)
                        writer.write(connections[topic], stamp, data)
                (file,) = (item for item in path.iterdir() if item.name != 'metadata.yaml')
                result[name] = (file.read_bytes(), (path / 'metadata.yaml').read_bytes())
    return result


def _read_log(path: Path) -> None:
    from d2s_ros.data.sources import open_source
    from d2s_ros.errors import D2SError

    for partial in (False, True):
        try:
            for frame in open_source(path, partial=partial):
                assert frame.image is not None or frame.error
        except D2SError:
            continue


def _read_bag(data: bytes, folder: Path) -> None:
    if data[:4] == b'\x28\xb5\x2f\xfd':
        names = ['a.db3.zstd', 'a.mcap.zstd']
    else:
        names = ['a.mcap'] if data[:5] == b'\x89MCAP' else ['a.db3']
    for name in names:
        (folder / name).write_bytes(data)
        _read_log(folder / name)
        (folder / name).unlink()


def _read_metadata(data: bytes, folder: Path) -> None:
    (folder / 'sqlite3_none.db3').write_bytes(_bags()['sqlite3_none'][0])
    (folder / 'metadata.yaml').write_bytes(data)
    _read_log(folder)


def _calibrations() -> list[bytes]:
    return [
        b'image_width: 640\nimage_height: 480\ncamera_name: c\n'
        b'camera_matrix:\n  rows: 3\n  cols: 3\n'
        b'  data: [500, 0, 320, 0, 500, 240, 0, 0, 1]\ndistortion_model: plumb_bob\n'
        b'distortion_coefficients:\n  rows: 1\n  cols: 5\n  data: [0.1, 0, 0, 0, 0]\n',
        b'{"model": "pinhole", "width": 64, "height": 48, "fx": 50, "fy": 50, "cx": 32, "cy": 24}',
    ]


def _read_calibration(data: bytes, folder: Path) -> None:
    from d2s_ros.data.image_folder import read_calibration

    (folder / 'calibration.yaml').write_bytes(data)
    camera = read_calibration(folder / 'calibration.yaml')
    camera.normalize(np.array([[1.0, 2.0], [camera.width, camera.height]]))


_CAMERAS_TXT = b'1 PINHOLE 64 48 50 51 32 24.5\n2 OPENCV 64 48 50 51 32 24 0.1 0 0 0\n'
_IMAGES_TXT = b'1 1 0 0 0 0 0 0 1 a.jpg\n1.0 2.0 -1\n2 1 0 0 0 1 2 3 2 b c.jpg\n\n'


@functools.cache
def _binary_model() -> tuple[bytes, bytes]:
    import struct

    cameras = struct.pack('<Q', 2)
    cameras += struct.pack('<IiQQ4d', 1, 1, 64, 48, 50, 51, 32, 24.5)
    cameras += struct.pack('<IiQQ8d', 2, 4, 64, 48, 50, 51, 32, 24, 0.1, 0, 0, 0)
    images = struct.pack('<Q', 2)
    for index, name in ((1, b'a.jpg'), (2, b'b c.jpg')):
        images += struct.pack('<I7dI', index, 1, 0, 0, 0, 1, 2, 3, index) + name + b'\0'
        images += struct.pack('<Q2dQ', 1, 3.0, 4.0, 2**64 - 1)
    return cameras, images


def _read_colmap(name: str, data: bytes, folder: Path) -> None:
    from d2s_ros.data.colmap_model import read_colmap_model

    suffix = Path(name).suffix
    others = (
        {'cameras.txt': _CAMERAS_TXT, 'images.txt': _IMAGES_TXT}
        if suffix == '.txt'
        else dict(zip(('cameras.bin', 'images.bin'), _binary_model(), strict=True))
    )
    for file, content in {**others, name: data}.items():
        (folder / file).write_bytes(content)
    read_colmap_model(folder)


_TUM = (
    b'# stamp tx ty tz qx qy qz qw\n1700000000.1 0 0 0 0 0 0 1\n1700000000.25 1 2 3 0 0 0.7 0.7\n'
)


def _read_tum(data: bytes, folder: Path) -> None:
    from d2s_ros.data.image_folder import read_poses_for_images
    from d2s_ros.data.sources import read_image_list
    from d2s_ros.data.tum import read_tum
    from d2s_ros.errors import D2SError

    path = folder / 'poses.txt'
    path.write_bytes(data)
    names = ['1700000000.1.jpg', '1700000000.25.png', 'a.jpg']
    for read in (read_tum, read_image_list, lambda file: read_poses_for_images(file, names)):
        try:
            read(path)
        except D2SError:
            continue


@functools.cache
def _images() -> tuple[bytes, ...]:
    picture = np.random.default_rng(2).integers(0, 255, (40, 56, 3)).astype(np.uint8)
    grey16 = picture[..., 0].astype(np.uint16) * 200
    encoded = [
        cv2.imencode(suffix, picture)[1].tobytes()
        for suffix in ('.jpg', '.png', '.webp', '.bmp', '.tiff')
    ]
    progressive = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
    encoded.append(cv2.imencode('.jpg', picture, progressive)[1].tobytes())
    encoded.append(cv2.imencode('.png', grey16)[1].tobytes())
    return tuple(encoded)


_FORMATS = ('jpeg', '', 'bayer_rggb8; jpeg compressed bayer_rggb8', 'mono16; png compressed ')


def _read_image(data: bytes, folder: Path) -> None:
    from d2s_ros.data.image_codec import decode_compressed

    _check_picture(decode_compressed(data, _FORMATS[len(data) % len(_FORMATS)]))


def _check_picture(image: np.ndarray) -> None:
    assert image.dtype == np.uint8
    assert image.ndim in (2, 3)


def _raw_images() -> list[bytes]:
    """Return the fields of raw images as JSON, with the number of bytes instead of the bytes."""
    from d2s_ros.data.image_codec import SUPPORTED_ENCODINGS

    return [
        json.dumps([encoding, 12, 16, 16 * 8, 0, 18 * 16 * 8]).encode()
        for encoding in SUPPORTED_ENCODINGS
    ]


def _read_raw_image(data: bytes, folder: Path) -> None:
    from d2s_ros.data.image_codec import decode_image

    try:
        encoding, height, width, step, big, count = json.loads(data)
    except (ValueError, TypeError, RecursionError):
        return
    numbers = (height, width, step, big, count)
    # What a message can hold.
    if not isinstance(encoding, str) or not all(
        isinstance(number, int) and 0 <= number < 2**32 for number in numbers
    ):
        return
    pixels = bytes(min(count, 2**20))
    _check_picture(decode_image(encoding, height, width, step, big % 2, pixels))


def _map_target(name: str) -> Target:
    file = name if name == 'current' else f'versions/0001/{name}'
    mutate = mutate_bytes if name.endswith('.safetensors') else mutate_text
    return Target(
        f'map-{Path(name).stem}',
        lambda: [own_files.map_files()[file]],
        mutate,
        functools.partial(own_files.read_map, file),
    )


def _colmap_target(name: str) -> Target:
    texts = {'cameras.txt': _CAMERAS_TXT, 'images.txt': _IMAGES_TXT}

    def seeds() -> Sequence[bytes]:
        if name in texts:
            return [texts[name]]
        return [_binary_model()[name == 'images.bin']]

    return Target(
        f'colmap-{name.replace(".", "-")}',
        seeds,
        mutate_text if name in texts else mutate_bytes,
        functools.partial(_read_colmap, name),
    )


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target('bag', lambda: [file for file, _ in _bags().values()], mutate_bytes, _read_bag),
        Target('metadata', lambda: [_bags()['sqlite3_none'][1]], mutate_text, _read_metadata),
        Target('calibration', _calibrations, mutate_text, _read_calibration),
        *map(_colmap_target, ('cameras.txt', 'images.txt', 'cameras.bin', 'images.bin')),
        Target('tum', lambda: [_TUM], mutate_text, _read_tum),
        Target('image', lambda: _images(), mutate_bytes, _read_image),
        Target('raw-image', _raw_images, mutate_text, _read_raw_image),
        Target(
            'stage-log', lambda: [own_files.stage_log()], mutate_bytes, own_files.read_stage_log
        ),
        Target('ledger', lambda: [own_files.LEDGER], mutate_text, own_files.read_ledger),
        *map(
            _map_target,
            ('current', 'manifest.json', 'localization.safetensors', 'update.safetensors'),
        ),
        Target('parameters', own_files.parameters, mutate_text, own_files.read_parameters),
    )
}
