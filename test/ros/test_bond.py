"""The bond to a lifecycle manager, over DDS, with the message compiled here."""

from __future__ import annotations

import time
import uuid

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from rclpy.qos import QoSProfile
from ros.helpers import Collector, wait_for

from d2s_ros.ros import bond, message_support


@pytest.fixture(scope='module')
def status_type():
    """Return bond/msg/Status."""
    try:
        message_support.ensure(message_support.BOND)
    except message_support.TypeSupportError as error:
        pytest.skip(str(error))
    return bond.message_type()


class Manager:
    """The end of a bond that Nav2's lifecycle manager holds."""

    def __init__(self, node, kind, name='localizer'):
        self.node, self.kind, self.name = node, kind, name
        self.instance = str(uuid.uuid4())
        self.heard = Collector(node, kind, 'bond', QoSProfile(depth=30))
        self.publisher = node.create_publisher(kind, 'bond', QoSProfile(depth=5))

    def beat(self, active=True):
        self.publisher.publish(self.kind(id=self.name, instance_id=self.instance, active=active))

    def of_node(self):
        return [m for m in self.heard.messages if m.instance_id != self.instance]

    def form(self, node):
        """Beat until the node has heard it."""

        def formed():
            self.beat()
            return node._bond is not None and node._bond.formed

        wait_for(formed)


def test_the_message_is_the_standard_one(status_type, client):
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    text = (
        'std_msgs/Header header\nstring id\nstring instance_id\nbool active\n'
        'float32 heartbeat_timeout\nfloat32 heartbeat_period\n'
    )
    store.register(get_types_from_msg(text, 'bond/msg/Status'))
    publisher = client.create_publisher(status_type, '/bond', 1)
    ours = str(client.get_publishers_info_by_topic('/bond')[0].topic_type_hash)
    expected = str(store.hash_rihs01('bond/msg/Status'))
    assert ours.endswith(expected.removeprefix('RIHS01_'))
    client.destroy_publisher(publisher)


def test_a_manager_watches_the_active_node(status_type, make_node, client):
    node = make_node(autostart=False, bond_heartbeat_period=0.05)
    manager = Manager(client, status_type)
    assert node.begin()
    time.sleep(0.2)
    assert not manager.of_node()

    node.trigger_configure()
    node.trigger_activate()
    manager.form(node)
    wait_for(lambda: len(manager.of_node()) >= 5)
    beats = manager.of_node()
    assert {m.id for m in beats} == {'localizer'}
    assert len({m.instance_id for m in beats}) == 1
    assert all(m.active for m in beats)
    assert beats[0].heartbeat_timeout == 4.0

    # Who deactivates the node on purpose is told at once, not after the timeout.
    node.trigger_deactivate()
    wait_for(lambda: not manager.of_node()[-1].active, 2.0)


def test_a_manager_that_is_gone_is_told_and_the_next_one_is_answered(
    status_type, make_node, client, monkeypatch
):
    monkeypatch.setattr(bond.Bond.__init__, '__kwdefaults__', {'timeout': 0.5})
    node = make_node(autostart=False, bond_heartbeat_period=0.05)
    first, second = Manager(client, status_type), Manager(client, status_type)
    node.trigger_configure()
    node.trigger_activate()
    first.form(node)
    # The first falls silent.
    wait_for(lambda: not node._bond.formed, 5.0)
    wait_for(lambda: any(not m.active for m in first.of_node()))
    second.form(node)
    # The second says that it ends.
    wait_for(lambda: (second.beat(active=False), not node._bond.formed)[1])
    assert node._active
    # Other nodes' bonds are nothing to this one.
    other = Manager(client, status_type, 'map_server')
    other.beat()
    time.sleep(0.2)
    assert not node._bond.formed


def test_no_bond_without_a_manager_or_without_the_package(status_type, make_node, monkeypatch):
    node = make_node(namespace='/alone')
    assert node.begin()
    assert node._bond is None
    monkeypatch.setattr(bond, 'message_type', lambda: None)
    other = make_node(namespace='/other', autostart=False)
    other.trigger_configure()
    other.trigger_activate()
    assert other._active
    assert other._bond is None
