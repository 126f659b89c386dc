"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from d2s_ros.data.frames import FrameSource
from d2s_ros.errors import InputError


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add INPUT and the options that say how to read it."""
    parser.add_argument(
        'input',
        metavar='INPUT',
        help='rosbag2 (folder, .mcap or .db3), folder with images/ and a COLMAP text model, or '
        'folder of images with a calibration file',
    )
    add_source_options(parser)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how to read a log."""
    parser.add_argument('--image-list', metavar='FILE', help='names of images to use, one a line')
    parser.add_argument('--image-topic', metavar='T', help='image topic of the log')
    parser.add_argument('--camera-info-topic', metavar='T', help='camera_info topic of the log')
    parser.add_argument('--calibration', metavar='FILE', help='calibration to use instead')
    parser.add_argument(
        '--rectified',
        action='store_true',
        help='the images of the log are rectified: use P of camera_info, without distortion',
    )
    parser.add_argument(
        '--partial', action='store_true', help='read what is there of a log that is cut off'
    )


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
        choices=('auto', 'fp32', 'bf16', 'int8'),
        default='auto',
        help='arithmetic of superpoint (default: auto, int8 where the CPU has VNNI, else fp32); '
        'with fp32, search and network are in float32 too',
    )


def add_weights(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --weights."""
    parser.add_argument('--weights', metavar='FILE', help='weight file of superpoint')


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
) -> FrameSource:
    """Open INPUT as the arguments say."""
    from d2s_ros.data.sources import open_source

    return open_source(
        args.input,
        image_list=args.image_list,
        poses=poses,
        image_topic=args.image_topic,
        camera_info_topic=args.camera_info_topic,
        pose_topic=pose_topic,
        calibration=args.calibration,
        rectified=args.rectified,
        partial=args.partial,
        want_poses=want_poses,
    )
