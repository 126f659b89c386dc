"""Records what the localizer node publishes: poses, transforms, results of images, diagnostics.

    python -m d2s_ros.ros.recorder OUT.json

records until it is interrupted, then writes one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pathlib
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from numpy.typing import NDArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.ros.conversions import ns_from_stamp, transform_from_msg
from d2s_ros.ros.tf import TF_QOS

logger = logging.getLogger(__name__)

_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)


class Recorder:
    """Collects messages; safe to read while recording.

    Args:
        node: Node that subscribes; somebody else spins it.
        namespace: Namespace of the localizer node, such as '/robot1'.

    Attributes:
        poses: Per pose: stamp_ns, frame, map_from_body (tum), covariance (36), received_ns.
        transforms: Per transform on /tf: stamp_ns, parent, child, parent_from_child (tum).
        frames: Per image: stamp_ns, status, values.
        diagnostics: The newest status of each name: level, message, values.
    """

    def __init__(self, node: Node, namespace: str = '') -> None:
        from tf2_msgs.msg import TFMessage

        self._node = node
        self._prefix = namespace.rstrip('/')
        self._changed = threading.Condition()
        self.poses: list[dict[str, Any]] = []
        self.transforms: list[dict[str, Any]] = []
        self.frames: list[dict[str, Any]] = []
        self.diagnostics: dict[str, dict[str, Any]] = {}
        self._subscriptions = [
            node.create_subscription(
                PoseWithCovarianceStamped, f'{self._prefix}/d2s/pose', self._on_pose, _QOS
            ),
            node.create_subscription(
                DiagnosticArray, f'{self._prefix}/d2s/status', self._on_frames, _QOS
            ),
            node.create_subscription(TFMessage, '/tf', self._on_tf, TF_QOS),
            node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, _QOS),
        ]

    def close(self) -> None:
        """End the subscriptions; what was recorded stays."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    # ---------------------------------------------------------------- waiting

    def wait_connected(self, timeout: float) -> bool:
        """Wait until the node's publishers are connected to this recorder.

        Only then nothing that the node publishes is missed. The node tells it in diagnostics.
        """

        def connected() -> bool:
            for name, status in self.diagnostics.items():
                if name.endswith(': localization') and self._of_namespace(name):
                    values = status['values']
                    return all(
                        int(values.get(f'subscribers of {topic}', 0)) > 0
                        for topic in ('d2s/pose', 'd2s/status')
                    )
            return False

        with self._changed:
            return self._changed.wait_for(connected, timeout)

    def wait_frame(self, stamp_ns: int, timeout: float) -> dict[str, Any] | None:
        """Wait for the result of the image of a stamp; None after the timeout."""
        found: list[dict[str, Any]] = []

        def done() -> bool:
            found[:] = [frame for frame in self.frames if frame['stamp_ns'] == stamp_ns][:1]
            return bool(found)

        with self._changed:
            self._changed.wait_for(done, timeout)
        return found[0] if found else None

    def wait_poses(self, count: int, timeout: float) -> bool:
        """Wait until at least `count` poses were recorded."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.poses) >= count, timeout)

    def _of_namespace(self, name: str) -> bool:
        return name.startswith(f'{self._prefix.lstrip("/")}/') if self._prefix else True

    # ---------------------------------------------------------------- results

    def trajectory(self) -> tuple[NDArray[np.int64], list[RigidTransform]]:
        """Return the stamps (N,) in ns and the poses map_from_body."""
        with self._changed:
            stamps = np.array([pose['stamp_ns'] for pose in self.poses], dtype=np.int64)
            return stamps, [RigidTransform.from_tum(pose['pose']) for pose in self.poses]

    def covariances(self) -> NDArray[np.float64]:
        """Return the covariances (N, 6, 6) of the poses."""
        with self._changed:
            rows = [pose['covariance'] for pose in self.poses]
        return np.array(rows, dtype=np.float64).reshape(-1, 6, 6)

    def counts(self) -> dict[str, int]:
        """Return the number of images per status."""
        with self._changed:
            result: dict[str, int] = {}
            for frame in self.frames:
                result[frame['status']] = result.get(frame['status'], 0) + 1
            return result

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        with self._changed:
            return {
                'poses': list(self.poses),
                'transforms': list(self.transforms),
                'frames': list(self.frames),
                'diagnostics': dict(self.diagnostics),
            }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON, whole or not at all."""
        target = pathlib.Path(path)
        temporary = target.with_name(f'.{target.name}.tmp')
        temporary.write_text(json.dumps(self.to_dict()))
        temporary.replace(target)

    # ---------------------------------------------------------------- callbacks

    def _add(self, rows: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
        with self._changed:
            rows.extend(new)
            self._changed.notify_all()

    def _on_pose(self, message: PoseWithCovarianceStamped) -> None:
        p, q = message.pose.pose.position, message.pose.pose.orientation
        row = {
            'stamp_ns': ns_from_stamp(message.header.stamp),
            'frame': message.header.frame_id,
            'pose': [p.x, p.y, p.z, q.x, q.y, q.z, q.w],
            'covariance': [float(value) for value in message.pose.covariance],
            'received_ns': time.time_ns(),
        }
        self._add(self.poses, [row])

    def _on_tf(self, message: Any) -> None:
        rows = [
            {
                'stamp_ns': ns_from_stamp(item.header.stamp),
                'parent': item.header.frame_id,
                'child': item.child_frame_id,
                'transform': list(transform_from_msg(item.transform)),
            }
            for item in message.transforms
        ]
        self._add(self.transforms, rows)

    def _on_frames(self, message: DiagnosticArray) -> None:
        rows = [
            {
                'stamp_ns': ns_from_stamp(message.header.stamp),
                'status': status.message,
                'values': {item.key: item.value for item in status.values},
            }
            for status in message.status
        ]
        self._add(self.frames, rows)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        with self._changed:
            for status in message.status:
                self.diagnostics[status.name] = {
                    'level': int.from_bytes(status.level, 'little'),
                    'message': status.message,
                    'values': {item.key: item.value for item in status.values},
                }
            self._changed.notify_all()


class Spinner:
    """Spins a node in a thread, for scripts whose main thread waits.

    Args:
        node: The node.
    """

    def __init__(self, node: Node) -> None:
        self._context = node.context
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name='spinner', daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                self._executor.spin_once(timeout_sec=0.1)
        except ExternalShutdownException:
            return
        except Exception as error:
            # A callback that was running at shutdown finds its handles gone.
            if self._context.ok():
                raise
            logging.getLogger(__name__).warning('stopped within a callback: %r', error)

    def close(self) -> None:
        """Stop spinning."""
        self._end.set()
        self._thread.join(10)
        self._executor.shutdown()

    def __enter__(self) -> Spinner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def main(arguments: list[str] | None = None) -> int:
    """Record until SIGINT or SIGTERM, or for a given time; return the exit status."""
    parser = argparse.ArgumentParser(
        prog='recorder', description='Record poses, transforms and results of the localizer.'
    )
    parser.add_argument('output', help='JSON file to write')
    parser.add_argument('--namespace', default='', help='namespace of the localizer node')
    parser.add_argument('--duration', type=float, help='seconds to record; else until interrupted')
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(rclpy.utilities.remove_ros_args(['recorder', *given])[1:])
    rclpy.init(args=given, signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    node = Node('recorder')
    recorder = Recorder(node, options.namespace)
    with Spinner(node):
        stop.wait(options.duration)
    recorder.save(options.output)
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
