"""Playing a log into the node and recording what it answers, in processes of their own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ros.bags import write_bag
from ros.stub_localizer import picture, pose

from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector

pytest.importorskip('rclpy', reason='rclpy is not installed')
pytestmark = pytest.mark.ros

SECOND = 10**9
START = 1_700_000_000 * SECOND
BASE_FROM_CAMERA = RigidTransform.from_tum([0.3, 0.1, 1.2, -0.5, 0.5, -0.5, 0.5])


def odom_from_base(seconds):
    return RigidTransform(
        rotation_from_vector([0, 0, 0.3 * seconds]), np.array([seconds, -seconds, 0])
    )


@pytest.fixture
def bag(tmp_path):
    """Return a log of 12 images of which every fourth is black, with odometry and truth on TF."""
    frames = []
    for number in range(12):
        image = picture(number, 2 * number)
        frames.append((START + number * SECOND // 10, image * (number % 4 != 3)))
    transforms = [
        (
            'odom',
            'base_link',
            START + step * SECOND // 50,
            tuple(odom_from_base(step / 50).to_tum()),
        )
        for step in range(-5, 70)
    ]
    # The truth of a simulated log, which must not reach the node's transforms.
    truth = [('map', 'odom', START + SECOND // 2, (9, 9, 9, 0, 0, 0, 1))]
    static = [('base_link', 'camera', START, tuple(BASE_FROM_CAMERA.to_tum()))]
    write_bag(tmp_path / 'bag', frames, transforms=[*transforms, *truth], static=static)
    return tmp_path / 'bag'


def test_lock_step_answers_every_image(start_stub_node, start_process, bag, tmp_path):
    start_stub_node(transform_timeout=2.0)
    output = tmp_path / 'record.json'
    player = start_process(
        'd2s_ros.ros.bag_player', bag, '--lock-step', '--timeout', '120', '--record', output
    )
    assert player.wait(300) == 0
    record = json.loads(output.read_text())
    statuses = [frame['status'] for frame in record['frames']]
    assert statuses == ['too_few_keypoints' if n % 4 == 3 else 'localized' for n in range(12)]
    assert len(record['poses']) == 9
    for row in record['poses']:
        number = round((row['stamp_ns'] - START) / 1e8)
        expected = pose(number, 2 * number) @ BASE_FROM_CAMERA.inverse()
        found = RigidTransform.from_tum(row['pose'])
        np.testing.assert_allclose(found.matrix, expected.matrix, atol=1e-9)
    ours = [row for row in record['transforms'] if row['parent'] == 'map']
    assert len(ours) == 9
    for row, sent in zip(record['poses'], ours, strict=True):
        assert sent['child'] == 'odom'
        seconds = (row['stamp_ns'] - START) / 1e9
        composed = RigidTransform.from_tum(sent['transform']) @ odom_from_base(seconds)
        np.testing.assert_allclose(
            composed.matrix, RigidTransform.from_tum(row['pose']).matrix, atol=1e-6
        )


def test_real_time_playback_reaches_the_node(start_stub_node, start_process, bag, tmp_path):
    start_stub_node()
    output = tmp_path / 'record.json'
    player = start_process(
        'd2s_ros.ros.bag_player', bag, '--rate', '2', '--timeout', '120', '--record', output
    )
    assert player.wait(300) == 0
    # Newest wins, so the number depends on the machine; what came must be right.
    assert {frame['status'] for frame in json.loads(output.read_text())['frames']} >= {'localized'}


def test_errors_are_one_line(start_process, tmp_path, bag):
    player = start_process('d2s_ros.ros.bag_player', tmp_path / 'nothing')
    assert player.wait(200) == 3
    assert 'nothing does not exist' in player.output
    assert 'Traceback' not in player.output
    player = start_process('d2s_ros.ros.bag_player', bag, '--topics', '/lidar')
    assert player.wait(200) == 3
    assert 'has no topic /lidar' in player.output
    player = start_process('d2s_ros.ros.bag_player', bag, '--timeout', '0.5')
    assert player.wait(200) == 3
    assert 'is the localizer node active?' in player.output


def test_the_recorder_writes_when_it_is_stopped(start_process, tmp_path, client, tf2_msgs):
    from geometry_msgs.msg import PoseWithCovarianceStamped
    from ros.helpers import INTERRUPTS, wait_for

    output = tmp_path / 'record.json'
    recorder = start_process('d2s_ros.ros.recorder', output)
    publisher = client.create_publisher(PoseWithCovarianceStamped, '/d2s/pose', 10)
    wait_for(publisher.get_subscription_count)
    message = PoseWithCovarianceStamped()
    message.header.frame_id = 'map'
    message.pose.pose.position.x = 4.5
    publisher.publish(message)
    assert publisher.wait_for_all_acked()
    recorder.signal(INTERRUPTS['SIGTERM'])
    assert recorder.wait(90) == 0
    poses = json.loads(output.read_text())['poses']
    assert [row['pose'][0] for row in poses] == [4.5]
