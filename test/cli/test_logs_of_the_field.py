"""Logs as robots leave them, through the command line: what is read, refused and said."""

from __future__ import annotations

import json

import numpy as np
import pytest
from data import bag_writing as bags
from scipy.spatial.transform import Rotation

from d2s_ros.cli.main import main
from d2s_ros.data.tum import read_tum
from d2s_ros.geometry.transforms import RigidTransform, pose_error

OPTIONS = ('--features', 'rootsift', '--quiet')

#: Of the camera on its robot: x forward, y left, z up to the optical frame.
BASE_FROM_CAMERA = RigidTransform(
    Rotation.from_quat([-0.5, 0.5, -0.5, 0.5]).as_matrix(), np.array([0.3, 0.0, 1.0])
)


@pytest.fixture(scope='module')
def some(small_map):
    return small_map.frames[:4]


def camera_messages(frames, *, topic='/camera/image_raw/compressed', received=None, **info):
    """camera_info and JPEG of frames, received in the order of the list."""
    messages = []
    for index, frame in enumerate(frames):
        stamp = frame.stamp_ns
        at = stamp if received is None else received + index * 10**8
        values = {'distortion_model': '', **info}
        calibration = bags.info_message(stamp, frame.camera, **values)
        messages.append(('/camera/camera_info', 'info', at, calibration))
        jpeg = bags.jpeg(np.repeat(frame.image[..., None], 3, axis=2), 95)
        messages.append((topic, 'compressed', at, bags.compressed_message(stamp, jpeg)))
    return messages


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_trajectories_are_sorted_and_have_each_stamp_once(small_map, some, tmp_path, capsys):
    """Stamps step back and repeat; what localize writes, evaluate reads."""
    frames = [some[0], some[2], some[1], some[3], some[3]]
    log = bags.write_bag(tmp_path / 'log', camera_messages(frames, received=bags.START_NS))
    out, report = tmp_path / 'out.txt', tmp_path / 'out.json'
    code, text, err = run(
        capsys, 'localize', small_map.path, log, '--trajectory', out, '--report', report, '--quiet'
    )
    assert code == 0, err
    assert '1 poses have the stamp of an earlier image' in text
    assert len(json.loads(report.read_text())['frames']) == 5
    trajectory = read_tum(out)
    assert list(trajectory.stamps_ns) == [frame.stamp_ns for frame in some]
    for frame, pose in zip(some, trajectory.poses, strict=True):
        assert pose_error(pose, frame.map_from_camera)[0] < 0.05
    assert run(capsys, 'evaluate', out, out, '--json')[0] == 0


def test_refusals_are_printed_with_their_reason(small_map, some, tmp_path, capsys):
    d = np.array([-0.2, 0.1, 0.001, -0.002, 0.01, 0.4, 0.0, 0.0])
    messages = camera_messages(some, distortion_model='plumb_bob', d=d)
    log = bags.write_bag(tmp_path / 'log', messages)
    code, text, _err = run(capsys, 'localize', small_map.path, log, '--quiet')
    assert code == 4
    assert 'refused: 4 x no_calibration: plumb_bob needs 4 or 5' in text
    assert 'rational_polynomial' in text


@pytest.mark.parametrize('storage', ['sqlite3', 'mcap'])
@pytest.mark.parametrize('mode', ['file', 'message'])
def test_compressed_logs_are_localized(small_map, some, tmp_path, capsys, storage, mode):
    log = bags.write_bag(tmp_path / 'log', camera_messages(some[:2]), storage, compression=mode)
    code, text, err = run(capsys, 'localize', small_map.path, log, '--quiet')
    assert code == 0, err
    assert '2 of 2 frames localized' in text


def test_images_of_a_rectified_topic(small_map, some, tmp_path, capsys):
    """P is right, D belongs to the raw images."""
    p = np.zeros((3, 4))
    p[:, :3] = some[0].camera.matrix
    d = np.array([-0.3, 0.1, 0, 0, 0])
    messages = camera_messages(
        some[:2],
        topic='/camera/image_rect/compressed',
        distortion_model='plumb_bob',
        d=d,
        p=p.reshape(-1),
    )
    log = bags.write_bag(tmp_path / 'log', messages)
    code, _text, err = run(capsys, 'localize', small_map.path, log, '--quiet')
    assert code == 3
    assert '/camera/image_rect/compressed' in err
    assert '--rectified' in err
    code, text, _err = run(capsys, 'localize', small_map.path, log, '--rectified', '--quiet')
    assert code == 0
    assert '2 of 2' in text


def test_poses_that_cannot_be_used_end_a_build_by_name(some, tmp_path, capsys):
    """Odometry of no frame; poses an hour away from the images."""
    odometry = [
        (
            '/odom',
            'odom',
            frame.stamp_ns,
            bags.odom_message(
                frame.stamp_ns, frame.map_from_camera @ BASE_FROM_CAMERA.inverse(), ''
            ),
        )
        for frame in some
    ]
    static = [
        (
            '/tf_static',
            'tf',
            some[0].stamp_ns,
            bags.tf_message(
                some[0].stamp_ns, ('base_link', 'camera_optical_frame', BASE_FROM_CAMERA)
            ),
        )
    ]
    log = bags.write_bag(tmp_path / 'empty', [*static, *camera_messages(some), *odometry])
    code, _text, err = run(capsys, 'build-map', log, '--map', tmp_path / 'm', *OPTIONS)
    assert code == 3
    assert '/odom' in err
    assert 'child_frame_id' in err
    late = [
        (
            '/pose',
            'pose',
            frame.stamp_ns,
            bags.pose_message(frame.stamp_ns + 3600 * 10**9, frame.map_from_camera),
        )
        for frame in some
    ]
    log = bags.write_bag(tmp_path / 'late', [*camera_messages(some), *late])
    code, _text, err = run(capsys, 'build-map', log, '--map', tmp_path / 'm', *OPTIONS)
    assert code == 3
    assert '/pose' in err
    assert 'do the clocks agree?' in err
    assert not (tmp_path / 'm').exists()


def test_logs_of_other_systems_are_one_line(small_map, tmp_path, capsys):
    (tmp_path / 'old.bag').write_bytes(b'#ROSBAG V2.0\n' + bytes(4096))
    code, _text, err = run(capsys, 'localize', small_map.path, tmp_path / 'old.bag', '--quiet')
    assert code == 3
    assert len(err.strip().splitlines()) == 1
    assert 'rosbags-convert' in err


def test_paths_below_the_home_folder(small_map, tmp_path, monkeypatch, capsys):
    """As parameters and `--map=~/map` hand them on: no shell expands these."""
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'my map').symlink_to(small_map.path)
    code, text, _err = run(capsys, 'map', 'info', '~/my map')
    assert code == 0
    assert text
