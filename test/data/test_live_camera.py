"""Cameras as inputs: real streams over a socket, what is kept, and what is said."""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from data.video_writing import pan

from d2s_ros.cli.camera_preview import CameraPreview
from d2s_ros.cli.main import main
from d2s_ros.data.image_times import times_from_names
from d2s_ros.data.live_camera import LiveState, record_camera
from d2s_ros.data.sources import open_source
from d2s_ros.data.video_frames import LiveChooser
from d2s_ros.errors import InputError

av = pytest.importorskip('av', reason='PyAV is not installed')


def free_port():
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


#: PyAV holds the interpreter while it waits for a connection, so a camera is a process.
CAMERA = """
import sys
import av
import cv2
import numpy as np

images = np.load(sys.argv[1])
with av.open(f'{sys.argv[2]}?listen=1', 'w', format='mpegts') as container:
    stream = container.add_stream('mpeg2video', rate=25)
    stream.height, stream.width = images.shape[1:]
    stream.pix_fmt, stream.bit_rate = 'yuv420p', 8_000_000
    for image in images:
        colour = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(colour, format='bgr24')))
    container.mux(stream.encode(None))
"""


@contextlib.contextmanager
def network_camera(images, folder):
    """Send pictures as MPEG-TS to whoever connects first; yields the address."""
    port = free_port()
    np.save(folder / 'pictures.npy', np.stack(images))
    address = f'tcp://127.0.0.1:{port}'
    process = subprocess.Popen(
        [sys.executable, '-c', CAMERA, str(folder / 'pictures.npy'), address]
    )
    try:
        # A look whether it listens would be the one connection that it takes.
        wait_until_listening(port)
        yield address
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def wait_until_listening(port):
    """Wait until the port is in the kernel's list of listening sockets."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        rows = [line.split() for line in Path('/proc/net/tcp').read_text().splitlines()[1:]]
        if any(row[1].endswith(f':{port:04X}') and row[3] == '0A' for row in rows):
            return
        time.sleep(0.02)
    pytest.fail('the camera does not listen')


def test_a_stream_becomes_a_folder(tmp_path):
    # 4 px of 320 a frame: every second one is a step of 2.5 %.
    images = pan(60, 4, size=(320, 240))
    states = []
    with network_camera(images, tmp_path) as address:
        kept = record_camera(address, tmp_path / 'room', states.append)
    assert 20 <= kept <= 32
    assert states[-1].kept == kept
    assert states[-1].count >= 55
    assert sum(state.picture is not None for state in states) == kept
    names = sorted(path.name for path in (tmp_path / 'room').iterdir())
    assert len(times_from_names(names)) == kept
    source = open_source(tmp_path / 'room', for_mapping=True)
    assert len(source) == kept
    assert next(iter(source)).image.shape[:2] == (240, 320)
    with pytest.raises(InputError, match='earlier recording'):
        record_camera(address, tmp_path / 'room', states.append)


def test_the_command_records_before_it_builds(tmp_path, capsys):
    """Noise is no room: the recording stays, the build says why it fails."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (120, 160), np.uint8) for _ in range(12)]
    with network_camera(images, tmp_path) as address:
        arguments = ['build-map', '--camera', address, '--map', str(tmp_path / 'room')]
        assert main([*arguments, '--quiet', '--budget', 'quick']) == 3
    said = capsys.readouterr()
    assert 'the map is built of them' in said.out
    assert 'kept 1 of' in said.err
    assert list((tmp_path / 'room.recording').iterdir())


def test_cameras_that_are_not_there_are_told(tmp_path, capsys):
    for source in ('/dev/video97', f'rtsp://127.0.0.1:{free_port()}/room'):
        assert main(['build-map', '--camera', source, '--map', str(tmp_path / 'm')]) == 3
        assert f'the camera {source} cannot be opened' in capsys.readouterr().err
    assert not (tmp_path / 'm.recording').exists()
    arguments = ['build-map', '--map', str(tmp_path / 'm')]
    assert main([*arguments, '--camera', 'a', str(tmp_path)]) == 2
    assert main([*arguments, str(tmp_path), '--camera-seconds', '3']) == 2
    assert main(arguments) == 2


def test_the_sharpest_around_a_turn_is_kept():
    images = pan(40, 4, size=(320, 240))
    blurred = {index for index in range(40) if index % 3 == 1}
    chooser, kept = LiveChooser(), []
    for index, image in enumerate(images):
        shown = cv2.GaussianBlur(image, (0, 0), 4) if index in blurred else image
        found = chooser.look(shown, index)
        if found is not None:
            kept.append(found)
    assert not blurred & set(kept)
    assert len(kept) >= 8
    assert np.diff(kept).min() >= 2
    assert chooser.num_blurred >= 10
    assert not chooser.too_fast


def test_a_camera_that_moves_while_blurred_is_too_fast():
    chooser = LiveChooser()
    images = pan(30, 12, size=(320, 240))
    for image in images[:12]:
        chooser.look(image, 0)
    assert not chooser.too_fast
    for image in images[12:]:
        chooser.look(cv2.GaussianBlur(image, (0, 0), 3), 0)
    assert chooser.too_fast


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_preview_draws_over_itself():
    picture = np.tile(np.linspace(0, 255, 320).astype(np.uint8), (240, 1))
    terminal, file = Terminal(), io.StringIO()
    for output in (terminal, file):
        preview = CameraPreview(output)
        preview(LiveState(1, 1, 0, False, picture))
        preview(LiveState(10, 1, 5, False, None))
        preview(LiveState(11, 1, 5, True, None))
    assert file.getvalue() == 'kept 1 of 1 frames, 0 blurred\n'
    text = terminal.getvalue()
    # 48 characters, 18 rows and a line; then up again by as many.
    assert text.count('\x1b[19A') == 2
    assert '  ..' in text
    assert '%%@@' in text
    assert 'move slower' in text
    assert 'too fast' in text
