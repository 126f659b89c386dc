"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from d2s_ros.errors import InputError

if TYPE_CHECKING:
    from d2s_ros.data.frames import FrameSource
    from d2s_ros.data.sources import LogOptions
    from d2s_ros.geometry.cameras import Camera


def add_source(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add INPUT and the options that say how to read it."""
    parser.add_argument(
        'input',
        nargs='?' if optional else None,
        type=user_path,
        metavar='INPUT',
        help='rosbag2 (folder, .mcap or .db3), video (.mp4 and others), folder with images/ and a '
        'COLMAP text model, or folder of images with a calibration file',
    )
    add_source_options(parser)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how to read one input."""
    parser.add_argument(
        '--image-list', type=user_path, metavar='FILE', help='names of images to use, one a line'
    )
    add_log_options(parser)
    parser.add_argument(
        '--partial', action='store_true', help='read what is there of a log that is cut off'
    )


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of LogOptions."""
    parser.add_argument('--image-topic', metavar='T', help='image topic of the log')
    parser.add_argument('--camera-info-topic', metavar='T', help='camera_info topic of the log')
    parser.add_argument(
        '--calibration', type=user_path, metavar='FILE', help='calibration to use instead'
    )
    parser.add_argument(
        '--rectified',
        action='store_true',
        help='the images of the log are rectified: use P of camera_info, without distortion',
    )


def log_options(args: argparse.Namespace) -> LogOptions:
    """Return what the options of `add_log_options` say."""
    from d2s_ros.data.sources import LogOptions

    return LogOptions(args.image_topic, args.camera_info_topic, args.calibration, args.rectified)


def user_path(text: str) -> str:
    """Return a path with ~ as the home folder; a shell expands it only where a word begins."""
    return os.path.expanduser(text)


def user_file(text: str) -> Path:
    """Return `user_path` of a text as a Path."""
    return Path(user_path(text))


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument(
        '--device',
        choices=('auto', 'cpu', 'cuda'),
        default='auto',
        help='where networks run (default: auto)',
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add --precision."""
    parser.add_argument(
        '--precision',
        choices=('auto', 'fp32', 'int8'),
        default='auto',
        help='arithmetic of superpoint (default: auto, int8 where the CPU has VNNI, else '
        'the compiled network in float32); '
        'with fp32, search and network are in float32 too',
    )


def add_weights(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --weights."""
    parser.add_argument(
        '--weights',
        type=user_path,
        metavar='FILE',
        help='weight file of superpoint, aliked or xfeat; superpoint and xfeat have one of their '
        'own',
    )


def check_outputs(*paths: str | None) -> None:
    """Refuse files to write whose folder does not exist, before any work is done.

    Raises:
        InputError: a folder is missing.
    """
    for path in paths:
        if path and not Path(path).resolve().parent.is_dir():
            raise InputError(f'the folder of {path} does not exist; make it first')


def open_input(
    args: argparse.Namespace,
    *,
    poses: str | None = None,
    pose_topic: str | None = None,
    want_poses: bool = True,
    for_mapping: bool = False,
    fallback: Camera | None = None,
) -> FrameSource:
    """Open INPUT as the arguments say; see `open_source`."""
    from d2s_ros.data.sources import open_source

    return open_source(
        args.input,
        image_list=args.image_list,
        poses=poses,
        pose_topic=pose_topic,
        options=log_options(args),
        partial=args.partial,
        want_poses=want_poses,
        for_mapping=for_mapping,
        fallback=fallback,
    )
