"""`d2s demo`: the whole path on a simulated building, through the real ROS 2 node.

Renders a mapping and a query log, builds a map, starts the localizer node as a process of its own,
plays the query log into it over DDS, records what it publishes, and writes a report.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2s_ros.cli.localize import write_json
from d2s_ros.cli.options import user_path
from d2s_ros.errors import D2SError, InputError, NothingLocalizedError

if TYPE_CHECKING:
    from d2s_ros.geometry.transforms import RigidTransform

_MAPPING, _QUERY, _MAP = 'mapping_log', 'query_log', 'map'
_MARKER = '.d2s_demo'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        '--output',
        default='demo_output',
        type=user_path,
        metavar='DIR',
        help='folder for logs, map and report',
    )
    parser.add_argument('--seed', type=int, default=3, metavar='N', help='seed of the building')
    parser.add_argument(
        '--mapping-frames', type=int, default=120, metavar='N', help='images of the mapping log'
    )
    parser.add_argument(
        '--query-frames', type=int, default=40, metavar='N', help='images of the query log'
    )
    parser.add_argument(
        '--budget', choices=('quick', 'standard', 'full'), default='standard', help='of the map'
    )


def run(args: argparse.Namespace) -> int:
    """Run all stages; returns the exit code."""
    started = time.monotonic()
    output = _prepare(Path(args.output))
    _say('1/4 rendering a building and two camera logs')
    _simulate(args, output)
    _say('2/4 building the map')
    _build(args, output)
    _say('3/4 localizing the query log through the ROS 2 node')
    record = _play(output)
    _say('4/4 writing the report')
    localized = _report(output, record, time.monotonic() - started)
    if not localized:
        raise NothingLocalizedError(f'no frame was localized; see {output / "node.log"}')
    return 0


def _say(text: str) -> None:
    print(f'== {text}', flush=True)


def _prepare(output: Path) -> Path:
    """Make the folder, emptied if an earlier demo made it."""
    if output.exists() and any(output.iterdir()):
        if not (output / _MARKER).exists():
            raise InputError(f'{output} holds other files; give an empty folder with --output')
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / _MARKER).touch()
    return output


def _simulate(args: argparse.Namespace, output: Path) -> None:
    from d2s_ros.simulation.config import SimulationConfig
    from d2s_ros.simulation.scene import build_scene
    from d2s_ros.simulation.simulate import simulate_log

    mapping = SimulationConfig(
        seed=args.seed, frames=args.mapping_frames, trajectory='lawnmower', odometry=True
    )
    query = SimulationConfig(
        seed=args.seed,
        frames=args.query_frames,
        trajectory='random',
        trajectory_seed=17,
        poses=False,
    )
    scene = build_scene(mapping)
    simulate_log(mapping, output / _MAPPING, progress=not args.quiet, scene=scene)
    simulate_log(query, output / _QUERY, progress=not args.quiet, scene=scene)


def _build(args: argparse.Namespace, output: Path) -> None:
    from d2s_ros.data.sources import open_source
    from d2s_ros.map_building.config import budget
    from d2s_ros.map_building.pipeline import build_map

    result = build_map(
        open_source(output / _MAPPING),
        output / _MAP,
        replace(budget(args.budget, seed=args.seed), keep_colours=True),
        progress=not args.quiet,
    )
    manifest = result.scene_map.manifest
    print(
        f'map: {manifest.metrics["num_images"]} images, {manifest.metrics["num_landmarks"]} '
        f'landmarks, {result.scene_map.localization_size_bytes() / 1e6:.2f} MB, '
        f'{manifest.metrics["seconds"]["total"]:.0f} s'
    )


def _play(output: Path) -> dict[str, Any]:
    """Start the node, play the log into it in lock-step from a third process, stop the node."""
    if importlib.util.find_spec('rclpy') is None:
        raise D2SError(
            'the demo needs ROS 2 (rclpy): use `make demo`, which installs it, or source your ROS '
            'distribution'
        )
    record = output / 'record.json'
    environment = {**os.environ, 'ROS_DOMAIN_ID': os.environ.get('ROS_DOMAIN_ID', '77')}
    with open(output / 'node.log', 'w') as log:
        node = subprocess.Popen(
            [
                sys.executable,
                '-m',
                'd2s_ros.ros.localizer_node',
                '--ros-args',
                '-p',
                f'map:={output / _MAP}',
                '-p',
                'tf_mode:=map_to_camera',
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            player = subprocess.run(
                [
                    sys.executable,
                    '-m',
                    'd2s_ros.ros.bag_player',
                    str(output / _QUERY),
                    '--lock-step',
                    '--timeout',
                    '60',
                    '--record',
                    str(record),
                ],
                env=environment,
                check=False,
                timeout=600,
            )
        except subprocess.TimeoutExpired as error:
            raise D2SError(f'the log could not be played in 600 s; see {log.name}') from error
        finally:
            node.send_signal(signal.SIGINT)
            try:
                node.wait(timeout=10)
            except subprocess.TimeoutExpired:
                node.kill()
    if player.returncode != 0 or not record.exists():
        raise D2SError(
            f'playing the log failed (exit {player.returncode}); see {output / "node.log"}'
        )
    document: dict[str, Any] = json.loads(record.read_text())
    return document


def _report(output: Path, record: dict[str, Any], seconds: float) -> int:
    """Compare with the truth, print a table, write pictures and page; return the frames found."""
    import numpy as np

    from d2s_ros.data.sources import open_source
    from d2s_ros.data.tum import read_tum, write_tum
    from d2s_ros.evaluation.metrics import evaluate_trajectory
    from d2s_ros.evaluation.report import (
        draw_overview,
        draw_reliability,
        draw_trajectory,
        write_page,
    )
    from d2s_ros.evaluation.view_page import view_page
    from d2s_ros.geometry.transforms import RigidTransform, pose_error
    from d2s_ros.localization.localizer import Localizer

    truth = read_tum(output / _QUERY / 'groundtruth_tum.txt')
    true_poses = dict(zip(map(int, truth.stamps_ns), truth.poses, strict=True))
    poses = {
        int(entry['stamp_ns']): RigidTransform.from_tum(entry['pose']) for entry in record['poses']
    }
    transforms = {
        int(entry['stamp_ns']): RigidTransform.from_tum(entry['transform'])
        for entry in record['transforms']
        if entry['parent'] == 'map'
    }
    metrics = evaluate_trajectory(poses, true_poses) if poses else None
    write_tum(output / 'trajectory.txt', poses.keys(), poses.values())
    refused = Counter(
        frame['status'] for frame in record['frames'] if frame['status'] != 'localized'
    )
    agree = sum(
        pose_error(poses[stamp], transforms[stamp])[0] < 1e-6
        for stamp in poses
        if stamp in transforms
    )

    localizer = Localizer.from_map(output / _MAP)
    points = localizer.scene_map.model.points_in_map + localizer.scene_map.origin
    # The node has run; frames are localized again here to draw one.
    best, overview, picture, title = -1, b'', b'', ''
    for frame in open_source(output / _QUERY):
        if frame.stamp_ns not in poses or frame.image is None:
            continue
        result = localizer.localize(frame.image, frame.camera, details=True)
        pose, details = result.map_from_camera, result.details
        if pose is not None and details is not None and result.num_inliers > best:
            best = result.num_inliers
            title = (
                f'frame {frame.name}: {result.num_keypoints} keypoints, {result.num_reliable} '
                f'reliable, {result.num_inliers} inliers'
            )
            picture = draw_reliability(frame.image, details, title)
            others = [poses[stamp] for stamp in poses if stamp != frame.stamp_ns]
            overview = draw_overview(frame.image, details, pose, others, points)
            if best > 300:
                break
    mapping = read_tum(output / _MAPPING / 'groundtruth_tum.txt')
    trajectory = draw_trajectory(
        list(truth.poses),
        [poses.get(int(stamp)) for stamp in truth.stamps_ns],
        list(mapping.poses),
        points,
    )
    latencies = [
        float(frame['values']['total [ms]'])
        for frame in record['frames']
        if 'total [ms]' in frame['values']
    ]
    rows = [
        ('frames', str(len(truth))),
        ('localized', f'{len(poses)} ({100 * len(poses) / len(truth):.0f} %)'),
        (
            'refused',
            ', '.join(f'{count} x {name}' for name, count in refused.items()) or 'none',
        ),
    ]
    if metrics is not None:
        rows += [
            ('median error', f'{100 * metrics.median_m:.2f} cm, {metrics.median_deg:.3f} deg'),
            ('95 % error', f'{100 * metrics.p95_m:.2f} cm, {metrics.p95_deg:.3f} deg'),
            ('worst', f'{100 * metrics.max_m:.2f} cm, {metrics.max_deg:.3f} deg'),
        ]
    if latencies:
        rows.append(
            (
                'latency, image to pose',
                f'median {np.median(latencies):.0f} ms, 95 % {np.percentile(latencies, 95):.0f} ms',
            )
        )
    rows += [
        ('poses on /tf that equal /d2s/pose', f'{agree} of {len(poses)}'),
        ('map size', f'{localizer.scene_map.localization_size_bytes() / 1e6:.2f} MB'),
        (
            'map building',
            f'{localizer.scene_map.manifest.metrics["seconds"]["total"]:.0f} s',
        ),
        ('whole demo', f'{seconds:.0f} s'),
    ]
    pictures = [('Trajectory against truth, from above', trajectory)]
    (output / 'trajectory.png').write_bytes(trajectory)
    if picture:
        caption = f'Inliers (green), other reliable (blue) and unreliable (red) keypoints, {title}'
        pictures = [('One image, and where it was taken', overview), *pictures, (caption, picture)]
        (output / 'localization.png').write_bytes(overview)
        (output / 'reliability.png').write_bytes(picture)
    write_page(
        output / 'report.html',
        'd2s_ros demo',
        rows,
        pictures,
        refused=[
            (str(frame['stamp_ns']), frame['status'], str(frame['values'].get('reason', '')))
            for frame in record['frames']
            if frame['status'] != 'localized'
        ],
        try_next=_next_commands(output),
    )
    view = {'demo': {'frames': [_view_frame(frame, poses) for frame in record['frames']]}}
    (output / 'view.html').write_text(view_page(localizer.scene_map, view), encoding='utf-8')
    write_json(
        output / 'report.json',
        {
            'rows': dict(rows),
            'metrics': metrics.to_dict() if metrics else None,
            'refused': dict(refused),
        },
    )
    width = max(len(name) for name, _ in rows)
    print('\n'.join(f'{name:{width}s}  {value}' for name, value in rows))
    print(f'\nlook at it, with a web browser:\n  {output / "report.html"}')
    print(f'  {output / "view.html"}  (the map in 3D, with the frames)\ntry next:')
    print('\n'.join(f'  {line}' for line in _next_commands(output)))
    return len(poses)


def _next_commands(output: Path) -> list[str]:
    """Return what one would do after the demo."""
    return [
        f'd2s map coverage {output / _MAP} --picture plan.png  # where the map localizes',
        f'd2s update-map {output / _MAP} {output / _QUERY}  # learn from a log without poses',
        'd2s build-map room.mp4 --map room  # your own room: docs/tutorials/own_room.md',
    ]


def _view_frame(frame: dict[str, Any], poses: Mapping[int, RigidTransform]) -> dict[str, Any]:
    """Return a frame of the node's record as `d2s localize --report` would write it."""
    values, pose = frame['values'], poses.get(int(frame['stamp_ns']))
    return {
        'name': str(frame['stamp_ns']),
        'status': frame['status'],
        'reason': '' if pose is not None else values.get('reason', ''),
        'map_from_camera': None if pose is None else pose.to_tum(),
        'num_inliers': values.get('inliers'),
        'num_reliable': values.get('reliable'),
        'num_keypoints': values.get('keypoints'),
    }
