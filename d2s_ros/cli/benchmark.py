"""`d2s benchmark`: what localizing costs on this computer, stage by stage."""

from __future__ import annotations

import argparse

from d2s_ros.cli.options import (
    add_device,
    add_precision,
    add_source,
    add_weights,
    open_input,
    user_path,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('map', type=user_path, metavar='MAP', help='map folder')
    add_source(parser)
    add_weights(parser)
    add_device(parser)
    add_precision(parser)
    parser.add_argument(
        '--threads', type=int, metavar='N', help='CPU threads (default: all; 0: all but one)'
    )
    parser.add_argument(
        '--frames', type=int, default=50, metavar='N', help='most images used (default: 50)'
    )
    parser.add_argument(
        '--compare',
        choices=('baseline',),
        help='also match against every descriptor of the mapping images (needs update data)',
    )
    parser.add_argument(
        '--database-images',
        type=int,
        default=0,
        metavar='N',
        help='fill the database of --compare up to that of N mapping images',
    )
    parser.add_argument('--json', type=user_path, metavar='OUT.json', help='write all figures')


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, write JSON; returns the exit code.

    Raises:
        UsageError: options that do not fit together.
    """
    import time

    from d2s_ros.cli.localize import write_json
    from d2s_ros.errors import UsageError
    from d2s_ros.evaluation.baseline import MatchingBaseline
    from d2s_ros.evaluation.benchmark import benchmark, table
    from d2s_ros.localization.localizer import Localizer
    from d2s_ros.maps.update_data import MappingData
    from d2s_ros.threads import limit_threads

    if args.frames < 1:
        raise UsageError(f'--frames is {args.frames}, it must be at least 1')
    if args.database_images and args.compare is None:
        raise UsageError('--database-images goes with --compare baseline')
    if args.threads is not None:
        limit_threads(args.threads)
    started = time.perf_counter()
    localizer = Localizer.from_map(
        args.map, device=args.device, weights=args.weights, precision=args.precision
    )
    load_seconds = time.perf_counter() - started
    baseline = None
    if args.compare:
        reconstruction = MappingData.from_map(localizer.scene_map).reconstruction()
        baseline = MatchingBaseline(reconstruction)
        if args.database_images > len(reconstruction.images):
            factor = args.database_images / len(reconstruction.images)
            baseline.fill_up_to(round(factor * baseline.num_descriptors))
    report = benchmark(localizer, open_input(args), limit=args.frames, baseline=baseline)
    report['load_seconds'] = round(load_seconds, 3)
    print(table(report))
    if args.json:
        write_json(args.json, report)
    return 0
