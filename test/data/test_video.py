"""Video files: stamps, the frames that mapping takes, and what is said of files that do not do."""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest
from data.video_writing import cut, pan, write_video

from d2s_ros.data.sources import LogOptions, open_source
from d2s_ros.data.video import VideoSource
from d2s_ros.data.video_frames import FrameChooser
from d2s_ros.errors import InputError, UsageError
from d2s_ros.geometry.cameras import Camera

pytest.importorskip('av', reason='PyAV is not installed')
CAMERA = Camera('pinhole', 160, 120, 115.0, 115.0, 80.0, 59.0)


@pytest.fixture(scope='module')
def images():
    return pan(24, 4)


@pytest.fixture(scope='module')
def video(images, tmp_path_factory):
    return write_video(tmp_path_factory.mktemp('video') / 'room.mp4', images)


def test_frames_have_pictures_stamps_and_camera(video, images, tmp_path):
    calibration = tmp_path / 'camera.json'
    calibration.write_text(json.dumps(CAMERA.resized(320, 240).to_dict()))
    source = open_source(video, options=LogOptions(calibration=str(calibration)))
    frames = list(source)
    assert len(source) == len(frames) == 24
    assert [frame.stamp_ns for frame in frames] == [100_000_000 * index for index in range(24)]
    assert frames[3].name == '0.300000000'
    assert frames[0].camera == CAMERA
    for frame, image in zip(frames, images, strict=True):
        difference = cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY).astype(float) - image
        assert np.abs(difference).mean() < 6


def test_without_calibration_the_frame_says_so(video):
    frame = next(iter(open_source(video)))
    assert frame.camera is None
    assert '--calibration' in frame.error


def test_mapping_takes_spaced_frames(tmp_path):
    """2 px of 160 a frame: every second frame moves the picture by 2.5 %."""
    video = write_video(tmp_path / 'slow.mp4', pan(24, 2))
    source = open_source(video, for_mapping=True)
    frames = list(source)
    assert len(frames) == len(source)
    assert 10 <= len(frames) <= 14
    gaps = np.diff([frame.stamp_ns for frame in frames])
    assert gaps.min() >= 100_000_000
    assert gaps.max() <= 300_000_000


def test_a_camera_that_stands_still_gives_one_frame(images, tmp_path):
    source = VideoSource(write_video(tmp_path / 'still.mp4', images[:1] * 10), choose=True)
    assert len(list(source)) == 1


def test_blurred_frames_are_left_out():
    pictures = pan(40, 2)
    blurred = set(range(5, 40, 6)) | set(range(20, 24))
    chooser = FrameChooser()
    for index, picture in enumerate(pictures):
        chooser.look(cv2.blur(picture, (9, 1)) if index in blurred else picture)
    chosen = chooser.choose()
    assert not blurred & set(chosen)
    assert chooser.num_blurred == len(blurred)
    assert len(chosen) >= 8


@pytest.mark.parametrize(('name', 'options'), [('a.mp4', {'movflags': 'faststart'}), ('a.mkv', {})])
def test_files_that_are_cut_off(images, tmp_path, name, options):
    short = cut(write_video(tmp_path / name, images, **options))
    with pytest.raises(InputError, match='cut off or damaged'):
        open_source(short)
    assert 8 <= len(list(open_source(short, partial=True))) < 24


def test_a_recording_without_its_index(video):
    with pytest.raises(InputError, match='index is missing'):
        open_source(cut(video), partial=True)


def test_files_without_video(tmp_path):
    import av

    sound = tmp_path / 'sound.mp4'
    with av.open(str(sound), 'w') as container:
        stream = container.add_stream('aac', rate=48000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), 'fltp', 'mono')
        samples.sample_rate = 48000
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match='holds no video'):
        open_source(sound)
    text = tmp_path / 'text.mp4'
    text.write_text('no video at all')
    with pytest.raises(InputError, match='cannot be read as a video'):
        open_source(text)


def test_without_pyav_the_extra_is_named(video, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(UsageError, match=r'd2s_ros\[video\]'):
        open_source(video)


@pytest.mark.parametrize(
    'arguments',
    [
        {'options': LogOptions(image_topic='/image')},
        {'options': LogOptions(rectified=True)},
        {'pose_topic': '/tf'},
    ],
)
def test_options_that_do_not_fit(video, arguments):
    with pytest.raises(UsageError):
        open_source(video, **arguments)
