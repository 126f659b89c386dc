"""`d2s build-map`: from a log to a map."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from d2s_ros.cli.options import add_device, add_source, add_weights, open_input, user_path
from d2s_ros.errors import NothingLocalizedError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_source(parser)
    parser.add_argument(
        '--map', required=True, type=user_path, metavar='MAP', help='map folder to write'
    )
    parser.add_argument(
        '--poses',
        type=user_path,
        metavar='TUM',
        help='stamp tx ty tz qx qy qz qw of map_from_camera; else those the input carries',
    )
    parser.add_argument('--pose-topic', metavar='T', help='topic of poses in the log')
    parser.add_argument(
        '--ignore-poses',
        action='store_true',
        help='do not use the poses that the input carries; the scale is then arbitrary',
    )
    parser.add_argument(
        '--refine-poses',
        action='store_true',
        help='the poses are approximate (odometry): refine them; the frame stays where it is',
    )
    parser.add_argument(
        '--features',
        choices=('rootsift', 'superpoint'),
        default=None,
        help='local features (default: the packaged default)',
    )
    add_weights(parser)
    parser.add_argument(
        '--budget',
        choices=('quick', 'standard', 'full'),
        default='standard',
        help='how long to train (default: standard)',
    )
    parser.add_argument(
        '--head',
        choices=('landmark', 'regression', 'labels'),
        default='landmark',
        help='scene model: landmarks chosen by a network, the regression of the D2S paper, or '
        'labels instead of descriptors (default: landmark)',
    )
    parser.add_argument(
        '--recipe',
        choices=('default', 'paper', 'learned'),
        default='default',
        help='paper: the regression head trained as published, with the steps of the budget; '
        'learned: the same network from random weights, which needs hours (an experiment)',
    )
    parser.add_argument(
        '--steps', type=int, metavar='N', help="training steps instead of the budget's"
    )
    parser.add_argument(
        '--max-minutes', type=float, default=0.0, metavar='M', help='time limit of the training'
    )
    parser.add_argument(
        '--patience',
        type=int,
        metavar='N',
        help='stop training when held-out images have not improved for N evaluations, and keep '
        'the best weights; 0 never stops early',
    )
    parser.add_argument(
        '--max-images', type=int, metavar='N', help="images used, instead of the budget's"
    )
    parser.add_argument(
        '--max-keypoints', type=int, metavar='N', help='keypoints per image (default: 2048)'
    )
    parser.add_argument(
        '--short-keys',
        type=int,
        default=0,
        metavar='N',
        help='a map of about half the size: N principal components of 4 bits stand for a key (16 '
        'for superpoint, 32 for rootsift), and points and covariances are rounded',
    )
    group = parser.add_argument_group('labels', 'with --head labels')
    group.add_argument(
        '--labels', type=int, metavar='K', help='labels of each level, 4 to 256 (default: 64)'
    )
    group.add_argument(
        '--label-levels',
        type=int,
        nargs='+',
        metavar='STRIDE',
        help='strides of the levels in px, the coarsest first (default: 8 4 2)',
    )
    group.add_argument(
        '--label-backbone', metavar='NAME', help='dense features (default: superpoint)'
    )
    parser.add_argument(
        '--without-update-data',
        action='store_true',
        help='do not store what self-supervised updates need',
    )
    parser.add_argument(
        '--fresh',
        action='store_true',
        help='start from the beginning, even if an interrupted build left something to go on from',
    )
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='seed (default: 0)')
    add_device(parser)


def camera_info_path(map_path: str) -> Path:
    """Return where the calibration that a build found is written: beside the map."""
    path = Path(map_path)
    return path.with_name(f'{path.name}.camera_info.yaml')


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
    if given and args.head != 'labels':
        raise UsageError(
            '--labels, --label-levels and --label-backbone are options of --head labels'
        )
    if args.head == 'labels' and args.patience:
        raise UsageError(
            '--patience does not go with --head labels: points get new labels while it trains, so '
            'that its losses cannot be compared; use --steps or --max-minutes'
        )
    return given


def run(args: argparse.Namespace) -> int:
    """Build, write, and say what came out; returns the exit code."""
    from dataclasses import replace

    from d2s_ros import distributed
    from d2s_ros.data.calibration import write_camera_info
    from d2s_ros.features.types import FeatureConfig
    from d2s_ros.map_building.config import budget
    from d2s_ros.map_building.join_build import join_build
    from d2s_ros.map_building.pipeline import build_map

    if distributed.rank() > 0:
        join_build(args.device)
        return 0
    if args.ignore_poses and (args.poses or args.pose_topic):
        raise UsageError('--ignore-poses contradicts --poses and --pose-topic')
    if args.ignore_poses and args.refine_poses:
        raise UsageError('--ignore-poses leaves nothing for --refine-poses')
    features = FeatureConfig()
    if args.features:
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
    config = replace(
        config,
        reconstruction=replace(config.reconstruction, refine_poses=args.refine_poses),
        training=replace(config.training, **limits),
        regression_training=replace(config.regression_training, **limits),
        labels=replace(config.labels, **labels),
        label_training=replace(
            config.label_training,
            **{name: value for name, value in limits.items() if name != 'patience'},
        ),
        short_keys=args.short_keys,
        max_images=config.max_images if args.max_images is None else args.max_images,
        keep_update_data=not args.without_update_data,
    )
    source = open_input(args, poses=args.poses, pose_topic=args.pose_topic, for_mapping=True)
    result = build_map(
        source,
        args.map,
        config,
        device=args.device,
        weights=args.weights,
        use_poses=not args.ignore_poses,
        require_poses=args.poses is not None,
        fresh=args.fresh,
        progress=not args.quiet,
    )
    manifest, metrics = result.scene_map.manifest, result.scene_map.manifest.metrics
    size = result.scene_map.localization_size_bytes() / 1e6
    print(
        f'{args.map}: version {manifest.version}, {metrics["num_images"]} images, '
        f'{result.scene_map.model.summary}, {size:.2f} MB, {metrics["seconds"]["total"]:.0f} s'
    )
    if 'self_calibration' in metrics:
        found, camera = metrics['self_calibration'], manifest.cameras[0]
        path = camera_info_path(args.map)
        # What all images share is not in the residuals: no error bar can be given.
        text = f'focal length {camera.fx:.1f} px, off by {found["focal_sigma_px"]:.1f} px or more'
        write_camera_info(path, camera, comment=f'found by d2s build-map: {text}')
        print(f'calibration found in the images: {text}; {path} is for the driver of the camera')
    if 'refined_poses' in metrics:
        moved = metrics['refined_poses']
        print(
            f'poses refined: they moved by {moved["median_m"]:.4f} m and '
            f'{moved["median_deg"]:.3f} deg in the median'
        )
    unit = 'm' if manifest.metric else 'units'
    useless = metrics['holdout_images'] > 0 and metrics['holdout_localized'] == 0
    if useless:
        print(
            f'held-out images: 0/{metrics["holdout_images"]} localized: do not trust this map. '
            'Are the poses those of the optical frame of the camera (z forward, x right), do they '
            'fit the images, is the calibration right, and was the training long enough?'
        )
    elif metrics['holdout_median_m'] is not None:
        print(
            f'held-out images: {metrics["holdout_localized"]}/{metrics["holdout_images"]} '
            f'localized, median {metrics["holdout_median_m"]:.4f} {unit} '
            f'{metrics["holdout_median_deg"]:.3f} deg, '
            f'inlier share {metrics["holdout_inlier_share"]:.2f}'
        )
    doubtful = metrics.get('doubtful_poses', ())
    if doubtful:
        names = ', '.join(wrong['name'] for wrong in doubtful)
        print(f'poses of {len(doubtful)} images contradict what they show: {names}')
    if not manifest.metric:
        print('no poses were used: the scale and the frame of this map are arbitrary')
    return NothingLocalizedError.exit_code if useless else 0
