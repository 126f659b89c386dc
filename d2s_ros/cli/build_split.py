"""`d2s build-map --images-per-place`: one log as an area of several maps."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from d2s_ros.errors import InputError, UsageError

if TYPE_CHECKING:
    from d2s_ros.data.frames import FrameSource
    from d2s_ros.map_building.config import BuildConfig
    from d2s_ros.map_building.tasks import TaskRunner
    from d2s_ros.maps.scene_map import SceneMap


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of builds that are divided."""
    group = parser.add_argument_group('large logs')
    group.add_argument(
        '--images-per-place',
        type=int,
        metavar='N',
        help='split the log into overlapping maps of about N images in one frame: MAP is then an '
        'area. All images are used unless --max-images is given; --features auto is rootsift',
    )
    group.add_argument(
        '--processes',
        type=int,
        metavar='N',
        help='with --images-per-place: processes of this machine (default: one for each core)',
    )
    group.add_argument(
        '--cluster',
        metavar='ADDRESS',
        help='with --images-per-place: build on a cluster of Ray, auto for the one that this '
        'machine belongs to, or its HOST:PORT',
    )


def check_split_options(args: argparse.Namespace) -> None:
    """Check the options of builds that are divided.

    Raises:
        UsageError: they contradict each other.
    """
    if args.images_per_place is None:
        for name in ('processes', 'cluster'):
            if getattr(args, name) is not None:
                raise UsageError(f'--{name} is for builds with --images-per-place')
        return
    if args.place or args.each_folder:
        raise UsageError('--images-per-place splits one INPUT: leave out --place and --each-folder')
    if args.cluster is not None and args.processes is not None:
        raise UsageError('give either --processes or --cluster')
    if args.processes is not None and args.processes < 1:
        raise UsageError(f'--processes is {args.processes}, expected at least 1')
    if args.head != 'landmark':
        raise UsageError(
            '--images-per-place makes maps of landmarks: leave out --head and --recipe'
        )


def build_split(
    args: argparse.Namespace,
    source: FrameSource,
    config: BuildConfig,
    say: Callable[[str, SceneMap], int],
) -> int:
    """Build the area; returns the exit code.

    Args:
        args: Of the command.
        source: The log.
        config: Options of the maps.
        say: Tells what came out, given the folder of a map.
    """
    import sys
    from dataclasses import replace

    from d2s_ros.map_building.split_building import build_split_area
    from d2s_ros.map_building.splitting import SplitConfig
    from d2s_ros.maps.files import PLACES_FOLDER

    split = SplitConfig(images_per_place=args.images_per_place)
    if config.compare_features or config.features_reason:
        config = replace(
            config,
            features=replace(config.features, name='rootsift'),
            compare_features=False,
            features_reason='builds of several maps compare none',
        )
    if args.max_images is None:
        config = replace(config, max_images=sys.maxsize)
    codes = []

    def built(name: str, scene_map: SceneMap) -> None:
        codes.append(say(f'{args.map}/{PLACES_FOLDER}/{name}', scene_map))

    with _runner(args) as runner:
        area, failed = build_split_area(
            source,
            args.map,
            config,
            split,
            runner,
            device=args.device,
            weights=args.weights,
            use_poses=not args.ignore_poses,
            require_poses=args.poses is not None,
            fresh=args.fresh,
            progress=not args.quiet,
            on_built=built,
        )
    print(f'{args.map}: area of {len(area.places)} places in the frame {area.frame}')
    if failed:
        reasons = '; '.join(f'{name}: {reason}' for name, reason in failed.items())
        raise InputError(f'{len(failed)} parts of the log could not be built: {reasons}')
    return max(codes)


def _runner(args: argparse.Namespace) -> TaskRunner:
    from d2s_ros.map_building.cluster import RayRunner
    from d2s_ros.map_building.tasks import LocalRunner

    if args.cluster is not None:
        return RayRunner(args.cluster, use_gpu=args.device == 'cuda')
    return LocalRunner(args.processes or 0)
