"""Plays the camera of a rosbag2 log over DDS: images, camera_info, transforms and odometry.

    python -m d2s_ros.ros.bag_player BAG [--rate 1.0 | --lock-step] [--clock]

In lock-step each image waits for the result of the one before, so that a comparison sees every
image whatever the speed of the machine. Messages are sent as the bytes they were recorded as.
Transforms below the map frame are left out: they are what the localizer is asked for.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message, serialize_message
from rosgraph_msgs.msg import Clock

from d2s_ros.data.bag_storage import Log, open_log
from d2s_ros.errors import BagError, D2SError
from d2s_ros.ros.conversions import ns_from_stamp, stamp_from_ns
from d2s_ros.ros.recorder import Recorder, Spinner

logger = logging.getLogger(__name__)

_IMAGES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
_TRANSFORMS = 'tf2_msgs/msg/TFMessage'
_PLAYED = (*_IMAGES, 'sensor_msgs/msg/CameraInfo', 'nav_msgs/msg/Odometry', _TRANSFORMS)


@dataclass
class PlaySummary:
    """What was played.

    Attributes:
        images: Images published.
        results: In lock-step, status of each image by stamp in ns.
        unanswered: In lock-step, stamps of images without a result in time.
        seconds: How long it took.
    """

    images: int = 0
    results: dict[int, str] = field(default_factory=dict)
    unanswered: list[int] = field(default_factory=list)
    seconds: float = 0.0


class BagPlayer:
    """Publishes the messages of a log.

    Args:
        node: Node that publishes; somebody else spins it.
        path: rosbag2 folder or storage file.
        topics: Topics to play; None for images, camera_info, odometry and transforms.
        remap: New names of topics.
        map_frame: Transforms from this frame are left out; empty keeps all.
        clock: Publish /clock with the time of the log.

    Raises:
        BagError: the log cannot be read or has none of the topics.
    """

    def __init__(
        self,
        node: Node,
        path: str | pathlib.Path,
        *,
        topics: Sequence[str] | None = None,
        remap: dict[str, str] | None = None,
        map_frame: str = 'map',
        clock: bool = False,
    ) -> None:
        self._node = node
        self._map_frame = map_frame
        self._log: Log = open_log(pathlib.Path(path))
        known = {topic.name: topic.type for topic in self._log.topics}
        missing = [name for name in topics or () if name not in known]
        if missing:
            raise BagError(f'{path} has no topic {missing[0]}; it has {", ".join(sorted(known))}')
        self._types = {
            name: kind
            for name, kind in known.items()
            if (name in topics if topics is not None else kind in _PLAYED)
        }
        if not any(kind in _IMAGES for kind in self._types.values()):
            raise BagError(f'{path} has no images to play; it has {", ".join(sorted(known))}')
        self._classes: dict[str, Any] = {}
        self._publishers: dict[str, Any] = {}
        for name, kind in self._types.items():
            package, _, message = kind.split('/')
            module = __import__(f'{package}.msg', fromlist=[message])
            self._classes[name] = getattr(module, message)
            self._publishers[name] = node.create_publisher(
                self._classes[name], (remap or {}).get(name, name), _qos(name)
            )
        self._clock = node.create_publisher(Clock, '/clock', 10) if clock else None

    @property
    def image_topics(self) -> list[str]:
        """Topics of images, as named in the log."""
        return [name for name, kind in self._types.items() if kind in _IMAGES]

    def close(self) -> None:
        """Destroy the publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        if self._clock is not None:
            self._node.destroy_publisher(self._clock)

    def wait_connected(self, timeout: float) -> bool:
        """Wait until somebody subscribes to the images and their camera_info.

        Other topics are waited for where the graph shows subscribers.
        """

        def connected() -> bool:
            for name, kind in self._types.items():
                publisher = self._publishers[name]
                needed = 1 if kind in _IMAGES or kind == 'sensor_msgs/msg/CameraInfo' else 0
                needed = max(needed, self._node.count_subscribers(publisher.topic_name))
                if publisher.get_subscription_count() < needed:
                    return False
            return True

        deadline = time.monotonic() + timeout
        while not connected():
            if time.monotonic() > deadline or not self._node.context.ok():
                return False
            time.sleep(0.02)
        return True

    def play(
        self,
        *,
        rate: float = 1.0,
        recorder: Recorder | None = None,
        timeout: float = 30.0,
        resend_period: float = 2.0,
    ) -> PlaySummary:
        """Publish all messages.

        Args:
            rate: Speed relative to the recording.
            recorder: With a recorder, lock-step: each image waits for its result.
            timeout: Longest wait for a result, in seconds.
            resend_period: An image without a result is sent again after this many seconds, as
                best effort transport may lose it.
        """
        summary = PlaySummary()
        start = time.monotonic()
        first_ns: int | None = None
        last_info: tuple[str, bytes] | None = None
        for name, received_ns, data in self._log.messages(list(self._types)):
            if not self._node.context.ok():
                break
            first_ns = received_ns if first_ns is None else first_ns
            if recorder is None:
                due = start + (received_ns - first_ns) / 1e9 / rate
                time.sleep(max(0.0, due - time.monotonic()))
            if self._clock is not None:
                self._clock.publish(Clock(clock=stamp_from_ns(received_ns)))
            kind = self._types[name]
            if kind == _TRANSFORMS:
                self._publish_transforms(name, data)
                continue
            self._publishers[name].publish(data)
            if kind == 'sensor_msgs/msg/CameraInfo':
                last_info = (name, data)
            if kind not in _IMAGES:
                continue
            summary.images += 1
            if recorder is not None:
                message = deserialize_message(data, self._classes[name])
                stamp_ns = ns_from_stamp(message.header.stamp)
                self._await(
                    name, data, last_info, stamp_ns, recorder, timeout, resend_period, summary
                )
        summary.seconds = time.monotonic() - start
        return summary

    def _await(
        self,
        name: str,
        data: bytes,
        info: tuple[str, bytes] | None,
        stamp_ns: int,
        recorder: Recorder,
        timeout: float,
        resend_period: float,
        summary: PlaySummary,
    ) -> None:
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            frame = recorder.wait_frame(stamp_ns, min(resend_period, max(0.0, left)))
            if frame is not None:
                summary.results[stamp_ns] = frame['status']
                return
            if left <= 0 or not self._node.context.ok():
                summary.unanswered.append(stamp_ns)
                return
            logger.warning('no result for the image of %.3f yet, sending it again', stamp_ns / 1e9)
            if info is not None:
                self._publishers[info[0]].publish(info[1])
            self._publishers[name].publish(data)

    def _publish_transforms(self, name: str, data: bytes) -> None:
        if self._map_frame:
            message = deserialize_message(data, self._classes[name])
            kept = [
                item
                for item in message.transforms
                if item.header.frame_id.removeprefix('/') != self._map_frame
            ]
            if not kept:
                return
            message.transforms = kept
            data = serialize_message(message)
        self._publishers[name].publish(data)


def _qos(name: str) -> QoSProfile:
    static = name.endswith('/tf_static')
    return QoSProfile(
        depth=100 if name.endswith(('/tf', '/tf_static')) else 10,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if static else DurabilityPolicy.VOLATILE,
    )


def main(arguments: list[str] | None = None) -> int:
    """Play a log; return the exit status, 3 where lock-step missed results."""
    parser = argparse.ArgumentParser(prog='bag_player', description=__doc__)
    parser.add_argument('bag', help='rosbag2 folder, .mcap or .db3 file')
    parser.add_argument('--rate', type=float, default=1.0, help='speed relative to the recording')
    parser.add_argument('--lock-step', action='store_true', help='wait for each result')
    parser.add_argument('--topics', nargs='+', help='topics to play')
    parser.add_argument('--clock', action='store_true', help='publish /clock')
    parser.add_argument('--namespace', default='', help='namespace of the localizer node')
    parser.add_argument('--map-frame', default='map', help='transforms from here are left out')
    parser.add_argument('--timeout', type=float, default=30.0, help='longest wait, in seconds')
    parser.add_argument('--record', help='JSON file for what the node answers')
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(rclpy.utilities.remove_ros_args(['bag_player', *given])[1:])
    rclpy.init(args=given)
    node = Node('bag_player')
    try:
        return _run(node, options)
    except D2SError as error:
        sys.stderr.write(f'error: {error}\n')
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def _run(node: Node, options: argparse.Namespace) -> int:
    recorder = None
    if options.lock_step or options.record:
        recorder = Recorder(node, options.namespace)
    player = BagPlayer(
        node,
        options.bag,
        topics=options.topics,
        map_frame=options.map_frame,
        clock=options.clock,
    )
    with Spinner(node):
        if not player.wait_connected(options.timeout):
            raise D2SError(
                f'nobody subscribes to {", ".join(player.image_topics)} and its camera_info; is '
                f'the localizer node active?'
            )
        if recorder is not None and not recorder.wait_connected(options.timeout):
            raise D2SError('the localizer node does not answer on /diagnostics; is it active?')
        summary = player.play(
            rate=options.rate,
            recorder=recorder if options.lock_step else None,
            timeout=options.timeout,
        )
        if recorder is not None and options.lock_step:
            localized = sum(status == 'localized' for status in summary.results.values())
            recorder.wait_poses(localized, 2.0)
    if recorder is not None and options.record:
        recorder.save(options.record)
    return 3 if summary.unanswered else 0


if __name__ == '__main__':
    sys.exit(main())
