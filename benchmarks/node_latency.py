"""From the stamp of an image to its pose, through the real node over DDS.

    python benchmarks/node_latency.py MAP INPUT [--rates 10 30 60] [--seconds 10] [--json OUT.json]

The node runs as a process of its own. This process publishes the images of INPUT with the present
time as their stamp, first one at a time (the next when the pose has come), then at each rate. Of
each image it notes when the middleware of this process received the pose, when the callback here
was called with it, and from d2s/status how long the node's stages took. What the node adds is the
time from stamp to reception less that of the bare pipeline (features, network, pose) on the same
image and, at a fixed rate, less the wait for the worker. The callback comes later by what an
executor in Python takes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from records import write_record

from d2s_ros.memory import tune_malloc
from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()
tune_malloc()

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image

from d2s_ros.data.frames import Frame
from d2s_ros.data.sources import open_source
from d2s_ros.ros.conversions import header, image_to_msg, ns_from_stamp

PIPELINE = ('features', 'network', 'pose')


class Client:
    """Publishes images and notes when their poses come back."""

    def __init__(self, frames: list[Frame]) -> None:
        self.node = rclpy.create_node('latency_client')
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.images = self.node.create_publisher(
            Image, '/camera/image_raw', qos_profile_sensor_data
        )
        self.infos = self.node.create_publisher(
            CameraInfo, '/camera/camera_info', qos_profile_sensor_data
        )
        # rclpy gives the time of reception to callbacks of two arguments; its types know one only.
        self.node.create_subscription(
            PoseWithCovarianceStamped,
            'd2s/pose',
            self._on_pose,  # type: ignore[arg-type]
            100,
        )
        self.node.create_subscription(DiagnosticArray, 'd2s/status', self._on_status, 100)
        # Messages are made beforehand: a camera driver does not convert either.
        self.messages = [
            (image_to_msg(f.image, 0, 'camera'), info_of(f)) for f in frames if f.image is not None
        ]
        self.poses: dict[int, float] = {}
        self.handled: dict[int, float] = {}
        self.status: dict[int, dict[str, float]] = {}
        self.refused: dict[int, str] = {}
        self.sent: dict[int, float] = {}

    def _on_pose(self, message: PoseWithCovarianceStamped, info: dict[str, int]) -> None:
        stamp, now = ns_from_stamp(message.header.stamp), time.time()
        self.handled[stamp] = now
        # Zero where the middleware does not tell.
        self.poses[stamp] = info['received_timestamp'] / 1e9 or now

    def _on_status(self, message: DiagnosticArray) -> None:
        stamp = ns_from_stamp(message.header.stamp)
        status = message.status[0]
        self.status[stamp] = {
            item.key.removesuffix(' [ms]'): float(item.value)
            for item in status.values
            if item.key.endswith(' [ms]')
        }
        if status.message != 'localized':
            self.refused[stamp] = status.message

    def publish(self, index: int) -> int:
        """Publish an image and its calibration with the present time; return the stamp."""
        image, info = self.messages[index % len(self.messages)]
        stamp_ns = time.time_ns()
        image.header = info.header = header(stamp_ns, 'camera')
        self.infos.publish(info)
        self.images.publish(image)
        self.sent[stamp_ns] = time.time()
        return stamp_ns

    def spin(self, seconds: float, until: Any = None) -> bool:
        """Handle messages for some time, or until a condition holds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if until is not None and until():
                return True
            self.executor.spin_once(timeout_sec=min(left, 0.05))
        return until is not None and bool(until())

    def clear(self) -> None:
        """Forget what came so far."""
        for notes in (self.poses, self.handled, self.status, self.refused, self.sent):
            notes.clear()


def info_of(frame: Frame) -> CameraInfo:
    """Return the calibration of a frame as a message."""
    camera = frame.camera
    assert camera is not None
    return CameraInfo(
        width=camera.width,
        height=camera.height,
        distortion_model='plumb_bob' if camera.model == 'pinhole' else camera.model,
        d=list(camera.distortion) or [0.0] * 5,
        k=[camera.fx, 0.0, camera.cx, 0.0, camera.fy, camera.cy, 0.0, 0.0, 1.0],
    )


def percentiles(values: list[float]) -> dict[str, float] | None:
    """Return median, p95, p99 in ms."""
    if not values:
        return None
    found = np.percentile(values, [50, 95, 99])
    return dict(zip(('median', 'p95', 'p99'), (round(float(v), 2) for v in found), strict=True))


def report(client: Client) -> dict[str, Any]:
    """Return what happened to the images that were sent."""
    latency, added, waits, called = [], [], [], []
    by_stage: dict[str, list[float]] = {}
    for stamp in client.sent:
        if stamp not in client.poses or stamp not in client.status:
            continue
        stages = client.status[stamp]
        total = 1e3 * (client.poses[stamp] - stamp / 1e9)
        latency.append(total)
        called.append(1e3 * (client.handled[stamp] - client.poses[stamp]))
        waits.append(stages['queue'])
        added.append(total - stages['queue'] - sum(stages[name] for name in PIPELINE))
        for name, value in stages.items():
            by_stage.setdefault(name, []).append(value)
    return {
        'sent': len(client.sent),
        'processed': len(client.status),
        'poses': len(latency),
        'refused': len(client.refused),
        'dropped_share': round(1 - len(client.status) / max(1, len(client.sent)), 3),
        'latency_ms': percentiles(latency),
        'wait_for_worker_ms': percentiles(waits),
        'added_ms': percentiles(added),
        'callback_ms': percentiles(called),
        'stages_ms': {name: percentiles(values) for name, values in by_stage.items()},
    }


def wait_until_ready(client: Client, node: subprocess.Popen, seconds: float = 120.0) -> None:
    """Send images until the first pose comes; the node warms up with them."""
    deadline = time.monotonic() + seconds
    index = 0
    while not client.poses:
        if node.poll() is not None or time.monotonic() > deadline:
            raise SystemExit('the node gives no pose; see its messages above')
        if client.images.get_subscription_count() and client.infos.get_subscription_count():
            client.publish(index)
            index += 1
            client.spin(2.0, lambda: bool(client.poses))
        client.spin(0.1)


def measure(client: Client, args: argparse.Namespace) -> dict[str, Any]:
    """Run all rates."""
    result = {}
    client.clear()
    for index in range(args.single):
        stamp = client.publish(index)
        client.spin(5.0, lambda s=stamp: s in client.status)
        client.spin(0.02)
    client.spin(0.5)
    result['one at a time'] = report(client)
    for rate in args.rates:
        client.clear()
        begin = time.monotonic()
        for index in range(int(rate * args.seconds)):
            client.publish(index)
            client.spin(max(0.0, begin + (index + 1) / rate - time.monotonic()))
        client.spin(2.0)
        result[f'{rate:g} Hz'] = report(client)
    return result


def text(result: dict[str, Any]) -> str:
    """Return a Markdown table."""
    lines = [
        '| images | sent | dropped | stamp to pose, median | p95 | p99 | wait for the worker | '
        'bare pipeline | added, median | p95 | until the callback |',
        '|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    for name, row in result.items():
        if row['latency_ms'] is None:
            lines.append(
                f'| {name} | {row["sent"]} | {100 * row["dropped_share"]:.0f} % | no pose |'
            )
            continue
        stages = row['stages_ms']
        bare = sum(stages[stage]['median'] for stage in PIPELINE)
        lines.append(
            f'| {name} | {row["sent"]} | {100 * row["dropped_share"]:.0f} % | '
            + ' | '.join(f'{row["latency_ms"][p]:.1f}' for p in ('median', 'p95', 'p99'))
            + f' | {row["wait_for_worker_ms"]["median"]:.1f} | {bare:.1f} | '
            f'{row["added_ms"]["median"]:.2f} | {row["added_ms"]["p95"]:.2f} | '
            f'{row["callback_ms"]["median"]:.2f} |'
        )
    return '\n'.join(lines)


def main() -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('map', type=Path)
    parser.add_argument('input')
    parser.add_argument('--rates', type=float, nargs='*', default=[10.0, 30.0, 60.0])
    parser.add_argument('--seconds', type=float, default=10.0, help='at each rate')
    parser.add_argument('--single', type=int, default=40, help='images sent one at a time')
    parser.add_argument('--images', type=int, default=20, help='most images of INPUT')
    parser.add_argument('--threads', type=int, default=0, help='parameter of the node')
    parser.add_argument('--json', type=Path)
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    args = parser.parse_args()
    started = time.time()
    frames = []
    for frame in open_source(args.input):
        if frame.image is not None and frame.camera is not None:
            frames.append(frame)
        if len(frames) == args.images:
            break
    parameters = {
        'map': str(args.map.resolve()),
        'image_transport': 'raw',
        'tf_mode': 'map_to_camera',
        'threads': args.threads,
    }
    command = [sys.executable, '-m', 'd2s_ros.ros.localizer_node', '--ros-args']
    for name, value in parameters.items():
        command += ['-p', f'{name}:={value}']
    rclpy.init()
    node = subprocess.Popen(command)
    try:
        client = Client(frames)
        wait_until_ready(client, node)
        result = measure(client, args)
    finally:
        node.terminate()
        try:
            node.wait(10)
        except subprocess.TimeoutExpired:
            node.kill()
        rclpy.try_shutdown()
    print(text(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n')
    if args.record:
        write_record(args.record, result, started, tables={'rates': text(result).splitlines()})
    return 0


if __name__ == '__main__':
    sys.exit(main())
