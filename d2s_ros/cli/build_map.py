"""`d2s build-map`: from a log to a map."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from d2s_ros.cli.build_options import (
    add_mapping_options,
    check_options,
    config_of,
    of_places,
    places_of,
    with_features_of_area,
)
from d2s_ros.cli.build_split import add_split_arguments, build_split, check_split_options
from d2s_ros.cli.coverage_lines import add_coverage, say_coverage
from d2s_ros.cli.options import add_device, add_source, add_weights, open_input, user_path
from d2s_ros.errors import InputError, NothingLocalizedError, UsageError
from d2s_ros.features.types import FEATURES

if TYPE_CHECKING:
    from d2s_ros.map_building.pipeline import BuildResult
    from d2s_ros.maps.scene_map import SceneMap


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_source(parser, optional=True)
    parser.add_argument(
        '--camera',
        metavar='DEVICE',
        help='instead of INPUT: a webcam (/dev/video0) or network camera (rtsp://...); sharp '
        'pictures with motion between them are kept in MAP.recording until Ctrl-C, then the map is '
        'built of them',
    )
    parser.add_argument(
        '--camera-seconds',
        type=float,
        default=0.0,
        metavar='S',
        help='with --camera: end by itself',
    )
    parser.add_argument(
        '--map',
        required=True,
        type=user_path,
        metavar='MAP',
        help='map folder to write; of several places the folder of the area',
    )
    parser.add_argument(
        '--place',
        action='append',
        default=[],
        metavar='NAME=INPUT',
        help='build the map of one place of an area, such as a floor; give it once for each '
        'place. Places that the area has already stay as they are',
    )
    parser.add_argument(
        '--each-folder',
        action='store_true',
        help='every folder in INPUT is a place of an area, named like the folder',
    )
    parser.add_argument(
        '--common-frame',
        action='store_true',
        help='the poses of all places are in one frame, and so will be those of the area; '
        'otherwise each place has a frame of its own',
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
    add_mapping_options(parser)
    parser.add_argument(
        '--tag-size',
        type=float,
        default=0.0,
        metavar='M',
        help='edge of the black square of printed tags in the images, metres: tells the scale',
    )
    parser.add_argument(
        '--tag-family',
        default='36h11',
        metavar='F',
        help='kind of the tags: AprilTag 36h11, 25h9, 16h5, or ArUco 4x4_50, 5x5_100, 6x6_250 '
        '(default: 36h11)',
    )
    parser.add_argument(
        '--origin',
        default='',
        metavar='tag:ID',
        help='the middle of a tag as origin, z up; x points out of a wall, or to the right of a '
        'tag that lies flat',
    )
    parser.add_argument(
        '--no-depth',
        action='store_true',
        help='without poses: do not take the scale from depth images of the log',
    )
    parser.add_argument(
        '--features',
        choices=('auto', *FEATURES),
        default='auto',
        help='local features. auto compares both on images of the log that are left out, as '
        'taken, dark and blurred, and takes what places clearly more, else superpoint unless '
        'rootsift is clearly more exact; it nearly doubles the time of a build. Nothing is '
        'compared, and auto is rootsift, for logs without poses or of more than 120 images, the '
        'budget quick, other heads '
        'than landmark and several processes. aliked (with --weights) and xfeat are there to '
        'compare with: docs/research/features.md (default: auto)',
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
        help='paper: the regression head of D2S, or with --head labels the labels of SegLoc, '
        'trained as published, with the steps of the budget; learned: the regression head from '
        'random weights, which needs hours (an experiment)',
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
        '--label-points',
        type=int,
        metavar='N',
        help='points with labels at most (default: 12288); fewer give less of the place away',
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
        '--keep-colours',
        action='store_true',
        help='store the colour of each point with the update data, 3 bytes each: d2s view shows '
        'the place in its colours, and so can others who get the map',
    )
    add_coverage(parser)
    parser.add_argument(
        '--fresh',
        action='store_true',
        help='start from the beginning, even if an interrupted build left something to go on from',
    )
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='seed (default: 0)')
    add_split_arguments(parser)
    add_device(parser)


def camera_info_path(map_path: str | Path) -> Path:
    """Return where the calibration that a build found is written: beside the map."""
    path = Path(map_path)
    return path.with_name(f'{path.name}.camera_info.yaml')


def run(args: argparse.Namespace) -> int:
    """Build, write, and say what came out; returns the exit code."""
    from d2s_ros import distributed
    from d2s_ros.map_building.join_build import join_build
    from d2s_ros.map_building.pipeline import build_map

    check_options(args)
    check_split_options(args)
    if args.camera is not None:
        args.input = record(args.camera, args.map, args.camera_seconds)
    if distributed.world() > 1 and (args.place or args.each_folder):
        raise UsageError('several processes build one map at a time: start torchrun for each place')
    if distributed.rank() > 0:
        join_build(args.device)
        return 0
    inputs = places_of(args)
    config = config_of(args)
    if inputs is not None and args.features == 'auto':
        config = with_features_of_area(config, args.map)

    def build(path: str | Path, source_path: str) -> BuildResult:
        nonlocal config
        args.input = source_path
        source = open_input(args, poses=args.poses, pose_topic=args.pose_topic, for_mapping=True)
        result = build_map(
            source,
            path,
            config,
            device=args.device,
            weights=args.weights,
            use_poses=not args.ignore_poses,
            require_poses=args.poses is not None,
            fresh=args.fresh,
            progress=not args.quiet,
        )
        config = of_places(config, result.scene_map.manifest.features.name)
        return result

    if args.images_per_place is not None:
        source = open_input(args, poses=args.poses, pose_topic=args.pose_topic, for_mapping=True)
        say = partial(say_result, coverage=not args.no_coverage)
        return build_split(args, source, config, say)
    if inputs is None:
        found = build(args.map, args.input).scene_map
        return say_result(args.map, found, coverage=not args.no_coverage)
    return _build_places(args, inputs, build)


def record(camera: str, map_path: str | Path, seconds: float) -> str:
    """Keep pictures of a camera beside the map; returns the folder."""
    from d2s_ros.cli.camera_preview import CameraPreview
    from d2s_ros.data.live_camera import record_camera

    path = Path(map_path)
    folder = path.with_name(f'{path.name}.recording')
    kept = record_camera(camera, folder, CameraPreview(), seconds=seconds)
    print(f'{folder}: {kept} pictures; the map is built of them', flush=True)
    return str(folder)


def _build_places(
    args: argparse.Namespace,
    inputs: dict[str, str],
    build: Callable[[str | Path, str], BuildResult],
) -> int:
    """Build the places of an area; returns the exit code."""
    from d2s_ros.map_building.area_building import build_area
    from d2s_ros.maps.files import PLACES_FOLDER

    codes = []

    def built(name: str, result: BuildResult) -> None:
        place = Path(args.map) / PLACES_FOLDER / name
        codes.append(say_result(place, result.scene_map, coverage=not args.no_coverage))

    def of_place(source: str) -> Callable[[Path], BuildResult]:
        return lambda folder: build(folder, source)

    area, failed = build_area(
        args.map,
        {name: of_place(source) for name, source in inputs.items()},
        common_frame=args.common_frame,
        on_built=built,
    )
    print(f'{args.map}: area of {len(area.places)} places, frames {", ".join(area.frames())}')
    if failed:
        raise InputError(
            f'{len(failed)} of {len(inputs)} places could not be built: '
            + '; '.join(f'{name}: {reason}' for name, reason in failed.items())
        )
    return max(codes)


def say_result(map_path: str | Path, scene_map: SceneMap, *, coverage: bool) -> int:
    """Say what came out of a build, write the calibration that it found; returns the exit code.

    Args:
        map_path: The map, or the folder of a place.
        scene_map: As it was written.
        coverage: Also predict where the map localizes, say it, and keep it for the node.
    """
    from d2s_ros.data.calibration import write_camera_info

    manifest, metrics = scene_map.manifest, scene_map.manifest.metrics
    size = scene_map.localization_size_bytes() / 1e6
    print(
        f'{map_path}: version {manifest.version}, {metrics["num_images"]} images, '
        f'{scene_map.model.summary}, {size:.2f} MB, {metrics["seconds"]["total"]:.0f} s'
    )
    if 'feature_choice' in metrics:
        chosen = metrics['feature_choice']
        print(f'features: {chosen["taken"]}, {chosen["reason"]}')
    if 'self_calibration' in metrics:
        found, camera = metrics['self_calibration'], manifest.cameras[0]
        path = camera_info_path(map_path)
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
    not_placed = metrics.get('not_placed', ())
    if not_placed:
        print(
            f'{len(not_placed)} images show too little of what others show, and are not in the '
            f'map: {", ".join(not_placed)}'
        )
    doubtful = metrics.get('doubtful_poses', ())
    if doubtful:
        names = ', '.join(wrong['name'] for wrong in doubtful)
        print(f'poses of {len(doubtful)} images contradict what they show: {names}')
    placement = metrics['placement']
    if not manifest.metric:
        print(
            'nothing told the scale of this map: it is arbitrary until d2s map scale gets a known '
            'distance'
        )
    elif placement['scale_from'] != 'poses':
        print(
            f'in metres by {placement["scale_from"]}, within {placement["scale_sigma"]:.2%} '
            f'({placement["scale_measurements"]} measurements)'
        )
    if placement['frame_from'] == 'cameras':
        print('no floor was found: z is up as far as the camera was held level')
    if coverage and not useless:
        say_coverage(scene_map)
    return NothingLocalizedError.exit_code if useless else 0
