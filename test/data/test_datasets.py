"""Public data sets, made up in small; a point projected as published must project the same."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from data.bag_writing import picture
from scipy.spatial.transform import Rotation

from d2s_ros.data.datasets import (
    load_cambridge,
    load_colmap_with_queries,
    load_indoor6,
    load_seven_scenes,
)
from d2s_ros.errors import CalibrationError, InputError
from d2s_ros.geometry.transforms import RigidTransform

POINT = np.array([0.3, -0.2, 0.5])


def camera_from_map(seed: int) -> RigidTransform:
    """Return a pose that has POINT in view, three metres in front."""
    rng = np.random.default_rng(seed)
    rotation = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    in_camera = np.array([*rng.uniform(-0.5, 0.5, 2), 3.0])
    return RigidTransform(rotation, in_camera - rotation @ POINT)


def wxyz(transform: RigidTransform) -> str:
    x, y, z, w = transform.quaternion
    return f'{w} {x} {y} {z}'


def text(values) -> str:
    return ' '.join(f'{value:.12g}' for value in np.ravel(values))


def write_image(path, index, size=(64, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture(index, *size))


def pixel_in_colmap(seed: int, focal: float, centre) -> np.ndarray:
    """Project POINT as the publishers do, with the first pixel's centre at (0.5, 0.5)."""
    in_camera = camera_from_map(seed).apply([POINT])[0]
    return focal * in_camera[:2] / in_camera[2] + centre


def check(frame, seed: int, focal: float, centre, atol=1e-6):
    pixel = frame.camera.project(frame.map_from_camera.inverse().apply([POINT]))[0]
    np.testing.assert_allclose(pixel + 0.5, pixel_in_colmap(seed, focal, centre), atol=atol)
    assert frame.image is not None
    assert frame.error == ''


def write_cambridge(root):
    names = {
        'train': ['seq1/frame00001.png', 'seq1/frame00002.png'],
        'test': ['seq2/frame00001.png'],
    }
    seed = 0
    cameras = []
    for part, listed in names.items():
        lines = ['Visual Landmark Dataset V1', 'ImageFile, Camera Position [X Y Z W P Q R]', '']
        for name in listed:
            pose = camera_from_map(seed)
            centre = pose.inverse().translation
            lines.append(f'{name} {text(centre)} {wxyz(pose)}')
            cameras.append(f'{name[:-3]}jpg\t{100 + seed} {wxyz(pose)} {text(centre)} 0.1 0')
            write_image(root / name, seed)
            seed += 1
        (root / f'dataset_{part}.txt').write_text('\n'.join(lines) + '\n')
    nvm = ['NVM_V3 ', '', str(len(cameras)), *cameras, '', '0']
    (root / 'reconstruction.nvm').write_text('\n'.join(nvm) + '\n')


def test_cambridge(tmp_path):
    write_cambridge(tmp_path)
    dataset = load_cambridge(tmp_path)
    frames = [*dataset.mapping, *dataset.queries]
    assert [frame.name for frame in frames] == [
        'seq1/frame00001.png',
        'seq1/frame00002.png',
        'seq2/frame00001.png',
    ]
    assert len({frame.stamp_ns for frame in frames}) == 3
    for seed, frame in enumerate(frames):
        check(frame, seed, 100 + seed, [32, 24])


def test_cambridge_without_a_reconstruction(tmp_path):
    write_cambridge(tmp_path)
    (tmp_path / 'reconstruction.nvm').unlink()
    with pytest.raises(CalibrationError, match=r'frame00001\.png'):
        load_cambridge(tmp_path)
    check(next(iter(load_cambridge(tmp_path, focal_px=77).mapping)), 0, 77, [32, 24])


def test_cambridge_errors(tmp_path):
    write_cambridge(tmp_path)
    (tmp_path / 'dataset_test.txt').write_text('a\nb\n\nseq2/frame00001.png 1 2 3\n')
    with pytest.raises(InputError, match=r'dataset_test\.txt:4'):
        load_cambridge(tmp_path)
    (tmp_path / 'dataset_test.txt').write_text('a\nb\n\nseq2/frame00001.png 1 2 3 0 0 0 0\n')
    with pytest.raises(InputError, match=r'dataset_test\.txt:4.*quaternion'):
        load_cambridge(tmp_path)
    (tmp_path / 'dataset_test.txt').unlink()
    with pytest.raises(InputError, match='cannot read'):
        load_cambridge(tmp_path)


def write_seven_scenes(root):
    (root / 'TrainSplit.txt').write_text('sequence1\n')
    (root / 'TestSplit.txt').write_text('sequence2\nsequence10\n')
    lines: dict[str, list[str]] = {'train': [], 'test': []}
    for seed, name in enumerate(
        ['seq-01/frame-000000', 'seq-01/frame-000001', 'seq-02/frame-000000', 'seq-10/frame-000000']
    ):
        write_image(root / f'{name}.color.png', seed, (640, 480))
        matrix = camera_from_map(seed).inverse().matrix
        rows = '\n'.join('\t '.join(f'{value: .7e}' for value in row) for row in matrix)
        (root / f'{name}.pose.txt').write_text(rows + '\n')
        pose = camera_from_map(seed + 100)
        line = f'{name}.color.png {wxyz(pose)} {text(pose.translation)} {530 + seed}'
        lines['train' if seed < 2 else 'test'].append(line)
    for part, listed in lines.items():
        (root / f'{part}.txt').write_text('\n'.join(listed) + '\n')


def test_seven_scenes_with_original_poses(tmp_path):
    write_seven_scenes(tmp_path)
    dataset = load_seven_scenes(tmp_path)
    assert (len(dataset.mapping), len(dataset.queries)) == (2, 2)
    assert dataset.queries.names[1] == 'seq-10/frame-000000.color.png'
    for seed, frame in enumerate([*dataset.mapping, *dataset.queries]):
        check(frame, seed, 525, [320, 240], atol=1e-3)


def test_seven_scenes_with_pseudo_ground_truth(tmp_path):
    write_seven_scenes(tmp_path)
    files = (tmp_path / 'train.txt', tmp_path / 'test.txt')
    dataset = load_seven_scenes(tmp_path, files)
    for seed, frame in enumerate([*dataset.mapping, *dataset.queries]):
        check(frame, seed + 100, 530 + seed, [320, 240])
    # A frame that the reconstruction lacks stays, without a pose.
    files[1].write_text(files[1].read_text().splitlines()[0] + '\n')
    assert list(load_seven_scenes(tmp_path, files).queries)[1].map_from_camera is None


def test_seven_scenes_errors(tmp_path):
    write_seven_scenes(tmp_path)
    (tmp_path / 'seq-01' / 'frame-000001.pose.txt').write_text('1 0 0 0\n0 1 0 0\n')
    with pytest.raises(InputError, match=r'000001\.pose\.txt.*\(2, 4\)'):
        load_seven_scenes(tmp_path)
    (tmp_path / 'TrainSplit.txt').write_text('sequence3\n')
    with pytest.raises(InputError, match='seq-03'):
        load_seven_scenes(tmp_path)
    (tmp_path / 'TrainSplit.txt').write_text('first\n')
    with pytest.raises(InputError, match=r'TrainSplit\.txt:1'):
        load_seven_scenes(tmp_path)


def write_indoor6(root):
    names = [f'image-{index:06d}' for index in range(3)]
    for seed, name in enumerate(names):
        write_image(root / 'images' / f'{name}.color.jpg', seed)
        camera = '64 48 90 31.5 24.5 0.0 original_name.jpg\n'
        (root / 'images' / f'{name}.intrinsics.txt').write_text(camera)
        rows = '\n'.join(text(row) for row in camera_from_map(seed).matrix[:3])
        (root / 'images' / f'{name}.pose.txt').write_text(rows + '\n')
    (root / 'train.txt').write_text(''.join(f'{name}.color.jpg\n' for name in names[:2]))
    (root / 'test.txt').write_text(f'{names[2]}.color.jpg\n')
    return root / 'train.txt', root / 'test.txt'


def test_indoor6(tmp_path):
    lists = write_indoor6(tmp_path)
    dataset = load_indoor6(tmp_path, *lists)
    assert (len(dataset.mapping), len(dataset.queries)) == (2, 1)
    for seed, frame in enumerate([*dataset.mapping, *dataset.queries]):
        check(frame, seed, 90, [31.5, 24.5])


def test_indoor6_errors(tmp_path):
    lists = write_indoor6(tmp_path)
    (tmp_path / 'images' / 'image-000002.intrinsics.txt').write_text('64 48\n')
    with pytest.raises(CalibrationError, match=r'000002\.intrinsics'):
        load_indoor6(tmp_path, *lists)
    lists[1].write_text('image-000009.color.jpg\n')
    with pytest.raises(InputError, match='image-000009'):
        load_indoor6(tmp_path, *lists)
    (tmp_path / 'split.pkl').write_bytes(b'\x80\x04\x95\xff')
    with pytest.raises(InputError, match='not a text file'):
        load_indoor6(tmp_path, tmp_path / 'split.pkl', lists[1])


def write_colmap(root):
    (root / 'sparse').mkdir(parents=True)
    (root / 'sparse' / 'cameras.txt').write_text('1 SIMPLE_PINHOLE 64 48 90 32 24\n')
    lines = []
    for seed in range(2):
        pose = camera_from_map(seed)
        lines += [f'{seed + 1} {wxyz(pose)} {text(pose.translation)} 1 db/{seed}.jpg', '']
        write_image(root / 'images' / 'db' / f'{seed}.jpg', seed)
    (root / 'sparse' / 'images.txt').write_text('\n'.join(lines) + '\n')
    write_image(root / 'images' / 'query' / 'night.jpg', 2)
    (root / 'queries.txt').write_text('query/night.jpg SIMPLE_RADIAL 64 48 80 31 25 0.0\n')
    pose = camera_from_map(2)
    (root / 'poses.txt').write_text(f'query/night.jpg {wxyz(pose)} {text(pose.translation)}\n')


def test_colmap_with_a_query_list(tmp_path):
    write_colmap(tmp_path)
    dataset = load_colmap_with_queries(tmp_path, tmp_path / 'queries.txt', tmp_path / 'poses.txt')
    assert dataset.mapping.names == ('db/0.jpg', 'db/1.jpg')
    for seed, frame in enumerate(dataset.mapping):
        check(frame, seed, 90, [32, 24])
    (query,) = dataset.queries
    check(query, 2, 80, [31, 25])
    (unknown,) = load_colmap_with_queries(tmp_path, tmp_path / 'queries.txt').queries
    assert unknown.map_from_camera is None


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('query/night.jpg PINHOLE 64', r'queries\.txt:1.*expected'),
        ('query/night.jpg PINHOLE 64 x 1 1 1 1', r'queries\.txt:1.*not a camera'),
        ('query/night.jpg PINHOLE 64 48 1', r'queries\.txt:1.*needs 4'),
        ('db/0.jpg PINHOLE 64 48 1 1 1 1', 'mapping image'),
        ('# nothing', 'holds no cameras'),
    ],
)
def test_colmap_query_errors(tmp_path, line, message):
    write_colmap(tmp_path)
    (tmp_path / 'queries.txt').write_text(line + '\n')
    with pytest.raises(InputError, match=message):
        load_colmap_with_queries(tmp_path, tmp_path / 'queries.txt')
