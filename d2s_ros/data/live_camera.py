"""Pictures of a webcam or a network camera, kept as a folder that a map is built from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.video import import_av, small_grey
from d2s_ros.data.video_frames import LiveChooser
from d2s_ros.errors import InputError

#: Seconds that a network camera may take to answer.
_PATIENCE_S = 10.0
_JPEG_QUALITY = 95


@dataclass(frozen=True, eq=False)
class LiveState:
    """What is known after a frame.

    Attributes:
        count: Frames that came.
        kept: Frames that were written.
        blurred: Frames that were too blurred when it was their turn.
        too_fast: The picture has moved far since the last kept frame.
        picture: (H, W) uint8 small picture of the frame that was kept now; None if none was.
    """

    count: int
    kept: int
    blurred: int
    too_fast: bool
    picture: NDArray[np.uint8] | None


def record_camera(
    source: str,
    folder: Path,
    on_frame: Callable[[LiveState], None],
    *,
    seconds: float = 0.0,
) -> int:
    """Write the sharp and well-spaced pictures of a camera until Ctrl-C; return their number.

    Args:
        source: A device, such as /dev/video0, or an address: rtsp, http, tcp and udp.
        folder: To make; pictures are named after their times.
        on_frame: Told after every frame.
        seconds: End after this; 0: never.

    Raises:
        InputError: the camera cannot be opened, or gives no picture, or the folder has some.
        UsageError: PyAV is not installed.
    """
    av = import_av()
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f'{folder} holds an earlier recording: build from it, or move it away')
    chooser, kept = LiveChooser(), 0
    with _opened(av, source) as container:
        if not container.streams.video:
            raise InputError(f'{source} has no video, only other streams')
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        try:
            for picture in container.decode(container.streams.video[0]):
                grey = small_grey(picture)
                # The driver's clock may be any; the map needs times that grow.
                chosen = chooser.look(grey, (time.time_ns(), picture, grey))
                small = None
                if chosen is not None:
                    stamp_ns, frame, small = chosen
                    _write(folder, stamp_ns, frame.to_ndarray(format='bgr24'))
                    kept += 1
                on_frame(
                    LiveState(chooser.count, kept, chooser.num_blurred, chooser.too_fast, small)
                )
                if seconds and time.monotonic() - started > seconds:
                    break
        except KeyboardInterrupt:
            pass
        except av.error.FFmpegError as error:
            if not kept:
                raise InputError(f'{source} gives no picture: {error}') from error
    if not kept:
        raise InputError(f'{source} gave no sharp picture ({chooser.count} frames came)')
    return kept


def _opened(av: Any, source: str) -> Any:
    """Open a device or an address."""
    try:
        if '://' not in source:
            return av.open(source, format='v4l2')
        options = {'rtsp_transport': 'tcp'} if source.startswith('rtsp') else {}
        return av.open(source, options=options, timeout=_PATIENCE_S)
    except (OSError, av.error.FFmpegError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise InputError(
            f'the camera {source} cannot be opened ({reason}): is it plugged in, and may you read '
            'it? `v4l2-ctl --list-devices` lists devices; for an address, try it with a player'
        ) from error


def _write(folder: Path, stamp_ns: int, image: NDArray[np.uint8]) -> None:
    name = f'{stamp_ns // 10**9}.{stamp_ns % 10**9:09d}.jpg'
    if not cv2.imwrite(str(folder / name), image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]):
        raise InputError(f'{folder / name} cannot be written: is the disk full?')
