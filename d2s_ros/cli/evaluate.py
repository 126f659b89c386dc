"""`d2s evaluate`: errors of a trajectory, or of a map with table and pictures."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from d2s_ros.cli.options import add_device, add_source_options, add_weights, open_input, user_path
from d2s_ros.errors import InputError, NothingLocalizedError, UsageError

if TYPE_CHECKING:
    from d2s_ros.data.frames import FrameSource
    from d2s_ros.evaluation.baseline import MatchingBaseline
    from d2s_ros.localization.localizer import Localizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        'OUT.txt TRUTH.txt: print the errors of a trajectory. '
        'MAP QUERIES --output DIR: localize queries with known poses, and write a table, curves of '
        'cumulative errors, trajectory and reliability maps.'
    )
    parser.add_argument(
        'estimate', type=user_path, metavar='OUT.txt|MAP', help='TUM trajectory, or map folder'
    )
    parser.add_argument(
        'reference',
        type=user_path,
        metavar='TRUTH.txt|QUERIES',
        help='TUM trajectory of the truth, or log or folder of query images',
    )
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    parser.add_argument(
        '--max-difference',
        type=float,
        default=0.001,
        metavar='S',
        help='stamps this close are of one frame [s] (default: 0.001)',
    )
    maps = parser.add_argument_group('maps')
    maps.add_argument(
        '--output', type=user_path, metavar='DIR', help='folder of table and pictures'
    )
    maps.add_argument(
        '--truth',
        type=user_path,
        metavar='TUM',
        help='true poses of the queries; else those they come with',
    )
    maps.add_argument(
        '--compare',
        type=user_path,
        metavar='MAPPING',
        help='the log the map was made from: compare with matching its whole database',
    )
    maps.add_argument('--mapping-poses', type=user_path, metavar='TUM', help='poses of MAPPING')
    maps.add_argument(
        '--mapping-list', type=user_path, metavar='FILE', help='names of the images of MAPPING'
    )
    maps.add_argument(
        '--pictures', type=int, default=4, metavar='N', help='reliability maps (default: 4)'
    )
    add_weights(maps)
    add_source_options(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Print errors and recalls; returns the exit code."""
    if Path(args.estimate).is_dir():
        return _evaluate_map(args)
    if args.output or args.compare:
        raise InputError(f'{args.estimate} is not a map folder; --output and --compare need one')
    from d2s_ros.data.tum import read_tum
    from d2s_ros.evaluation.metrics import evaluate_trajectory

    estimate, truth = read_tum(args.estimate), read_tum(args.reference)
    metrics = evaluate_trajectory(
        dict(zip(map(int, estimate.stamps_ns), estimate.poses, strict=True)),
        dict(zip(map(int, truth.stamps_ns), truth.poses, strict=True)),
        max_difference_ns=round(args.max_difference * 1e9),
    )
    print(json.dumps(metrics.to_dict(), indent=1) if args.json else metrics.table())
    return 0


def _evaluate_map(args: argparse.Namespace) -> int:
    from d2s_ros.data.sources import open_source
    from d2s_ros.evaluation.map_evaluation import (
        OURS,
        evaluate_map,
        markdown_table,
        write_report,
    )
    from d2s_ros.localization.localizer import Localizer

    if args.output is None:
        raise UsageError('give --output DIR, the folder of the table and the pictures')
    if (args.mapping_poses or args.mapping_list) and not args.compare:
        raise UsageError('--mapping-poses and --mapping-list need --compare')
    localizer = Localizer.from_map(args.estimate, device=args.device, weights=args.weights)
    if args.compare and not localizer.scene_map.manifest.metric:
        raise UsageError(
            'this map was built without poses: its frame cannot be made again to compare with'
        )
    args.input = args.reference
    queries = open_input(args, poses=args.truth)
    baseline, seconds = None, None
    if args.compare:
        mapping = open_source(args.compare, image_list=args.mapping_list, poses=args.mapping_poses)
        started = time.monotonic()
        baseline = _make_baseline(localizer, mapping, not args.quiet)
        seconds = time.monotonic() - started
    evaluation = evaluate_map(
        localizer,
        queries,
        baseline=baseline,
        baseline_seconds=seconds,
        pictures=args.pictures,
        progress=not args.quiet,
    )
    methods = write_report(
        evaluation,
        Path(args.output),
        title=f'{Path(args.estimate).name}: {len(evaluation.outcomes)} queries',
        points_in_map=localizer.scene_map.model.points_in_map + localizer.scene_map.origin,
    )
    if args.json:
        print(json.dumps(methods, indent=1))
    else:
        print(markdown_table(methods, evaluation.unit), end='')
        print(f'pictures and page: {args.output}')
    if evaluation.without_truth:
        print(f'without truth: {evaluation.without_truth} queries')
    if not methods[OURS]['num_localized']:
        raise NothingLocalizedError('nothing could be localized; is this the mapped place?')
    return 0


def _make_baseline(localizer: Localizer, mapping: FrameSource, progress: bool) -> MatchingBaseline:
    """Map the log again as the map was, up to the points, and keep all descriptors."""
    from d2s_ros.config import from_dict
    from d2s_ros.evaluation.baseline import MatchingBaseline
    from d2s_ros.map_building.config import BuildConfig
    from d2s_ros.map_building.images import collect_images
    from d2s_ros.reconstruction.pipeline import reconstruct

    manifest = localizer.scene_map.manifest
    config = from_dict(BuildConfig, manifest.build)
    images, _ = collect_images(
        mapping, localizer.extractor, config, use_poses=manifest.metric, progress=progress
    )
    return MatchingBaseline(reconstruct(images, config.reconstruction, progress=progress))
