"""Calibration from pictures of boards whose camera is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from d2s_ros.cli.main import main
from d2s_ros.data.board_calibration import BoardFinder, calibrate_camera, parse_board
from d2s_ros.data.frames import Frame
from d2s_ros.data.image_folder import read_calibration
from d2s_ros.errors import CalibrationError, UsageError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector

BOARDS = {
    'checkerboard': 'checkerboard:8x6:0.025',
    'charuco': 'charuco:8x6:0.03:0.022',
    'tags': 'tags:5x4:0.04:0.012',
}
CAMERAS = {
    'plumb_bob': Camera(
        'plumb_bob', 640, 480, 470.0, 468.0, 326.0, 234.0, (-0.25, 0.08, 0.0006, -0.0004, -0.01)
    ),
    'equidistant': Camera(
        'equidistant', 640, 480, 330.0, 331.0, 318.0, 242.0, (-0.012, 0.004, -0.002, 0.0003)
    ),
}
#: Pixels of a metre of the printed board.
PX = 4000


def printed(text):
    """Return the picture of a board with a white border, and where its corner (0, 0) is in it."""
    board = parse_board(text)
    border = int(0.04 * PX)
    if board.kind == 'checkerboard':
        edge = round(board.square * PX)
        cells = np.indices((board.rows + 1, board.columns + 1)).sum(axis=0) % 2
        inner = np.kron(255 * (1 - cells), np.ones((edge, edge))).astype(np.uint8)
        first = border + edge
    else:
        made = BoardFinder(board)._printed
        across, down = (board.columns, board.rows)
        step = board.square + (board.other if board.kind == 'tags' else 0)
        gap = board.other if board.kind == 'tags' else 0
        size = (round((across * step - gap) * PX), round((down * step - gap) * PX))
        inner = made.generateImage(size, marginSize=0)
        first = border
    return np.pad(inner, border, constant_values=255), first


def pictures(text, camera, count, seed=0):
    """Yield what the camera sees of the board from all sides."""
    picture, first = printed(text)
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[: camera.height, : camera.width]
    rays = camera.normalize(np.column_stack([u.ravel(), v.ravel()]).astype(float))
    rays = np.column_stack([rays, np.ones(len(rays))])
    middle = (np.array(picture.shape[::-1]) / 2 - first) / PX
    reach = 0.3 if camera.model == 'plumb_bob' else 0.65
    for index in range(count):
        tilt = rng.uniform(-0.6, 0.6, 3) * [1, 1, 0.4]
        distance = rng.uniform(0.28, 0.5)
        aim = rng.uniform(-reach, reach, 2) * distance
        rotation = rotation_from_vector(tilt)
        camera_from_board = RigidTransform(
            rotation, np.array([*aim, distance]) - rotation @ np.array([*middle, 0])
        )
        normal = rotation[:, 2]
        depth = (normal @ camera_from_board.translation) / (rays @ normal)
        on_board = camera_from_board.inverse().apply(rays * depth[:, None])
        at = (on_board[:, :2] * PX + first - 0.5).astype(np.float32)
        at = np.nan_to_num(at, nan=-1e4).clip(-1e4, 1e4).astype(np.float32)
        image = cv2.remap(
            cv2.GaussianBlur(picture, (0, 0), 0.0008 * PX),
            at[:, 0].reshape(v.shape),
            at[:, 1].reshape(v.shape),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=140,
        )
        yield Frame(f'{index:03d}', index, image)


@pytest.mark.parametrize(
    ('kind', 'model'),
    [
        ('checkerboard', 'plumb_bob'),
        ('charuco', 'plumb_bob'),
        ('tags', 'plumb_bob'),
        ('checkerboard', 'equidistant'),
    ],
)
def test_a_known_camera_is_found(kind, model):
    truth = CAMERAS[model]
    found = calibrate_camera(
        pictures(BOARDS[kind], truth, 24), parse_board(BOARDS[kind]), model=model
    )
    camera = found.camera
    print(kind, model, found)
    assert found.views >= 8
    assert found.rms_px < (1.0 if kind == 'tags' else 0.5)
    assert camera.fx == pytest.approx(truth.fx, rel=0.01)
    assert camera.fy == pytest.approx(truth.fy, rel=0.01)
    assert (camera.cx, camera.cy) == pytest.approx((truth.cx, truth.cy), abs=4.0)
    # What counts are rays, where corners were seen.
    u, v = np.meshgrid(np.linspace(120, 520, 9), np.linspace(90, 390, 7))
    pixels = np.column_stack([u.ravel(), v.ravel()])
    apart = np.linalg.norm(camera.normalize(pixels) - truth.normalize(pixels), axis=1) * truth.fx
    assert np.median(apart) < 3.0
    assert 0.3 < found.coverage <= 1.0


def test_the_command_writes_a_calibration(tmp_path, capsys):
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for frame in pictures(BOARDS['checkerboard'], CAMERAS['plumb_bob'], 16, seed=1):
        cv2.imwrite(str(folder / f'{frame.name}.png'), frame.image)
    cv2.imwrite(str(folder / '900.png'), np.full((480, 640), 90, np.uint8))
    out = tmp_path / 'camera.yaml'
    arguments = ['calibrate', str(folder), '--out', str(out), '--board']
    assert main([*arguments, BOARDS['checkerboard']]) == 0
    text = capsys.readouterr().out
    assert 'focal length 4' in text
    assert 'pictures without the board' in text
    assert read_calibration(out).fx == pytest.approx(470.0, rel=0.01)
    # Another board is not in the pictures, and nothing is written.
    out.unlink()
    assert main([*arguments, 'checkerboard:11x9:0.02']) == 3
    assert 'at least 6 are needed' in capsys.readouterr().err
    assert not out.exists()


def test_pictures_of_several_sizes_are_refused():
    frames = [
        Frame('a', 0, np.zeros((48, 64), np.uint8)),
        Frame('b', 1, np.zeros((64, 48), np.uint8)),
    ]
    with pytest.raises(CalibrationError, match='several sizes'):
        calibrate_camera(frames, parse_board(BOARDS['tags']))


@pytest.mark.parametrize(
    'text',
    [
        '',
        'checkerboard',
        'circles:4x5:0.1',
        'charuco:4x5:0.1',
        'charuco:4x5:0.1:0.2',
        'tags:1x5:1:1',
    ],
)
def test_boards_that_are_none(text):
    with pytest.raises(UsageError, match='board'):
        parse_board(text)
