"""What the options of `d2s build-map` ask for, and which of them contradict each other."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2s_ros.cli.options import user_path
from d2s_ros.errors import InputError, UsageError

if TYPE_CHECKING:
    from d2s_ros.map_building.config import BuildConfig


def add_mapping_options(parser: argparse.ArgumentParser) -> None:
    """Add how poses are found by the images alone."""
    parser.add_argument(
        '--align-poses',
        action='store_true',
        help='the poses drift (odometry): find poses by the images alone, and take scale, up and '
        'frame from those given',
    )
    parser.add_argument(
        '--next-images',
        type=int,
        metavar='N',
        help='match each image with the N that follow and not with those that look alike: for a '
        'walk through places that repeat (floors, hallways)',
    )
    parser.add_argument(
        '--global-mapping',
        action='store_true',
        help='without poses: place all images at once instead of one after the other, for a '
        'camera that moves straight ahead through hallways; not for walks of a few rooms',
    )


def check_options(args: argparse.Namespace) -> None:
    """Check options that contradict each other.

    Raises:
        UsageError: two do.
    """
    if args.ignore_poses and (args.poses or args.pose_topic):
        raise UsageError('--ignore-poses contradicts --poses and --pose-topic')
    if args.ignore_poses and args.refine_poses:
        raise UsageError('--ignore-poses leaves nothing for --refine-poses')
    if args.align_poses and (args.refine_poses or args.ignore_poses):
        raise UsageError('--align-poses contradicts --refine-poses and --ignore-poses')
    if args.next_images is not None and args.next_images < 1:
        raise UsageError('--next-images is at least 1')
    several = bool(args.place) or args.each_folder
    if args.camera is not None and (several or args.input is not None):
        raise UsageError('--camera is instead of INPUT and --place')
    if args.camera is None and args.camera_seconds:
        raise UsageError('--camera-seconds is for --camera')
    if not several:
        if args.input is None and args.camera is None:
            raise UsageError('give INPUT, a --camera, or places with --place NAME=INPUT')
        if args.common_frame:
            raise UsageError('--common-frame is for several places, see --place')
        return
    if args.place and args.each_folder:
        raise UsageError('give either --place or --each-folder')
    if args.each_folder and args.input is None:
        raise UsageError('--each-folder needs INPUT, the folder whose folders are places')
    if args.place and args.input is not None:
        raise UsageError('with --place, every INPUT is given as --place NAME=INPUT')
    if args.poses or args.image_list:
        raise UsageError('--poses and --image-list are of one input: build such places one by one')
    if args.common_frame and args.ignore_poses:
        raise UsageError('--common-frame needs the poses that --ignore-poses leaves out')


def places_of(args: argparse.Namespace) -> dict[str, str] | None:
    """Return the inputs of an area by the names of their places; None for one map.

    Raises:
        UsageError: a place without a name or an input, or given twice.
        InputError: --each-folder finds no folders.
    """
    from d2s_ros.maps.area import check_place_name

    if args.each_folder:
        root = Path(args.input)
        folders = sorted(root.iterdir()) if root.is_dir() else []
        found = {
            check_place_name(folder.name): str(folder)
            for folder in folders
            if folder.is_dir() and not folder.name.startswith('.')
        }
        if not found:
            raise InputError(f'{root} has no folders: --each-folder takes one for each place')
        return found
    if not args.place:
        return None
    inputs: dict[str, str] = {}
    for text in args.place:
        name, separator, source = text.partition('=')
        if not separator or not source:
            raise UsageError(f'--place is NAME=INPUT, found {text!r}')
        if check_place_name(name) in inputs:
            raise UsageError(f'place {name} is given twice')
        inputs[name] = user_path(source)
    return inputs


def config_of(args: argparse.Namespace) -> BuildConfig:
    """Return the options of the build."""
    from dataclasses import replace

    from d2s_ros.features.types import FeatureConfig
    from d2s_ros.map_building.config import budget
    from d2s_ros.map_building.placement import PlacementConfig

    features, compared, reason = FeatureConfig(), False, ''
    if args.features == 'auto':
        reason = _why_not_compared(args)
        compared = not reason
    else:
        features = replace(features, name=args.features)
    if args.max_keypoints is not None:
        features = replace(features, max_keypoints=args.max_keypoints)
    labels = label_shape(args)
    config = budget(
        args.budget, features=features, head=args.head, recipe=args.recipe, seed=args.seed
    )
    limits: dict[str, Any] = {'max_minutes': args.max_minutes}
    if args.steps is not None:
        limits['steps'] = args.steps
    if args.patience is not None:
        limits['patience'] = args.patience
    of_labels = {name: value for name, value in limits.items() if name != 'patience'}
    return replace(
        config,
        compare_features=compared,
        features_reason=reason,
        reconstruction=replace(
            config.reconstruction,
            refine_poses=args.refine_poses,
            next_images=args.next_images or 0,
            global_mapping=args.global_mapping,
        ),
        placement=PlacementConfig(
            align_poses=args.align_poses,
            use_depth=not args.no_depth,
            tag_size=args.tag_size,
            tag_family=args.tag_family,
            origin=args.origin,
        ),
        training=replace(config.training, **limits),
        regression_training=replace(config.regression_training, **limits),
        labels=replace(config.labels, **labels),
        label_training=replace(config.label_training, **of_labels),
        label_paper=replace(config.label_paper, **of_labels),
        max_label_points=args.label_points or config.max_label_points,
        short_keys=args.short_keys,
        max_images=config.max_images if args.max_images is None else args.max_images,
        keep_update_data=not args.without_update_data,
        keep_colours=args.keep_colours,
    )


def of_places(config: BuildConfig, features: str) -> BuildConfig:
    """Return the options of further places of an area: all have the same features."""
    from dataclasses import replace

    if not (config.compare_features or config.features_reason):
        return config
    return replace(
        config,
        features=replace(config.features, name=features),
        compare_features=False,
        features_reason='as in the other places of the area',
    )


def with_features_of_area(config: BuildConfig, path: str) -> BuildConfig:
    """Return options with the features of an area, if there is one at the path."""
    from d2s_ros.maps.area import is_area, read_area
    from d2s_ros.maps.files import version_folder
    from d2s_ros.maps.manifest import read_manifest

    if not is_area(path):
        return config
    area = read_area(path)
    first = area.folder(next(iter(area.places)))
    return of_places(config, read_manifest(version_folder(first)).features.name)


def _why_not_compared(args: argparse.Namespace) -> str:
    """Return why `--features auto` compares nothing; empty where it does."""
    from d2s_ros import distributed

    if args.budget == 'quick':
        return 'the budget quick compares none'
    if args.head != 'landmark' or args.recipe != 'default':
        return 'compared for landmark maps only'
    return 'several processes compare none' if distributed.world() > 1 else ''


def label_shape(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `LabelConfig` that were given.

    Raises:
        UsageError: an option does not go with the head.
    """
    given = {
        'num_labels': args.labels,
        'levels': None if args.label_levels is None else tuple(args.label_levels),
        'backbone': args.label_backbone,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if (given or args.label_points) and args.head != 'labels':
        raise UsageError(
            '--labels, --label-levels, --label-points and --label-backbone are options of '
            '--head labels'
        )
    if args.head == 'labels' and args.recipe == 'learned':
        raise UsageError(
            '--recipe learned is of the regression head; labels have default and paper'
        )
    if args.head == 'labels' and args.patience:
        raise UsageError(
            '--patience does not go with --head labels: points get new labels while it trains, so '
            'that its losses cannot be compared; use --steps or --max-minutes'
        )
    return given
