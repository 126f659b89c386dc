"""One contract for both ways to TF: tf2_ros where it is installed, /tf and /tf_static elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from ros.helpers import Collector, wait_for

pytest.importorskip('rclpy', reason='rclpy is not installed')

from rclpy.node import Node

from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.ros import conversions, tf

pytestmark = [pytest.mark.ros, pytest.mark.usefixtures('tf2_msgs')]

SECOND = 10**9
START = 1_700_000_000 * SECOND
MOUNT = RigidTransform.from_tum([0.3, 0.1, 1.2, -0.5, 0.5, -0.5, 0.5])


def moving(seconds):
    return RigidTransform(rotation_from_vector([0, 0, seconds]), np.array([2 * seconds, 0, 0]))


@pytest.fixture(params=['tf2_ros', 'topics'])
def use_tf2_ros(request):
    if request.param == 'tf2_ros' and not tf.has_tf2_ros():
        pytest.skip('tf2_ros is not installed; a ROS 2 distribution brings it')
    return request.param == 'tf2_ros'


@pytest.fixture
def node(spinner):
    return spinner.add(Node('looks_up', context=spinner.context))


@pytest.fixture
def source(node, use_tf2_ros):
    result = tf.create_source(node, 10.0, use_tf2_ros=use_tf2_ros)
    yield result
    result.close()


@pytest.fixture
def send(client, node, source):
    """Return a function that publishes transforms and waits until the source is connected."""
    from tf2_msgs.msg import TFMessage

    moving_publisher = client.create_publisher(TFMessage, '/tf', tf.TF_QOS)
    static_publisher = client.create_publisher(TFMessage, '/tf_static', tf.TF_STATIC_QOS)
    wait_for(
        lambda: (
            moving_publisher.get_subscription_count() and static_publisher.get_subscription_count()
        )
    )

    def publish(parent, child, stamp_ns, transform, static=False):
        message = conversions.transform_to_msg(transform, stamp_ns, parent, child)
        publisher = static_publisher if static else moving_publisher
        publisher.publish(TFMessage(transforms=[message]))

    return publish


@pytest.fixture
def robot(send, source):
    """Send odometry of one second and the mount of the camera, and wait for both."""
    send('base', 'camera', 0, MOUNT, static=True)
    for step in range(11):
        send('odom', 'base', START + step * SECOND // 10, moving(step / 10))
    wait_for(lambda: source.lookup('odom', 'camera', START + SECOND).target_from_source)


def test_interpolates_and_composes(source, robot):
    found = source.lookup('odom', 'camera', START + 250_000_000).target_from_source
    np.testing.assert_allclose(found.matrix, (moving(0.25) @ MOUNT).matrix, atol=1e-6)
    back = source.lookup('camera', 'odom', START + 250_000_000).target_from_source
    np.testing.assert_allclose((back @ found).matrix, np.eye(4), atol=1e-6)
    newest = source.lookup('odom', 'base', None).target_from_source
    np.testing.assert_allclose(newest.matrix, moving(1.0).matrix, atol=1e-6)


def test_does_not_extrapolate_and_says_what_may_arrive(source, robot):
    later = source.lookup('odom', 'base', START + 2 * SECOND)
    assert later.target_from_source is None
    assert later.may_arrive
    assert later.reason
    unknown = source.lookup('odom', 'moon', START, timeout=60.0)
    assert unknown.target_from_source is None
    assert not unknown.may_arrive
    assert 'moon' in unknown.reason


def test_waits_for_the_stamp(source, robot, send):
    import threading

    timer = threading.Timer(0.1, lambda: send('odom', 'base', START + 2 * SECOND, moving(2.0)))
    timer.start()
    found = source.lookup('odom', 'base', START + 15 * SECOND // 10, timeout=20.0)
    timer.join()
    assert found.target_from_source is not None
    np.testing.assert_allclose(found.target_from_source.translation, [3.0, 0, 0], atol=1e-6)


def test_a_restart_forgets_the_future_and_finds_static_transforms_again(source, robot, send):
    source.restart_at(START - 100 * SECOND)
    wait_for(lambda: source.lookup('base', 'camera', None).target_from_source)
    assert source.lookup('odom', 'base', START + SECOND // 2).target_from_source is None
    for step in range(3):
        stamp = START - 100 * SECOND + step * SECOND
        send('odom', 'base', stamp, moving(step))
    wait_for(lambda: source.lookup('odom', 'base', START - 99 * SECOND).target_from_source)


def test_broadcasts_on_tf(node, client, use_tf2_ros):
    from tf2_msgs.msg import TFMessage

    received = Collector(client, TFMessage, '/tf', tf.TF_QOS)
    broadcaster = tf.create_broadcaster(node, use_tf2_ros=use_tf2_ros)
    transform = conversions.transform_to_msg(moving(0.3), START, 'map', 'odom')

    def sent():
        broadcaster.send(transform)
        return received.messages

    assert wait_for(sent)[0].transforms[0] == transform
    broadcaster.close()
    wait_for(lambda: client.count_publishers('/tf') == 0)
