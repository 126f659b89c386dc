"""Image folders, COLMAP models and the choice between the kinds of input."""

from __future__ import annotations

import json
import os
import struct
import time

import cv2
import numpy as np
import pycolmap
import pytest
import yaml
from data.bag_writing import CAMERA, camera_log, picture, storage_file, write_bag
from scipy.spatial.transform import Rotation

from d2s_ros.data.bags import BagSource
from d2s_ros.data.colmap_model import ColmapSource, read_colmap_model
from d2s_ros.data.image_folder import ImageFolderSource, read_calibration
from d2s_ros.data.image_times import times_from_names
from d2s_ros.data.sources import LogOptions, open_source
from d2s_ros.errors import BagError, CalibrationError, InputError, UsageError
from d2s_ros.geometry.transforms import RigidTransform

NAMES = ('1.jpg', '2.jpg', '10.jpg')


def transform(seed: int) -> RigidTransform:
    rng = np.random.default_rng(seed)
    return RigidTransform(Rotation.from_quat(rng.normal(size=4)).as_matrix(), rng.uniform(-3, 3, 3))


def write_images(folder, names=NAMES, size=(64, 48)):
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), picture(index, *size))


def ros_calibration() -> dict:
    return {
        'image_width': CAMERA.width,
        'image_height': CAMERA.height,
        'camera_name': 'narrow_stereo',
        'camera_matrix': {'rows': 3, 'cols': 3, 'data': CAMERA.matrix.reshape(-1).tolist()},
        'distortion_model': 'plumb_bob',
        'distortion_coefficients': {'rows': 1, 'cols': 5, 'data': list(CAMERA.distortion)},
    }


def write_model(folder, names=NAMES, points_line='1.0 2.0 -1'):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'cameras.txt').write_text('# comment\n3 PINHOLE 64 48 50 51 32 24.5\n')
    lines = ['# two lines per image']
    for index, name in enumerate(names):
        camera_from_map = transform(index).inverse()
        x, y, z, w = camera_from_map.quaternion
        t = ' '.join(map(str, camera_from_map.translation))
        lines += [f'{index + 1} {w} {x} {y} {z} {t} 3 {name}']
        if points_line is not None:
            lines += [points_line if index else '']
    (folder / 'images.txt').write_text('\n'.join(lines) + '\n')


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path)
    (tmp_path / 'calibration.yaml').write_text(yaml.safe_dump(ros_calibration()))
    return tmp_path


def test_image_folder(folder):
    source = ImageFolderSource(folder)
    assert len(source) == 3
    for _repeat in range(2):
        frames = list(source)
        assert [frame.name for frame in frames] == list(NAMES)
        assert [frame.stamp_ns for frame in frames] == [10**9, 2 * 10**9, 10 * 10**9]
        assert all(frame.camera == CAMERA for frame in frames)
        np.testing.assert_array_equal(frames[1].image, cv2.imread(str(folder / '2.jpg')))


@pytest.mark.parametrize('name', ['calibration.json', 'camera.yaml'])
def test_calibration_of_our_own(tmp_path, name):
    write_images(tmp_path / 'images')
    dump = json.dumps if name.endswith('json') else yaml.safe_dump
    (tmp_path / name).write_text(dump(CAMERA.to_dict()))
    assert next(iter(ImageFolderSource(tmp_path))).camera == CAMERA


def test_calibration_errors(tmp_path):
    write_images(tmp_path)
    with pytest.raises(CalibrationError, match='no calibration file'):
        ImageFolderSource(tmp_path)
    path = tmp_path / 'calibration.yaml'
    for text, message in (
        ('[1, 2', 'neither YAML nor JSON'),
        ('hello', 'no calibration'),
        ('model: pinhole\n', 'width'),
        ('camera_matrix: {data: [1]}\nimage_width: 5\nimage_height: 5\n', '9 numbers'),
        ('camera_matrix: {rows: 3}\nimage_width: 5\nimage_height: 5\n', 'data'),
        (yaml.safe_dump({**ros_calibration(), 'distortion_model': 'odd'}), 'odd'),
    ):
        path.write_text(text)
        with pytest.raises(CalibrationError, match=message):
            read_calibration(path)


def test_broken_and_unfitting_images_are_errors_of_their_frames(folder):
    (folder / '2.jpg').write_bytes((folder / '2.jpg').read_bytes()[:-100])
    write_images(folder, ('10.jpg',), size=(64, 64))
    good, broken, square = ImageFolderSource(folder)
    assert good.error == ''
    assert broken.image is None
    assert 'truncated' in broken.error
    assert square.camera is None
    assert 'aspect' in square.error


def test_images_at_another_scale_get_the_scaled_camera(folder):
    write_images(folder, size=(32, 24))
    assert next(iter(ImageFolderSource(folder))).camera == CAMERA.resized(32, 24)


def test_poses_by_time_and_by_name(folder):
    def tum(index):
        return ' '.join(map(str, transform(index).to_tum()))

    by_time = folder / 'tum.txt'
    by_time.write_text(f'1.001 {tum(1)}\n2.5 {tum(2)}\n10 {tum(3)}\n')
    poses = [frame.map_from_camera for frame in ImageFolderSource(folder, poses=by_time)]
    np.testing.assert_allclose(poses[0].matrix, transform(1).matrix)
    assert poses[1] is None
    np.testing.assert_allclose(poses[2].matrix, transform(3).matrix)
    by_name = folder / 'names.txt'
    by_name.write_text(f'# name ...\n10.jpg {tum(4)}\n')
    poses = [frame.map_from_camera for frame in ImageFolderSource(folder, poses=by_name)]
    assert poses[:2] == [None, None]
    np.testing.assert_allclose(poses[2].matrix, transform(4).matrix)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('5 0 0 0 0 0 0 1\n', 'no pose .* belongs'),
        ('other.jpg 0 0 0 0 0 0 1\n', 'no pose .* belongs'),
        ('1.jpg 0 0 0 0 0 0 1\n1.jpg 0 0 0 0 0 0 1\n', ':2.*twice'),
        ('1.jpg 0 0 0 0 0 1\n', ':1.*expected name'),
        ('1.jpg 0 0 0 0 0 0 0\n', ':1.*not a pose'),
        ('', 'no poses'),
    ],
)
def test_unusable_pose_files(folder, text, message):
    (folder / 'poses.txt').write_text(text)
    with pytest.raises(InputError, match=message):
        ImageFolderSource(folder, poses=folder / 'poses.txt')


def test_poses_are_never_associated_by_order(tmp_path):
    write_images(tmp_path, ('a.jpg', 'b.jpg'))
    (tmp_path / 'tum.txt').write_text('1 0 0 0 0 0 0 1\n2 0 0 0 0 0 0 1\n')
    with pytest.raises(InputError, match='names are not times'):
        ImageFolderSource(tmp_path, CAMERA, tmp_path / 'tum.txt')


def test_times_from_names():
    assert times_from_names(['1700000000.5.png', 'sub/2.jpg']) == [
        17 * 10**17 + 5 * 10**8,
        2 * 10**9,
    ]
    assert times_from_names(['1403636579763555584.png']) == [1403636579763555584]
    assert times_from_names(['1403636579763.png']) == [1403636579763 * 10**6]
    assert times_from_names(['a.png']) is None
    assert times_from_names(['1.png', '1.jpg']) is None


def test_a_name_that_is_not_there_is_said(folder):
    assert ImageFolderSource(folder, names=['10.jpg', '1.jpg']).names == ('1.jpg', '10.jpg')
    with pytest.raises(InputError, match=r'2 images .* 3\.jpg, 4\.jpg'):
        ImageFolderSource(folder, names=['1.jpg', '4.jpg', '3.jpg'])
    with pytest.raises(InputError, match='selects no image'):
        ImageFolderSource(folder, names=[])


@pytest.mark.parametrize('place', ['.', 'sparse', 'sparse/0'])
@pytest.mark.parametrize('points_line', ['1.0 2.0 -1 3.5 4.5 17', None])
def test_colmap_folder(tmp_path, place, points_line):
    write_images(tmp_path / 'images')
    write_model(tmp_path / place, points_line=points_line)
    frames = list(ColmapSource(tmp_path))
    assert [frame.name for frame in frames] == list(NAMES)
    for index, frame in enumerate(frames):
        # COLMAP's principal point lies half a pixel further right and down than ours.
        assert (frame.camera.cx, frame.camera.cy) == (31.5, 24.0)
        np.testing.assert_allclose(frame.map_from_camera.matrix, transform(index).matrix)


def test_colmap_images_on_disk_and_in_the_model_may_differ(tmp_path, caplog):
    write_images(tmp_path / 'images', ('1.jpg', '3.jpg'))
    write_model(tmp_path, ('1.jpg', '2.jpg'))
    known, unknown = ColmapSource(tmp_path)
    assert '1 images' in caplog.text
    assert known.map_from_camera is not None
    assert unknown.name == '3.jpg'
    assert unknown.map_from_camera is None
    assert unknown.camera == known.camera
    assert ColmapSource(tmp_path, names=['3.jpg']).names == ('3.jpg',)
    with pytest.raises(InputError, match=r'2\.jpg'):
        ColmapSource(tmp_path, names=['2.jpg'])


def test_stamps_do_not_depend_on_the_selection(tmp_path):
    write_images(tmp_path / 'images', ('a.jpg', 'b.jpg', 'c.jpg'))
    write_model(tmp_path, ('a.jpg', 'b.jpg', 'c.jpg'))
    (frame,) = ColmapSource(tmp_path, names=['c.jpg'])
    assert frame.stamp_ns == 3 * 10**9


@pytest.mark.parametrize(
    ('file', 'text', 'message'),
    [
        ('cameras.txt', '# none\n', 'no cameras'),
        ('cameras.txt', '1 PINHOLE 64 48\n', r'cameras\.txt:1.*expected'),
        ('cameras.txt', '1 PINHOLE x 48 1 1 1 1\n', r'cameras\.txt:1.*not a camera'),
        ('cameras.txt', '\n1 FOV 64 48 1 1 1 1 1\n', r'cameras\.txt:2.*FOV'),
        ('cameras.txt', '1 PINHOLE 64 48 1 1 1 1\n' * 2, r'cameras\.txt:2.*twice'),
        ('images.txt', '', 'no images'),
        ('images.txt', '1 1 0 0 0 0 0 0 3\n', r'images\.txt:1.*expected'),
        ('images.txt', '1 1 0 0 0 0 0 0 7 1.jpg\n', r'images\.txt:1.*camera 7'),
        ('images.txt', '1 1 0 0 0 0 z 0 3 1.jpg\n', r'images\.txt:1.*not an image'),
        ('images.txt', '1 0 0 0 0 0 0 0 3 1.jpg\n', r'images\.txt:1.*not an image'),
        ('images.txt', '1 1 0 0 0 0 0 0 3 1.jpg\n\n' * 2, r'images\.txt:3.*twice'),
    ],
)
def test_malformed_models(tmp_path, file, text, message):
    write_model(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=message):
        read_colmap_model(tmp_path)


def test_text_and_binary_models_written_by_pycolmap(tmp_path):
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig = 2, 1
    options.num_frames_per_rig, options.num_points3D = 3, 20
    truth = pycolmap.synthesize_dataset(options)
    for kind in ('text', 'binary'):
        folder = tmp_path / kind
        folder.mkdir()
        getattr(truth, f'write_{kind}')(str(folder))
        model = read_colmap_model(folder)
        assert len(model.images) == len(truth.images) == 6
        by_name = {image.name: image for image in model.images}
        for image in truth.images.values():
            found = by_name[image.name]
            expected = np.linalg.inv(np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]))
            np.testing.assert_allclose(found.map_from_camera.matrix, expected, atol=1e-9)
            # A point of the model lands where COLMAP sees it, half a pixel apart.
            point = next(iter(truth.points3D.values())).xyz
            seen = image.project_point(point)
            if seen is not None:
                camera = model.cameras[found.camera_id]
                pixel = camera.project(found.map_from_camera.inverse().apply([point]))[0]
                np.testing.assert_allclose(pixel + 0.5, seen, atol=1e-6)
    (folder / 'images.bin').write_bytes((folder / 'images.bin').read_bytes()[:50])
    with pytest.raises(InputError, match='no readable binary'):
        read_colmap_model(folder)


def test_open_source_tells_the_kinds_apart(folder, tmp_path):
    assert isinstance(open_source(folder), ImageFolderSource)
    bag = write_bag(tmp_path / 'bag', camera_log(2))
    assert isinstance(open_source(bag), BagSource)
    assert isinstance(open_source(storage_file(bag)), BagSource)
    write_images(tmp_path / 'colmap' / 'images')
    write_model(tmp_path / 'colmap')
    assert isinstance(open_source(tmp_path / 'colmap'), ColmapSource)
    with pytest.raises(UsageError, match='no topics'):
        open_source(folder, options=LogOptions(image_topic='/image'))
    (tmp_path / 'list.txt').write_text('# names\n10.jpg\n\n1.jpg\n')
    listed = open_source(folder, image_list=tmp_path / 'list.txt')
    assert [frame.name for frame in listed] == ['1.jpg', '10.jpg']
    with pytest.raises(UsageError, match='image list'):
        open_source(bag, image_list=tmp_path / 'list.txt')
    calibrated = open_source(bag, options=LogOptions(calibration=str(folder / 'calibration.yaml')))
    assert next(iter(calibrated)).camera == CAMERA


def test_open_source_refuses_the_rest(tmp_path):
    with pytest.raises(InputError, match='does not exist'):
        open_source(tmp_path / 'nothing')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match='no log'):
        open_source(tmp_path / 'empty')
    (tmp_path / 'a.txt').write_text('text\n')
    with pytest.raises(InputError, match='neither'):
        open_source(tmp_path / 'a.txt')
    bag = write_bag(tmp_path / 'bag', camera_log(2))
    (bag / 'metadata.yaml').unlink()
    with pytest.raises(BagError, match=r'metadata\.yaml'):
        open_source(bag)
    with pytest.raises(InputError, match='cannot read'):
        open_source(tmp_path / 'empty', image_list=tmp_path / 'nothing')
    (tmp_path / 'list').write_text('\n')
    with pytest.raises(InputError, match='names no images'):
        open_source(tmp_path / 'empty', image_list=tmp_path / 'list')


def test_fox_folder(shared_data):
    source = open_source(shared_data / 'fox')
    assert len(source) == 50
    frame = next(iter(source))
    assert frame.name == '0001.jpg'
    assert frame.image.shape == (1024, 576, 3)
    assert frame.camera.cx == pytest.approx(295.7642667 - 0.5)


@pytest.mark.parametrize(
    ('colour', 'depth'),
    [
        ('rgb/{:d}.jpg', 'depth/{:d}.png'),
        ('left/{:d}.png', 'disparity/{:d}.png'),
        ('color/{:d}.png', 'aligned/{:d}.png'),
        ('frame-{:d}.color.png', 'frame-{:d}.depth.png'),
    ],
)
def test_depth_images_beside_photographs_are_left_out(tmp_path, colour, depth, caplog):
    (tmp_path / 'calibration.json').write_text(json.dumps(CAMERA.to_dict()))
    for index in range(1, 4):
        photograph = tmp_path / colour.format(index)
        photograph.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(photograph), picture(index))
        measured = tmp_path / depth.format(index)
        measured.parent.mkdir(exist_ok=True)
        kind = np.uint8 if 'disparity' in depth else np.uint16
        cv2.imwrite(str(measured), np.full((48, 64), 150, kind))
    assert ImageFolderSource(tmp_path).names == tuple(colour.format(i) for i in (1, 2, 3))
    assert '3 depth images' in caplog.text


def test_16_bit_images_alone_are_photographs_but_told(tmp_path, caplog):
    (tmp_path / 'calibration.json').write_text(json.dumps(CAMERA.to_dict()))
    cv2.imwrite(str(tmp_path / '1.png'), np.full((48, 64), 1500, np.uint16))
    assert ImageFolderSource(tmp_path).names == ('1.png',)
    assert '16-bit' in caplog.text


@pytest.mark.parametrize('rename', [lambda n: n.replace('.jpg', '.png'), lambda n: f'left/{n}'])
def test_a_model_whose_names_have_no_file_is_an_error(tmp_path, rename):
    write_images(tmp_path / 'images')
    write_model(tmp_path, tuple(rename(name) for name in NAMES))
    with pytest.raises(InputError, match=r'none of the 3 images of the model.*names of the model'):
        ColmapSource(tmp_path)


def test_images_outside_a_model_of_several_cameras_are_one_reason(tmp_path):
    write_images(tmp_path / 'images', (*NAMES, '50.jpg', '51.jpg'))
    write_model(tmp_path)
    cameras = tmp_path / 'cameras.txt'
    cameras.write_text(cameras.read_text() + '9 PINHOLE 64 48 50 50 32 24\n')
    errors = {frame.error for frame in ColmapSource(tmp_path) if frame.camera is None}
    assert errors == {'not in the COLMAP model, which has several cameras'}


GOOD = yaml.safe_dump(ros_calibration())
BOMB = 'a: &a0 [1,1]\n' + ''.join(f'a{k}: &a{k} [*a{k - 1},*a{k - 1}]\n' for k in range(1, 60))


@pytest.mark.parametrize(
    'text',
    [
        BOMB + GOOD,
        BOMB + GOOD.replace('plumb_bob', '*a59'),
        BOMB + 'model: *a59\nwidth: 1\nheight: 1\nfx: 1\nfy: 1\ncx: 1\ncy: 1\n',
        '[' * 50_000,
        '{a: ' * 50_000,
        GOOD + 'x: 2020-13-45\n',
        GOOD + 'x: ' + '9' * 5000,
        GOOD + '? [1, 2]\n: 3\n',
        GOOD + '? {a: 1}\n: 3\n',
        GOOD.replace('image_width: 64', 'image_width: .inf'),
        GOOD.replace('image_width: 64', 'image_width: .nan'),
        GOOD.replace('image_width: 64', 'image_width: true'),
        GOOD.replace('image_width: 64', 'image_width: 64.5'),
        GOOD.replace('image_width: 64', f'image_width: {10**300}'),
        GOOD.replace('image_width: 64', 'image_width: [64]'),
        '# ' + 'x' * 100_000 + '\n' + GOOD,
        'model: pinhole\nwidth: .inf\nheight: 1\nfx: 1\nfy: 1\ncx: 1\ncy: 1\n',
        '\x00',
    ],
)
def test_calibration_files_with_odd_contents_are_refused_in_time(tmp_path, text):
    path = tmp_path / 'calibration.yaml'
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(CalibrationError):
        read_calibration(path)
    assert time.process_time() - started < 2


def test_a_fifo_is_no_calibration(tmp_path):
    os.mkfifo(tmp_path / 'calibration.yaml')
    with pytest.raises(InputError, match='not a regular file'):
        read_calibration(tmp_path / 'calibration.yaml')


@pytest.mark.parametrize('file', ['cameras.bin', 'images.bin'])
@pytest.mark.parametrize('count', [10**10, 2**63, 7])
def test_binary_models_that_lie_about_their_counts(tmp_path, file, count):
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig = 1, 1
    options.num_frames_per_rig, options.num_points3D = 3, 20
    pycolmap.synthesize_dataset(options).write_binary(str(tmp_path))
    data = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(struct.pack('<Q', count) + data[8:])
    started = time.process_time()
    with pytest.raises(InputError, match=file):
        read_colmap_model(tmp_path)
    assert time.process_time() - started < 1


def test_a_path_below_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv('HOME', str(folder.parent))
    assert len(open_source(f'~/{folder.name}')) == 3
