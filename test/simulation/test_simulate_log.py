"""Logs on disk: what is in them, and that they are there whole or not at all."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from d2s_ros.cli import simulate as command
from d2s_ros.config import from_dict
from d2s_ros.data.frames import Frame
from d2s_ros.errors import UsageError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.log_writer import LogWriter
from d2s_ros.simulation.scene import Scene, build_scene
from d2s_ros.simulation.simulate import BASE_FROM_CAMERA, rendered_frames, simulate_log

REPOSITORY = Path(__file__).resolve().parents[2]


def small(**changes: object) -> SimulationConfig:
    values = {'seed': 2, 'width': 160, 'height': 120, 'frames': 3, **changes}
    return SimulationConfig(**values)  # type: ignore[arg-type]


def read(path: Path) -> dict[str, list[tuple[int, Any]]]:
    topics: dict[str, list[tuple[int, Any]]] = {}
    with AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE)) as reader:
        for connection, stamp, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            topics.setdefault(connection.topic, []).append((stamp, message))
    return topics


def stamp_of(message: Any) -> int:
    stamp = message.header.stamp
    return stamp.sec * 1_000_000_000 + stamp.nanosec


@pytest.fixture(scope='module')
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('logs') / 'log'
    return simulate_log(small(odometry=True, distortion='plumb_bob'), path, progress=False)


@pytest.fixture(scope='module')
def scene() -> Scene:
    return build_scene(small())


@pytest.fixture(scope='module')
def truth(scene: Scene) -> list[Frame]:
    config = small(odometry=True, distortion='plumb_bob')
    return [frame for frame, _ in rendered_frames(config, scene)]


def test_images_and_calibration_come_back(log: Path, truth: list[Frame]) -> None:
    topics = read(log)
    images, infos = topics['/camera/image_raw/compressed'], topics['/camera/camera_info']
    assert len(images) == len(infos) == len(truth) == 3
    for (stamp, image), (_, info), frame in zip(images, infos, truth, strict=True):
        assert stamp == stamp_of(image) == stamp_of(info) == frame.stamp_ns
        assert image.header.frame_id == info.header.frame_id == 'camera_optical_frame'
        camera = Camera.from_camera_info(
            info.width, info.height, info.distortion_model, info.d, info.k
        )
        assert camera == frame.camera
        # Another run, same arguments: the same bytes.
        _, encoded = cv2.imencode('.jpg', frame.image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        assert image.data.tobytes() == encoded.tobytes()
        decoded = cv2.imdecode(image.data, cv2.IMREAD_UNCHANGED)
        assert decoded.shape == (120, 160)
        assert np.abs(decoded.astype(int) - frame.image).mean() < 4
        assert image.format == 'jpeg'


def test_poses_agree_with_the_text_file(log: Path, truth: list[Frame]) -> None:
    lines = (log / 'groundtruth_tum.txt').read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith('#')]
    poses = read(log)['/ground_truth/pose']
    assert len(rows) == len(poses) == 3
    for row, (_, message), frame in zip(rows, poses, truth, strict=True):
        seconds, nanoseconds = row[0].split('.')
        assert int(seconds) * 1_000_000_000 + int(nanoseconds) == stamp_of(message)
        assert stamp_of(message) == frame.stamp_ns
        assert message.header.frame_id == 'map'
        p, q = message.pose.position, message.pose.orientation
        pose = RigidTransform.from_tum([p.x, p.y, p.z, q.x, q.y, q.z, q.w])
        for other in (frame.map_from_camera, RigidTransform.from_tum([float(v) for v in row[1:]])):
            metres, degrees = pose_error(pose, other)
            assert metres < 1e-8
            assert degrees < 1e-5


def test_odometry_and_transforms(log: Path) -> None:
    topics = read(log)
    static = topics['/tf_static'][0][1].transforms[0]
    assert (static.header.frame_id, static.child_frame_id) == ('base_link', 'camera_optical_frame')
    assert static.transform.translation.z == BASE_FROM_CAMERA.translation[2]
    odometry, moving = topics['/odom'], topics['/tf']
    assert len(odometry) == len(moving) == 2 * 5 + 1
    stamps = [stamp for stamp, _ in odometry]
    assert stamps == sorted(stamps)
    assert {stamp for stamp, _ in topics['/ground_truth/pose']} <= set(stamps)
    for (_, message), (_, transforms) in zip(odometry, moving, strict=True):
        assert (message.header.frame_id, message.child_frame_id) == ('odom', 'base_link')
        transform = transforms.transforms[0]
        assert transform.child_frame_id == 'base_link'
        assert transform.transform.translation.x == message.pose.pose.position.x
        assert transform.transform.rotation.w == message.pose.pose.orientation.w


def test_the_config_is_kept_with_the_log(log: Path) -> None:
    values = json.loads((log / 'simulation.json').read_text())
    assert from_dict(SimulationConfig, values) == small(odometry=True, distortion='plumb_bob')


def test_raw_unlabelled_mcap(tmp_path: Path, scene: Scene) -> None:
    config = small(frames=2, compressed=False, poses=False, storage='mcap')
    path = simulate_log(config, tmp_path / 'log', progress=False, scene=scene)
    topics = read(path)
    assert set(topics) == {'/camera/image_raw', '/camera/camera_info'}
    assert list(path.glob('*.mcap'))
    images = topics['/camera/image_raw']
    expected = list(rendered_frames(config, scene))
    for (_, message), (frame, _) in zip(images, expected, strict=True):
        assert (message.encoding, message.step) == ('mono8', 160)
        np.testing.assert_array_equal(message.data.reshape(120, 160), frame.image)
    info = topics['/camera/camera_info'][0][1]
    assert info.distortion_model == 'plumb_bob'
    assert not info.d.any()
    assert len((path / 'groundtruth_tum.txt').read_text().splitlines()) == 3


def test_existing_things_are_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / 'full'
    folder.mkdir()
    (folder / 'precious.txt').write_text('keep')
    with pytest.raises(UsageError, match='not empty'):
        simulate_log(small(), folder, progress=False)
    file = tmp_path / 'file'
    file.write_text('keep')
    with pytest.raises(UsageError, match='not a folder'):
        simulate_log(small(), file, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'full']
    assert (folder / 'precious.txt').read_text() == 'keep'


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    folder = tmp_path / 'empty'
    folder.mkdir()
    with LogWriter(folder) as log:
        camera = small().camera
        log.write('/camera/camera_info', 5, log.camera_info(5, 'camera_optical_frame', camera))
    assert len(read(folder)['/camera/camera_info']) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['empty']


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with LogWriter(tmp_path / 'log') as log:
            info = log.camera_info(5, 'camera_optical_frame', small().camera)
            log.write('/camera/camera_info', 5, info)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_simulation_leaves_no_log(tmp_path: Path) -> None:
    code = (
        'import sys; from d2s_ros.simulation.simulate import simulate_log\n'
        'from d2s_ros.simulation.config import SimulationConfig as C\n'
        'simulate_log(C(seed=2, width=160, height=120, frames=100000), sys.argv[1], False)'
    )
    environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
    target = tmp_path / 'log'
    process = subprocess.Popen([sys.executable, '-c', code, str(target)], env=environment)
    try:
        deadline = time.monotonic() + 60
        written: list[Path] = []
        while not written and time.monotonic() < deadline:
            assert process.poll() is None
            written = list(tmp_path.glob('.log.partial-*/log/*.db3*'))
            time.sleep(0.02)
        assert written
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert not target.exists()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = tmp_path / 'log'
    arguments = '--seed 2 --frames 2 --width 64 --height 48 --lighting night --raw --no-poses'
    args = parser.parse_args([str(out), *arguments.split()])
    assert command.run(args) == 0
    assert str(out) in capsys.readouterr().out
    values = json.loads((out / 'simulation.json').read_text())
    assert values['lighting'] == 'night'
    assert values['poses'] is False
    assert set(read(out)) == {'/camera/image_raw', '/camera/camera_info'}
    with pytest.raises(UsageError, match='not empty'):
        command.run(args)
    defaults = parser.parse_args(['x'])
    assert {name: getattr(defaults, name) for name in values} == {
        name: getattr(SimulationConfig(), name) for name in values
    }
