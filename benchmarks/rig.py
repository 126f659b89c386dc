"""Several cameras on one robot through the real node over DDS: error and availability.

    python benchmarks/rig.py --work FOLDER [--seeds 5 6] [--moments 40]

For each seed a building is simulated and mapped with one camera; then a robot with four cameras
walks there by another way. Its images are published, moment by moment, to a node that is told of
one, two (front and back) or four of the cameras; once with the back camera blind and once with its
transform turned by 3 degrees. FOLDER keeps maps for the next run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from records import write_record

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from node_latency import info_of
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from d2s_ros.data.frames import Frame
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.transforms import RigidTransform, pose_error, rotation_from_vector
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.ros.conversions import header, image_to_msg, ns_from_stamp, transform_to_msg
from d2s_ros.ros.tf import TF_STATIC_QOS
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import base_from_camera, frames, rendered_frames

NAMES = ('front', 'left', 'back', 'right')
#: Cameras, the blind ones among them, and how many degrees the last one's transform is wrong.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], float]] = {
    'one camera': ((0,), (), 0.0),
    'two cameras': ((0, 2), (), 0.0),
    'four cameras': ((0, 1, 2, 3), (), 0.0),
    'two, the back one blind': ((0, 2), (2,), 0.0),
    'two, the transform of the back one 3 degrees wrong': ((0, 2), (), 3.0),
}


class Frames(list[Frame]):
    """Frames in memory, as a source."""


def base_config(seed: int) -> SimulationConfig:
    """Return the simulated building of a seed, as it is mapped."""
    return SimulationConfig(seed=seed, frames=24, width=480, height=360)


def scene_of(seed: int, moments: int, work: Path) -> tuple[Path, list[list[Frame]]]:
    """Return the map, built where it is missing, and the images of each of four cameras."""
    path = work / f'map_{seed}'
    if not (path / 'current').exists():
        config = budget('quick', features=FeatureConfig(max_keypoints=700))
        training = replace(config.training, steps=60, images_per_step=2, keypoints_per_image=256)
        source = Frames(frames(base_config(seed)))
        build_map(source, path, replace(config, training=training), device='cpu', progress=False)
    walk = replace(
        base_config(seed), frames=moments, trajectory='random', trajectory_seed=1, cameras=4
    )
    return path, [[frame for frame, _ in rendered_frames(walk, None, i)] for i in range(4)]


class Robot:
    """Publishes the images and transforms of four cameras and takes the poses."""

    def __init__(self, config: SimulationConfig) -> None:
        self.node = rclpy.create_node('rig_client')
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.config = config
        self.publishers = {
            name: (
                self.node.create_publisher(Image, f'/{name}/image_raw', 10),
                self.node.create_publisher(CameraInfo, f'/{name}/camera_info', 10),
            )
            for name in NAMES
        }
        self.static = self.node.create_publisher(TFMessage, '/tf_static', TF_STATIC_QOS)
        self.node.create_subscription(PoseWithCovarianceStamped, 'd2s/pose', self._on_pose, 100)
        self.node.create_subscription(DiagnosticArray, 'd2s/status', self._on_status, 100)
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 100)
        self.poses: dict[int, Any] = {}
        self.status: dict[int, dict[str, str]] = {}
        self.told: set[str] = set()

    def _on_pose(self, message: PoseWithCovarianceStamped) -> None:
        self.poses[ns_from_stamp(message.header.stamp)] = message.pose

    def _on_status(self, message: DiagnosticArray) -> None:
        values = {item.key: item.value for item in message.status[0].values}
        self.status[ns_from_stamp(message.header.stamp)] = values

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith(': input') and 'transform between cameras' in status.message:
                self.told.add(status.message)

    def place(self, wrong: int | None, degrees: float) -> None:
        """Publish where the cameras are."""
        entries = []
        for index, name in enumerate(NAMES):
            where = base_from_camera(self.config, index)
            if index == wrong:
                turn = rotation_from_vector([0.0, np.radians(degrees), 0.0])
                where = where @ RigidTransform(turn, np.zeros(3))
            entries.append(transform_to_msg(where, 0, 'base_link', name))
        self.static.publish(TFMessage(transforms=entries))

    def show(self, moment: list[Frame], cameras: tuple[int, ...], blind: tuple[int, ...]) -> int:
        """Publish one moment until there is a result; return its stamp."""
        stamp_ns = time.time_ns()
        for index in cameras:
            frame, name = moment[index], NAMES[index]
            assert frame.image is not None
            image = np.zeros_like(frame.image) if index in blind else frame.image
            info = info_of(frame)
            info.header = header(stamp_ns, name)
            self.publishers[name][1].publish(info)
            self.publishers[name][0].publish(image_to_msg(image, stamp_ns, name))
        deadline = time.monotonic() + 30.0
        while stamp_ns not in self.status and time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.05)
        for _ in range(3):
            self.executor.spin_once(timeout_sec=0.005)
        return stamp_ns


def run_case(robot: Robot, path: Path, seen: list[list[Frame]], case: str) -> list[dict[str, Any]]:
    """Return what became of each moment."""
    cameras, blind, degrees = CASES[case]
    robot.place(cameras[-1] if degrees else None, degrees)
    parameters: dict[str, Any] = {
        'map': str(path.resolve()),
        'image_topic': f'/{NAMES[cameras[0]]}/image_raw',
        'image_transport': 'raw',
        'tf_mode': 'none',
        'pose_frame': 'base',
        'tracking_seconds': 0.0,
        'max_image_age': 0.0,
        'diagnostics_period': 0.2,
        'rig_wait': 10.0,
    }
    others = [f'/{NAMES[index]}/image_raw' for index in cameras[1:]]
    if others:
        parameters['rig_image_topics'] = str(others)
    command = [sys.executable, '-m', 'd2s_ros.ros.localizer_node', '--ros-args']
    for name, value in parameters.items():
        command += ['-p', f'{name}:={value}']
    robot.told.clear()
    node = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    rows = []
    try:
        deadline = time.monotonic() + 180.0
        while not all(
            publisher.get_subscription_count()
            for index in cameras
            for publisher in robot.publishers[NAMES[index]]
        ):
            if node.poll() is not None or time.monotonic() > deadline:
                raise SystemExit('the node did not start')
            robot.executor.spin_once(timeout_sec=0.1)
        for _ in range(20):
            robot.executor.spin_once(timeout_sec=0.1)
        robot.show([seen[i][0] for i in range(4)], cameras, blind)
        place = base_from_camera(robot.config, 0)
        for number in range(len(seen[0])):
            moment = [seen[i][number] for i in range(4)]
            stamp_ns = robot.show(moment, cameras, blind)
            row: dict[str, Any] = {'localized': stamp_ns in robot.poses}
            values = robot.status.get(stamp_ns, {})
            row['cameras'] = {
                key.removeprefix('camera: '): value.partition(',')[0].partition(':')[0]
                for key, value in values.items()
                if key.startswith('camera: ')
            }
            if row['localized']:
                pose = robot.poses[stamp_ns]
                p, q = pose.pose.position, pose.pose.orientation
                found = RigidTransform.from_tum([p.x, p.y, p.z, q.x, q.y, q.z, q.w])
                truth = moment[0].map_from_camera
                assert truth is not None
                truth = truth @ place.inverse()
                row['error'] = pose_error(found, truth)
                offset = found.translation - truth.translation
                covariance = np.reshape(pose.covariance, (6, 6))[:3, :3]
                row['nees'] = float(offset @ np.linalg.inv(covariance) @ offset)
            rows.append(row)
    finally:
        node.terminate()
        try:
            node.wait(15)
        except subprocess.TimeoutExpired:
            node.kill()
    if robot.told:
        rows[-1]['told'] = sorted(robot.told)[-1]
    return rows


def summary(rows: list[dict[str, Any]], common: list[bool]) -> dict[str, Any]:
    """Return the figures of a case; those of common moments are of those that all localized."""
    errors = np.array([row['error'] for row in rows if row['localized']])
    shared = np.array([row['error'] for row, both in zip(rows, common, strict=True) if both])
    nees = [row['nees'] for row in rows if row['localized']]
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        for camera, status in row['cameras'].items():
            counts.setdefault(camera, {}).setdefault(status, 0)
            counts[camera][status] += 1
    return {
        'moments': len(rows),
        'localized': int(sum(row['localized'] for row in rows)),
        'median_cm': round(100 * float(np.median(errors[:, 0])), 3),
        'p95_cm': round(100 * float(np.percentile(errors[:, 0], 95)), 3),
        'p95_deg': round(float(np.percentile(errors[:, 1], 95)), 3),
        'common_moments': int(sum(common)),
        'common_p95_cm': round(100 * float(np.percentile(shared[:, 0], 95)), 3),
        'common_p95_deg': round(float(np.percentile(shared[:, 1], 95)), 3),
        # Of three dimensions, 95 % of all are below 7.81 if covariances are right.
        'within_95_percent': round(float(np.mean(np.array(nees) < 7.81)), 3),
        'cameras': counts,
        'told': [row['told'] for row in rows if 'told' in row],
    }


def main() -> int:
    """Measure and write the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work', type=Path, required=True)
    parser.add_argument('--seeds', type=int, nargs='+', default=[5, 6])
    parser.add_argument('--moments', type=int, default=40)
    args = parser.parse_args()
    started = time.time()
    args.work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    rclpy.init()
    for seed in args.seeds:
        path, seen = scene_of(seed, args.moments, args.work)
        robot = Robot(replace(base_config(seed), cameras=4))
        for case in CASES:
            rows[case] += run_case(robot, path, seen, case)
            print(seed, case, sum(row['localized'] for row in rows[case]), flush=True)
        robot.node.destroy_node()
    rclpy.try_shutdown()
    right = ('one camera', 'two cameras', 'four cameras')
    common = [
        all(rows[case][index]['localized'] for case in right)
        for index in range(len(rows['one camera']))
    ]
    figures: dict[str, Any] = {case: summary(rows[case], common) for case in CASES}
    one, two = figures['one camera'], figures['two cameras']
    figures['two_times_smaller_cm'] = round(one['common_p95_cm'] / two['common_p95_cm'], 2)
    figures['two_times_smaller_deg'] = round(one['common_p95_deg'] / two['common_p95_deg'], 2)
    lines = [
        '| cameras | localized | median | 95 % | 95 % of moments that all localize | told |',
        '|---|---|---|---|---|---|',
    ]
    for case in CASES:
        row = figures[case]
        lines.append(
            f'| {case} | {row["localized"]} of {row["moments"]} | {row["median_cm"]:.2f} cm | '
            f'{row["p95_cm"]:.2f} cm, {row["p95_deg"]:.2f} deg | {row["common_p95_cm"]:.2f} cm, '
            f'{row["common_p95_deg"]:.2f} deg | {"yes" if row["told"] else "no"} |'
        )
    measures = ('d2s_ros/localization', 'd2s_ros/ros', 'benchmarks/rig.py')
    print('\n'.join(lines))
    write_record('rig', figures, started, tables={'cameras': lines}, measures=measures)
    return 0


if __name__ == '__main__':
    sys.exit(main())
