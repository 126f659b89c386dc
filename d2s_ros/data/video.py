"""Frames of a video file, decoded with PyAV; for mapping the sharp and well-spaced ones."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.frames import Frame
from d2s_ros.data.image_folder import fit_camera
from d2s_ros.data.tum import Trajectory, format_stamp, read_tum
from d2s_ros.data.video_frames import FrameChooser
from d2s_ros.errors import InputError, UsageError
from d2s_ros.geometry.cameras import Camera

_logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = ('.mp4', '.mov', '.m4v', '.mkv', '.webm', '.avi', '.mpg', '.mpeg', '.3gp')
#: Frames are chosen by grey images of this width.
_LOOK_WIDTH = 320


def is_video_file(path: Path) -> bool:
    """Return whether a file is named like a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


class VideoSource:
    """A FrameSource over a video file.

    Frames are decoded one at a time while iterating. Their stamps are the presentation times of the
    file, in nanoseconds from its zero; names are the stamps in seconds. As for images, a rotation
    that the file notes is not applied: calibrations hold for the stored pixels.

    Attributes:
        size: Width and height of the frames, px.
        camera_is_guess: Whether `camera` is a first guess that mapping must refine.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        camera: Camera | None = None,
        poses: str | os.PathLike[str] | None = None,
        *,
        choose: bool = False,
        partial: bool = False,
    ) -> None:
        """Open the file and look whether it can be read to its end.

        Args:
            path: The video.
            camera: Calibration, at any size of the frames' aspect.
            poses: TUM file of map_from_camera by the stamps of the frames.
            choose: Only sharp frames with enough motion between them, as mapping wants them.
            partial: Read what is there of a file that is cut off.

        Raises:
            InputError: the file is no video, holds none, or is cut off.
            UsageError: PyAV is not installed.
        """
        self._path = Path(path)
        self.camera_is_guess = False
        self._camera = camera
        self._choose = choose
        self._poses: Trajectory | None = None if poses is None else read_tum(poses)
        self._chosen: list[int] | None = None
        with self._opened() as (container, stream):
            self.size = (int(stream.width), int(stream.height))
            expected, damaged = int(stream.frames or 0), False
            self._count, end = 0, 0.0
            try:
                for packet in container.demux(stream):
                    self._count += packet.size > 0
                    damaged |= bool(packet.is_corrupt)
                    if packet.pts is not None and packet.time_base is not None:
                        end = max(end, float(packet.pts * packet.time_base))
            except import_av().error.FFmpegError:
                damaged = True
            # The duration is in microseconds; sound may last a little longer than the pictures.
            duration = (container.duration or 0) / 1e6
            damaged |= not expected and end < 0.9 * duration - 0.3
        if not self._count:
            raise InputError(f'{path} holds no frame of a video; record it again')
        if (damaged or self._count < expected) and not partial:
            raise InputError(
                f'{path} is cut off or damaged: {self._count} of {expected or "its"} frames are '
                'there; copy it again, or use what there is with --partial'
            )

    def guess_camera(self, camera: Camera) -> None:
        """Use a first guess of the calibration, which mapping must refine."""
        self._camera, self.camera_is_guess = camera, True

    def __len__(self) -> int:
        return len(self._chosen_frames()) if self._choose else self._count

    def __iter__(self) -> Iterator[Frame]:
        wanted = set(self._chosen_frames()) if self._choose else None
        for index, (stamp_ns, picture) in enumerate(self._decoded()):
            if wanted is not None and index not in wanted:
                continue
            image = picture.to_ndarray(format='bgr24')
            camera, error = None, 'the video has no calibration; give one with --calibration'
            if self._camera is not None:
                camera, error = fit_camera(self._camera, image.shape[1], image.shape[0])
            pose = None if self._poses is None else self._poses.at(stamp_ns)
            yield Frame(format_stamp(stamp_ns), stamp_ns, image, camera, pose, error)

    def _chosen_frames(self) -> list[int]:
        """Return the numbers of the frames for mapping; they are chosen once."""
        if self._chosen is None:
            chooser = FrameChooser()
            for _stamp, picture in self._decoded():
                chooser.look(small_grey(picture))
            self._chosen = chooser.choose()
            _logger.warning(
                '%s: %d of %d frames are used: sharp, and with motion between them (%d are blurred '
                'beside their neighbours)',
                self._path,
                len(self._chosen),
                chooser.count,
                chooser.num_blurred,
            )
        return self._chosen

    def _decoded(self) -> Iterator[tuple[int, Any]]:
        """Yield stamp and picture of each frame; the end of a file that is cut off is the end."""
        last = -1
        with self._opened() as (container, stream):
            stream.thread_type = 'AUTO'
            try:
                for picture in container.decode(stream):
                    if picture.time is None:
                        # Streams without times: the frame rate tells them.
                        rate = stream.average_rate or 30
                        stamp_ns = last + round(1e9 / float(rate))
                    else:
                        stamp_ns = round(picture.time * 1_000_000_000)
                    last = max(stamp_ns, last + 1)
                    yield last, picture
            except import_av().error.FFmpegError as error:
                _logger.warning('%s: reading ends early: %s', self._path, error)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        av = import_av()
        try:
            container = av.open(str(self._path), metadata_errors='replace')
        except (OSError, av.error.FFmpegError) as error:
            reason = getattr(error, 'strerror', None) or error
            raise InputError(
                f'{self._path} cannot be read as a video ({reason}); if the recording was cut off, '
                'its index is missing: repair it, or record again'
            ) from error
        with container:
            attached = av.stream.Disposition.attached_pic
            streams = [
                stream for stream in container.streams.video if not stream.disposition & attached
            ]
            if not streams:
                raise InputError(f'{self._path} holds no video, only other streams')
            yield container, streams[0]


def import_av() -> Any:
    """Return PyAV.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UsageError(
            "videos are read with PyAV, which is not installed: pip install 'd2s_ros[video]' "
            '(or av)'
        ) from error
    # What the decoder says of damage comes as errors; its log would tell it a second time.
    av.logging.set_level(None)
    return av


def small_grey(picture: Any) -> NDArray[np.uint8]:
    """Return the (H, W) uint8 grey picture that frames are chosen by."""
    width = min(_LOOK_WIDTH, picture.width)
    height = max(1, round(picture.height * width / picture.width))
    grey = picture.to_ndarray(format='gray')
    return np.asarray(cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
