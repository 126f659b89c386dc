"""`d2s calibrate`: the calibration of a camera from pictures of a printed board."""

from __future__ import annotations

import argparse

from d2s_ros.cli.options import check_outputs, user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        'input',
        type=user_path,
        metavar='INPUT',
        help='rosbag2, video or folder of images that show the board from many sides',
    )
    parser.add_argument(
        '--board',
        required=True,
        metavar='BOARD',
        help='checkerboard:8x6:0.025 (inner corners, edge of a square in metres), '
        'charuco:7x5:0.04:0.03 (squares; edges of a square and of a 4x4 marker), or '
        'tags:6x6:0.088:0.026 (AprilTags 36h11 row by row; edge and gap)',
    )
    parser.add_argument(
        '--out', required=True, type=user_path, metavar='YAML', help='camera_info to write'
    )
    parser.add_argument(
        '--model',
        choices=('plumb_bob', 'equidistant'),
        default='plumb_bob',
        help='lens; equidistant for fisheyes (default: plumb_bob)',
    )
    parser.add_argument('--image-topic', metavar='T', help='image topic of the log')


def run(args: argparse.Namespace) -> int:
    """Calibrate, write the file, and say how good it is; returns the exit code."""
    from d2s_ros.data.board_calibration import calibrate_camera, parse_board
    from d2s_ros.data.calibration import write_camera_info
    from d2s_ros.data.sources import LogOptions, open_source

    board = parse_board(args.board)
    check_outputs(args.out)
    source = open_source(
        args.input,
        options=LogOptions(image_topic=args.image_topic),
        want_poses=False,
        for_mapping=True,
    )
    found = calibrate_camera(source, board, model=args.model)
    camera = found.camera
    text = (
        f'focal length {camera.fx:.1f} {camera.fy:.1f} px, error {found.rms_px:.3f} px, '
        f'{found.views} pictures, corners in {found.coverage:.0%} of the image'
    )
    write_camera_info(args.out, camera, comment=f'd2s calibrate: {text}')
    print(f'{args.out}: {text}')
    if found.left_out or found.without_board:
        print(
            f'left out: {found.without_board} pictures without the board, {found.left_out} that '
            'fit badly'
        )
    for advice in found.advice():
        print(advice)
    return 0
