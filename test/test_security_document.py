"""The table of docs/integrate/security.md: each input gives the message written beside it."""

from __future__ import annotations

import os
import re
import shutil
import struct

import cv2
import numpy as np
import pytest
from data import bag_writing as bags
from data.test_bag_storage import BOMBS, channel, file_of_zeros, mcap, message
from maps.test_map_contents import rewrite
from maps.test_scene_map import make_map
from safetensors.numpy import load_file

from d2s_ros.config import from_dict
from d2s_ros.data.bags import BagSource
from d2s_ros.data.colmap_model import ColmapSource, read_colmap_model
from d2s_ros.data.image_codec import decode_compressed, decode_image
from d2s_ros.data.image_folder import read_calibration
from d2s_ros.data.sources import open_source
from d2s_ros.data.tum import read_tum
from d2s_ros.errors import D2SError
from d2s_ros.map_building.pipeline import BuildConfig
from d2s_ros.maps.files import LOCALIZATION_FILE
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore

CALIBRATION = (
    'image_width: 640\nimage_height: 480\ndistortion_model: plumb_bob\n'
    'camera_matrix: {data: [500, 0, 320, 0, 500, 240, 0, 0, 1]}\n'
)


def bag(folder, **changes):
    return bags.write_bag(folder / 'bag', bags.camera_log(2), **changes)


def fifo(folder):
    os.mkfifo(folder / 'a.mcap')
    open_source(folder / 'a.mcap')


def ros1(folder):
    (folder / 'a.bag').write_bytes(b'#ROSBAG V2.0\n' + bytes(100))
    open_source(folder / 'a.bag')


def protobuf(folder):
    body = channel('/image', 'foxglove.CompressedImage', 'protobuf') + message(b'x')
    open_source(mcap(folder / 'a.mcap', body))


def no_end(folder):
    body = channel('/image', 'sensor_msgs/msg/Image') + message(b'x')
    open_source(mcap(folder / 'a.mcap', body, end=False))


def bomb(name):
    return lambda folder: open_source(BOMBS[name](folder))


def chunk_lies(folder):
    open_source(BOMBS['zstd chunk that lies about its size'](folder))


def wal(folder):
    path = bags.storage_file(bag(folder))
    shutil.copy(path, path.with_name(path.name + '-wal'))
    open_source(path)


def metadata(change):
    def make(folder):
        path = bag(folder) / 'metadata.yaml'
        path.write_text(change(path.read_text()))
        open_source(path.parent)

    return make


def calibration(text):
    def make(folder):
        (folder / 'calibration.yaml').write_text(text)
        read_calibration(folder / 'calibration.yaml')

    return make


def rectified(folder):
    p = np.eye(3, 4).reshape(-1)
    log = [
        ('/c/camera_info', 'info', 1, bags.info_message(1, p=p)),
        ('/c/image_rect', 'image', 1, bags.image_message(1, bags.picture(0))),
    ]
    BagSource(bags.write_bag(folder / 'bag', log))


def colmap_counts(folder):
    (folder / 'cameras.bin').write_bytes(struct.pack('<Q', 10**10))
    (folder / 'images.bin').write_bytes(struct.pack('<Q', 0))
    read_colmap_model(folder)


def colmap_names(folder):
    (folder / 'cameras.txt').write_text('1 PINHOLE 64 48 50 51 32 24\n')
    (folder / 'images.txt').write_text('1 1 0 0 0 0 0 0 1 a.png\n\n')
    cv2.imwrite(str(folder / 'a.jpg'), bags.picture(0))
    ColmapSource(folder)


def trajectory(folder):
    (folder / 'poses.txt').write_text('1e999999999 0 0 0 0 0 0 1\n')
    read_tum(folder / 'poses.txt')


def text_fifo(folder):
    os.mkfifo(folder / 'poses.txt')
    read_tum(folder / 'poses.txt')


def image_of(width, height):
    sides = struct.pack('>HH', height, width)
    return b'\xff\xd8\xff\xc0\x00\x11\x08' + sides + b'\x03' * 9 + b'\xff\xd9'


def cut_off(folder):
    data = cv2.imencode('.jpg', bags.picture(0))[1].tobytes()
    decode_compressed(data[: len(data) // 2], 'jpeg')


def map_with(spoil):
    def make(folder):
        root = folder / 'map'
        MapStore(root).write(make_map())
        spoil(root)
        SceneMap.open(root)

    return make


def pipe_for_current(root):
    (root / 'current').unlink()
    os.mkfifo(root / 'current')


def tensors_with(change):
    def spoil(root):
        tensors = load_file(root / 'versions' / '0001' / LOCALIZATION_FILE)
        rewrite(root, LOCALIZATION_FILE, {**tensors, **change(tensors)})

    return spoil


def changed_byte(root):
    path = root / 'versions' / '0001' / LOCALIZATION_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


INPUTS = {
    'image: claims a gigapixel': lambda folder: decode_compressed(image_of(32000, 32000)),
    'image: cut off': cut_off,
    'image: no picture': lambda folder: decode_compressed(b'GIF89a' + bytes(100)),
    'image: rows too short': lambda folder: decode_image('bgr8', 48, 64, 64, 0, bytes(100)),
    'map: current': map_with(lambda root: (root / 'current').write_text('../../etc')),
    'map: current is a pipe': map_with(pipe_for_current),
    'map: fewer points than keys': map_with(tensors_with(lambda t: {'points': t['points'][:20]})),
    'map: points that are no numbers': map_with(
        tensors_with(lambda t: {'points': np.full_like(t['points'], np.nan)})
    ),
    'map: a byte changed': map_with(changed_byte),
    'log: not a file': fifo,
    'log: of ROS 1': ros1,
    'log: other encoding': protobuf,
    'log: no end': no_end,
    'log: chunk too large': bomb('zstd chunk'),
    'log: chunk lies': chunk_lies,
    'log: file unpacks': lambda folder: open_source(file_of_zeros(folder)),
    'log: chunks in chunks': bomb('chunks in chunks'),
    'log: records': bomb('many small records'),
    'log: record length': bomb('a record of 2^62 bytes'),
    'log: view': bomb('view without end'),
    'log: made-up columns': bomb('generated column'),
    'log: text for a time': bomb('text for a time'),
    'log: write-ahead log': wal,
    'metadata.yaml: nested': metadata(lambda text: '[' * 2000),
    'metadata.yaml: size': metadata(lambda text: text + '#' * 5_000_000),
    'metadata.yaml: kinds': metadata(lambda text: text.replace('relative_file_paths', 'other')),
    'calibration: aliases': calibration('a: &a0 [1]\nb: *a0\n' + CALIBRATION),
    'calibration: size': calibration(CALIBRATION + '#' * 70_000),
    'calibration: long number': calibration(CALIBRATION + 'x: ' + '9' * 5000),
    'calibration: sides': calibration(CALIBRATION.replace('640', '9' * 30)),
    'rectified topic': rectified,
    'COLMAP: counts': colmap_counts,
    'COLMAP: names': colmap_names,
    'trajectory: time': trajectory,
    'text file: not a file': text_fifo,
    'parameter: number': lambda folder: from_dict(BuildConfig, {'max_update_mb': 10**400}),
}


def table(repo_root):
    """Return file and message of each row by the input."""
    text = (repo_root / 'docs' / 'integrate' / 'security.md').read_text()
    rows = re.findall(r'^\| (.+?) \| `(.+?)` \| .*? ?\| `(.+)` \|$', text, re.MULTILINE)
    return {name: (file, said) for name, file, said in rows}


def test_every_row_has_an_input(repo_root):
    rows = table(repo_root)
    assert set(rows) == set(INPUTS)
    for file, _said in rows.values():
        assert (repo_root / 'd2s_ros' / file).is_file()


@pytest.mark.parametrize('name', INPUTS)
def test_the_message_is_the_documented_one(repo_root, tmp_path, name):
    _file, said = table(repo_root)[name]
    pattern = '.*'.join(map(re.escape, said.split('...')))
    with pytest.raises(D2SError) as error:
        INPUTS[name](tmp_path)
    assert re.fullmatch(pattern, str(error.value)), str(error.value)
    assert '\n' not in str(error.value)
