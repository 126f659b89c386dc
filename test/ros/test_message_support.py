"""tf2_msgs without a ROS distribution."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from d2s_ros.ros import message_support


def test_what_is_there_is_left_alone(tf2_msgs):
    assert message_support.is_available()
    assert not message_support.ensure()
    assert message_support.main([]) == 0


def test_the_type_is_the_standard_one(tf2_msgs, client):
    from rosbags.typesys import Stores, get_typestore
    from tf2_msgs.msg import TFMessage

    publisher = client.create_publisher(TFMessage, '/tf', 1)
    ours = str(client.get_publishers_info_by_topic('/tf')[0].topic_type_hash)
    expected = get_typestore(Stores.ROS2_JAZZY).hash_rihs01('tf2_msgs/msg/TFMessage')
    assert ours.endswith(str(expected).removeprefix('RIHS01_'))
    client.destroy_publisher(publisher)


def test_serialization_is_that_of_ros(tf2_msgs):
    from geometry_msgs.msg import TransformStamped
    from rclpy.serialization import deserialize_message, serialize_message
    from rosbags.typesys import Stores, get_typestore
    from tf2_msgs.msg import TFMessage

    transform = TransformStamped(child_frame_id='base')
    transform.header.frame_id, transform.header.stamp.sec = 'map', 17
    transform.transform.translation.y = 2.5
    data = serialize_message(TFMessage(transforms=[transform, transform]))
    found: Any = get_typestore(Stores.ROS2_JAZZY).deserialize_cdr(data, 'tf2_msgs/msg/TFMessage')
    assert len(found.transforms) == 2
    assert found.transforms[1].header.frame_id == 'map'
    assert found.transforms[1].transform.translation.y == 2.5
    assert deserialize_message(data, TFMessage).transforms[0] == transform


def test_a_missing_compiler_is_named(tf2_msgs, monkeypatch):
    real = shutil.which
    monkeypatch.setattr(
        message_support.shutil, 'which', lambda name: None if name == 'g++' else real(name)
    )
    with pytest.raises(message_support.TypeSupportError, match='apt install g'):
        message_support.ensure(force=True)


def test_a_distribution_is_never_written_to(tf2_msgs, monkeypatch, tmp_path):
    monkeypatch.setattr(message_support.sys, 'prefix', str(tmp_path))
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    with pytest.raises(message_support.TypeSupportError, match='ros-jazzy-tf2-msgs'):
        message_support.ensure(force=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_builds_again_while_others_use_it(tf2_msgs, repo_root):
    """The files are replaced by renames, so that a process that starts meanwhile finds them."""
    command = [sys.executable, '-m', 'd2s_ros.ros.message_support']
    builds = [
        subprocess.Popen([*command, '--force'], cwd=repo_root, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for build in builds:
        _, errors = build.communicate(timeout=120)
        assert build.returncode == 0, errors
        assert 'tf2_msgs: built' in errors
    check = 'from tf2_msgs.msg import TFMessage; TFMessage.__class__.__import_type_support__()'
    subprocess.run([sys.executable, '-c', check], check=True, cwd=repo_root)
