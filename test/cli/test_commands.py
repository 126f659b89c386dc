"""The `d2s` command: every command, every kind of input, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from data import bag_writing as bags

from d2s_ros.cli.main import main
from d2s_ros.maps.files import COVERAGE_FILE
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.verification import verify

# Builds several maps: minutes on a busy computer.
ROOT = Path(__file__).resolve().parents[2]
QUICK = ['--budget', 'quick', '--steps', '25', '--max-keypoints', '500', '--quiet']


def run(capsys, *arguments):
    """Run a command in this process; return exit code, output and error lines."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as error:
        code = int(error.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def one_line(text, command):
    """What is said of an error: one line that names the command, and no traceback."""
    lines = [line for line in text.splitlines() if not line.startswith('WARNING')]
    assert len(lines) == 1, text
    assert lines[0].startswith(f'd2s {command}: ')
    assert len(lines[0]) > len(command) + 15
    return lines[0]


def subprocess_environment():
    return {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}


def d2s(*arguments, **options):
    """Run a command as a program."""
    command = [sys.executable, '-m', 'd2s_ros.cli.main', *map(str, arguments)]
    return subprocess.run(
        command,
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def tum(stamp_ns, pose):
    values = ' '.join(f'{value:.9f}' for value in pose.to_tum())
    return f'{stamp_ns // 10**9}.{stamp_ns % 10**9:09d} {values}\n'


@pytest.fixture(scope='module')
def some(small_map):
    """Neighbouring frames of the small map."""
    return small_map.frames[:10]


@pytest.fixture(scope='module')
def truth_file(small_map, tmp_path_factory):
    path = tmp_path_factory.mktemp('truth') / 'truth.txt'
    path.write_text(''.join(tum(f.stamp_ns, f.map_from_camera) for f in small_map.frames))
    return path


def write_calibration(folder, camera):
    (folder / 'calibration.json').write_text(json.dumps(camera.to_dict()))


@pytest.fixture(scope='module')
def image_folder(some, tmp_path_factory):
    """Images named by their stamps, with a calibration."""
    folder = tmp_path_factory.mktemp('inputs') / 'images'
    folder.mkdir()
    write_calibration(folder, some[0].camera)
    for frame in some:
        cv2.imwrite(str(folder / f'{frame.stamp_ns}.png'), frame.image)
    return folder


@pytest.fixture(scope='module')
def colmap_folder(some, tmp_path_factory):
    """images/ and a COLMAP text model: pixels from 0.5, camera_from_map with w first."""
    folder = tmp_path_factory.mktemp('inputs') / 'colmap'
    (folder / 'images').mkdir(parents=True)
    camera = some[0].camera
    (folder / 'cameras.txt').write_text(
        f'1 PINHOLE {camera.width} {camera.height} {camera.fx} {camera.fy} {camera.cx + 0.5} '
        f'{camera.cy + 0.5}\n'
    )
    lines = []
    for index, frame in enumerate(some):
        cv2.imwrite(str(folder / 'images' / f'{index:03d}.png'), frame.image)
        x, y, z, qx, qy, qz, qw = frame.map_from_camera.inverse().to_tum()
        lines.append(f'{index + 1} {qw} {qx} {qy} {qz} {x} {y} {z} 1 {index:03d}.png\n\n')
    (folder / 'images.txt').write_text(''.join(lines))
    (folder / 'list.txt').write_text(''.join(f'{index:03d}.png\n' for index in range(8)))
    return folder


def bag_messages(frames, *, poses=True, info=None, spoil=()):
    messages = []
    for index, frame in enumerate(frames):
        stamp = frame.stamp_ns
        calibration = bags.info_message(stamp, frame.camera, **(info or {'distortion_model': ''}))
        messages.append(('/camera/camera_info', 'info', stamp, calibration))
        data = bags.jpeg(np.repeat(frame.image[..., None], 3, axis=2), 95)
        if index in spoil:
            data = data[: len(data) // 2]
        image = bags.compressed_message(stamp, data)
        messages.append(('/camera/image_raw/compressed', 'compressed', stamp, image))
        if poses:
            pose = bags.pose_message(stamp, frame.map_from_camera)
            messages.append(('/truth', 'pose', stamp, pose))
    return messages


@pytest.fixture(scope='module')
def bag(some, tmp_path_factory):
    return bags.write_bag(tmp_path_factory.mktemp('inputs') / 'bag', bag_messages(some))


def assert_agrees(map_path, frames, limit_m=0.05):
    """The map localizes the frames it was made from, at their true poses."""
    from d2s_ros.geometry.transforms import pose_error
    from d2s_ros.localization.localizer import Localizer

    localizer = Localizer.from_map(map_path, device='cpu')
    results = [(f, localizer.localize(f.image, f.camera)) for f in frames[:6]]
    errors = [
        pose_error(result.map_from_camera, frame.map_from_camera)[0]
        for frame, result in results
        if result.localized
    ]
    assert len(errors) >= 4
    assert np.median(errors) < limit_m


def test_bag_to_map_to_poses_to_errors(bag, some, truth_file, tmp_path, capsys):
    """The main path; truth is compared by stamp."""
    target = tmp_path / 'map'
    code, out, _ = run(capsys, 'build-map', bag, '--map', target, *QUICK)
    assert code == 0
    assert 'version 0001, 10 images' in out
    # Where it localizes is said without being asked, and kept for the node.
    assert re.search(r'coverage: of the views along the mapping path \d+% good', out)
    assert (target / 'versions' / '0001' / COVERAGE_FILE).exists()
    assert 'arbitrary' not in out
    assert SceneMap.open(target).manifest.metric
    assert_agrees(target, some)
    trajectory, report = tmp_path / 'out.txt', tmp_path / 'out.json'
    code, out, err = run(
        capsys, 'localize', target, bag, '--trajectory', trajectory, '--report', report, '--quiet'
    )
    assert code == 0, err
    document = json.loads(report.read_text())
    frames, summary = document['frames'], document['summary']
    assert len(frames) == summary['frames'] == 10
    localized = [frame for frame in frames if frame['status'] == 'localized']
    assert len(localized) == summary['localized'] >= 8
    lines = [line for line in trajectory.read_text().splitlines() if not line.startswith('#')]
    assert len(lines) == len(localized)
    for line, frame in zip(lines, localized, strict=True):
        np.testing.assert_allclose(
            [float(value) for value in line.split()[1:]], frame['map_from_camera'], atol=1e-6
        )
    assert set(frames[0]) >= {
        'name', 'stamp', 'status', 'map_from_camera', 'covariance', 'num_keypoints',
        'num_reliable', 'num_inliers', 'reprojection_error_px', 'latency_ms',
    }  # fmt: skip
    assert set(frames[0]['latency_ms']) == {'features', 'network', 'pose', 'total'}
    for frame in frames:
        failed = [check for check in frame['checks'] if not check['passed']]
        assert bool(failed) == (frame['status'] != 'localized')
        assert not failed or failed[0]['reason'] == frame['reason']
    assert {'inliers', 'spread', 'rotation sigma'} <= {c['name'] for c in localized[0]['checks']}
    code, out, _ = run(capsys, 'evaluate', trajectory, truth_file, '--json')
    assert code == 0
    metrics = json.loads(out)
    assert metrics['num_localized'] == len(localized)
    assert metrics['median_m'] < 0.05
    code, out, _ = run(capsys, 'evaluate', trajectory, truth_file)
    assert code == 0
    assert 'median error' in out


def test_colmap_folder_with_image_list(colmap_folder, some, tmp_path, capsys):
    listed = colmap_folder / 'list.txt'
    code, out, _ = run(
        capsys, 'build-map', colmap_folder, '--image-list', listed, '--map', tmp_path / 'm', *QUICK
    )
    assert code == 0
    assert '8 images' in out
    assert_agrees(tmp_path / 'm', some)


def test_image_folder_with_poses(image_folder, truth_file, some, tmp_path, capsys):
    code, out, _ = run(
        capsys, 'build-map', image_folder, '--poses', truth_file, '--map', tmp_path / 'm', *QUICK
    )
    assert code == 0
    assert '10 images' in out
    assert_agrees(tmp_path / 'm', some)


def test_image_folder_without_poses(small_map, tmp_path, capsys):
    """Incremental mapping: right up to a similarity, and said to be of arbitrary scale."""
    from d2s_ros.localization.localizer import Localizer

    folder = tmp_path / 'images'
    folder.mkdir()
    frames = small_map.frames[:12]
    write_calibration(folder, frames[0].camera)
    for frame in frames:
        cv2.imwrite(str(folder / f'{frame.stamp_ns}.png'), frame.image)
    arguments = [value if value != '500' else '1000' for value in QUICK]
    arguments.append('--no-coverage')
    code, out, _ = run(capsys, 'build-map', folder, '--map', tmp_path / 'm', *arguments)
    assert code == 0
    assert 'coverage' not in out
    assert 'nothing told the scale of this map: it is arbitrary' in out
    assert not SceneMap.open(tmp_path / 'm').manifest.metric
    localizer = Localizer.from_map(tmp_path / 'm', device='cpu')
    found, truth = [], []
    for frame in frames:
        result = localizer.localize(frame.image, frame.camera)
        if result.localized:
            found.append(result.map_from_camera.translation)
            truth.append(frame.map_from_camera.translation)
    assert len(found) >= 6
    aligned = align(np.array(found), np.array(truth))
    extent = np.linalg.norm(np.array(truth) - np.mean(truth, axis=0), axis=1).max()
    assert np.median(np.linalg.norm(aligned - truth, axis=1)) < 0.05 * extent
    (tmp_path / 'two.txt').write_text(''.join(f'{frame.stamp_ns}.png\n' for frame in frames[:2]))
    report = tmp_path / 'report.json'
    only = ('--image-list', tmp_path / 'two.txt', '--report', report)
    _, out, _ = run(capsys, 'localize', tmp_path / 'm', folder, '--quiet', *only)
    assert 'scale is arbitrary' in out
    assert json.loads(report.read_text())['summary']['unit'] == 'arbitrary'


def align(points, targets):
    """Return points after the best similarity to targets (Umeyama)."""
    a, b = points - points.mean(0), targets - targets.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ sign @ vt
    scale = np.trace(np.diag(s) @ sign) / (a**2).sum()
    return scale * a @ rotation.T + targets.mean(0)


def test_poses_that_do_not_fit_are_said(image_folder, bag, some, tmp_path, capsys):
    wrong = tmp_path / 'poses.txt'
    wrong.write_text(''.join(tum(f.stamp_ns + 10**12, f.map_from_camera) for f in some))
    for source in (image_folder, bag):
        code, _, err = run(
            capsys, 'build-map', source, '--poses', wrong, '--map', tmp_path / 'm', *QUICK
        )
        assert code == 3
        one_line(err, 'build-map')
    # Two topics of poses: which one is not guessed.
    messages = bag_messages(some[:4])
    messages += [('/other', 'pose', f.stamp_ns, bags.pose_message(f.stamp_ns, f.map_from_camera))
                 for f in some[:4]]  # fmt: skip
    two = bags.write_bag(tmp_path / 'two', messages)
    code, _, err = run(capsys, 'build-map', two, '--map', tmp_path / 'm', *QUICK)
    assert code == 3
    assert '/other, /truth' in one_line(err, 'build-map')
    code, _, err = run(
        capsys, 'build-map', two, '--ignore-poses', '--pose-topic', '/truth', '--map', 'm', *QUICK
    )
    assert code == 2
    assert not (tmp_path / 'm').exists()


def test_another_place_is_not_localized(small_map, tmp_path, capsys):
    from d2s_ros.simulation.config import SimulationConfig
    from d2s_ros.simulation.simulate import simulate_log

    config = SimulationConfig(
        seed=3, frames=2, width=480, height=360, trajectory='random', other_place=True
    )
    log = simulate_log(config, tmp_path / 'log', progress=False)
    report, trajectory = tmp_path / 'out.json', tmp_path / 'out.txt'
    code, out, err = run(
        capsys, 'localize', small_map.path, log,
        '--report', report, '--trajectory', trajectory, '--quiet',
    )  # fmt: skip
    assert code == 4
    assert 'nothing could be localized' in one_line(err, 'localize')
    assert '0 of 2 frames localized' in out
    frames = json.loads(report.read_text())['frames']
    assert all(frame['map_from_camera'] is None and frame['reason'] for frame in frames)
    for frame in frames:
        first = next(check for check in frame['checks'] if not check['passed'])
        assert (first['status'], first['reason']) == (frame['status'], frame['reason'])
    assert not [line for line in trajectory.read_text().splitlines() if not line.startswith('#')]


def test_broken_frames_are_counted_refusals(small_map, some, tmp_path, capsys):
    report = tmp_path / 'out.json'

    def localize(name, messages):
        log = bags.write_bag(tmp_path / name, messages)
        code, _, err = run(capsys, 'localize', small_map.path, log, '--report', report, '--quiet')
        document = json.loads(report.read_text())
        return code, err, document['summary'], document['frames']

    code, _, summary, frames = localize('jpeg', bag_messages(some[:4], spoil={1, 2}))
    assert code == 0
    assert summary['refused'] == {'bad_image': 2}
    assert 'truncated' in frames[1]['reason']
    zeros = {'k': np.zeros(9), 'd': np.zeros(5), 'distortion_model': 'plumb_bob'}
    code, err, summary, frames = localize('zeros', bag_messages(some[:2], info=zeros))
    assert code == 4
    assert summary['refused'] == {'no_calibration': 2}
    assert 'zero' in frames[0]['reason']
    one_line(err, 'localize')
    unknown = {'distortion_model': 'fisheye62', 'd': np.ones(6)}
    code, _, summary, frames = localize('unknown', bag_messages(some[:2], info=unknown))
    assert code == 4
    assert 'fisheye62' in frames[0]['reason']
    size = {'distortion_model': '', 'width': 480, 'height': 200}
    code, _, summary, frames = localize('size', bag_messages(some[:2], info=size))
    assert code == 4
    assert '480x360' in frames[0]['reason']


def test_rectified_images_use_p(small_map, some, tmp_path, capsys):
    """K is wrong on purpose; P is right."""
    camera = some[0].camera
    p = np.zeros((3, 4))
    p[:, :3] = camera.matrix
    k = camera.matrix.copy()
    k[:2] *= 0.5
    info = {'distortion_model': 'plumb_bob', 'd': np.array([0.3, 0, 0, 0, 0.0]),
            'k': k.reshape(-1), 'p': p.reshape(-1)}  # fmt: skip
    log = bags.write_bag(tmp_path / 'log', bag_messages(some[:3], info=info))
    code, out, _ = run(capsys, 'localize', small_map.path, log, '--rectified', '--quiet')
    assert code == 0
    assert '3 of 3' in out
    code, out, _ = run(capsys, 'localize', small_map.path, log, '--quiet')
    assert '3 of 3' not in out


def test_bad_input_is_one_line_and_code_3(small_map, bag, image_folder, tmp_path, capsys):
    cut = tmp_path / 'cut'
    shutil.copytree(bag, cut)
    file = bags.storage_file(cut)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    damaged = tmp_path / 'damaged'
    shutil.copytree(small_map.path, damaged)
    weights = damaged / 'versions' / '0001' / 'localization.safetensors'
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 4
    weights.write_bytes(data)
    empty = tmp_path / 'empty'
    empty.mkdir()
    text = tmp_path / 'text.txt'
    text.write_text('hello\n')
    truth = tmp_path / 'bad.txt'
    truth.write_text('1 2 3\n')
    new = tmp_path / 'new'
    calls = [
        ('build-map', cut, '--map', new),
        ('build-map', empty, '--map', new),
        ('build-map', tmp_path / 'nowhere', '--map', new),
        ('build-map', text, '--map', new),
        ('build-map', bag, '--map', text),
        ('build-map', bag, '--map', image_folder),
        ('build-map', bag, '--map', new, '--image-topic', '/nothing'),
        ('build-map', image_folder, '--map', new, '--poses', tmp_path / 'nowhere'),
        ('build-map', image_folder, '--map', new, '--poses', truth),
        ('localize', damaged, bag),
        ('localize', tmp_path / 'nowhere', bag),
        ('localize', empty, bag),
        ('localize', small_map.path, cut),
        ('localize', small_map.path, bag, '--report', tmp_path / 'no' / 'such' / 'out.json'),
        ('evaluate', tmp_path / 'nowhere', truth),
        ('evaluate', truth, truth),
        ('map', 'verify', damaged),
        ('map', 'info', damaged),
        ('map', 'list', empty),
        ('map', 'rollback', small_map.path),
        ('map', 'verify', tmp_path / 'nowhere'),
    ]
    for call in calls:
        code, _, err = run(capsys, *call, '--quiet')
        assert code == 3, (call, err)
        one_line(err, call[0])
        assert not new.exists()


def test_bad_usage_is_code_2(small_map, bag, image_folder, tmp_path, capsys):
    calls = [
        ('build-map', bag),
        ('build-map', bag, '--map', tmp_path / 'm', '--budget', 'huge'),
        ('build-map', bag, '--map', tmp_path / 'm', '--seed', 'x'),
        ('build-map', bag, '--map', tmp_path / 'm', '--seed', '-1'),
        ('build-map', bag, '--map', tmp_path / 'm', '--max-keypoints', '3'),
        ('build-map', bag, '--map', tmp_path / 'm', '--image-list', small_map.path / 'current'),
        ('build-map', image_folder, '--map', tmp_path / 'm', '--image-topic', '/camera'),
        ('localize', small_map.path),
        ('evaluate', 'a'),
        ('map', 'explode', small_map.path),
        ('fly',),
        (),
    ]
    for call in calls:
        code, _, err = run(capsys, *call)
        assert code == 2, (call, err)
        assert 'Traceback' not in err
        assert not (tmp_path / 'm').exists()


def test_map_commands(small_map, tmp_path, capsys):
    root = tmp_path / 'map'
    shutil.copytree(small_map.path, root)
    MapStore(root).write(SceneMap.open(root))
    code, out, _ = run(capsys, 'map', 'info', root)
    assert code == 0
    assert 'rootsift' in out
    code, out, _ = run(capsys, 'map', 'info', root, '--json')
    assert json.loads(out)['version'] == '0002'
    code, out, _ = run(capsys, 'map', 'list', root)
    assert [line.split()[:2] for line in out.splitlines()] == [['0001', 'parent'], ['*', '0002']]
    code, out, _ = run(capsys, 'map', 'list', root, '--json')
    assert [(item['version'], item['live']) for item in json.loads(out)] == [
        ('0001', False),
        ('0002', True),
    ]
    assert run(capsys, 'map', 'verify', root)[0] == 0
    code, out, _ = run(capsys, 'map', 'rollback', root)
    assert code == 0
    assert '0001' in out
    assert MapStore(root).current() == '0001'
    assert run(capsys, 'map', 'strip', root)[0] == 0
    assert not list(root.rglob('update.safetensors'))
    assert run(capsys, 'map', 'verify', root)[0] == 0


def test_simulate(tmp_path, capsys):
    code, out, _ = run(
        capsys, 'simulate', tmp_path / 'log', '--seed', 2, '--frames', 2, '--width', 64,
        '--height', 48, '--quiet',
    )  # fmt: skip
    assert code == 0
    assert 'groundtruth_tum.txt' in out
    code, _, err = run(capsys, 'simulate', tmp_path / 'log', '--seed', 2, '--quiet')
    assert code == 2
    one_line(err, 'simulate')


def test_as_a_program(tmp_path):
    """Exit codes and streams of the real process; a traceback only with --debug."""
    short = d2s('map', 'info', tmp_path / 'nowhere')
    assert short.returncode == 3
    assert short.stdout == ''
    one_line(short.stderr, 'map')
    long = d2s('map', 'info', tmp_path / 'nowhere', '--debug')
    assert long.returncode == 3
    assert 'Traceback' in long.stderr
    assert 'MapFormatError' in long.stderr
    assert d2s('map', 'paint', 'x').returncode == 2
    assert d2s('--version').stdout.startswith('d2s ')


def test_a_defect_is_one_line_too(small_map, capsys, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError('of two\nlines')

    monkeypatch.setattr(SceneMap, 'open', broken)
    code, _, err = run(capsys, 'map', 'info', small_map.path)
    assert code == 1
    assert 'ZeroDivisionError' in one_line(err, 'map')


def test_ctrl_c_leaves_the_old_map_or_nothing(bag, small_map, tmp_path):
    old = tmp_path / 'old'
    shutil.copytree(small_map.path, old)
    for target, bar in ((tmp_path / 'new', b'features'), (old, b'training')):
        process = subprocess.Popen(
            [sys.executable, '-m', 'd2s_ros.cli.main', 'build-map', str(bag), '--map', str(target),
             '--features', 'rootsift', '--budget', 'full', '--max-keypoints', '500'],
            env=subprocess_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Jobs that a shell puts into the background, such as this test's, ignore interrupts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        try:
            wait_for_bar(process, bar)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
            process.wait(timeout=30)
        assert process.returncode == 130, err
        assert b'Traceback' not in err
        assert b'interrupted' in err
        assert out == b''
    assert not (tmp_path / 'new').exists()
    assert verify(old) == []
    assert MapStore(old).versions() == ['0001']


def wait_for_bar(process, name):
    """Read the progress bars of a process until one of a name shows up."""
    os.set_blocking(process.stderr.fileno(), False)
    seen = b''
    deadline = time.monotonic() + 200
    while name not in seen:
        assert time.monotonic() < deadline, seen[-500:]
        assert process.poll() is None, seen[-500:]
        seen += process.stderr.read() or b''
        time.sleep(0.02)
    os.set_blocking(process.stderr.fileno(), True)
