"""Callback groups of one node, served in threads of their own over real DDS."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException
from ros.helpers import wait_for
from std_msgs.msg import String

from d2s_ros.ros.group_executor import GroupExecutor, GroupThread

pytestmark = pytest.mark.ros


@pytest.fixture
def node(domain_id):
    context = Context()
    rclpy.init(context=context, domain_id=domain_id)
    node = rclpy.create_node('grouped', context=context)
    yield node
    node.destroy_node()
    rclpy.try_shutdown(context=context)


class Heard:
    """What came on a topic, and in which thread."""

    def __init__(self, node, topic, group, action=None):
        self.messages, self.threads, self._action = [], set(), action
        self.subscription = node.create_subscription(
            String, topic, self._on, 10, callback_group=group
        )

    def _on(self, message):
        self.messages.append(message.data)
        self.threads.add(threading.current_thread().name)
        if self._action is not None:
            self._action()


def published_until(publisher, condition):
    def publish():
        done = condition()
        if not done:
            publisher.publish(String(data='x'))
            time.sleep(0.02)
        return done

    wait_for(publish, timeout=20)


def test_each_group_is_served_by_its_own_executor(node):
    group = MutuallyExclusiveCallbackGroup()
    release = threading.Event()
    inputs = Heard(node, 'inputs', group)
    # The node's other callbacks are stuck: inputs do not wait for them.
    others = Heard(node, 'others', None, lambda: release.wait(20))
    to_inputs, to_others = (node.create_publisher(String, n, 10) for n in ('inputs', 'others'))
    rest = GroupExecutor(node, lambda other: other is not group)
    rest.add_node(node)
    main = threading.Thread(target=rest.spin, name='main', daemon=True)
    main.start()
    thread = GroupThread(node, group)
    published_until(to_others, lambda: others.messages)
    published_until(to_inputs, lambda: len(inputs.messages) > 3)
    assert len(others.messages) == 1
    assert inputs.threads == {'inputs'}
    assert others.threads == {'main'}
    release.set()
    assert thread.stop()
    rest.shutdown()
    main.join(5)


def test_subscriptions_made_later_are_served_after_a_wake(node):
    group = MutuallyExclusiveCallbackGroup()
    thread = GroupThread(node, group)
    time.sleep(0.1)
    late = Heard(node, 'late', group)
    thread.wake()
    published_until(node.create_publisher(String, 'late', 10), lambda: late.messages)
    node.destroy_subscription(late.subscription)
    thread.wake()
    assert thread.stop()
    assert thread.error is None


def test_an_error_of_a_callback_shuts_the_context_down_and_is_kept(node):
    def fail():
        raise ValueError('broken')

    group = MutuallyExclusiveCallbackGroup()
    broken = Heard(node, 'broken', group, fail)
    thread = GroupThread(node, group)
    ended = threading.Event()

    def spin_rest():
        with contextlib.suppress(ExternalShutdownException):
            GroupExecutor(node, lambda other: other is not group).spin()
        ended.set()

    threading.Thread(target=spin_rest, daemon=True).start()
    publisher = node.create_publisher(String, 'broken', 10)
    published_until(publisher, lambda: broken.messages)
    wait_for(lambda: not node.context.ok(), timeout=20)
    assert ended.wait(10)
    assert thread.stop()
    assert str(thread.error) == 'broken'


def test_a_shutdown_ends_the_thread(node):
    thread = GroupThread(node, MutuallyExclusiveCallbackGroup())
    rclpy.try_shutdown(context=node.context)
    assert thread.stop()
    assert thread.error is None
