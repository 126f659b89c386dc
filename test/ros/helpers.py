"""Publishing and collecting messages in tests."""

from __future__ import annotations

import array
import signal
import threading
import time

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from ros.stub_localizer import picture
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.ros import conversions

LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)

SECOND = 10**9
START = 1_700_000_000 * SECOND
BASE_FROM_CAMERA = RigidTransform.from_tum([0.3, 0.1, 1.2, -0.5, 0.5, -0.5, 0.5])


def header(stamp_ns, frame='camera'):
    return Header(stamp=Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9), frame_id=frame)


def image_msg(image, stamp_ns, frame='camera'):
    height, width = image.shape[:2]
    return Image(
        header=header(stamp_ns, frame),
        height=height,
        width=width,
        encoding='mono8' if image.ndim == 2 else 'bgr8',
        step=image.strides[0],
        data=array.array('B', image.tobytes()),
    )


def info_msg(stamp_ns, size=(64, 48), focal=50.0, frame='camera', model='plumb_bob', d=(0.0,) * 5):
    width, height = size
    cx, cy = width / 2 - 0.5, height / 2 - 0.5
    return CameraInfo(
        header=header(stamp_ns, frame),
        width=width,
        height=height,
        distortion_model=model,
        d=list(d),
        k=[focal, 0.0, cx, 0.0, focal, cy, 0.0, 0.0, 1.0],
        p=[focal, 0.0, cx, 0.0, 0.0, focal, cy, 0.0, 0.0, 0.0, 1.0, 0.0],
    )


INTERRUPTS = {'SIGINT': signal.SIGINT, 'SIGTERM': signal.SIGTERM}


def wait_for(condition, timeout=90.0, what='the condition'):
    """Return the condition's value once it is true; fail after the deadline."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    pytest.fail(f'{what} did not come true within {timeout} s')


#: Parameters of a node whose input must not get lost while connections settle.
RELIABLE = {
    f'qos_overrides.{topic}.subscription.reliability': 'reliable'
    for topic in (
        '/camera/image_raw',
        '/camera/image_raw/compressed',
        '/camera/camera_info',
    )
}


def seconds_to_end(process, limit=30.0):
    """Return how long a process takes to end, less what this busy machine kept us waiting."""
    start, late = time.monotonic(), 0.0
    while process.running:
        before = time.monotonic()
        assert before - start < limit, 'the process does not end'
        time.sleep(0.01)
        late += time.monotonic() - before - 0.01
    return time.monotonic() - start - late


class Collector:
    """Messages of one topic, by arrival."""

    def __init__(self, node, message, topic, qos=10):
        self._lock = threading.Condition()
        self._messages = []
        self.subscription = node.create_subscription(message, topic, self._add, qos)

    def _add(self, message):
        with self._lock:
            self._messages.append(message)
            self._lock.notify_all()

    @property
    def messages(self):
        with self._lock:
            return list(self._messages)

    def clear(self):
        with self._lock:
            self._messages.clear()

    def wait_count(self, count, timeout=90.0):
        """Wait until so many messages came; return whether they did."""
        with self._lock:
            return self._lock.wait_for(lambda: len(self._messages) >= count, timeout)

    def __len__(self):
        with self._lock:
            return len(self._messages)

    def stamped(self, stamp_ns):
        """Return the message of a stamp, if it came."""
        for message in self.messages:
            stamp = message.header.stamp
            if stamp.sec * 10**9 + stamp.nanosec == stamp_ns:
                return message
        return None


class Camera:
    """Publishes images and camera_info and waits for what the node makes of each image."""

    def __init__(
        self, node, topic='/camera/image_raw', compressed=False, namespace='', suffix='/compressed'
    ):
        self.node = node
        kind = CompressedImage if compressed else Image
        name = topic + (suffix if compressed else '')
        self.images = node.create_publisher(kind, name, 10)
        self.infos = node.create_publisher(
            CameraInfo, topic.rpartition('/')[0] + '/camera_info', 10
        )
        self.poses = Collector(node, PoseWithCovarianceStamped, f'{namespace}/d2s/pose')
        self.status = Collector(node, DiagnosticArray, f'{namespace}/d2s/status')
        self.diagnostics = Collector(node, DiagnosticArray, '/diagnostics')
        self._name = f'{namespace}/localizer: localization'.lstrip('/')

    def connect(self, timeout=90.0):
        """Wait until the node is subscribed to the images and its results arrive here.

        The node itself tells in diagnostics whom its publishers are connected to.
        """
        self.diagnostics.clear()

        def connected():
            status = newest_status(self.diagnostics, self._name)
            if status is None or not self.images.get_subscription_count():
                return False
            values = values_of(status)
            return (
                self.infos.get_subscription_count()
                and values['state'] == 'active'
                and all(
                    int(values.get(f'subscribers of {topic}', 0))
                    for topic in ('d2s/pose', 'd2s/status')
                )
            )

        wait_for(connected, timeout, 'the connection to the node')

    def show(self, message, info='same', timeout=90.0):
        """Publish one image until its result is there; return the result's status.

        Images are best effort, so the first ones may get lost while the connection settles.
        """
        stamp = message.header.stamp
        stamp_ns = stamp.sec * 10**9 + stamp.nanosec
        if isinstance(info, str):
            info = info_msg(stamp_ns)
        last = [0.0]

        def result():
            if time.monotonic() - last[0] > 1.0:
                last[0] = time.monotonic()
                if info is not None:
                    self.infos.publish(info)
                self.images.publish(message)
            return self.status.stamped(stamp_ns)

        found = wait_for(result, timeout, f'a result for the image of {stamp_ns}')
        return found.status[0]


def values_of(status):
    """Return the values of a DiagnosticStatus as a dictionary."""
    return {item.key: item.value for item in status.values}


def newest_status(collector, name):
    """Return the newest DiagnosticStatus of a name, if one came."""
    for message in reversed(collector.messages):
        for status in message.status:
            if status.name == name:
                return status
    return None


def position(message):
    p = message.pose.pose.position
    return np.array([p.x, p.y, p.z])


def show(camera, place, number, **changes):
    return camera.show(image_msg(picture(*place), START + number * SECOND // 10), **changes)


def send_transform(client, entries, static=False):
    """Publish transforms (parent, child, stamp, transform) on /tf or /tf_static."""
    from tf2_msgs.msg import TFMessage

    from d2s_ros.ros.tf import TF_QOS, TF_STATIC_QOS

    name, qos = ('/tf_static', TF_STATIC_QOS) if static else ('/tf', TF_QOS)
    publisher = client.create_publisher(TFMessage, name, qos)
    wait_for(publisher.get_subscription_count)
    publisher.publish(
        TFMessage(
            transforms=[
                conversions.transform_to_msg(transform, stamp, parent, child)
                for parent, child, stamp, transform in entries
            ]
        )
    )
    return publisher


def collect_transforms(client):
    from tf2_msgs.msg import TFMessage

    return Collector(client, TFMessage, '/tf')


def last_transform(collector):
    for message in reversed(collector.messages):
        for transform in message.transforms:
            if transform.header.frame_id == 'map':
                return transform
    return None


def odom_from_base(seconds):
    """Return where odometry has the robot that `drive` drives: 1 m/s ahead, 1 rad/s to the left."""
    return RigidTransform(rotation_from_vector([0, 0, seconds]), np.array([seconds, 0, 0]))


def drive(node, client, seconds):
    """Send the extrinsic and the odometry from START on; the result keeps the publisher alive."""
    send_transform(client, [('base_link', 'camera', 0, BASE_FROM_CAMERA)], static=True)
    wait_for(lambda: node._source.lookup('base_link', 'camera', None).target_from_source)
    keep = send_transform(
        client,
        [
            ('odom', 'base_link', START + step * SECOND // 4, odom_from_base(step / 4))
            for step in range(int(4 * seconds) + 1)
        ],
    )
    wait_for(lambda: node._source.lookup('odom', 'base_link', START).target_from_source)
    return keep
