"""`d2s update-map`: a map updates itself from unlabelled logs."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from d2s_ros.cli.coverage_lines import add_coverage, say_coverage
from d2s_ros.cli.options import (
    add_device,
    add_log_options,
    add_weights,
    check_outputs,
    log_options,
    user_path,
)
from d2s_ros.errors import NothingLocalizedError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('map', type=user_path, metavar='MAP', help='map folder with update data')
    parser.add_argument(
        'logs',
        type=user_path,
        metavar='BAG',
        nargs='+',
        help='rosbag2 log, also one that is cut off; poses in it are not used',
    )
    add_log_options(parser)
    parser.add_argument(
        '--suggest',
        action='store_true',
        help='write what is good enough without making it live',
    )
    parser.add_argument(
        '--dry-run', action='store_true', help='say what would happen, write nothing to the map'
    )
    parser.add_argument(
        '--recipe',
        choices=('verified', 'paper'),
        default='verified',
        help='verified: labels are checked by the pose they imply; paper: labels are copied and '
        'trusted (default: verified)',
    )
    parser.add_argument(
        '--report', type=user_path, metavar='OUT.html', help='what happened to each frame, figures'
    )
    parser.add_argument(
        '--status-file', type=user_path, metavar='FILE', help='JSON, replaced as work goes on'
    )
    parser.add_argument(
        '--work-dir', type=user_path, metavar='DIR', help='where an interrupted run goes on from'
    )
    add_coverage(parser)
    add_weights(parser)
    parser.add_argument('--max-keyframes', type=int, metavar='N', help='most frames of one log')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='seed (default: 0)')
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Update, report, and say the verdict; returns the exit code.

    Raises:
        NothingLocalizedError: after writing the report, if no frame could be used.
    """
    from dataclasses import replace

    from d2s_ros.map_update.config import UpdateConfig
    from d2s_ros.map_update.ledger import write_json_atomically
    from d2s_ros.map_update.pipeline import update_map
    from d2s_ros.map_update.report import write_report
    from d2s_ros.maps.scene_map import SceneMap

    check_outputs(args.report, args.status_file)
    config = UpdateConfig(recipe=args.recipe, seed=args.seed)
    if args.max_keyframes is not None:
        keyframes = replace(config.keyframes, max_keyframes=args.max_keyframes)
        config = replace(config, keyframes=keyframes)

    def tell(status: dict[str, Any]) -> None:
        if args.status_file:
            write_json_atomically(Path(args.status_file), status)

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, end)
    try:
        result = update_map(
            args.map,
            args.logs,
            config,
            log_options=log_options(args),
            dry_run=args.dry_run,
            suggest=args.suggest,
            work_dir=args.work_dir,
            device=args.device,
            weights=args.weights,
            progress=tell,
            show_progress=not args.quiet,
        )
    finally:
        signal.signal(signal.SIGTERM, previous)
    figures = result.figures
    print(
        f'{figures["used"]} frames used, {figures["held_out"]} held out, '
        f'{figures["dropped"]} dropped'
    )
    for reason, count in figures['dropped_reasons'].items():
        print(f'dropped: {count} x {reason}')
    print(f'{args.map}: {result.verdict.replace("_", " ")}; live version {result.version}')
    for reason in result.reasons:
        print(f'  {reason}')
    if result.changes is not None:
        for sentence in result.changes.sentences():
            print(sentence)
        if result.picture is not None:
            print(f'picture: {result.picture}')
    coverage = None
    # What was refused is kept aside and localizes nothing.
    if result.verdict in ('promoted', 'suggested') and not args.no_coverage:
        versions = Path(args.map) / 'versions'
        coverage = say_coverage(SceneMap.open(versions / result.candidate_version))
    if args.report:
        title = f'Update of {Path(args.map).resolve().name}'
        write_report(args.report, result, title, coverage=coverage)
    if result.verdict == 'nothing_usable':
        raise NothingLocalizedError('no frame of the logs could be used; the map is unchanged')
    return 0
