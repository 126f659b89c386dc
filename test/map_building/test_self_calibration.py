"""Maps of images and videos whose camera is not calibrated."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from d2s_ros.cli.main import main
from d2s_ros.data.calibration import write_camera_info
from d2s_ros.data.image_folder import ImageFolderSource, read_calibration
from d2s_ros.data.sources import open_source
from d2s_ros.errors import CalibrationError, InputError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.reconstruction.reconstruction import pack_reconstruction, unpack_reconstruction

BENT = Camera('plumb_bob', 480, 360, 346.0, 346.0, 243.0, 176.0, (-0.28, 0.09, 0.001, 0.0, -0.01))


@pytest.fixture(scope='module')
def frames(small_map):
    return small_map.frames


@pytest.fixture(scope='module')
def folder(frames, tmp_path_factory):
    """Images of a simulated room, without calibration."""
    folder = tmp_path_factory.mktemp('uncalibrated') / 'images'
    folder.mkdir()
    for index, frame in enumerate(frames):
        cv2.imwrite(str(folder / f'{index:03d}.png'), frame.image)
    return folder


@pytest.fixture(scope='module')
def built(folder, tmp_path_factory):
    """The map that the command makes of them."""
    path = tmp_path_factory.mktemp('maps') / 'room'
    arguments = ['--features', 'rootsift', '--budget', 'quick', '--steps', '40']
    arguments += ['--max-keypoints', '700', '--quiet']
    assert main(['build-map', str(folder), '--map', str(path), *arguments]) == 0
    return path


def test_the_focal_length_is_found_and_written(built, frames):
    manifest = SceneMap.open(built).manifest
    found = manifest.metrics['self_calibration']
    truth = frames[0].camera
    assert manifest.cameras[0].fx == pytest.approx(truth.fx, rel=0.03)
    assert abs(found['guess_px'] - truth.fx) > 0.05 * truth.fx
    assert 0 < found['focal_sigma_px'] < 0.03 * truth.fx
    assert not manifest.metric
    written = read_calibration(built.with_name('room.camera_info.yaml'))
    assert written == manifest.cameras[0]


def test_images_without_calibration_are_localized(built, folder, capsys):
    assert main(['localize', str(built), str(folder), '--quiet']) == 0
    localized = int(capsys.readouterr().out.split()[0])
    assert localized >= 0.9 * SceneMap.open(built).manifest.metrics['num_images']


def test_the_camera_found_survives_an_interrupted_build(small_map):
    from dataclasses import replace

    from d2s_ros.reconstruction.reconstruction import ImageInput

    result = small_map.result.reconstruction
    images = [
        ImageInput(image.name, image.stamp_ns, image.camera, None, image.features)
        for image in result.images
    ]
    bent = replace(
        result, images=[replace(i, camera=BENT) for i in result.images], focal_sigma_px=1.5
    )
    back = unpack_reconstruction(pack_reconstruction(bent, images), images)
    assert back.focal_sigma_px == 1.5
    assert {image.camera for image in back.images} == {BENT}


def test_exif_gives_the_first_guess(tmp_path):
    for index, millimetres in enumerate((26, 26, 27)):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0xA405] = millimetres
        picture = Image.fromarray(np.zeros((300, 400, 3), np.uint8))
        picture.save(tmp_path / f'{index}.jpg', exif=exif)
    source = open_source(tmp_path, for_mapping=True)
    assert isinstance(source, ImageFolderSource)
    assert source.camera_is_guess
    assert next(iter(source)).camera.fx == pytest.approx(26 * 500 / 43.267, rel=1e-3)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 52
    Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(tmp_path / '9.jpg', exif=exif)
    with pytest.raises(InputError, match='one lens and zoom'):
        open_source(tmp_path, for_mapping=True)


def test_a_calibration_is_asked_for_where_none_can_be_found(folder, tmp_path):
    with pytest.raises(CalibrationError, match='--calibration'):
        open_source(folder)
    poses = tmp_path / 'poses.txt'
    poses.write_text('000.png 0 0 0 0 0 0 1\n')
    with pytest.raises(CalibrationError, match='--calibration'):
        open_source(folder, poses=poses, for_mapping=True)
    source = open_source(folder, fallback=BENT)
    assert isinstance(source, ImageFolderSource)
    assert not source.camera_is_guess


@pytest.mark.parametrize('camera', [BENT, Camera('pinhole', 64, 48, 50.0, 51.0, 31.0, 24.0)])
def test_camera_info_files_are_read_back(camera, tmp_path):
    write_camera_info(tmp_path / 'c.yaml', camera, comment='by a test')
    assert read_calibration(tmp_path / 'c.yaml') == camera


def test_the_uncertainty_fits_the_errors():
    """Made-up images of made-up points: the focal length and its noise are known."""
    from d2s_ros.features.types import LocalFeatures
    from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
    from d2s_ros.reconstruction.reconstruction import MappedImage, make_reconstruction
    from d2s_ros.reconstruction.self_calibration import focal_sigma_px

    def sigma(noise, count):
        rng = np.random.default_rng(0)
        points = rng.uniform(-2, 2, (count, 3)) + np.array([0, 0, 5])
        camera = Camera('pinhole', 640, 480, 500.0, 500.0, 319.5, 239.5)
        images = []
        for index in range(6):
            pose = RigidTransform(
                rotation_from_vector(rng.normal(0, 0.2, 3)), rng.uniform(-1, 1, 3)
            )
            pixels = camera.project(pose.inverse().apply(points))
            pixels += rng.normal(0, noise, pixels.shape)
            features = LocalFeatures(
                pixels.astype(np.float32),
                np.ones(count, np.float32),
                np.zeros((count, 8), np.float32),
                (640, 480),
                np.ones(count, np.float32),
            )
            images.append(
                MappedImage(str(index), index, camera, pose, features, pixels, np.arange(count))
            )
        return focal_sigma_px(make_reconstruction(images, points, False))

    base = sigma(0.5, 200)
    assert 0.05 < base < 10
    assert sigma(1.0, 200) == pytest.approx(2 * base, rel=0.2)
    assert sigma(0.5, 800) == pytest.approx(base / 2, rel=0.4)
