"""Several cameras on one robot in one node, over DDS, with a stub in place of the localizer."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.parameter import Parameter
from ros.helpers import (
    BASE_FROM_CAMERA,
    SECOND,
    START,
    image_msg,
    info_msg,
    newest_status,
    position,
    send_transform,
    values_of,
    wait_for,
)
from ros.stub_localizer import picture, pose
from sensor_msgs.msg import CameraInfo, Image

from d2s_ros.errors import ConfigError
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.ros.camera_reader import QueuedImage
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.rig_collector import RigCollector

BASE_FROM_LEFT = RigidTransform(
    rotation_from_vector([0, 0, np.pi / 2]) @ BASE_FROM_CAMERA.rotation, np.array([0.1, 0.3, 1.0])
)
BLACK = np.zeros((48, 64), np.uint8)


class LeftCamera:
    """Publishes the images of a second camera."""

    def __init__(self, node):
        self.images = node.create_publisher(Image, '/left/image_raw', 10)
        self.infos = node.create_publisher(CameraInfo, '/left/camera_info', 10)

    def publish(self, image, stamp_ns):
        self.infos.publish(info_msg(stamp_ns, frame='left'))
        self.images.publish(image_msg(image, stamp_ns, frame='left'))


@pytest.fixture
def rig(make_node, client, camera):
    """Return a node of two cameras, and both."""
    node = make_node(
        rig_image_topics=['/left/image_raw'],
        tf_mode='none',
        pose_frame='base',
        rig_wait=0.2,
        **{'qos_overrides./left/image_raw.subscription.reliability': 'reliable'},
    )
    assert node.start()
    left = LeftCamera(client)
    places = [
        ('base_link', 'camera', 0, BASE_FROM_CAMERA),
        ('base_link', 'left', 0, BASE_FROM_LEFT),
    ]
    keep = send_transform(client, places, static=True)
    wait_for(lambda: node._source.lookup('camera', 'left', None).target_from_source)
    wait_for(left.images.get_subscription_count)
    wait_for(left.infos.get_subscription_count)
    camera.connect()
    yield node, camera, left
    del keep


def show_both(rig, front, left, number):
    """Show a moment to both cameras; return the status of the image and its stamp."""
    _, camera, other = rig
    stamp = START + number * SECOND // 10
    if left is not None:
        other.publish(left, stamp)
    return camera.show(image_msg(front, stamp), info=info_msg(stamp)), stamp


def test_two_cameras_give_one_pose_and_a_blind_one_does_no_harm(rig):
    _, camera, _ = rig
    status, stamp = show_both(rig, picture(100, 50), picture(1, 2), 1)
    assert status.message == 'localized'
    values = values_of(status)
    assert values['camera: /camera/image_raw'].startswith('used')
    assert values['camera: /left/image_raw'].startswith('used')
    expected = pose(100, 50) @ BASE_FROM_CAMERA.inverse()
    wait_for(lambda: camera.poses.stamped(stamp))
    assert np.allclose(position(camera.poses.stamped(stamp)), expected.translation, atol=1e-6)
    assert len(camera.poses) == 1

    # The left one sees where the robot is, the front one nothing.
    status, stamp = show_both(rig, BLACK, picture(100, 50), 2)
    assert status.message == 'localized'
    assert values_of(status)['camera: /camera/image_raw'].startswith('too_few_keypoints')
    expected = pose(100, 50) @ BASE_FROM_LEFT.inverse()
    wait_for(lambda: camera.poses.stamped(stamp))
    assert np.allclose(position(camera.poses.stamped(stamp)), expected.translation, atol=1e-6)

    status, _ = show_both(rig, BLACK, BLACK, 3)
    assert status.message == 'too_few_keypoints'


def test_a_camera_whose_calibration_is_wrong_is_told_and_then_not_used(rig):
    _, camera, _ = rig
    seen = [show_both(rig, picture(100, 50), picture(1, 2, 249), number)[0] for number in range(5)]
    messages = [status.message for status in seen]
    assert messages == ['localized'] * 2 + ['calibration_mismatch'] + ['localized'] * 2
    reason = values_of(seen[2])['reason']
    assert reason.startswith('/left/image_raw: ')
    assert 'cx by -' in reason
    assert 'many images' in values_of(seen[3])['camera: /left/image_raw']
    assert values_of(seen[3])['camera: /camera/image_raw'].startswith('used')

    def level():
        return newest_status(camera.diagnostics, 'localizer: input').level

    wait_for(lambda: level() == DiagnosticStatus.ERROR)


def test_a_camera_that_died_is_waited_for_and_then_no_more(rig):
    node, _, _ = rig
    show_both(rig, picture(100, 50), picture(1, 2), 1)
    status, _ = show_both(rig, picture(100, 50), None, 2)
    assert status.message == 'localized'
    assert 'camera: /left/image_raw' not in values_of(status)
    assert float(values_of(status)['queue [ms]']) >= 200
    time.sleep(2.1)
    status, _ = show_both(rig, picture(100, 50), None, 4)
    assert status.message == 'localized'
    assert float(values_of(status)['queue [ms]']) < 200
    assert '/camera/image_raw, /left/image_raw' in node.facts().image_topic


def test_a_camera_without_a_transform_is_told_and_left_out(make_node, client, camera):
    node = make_node(
        rig_image_topics=['/left/image_raw'],
        tf_mode='map_to_camera',
        **{'qos_overrides./left/image_raw.subscription.reliability': 'reliable'},
    )
    assert node.start()
    left = LeftCamera(client)
    wait_for(left.images.get_subscription_count)
    wait_for(left.infos.get_subscription_count)
    camera.connect()
    status, _ = show_both((node, camera, left), picture(100, 50), picture(1, 2), 1)
    assert status.message == 'localized'
    told = values_of(status)['camera: /left/image_raw']
    assert told.startswith('no_extrinsic')
    assert "'left'" in told


def test_rig_options_that_cannot_work():
    with pytest.raises(ConfigError, match='6 cameras'):
        LocalizerNodeConfig(rig_image_topics=tuple(f'/camera_{i}/image_raw' for i in range(6)))
    with pytest.raises(ConfigError, match='one for each'):
        LocalizerNodeConfig(rig_image_topics=('/a', '/b'), rig_camera_info_topics=('/c',))
    with pytest.raises(ConfigError, match='different cameras'):
        LocalizerNodeConfig(rig_image_topics=('/camera/image_raw/compressed',))
    names = LocalizerNodeConfig(rig_image_topics=('/left/image_raw',)).cameras
    assert [one.info_topic for one in names] == ['/camera/camera_info', '/left/camera_info']


def test_the_list_of_cameras_is_a_parameter(make_node):
    node = make_node(rig_image_topics=['/left/image_raw'], rig_camera_info_topics=['/left/info'])
    assert node.config.rig_image_topics == ('/left/image_raw',)
    changed = node.set_parameters([Parameter('rig_image_topics', value=['/right/image_raw'])])[0]
    assert changed.successful


class TestCollector:
    """Images of one moment come together, and none waits for ever."""

    @pytest.fixture
    def collected(self):
        self.now = 100.0
        self.moments = []
        self.collector = RigCollector(2, 0.02, 0.1, self.moments.append, lambda: self.now)
        return self.moments

    def put(self, camera, milliseconds):
        message = image_msg(BLACK, START + milliseconds * 10**6)
        self.collector.put(QueuedImage(message, 0.0, 0, '', camera))

    def cameras(self):
        return [[one.camera for one in moment] for moment in self.moments]

    def test_pairs(self, collected):
        for moment in (100, 200):
            self.put(1, moment)
            self.put(0, moment + 15)
        assert self.cameras() == [[0, 1], [0, 1]]

    def test_stamps_too_far_apart_are_moments_of_their_own(self, collected):
        self.put(0, 0)
        self.put(1, 100)
        self.put(0, 150)
        self.put(1, 155)
        assert self.cameras() == [[0], [1], [0, 1]]
        # A camera that has given nothing for a while is not waited for.
        self.now += 5.0
        self.put(0, 300)
        assert self.cameras()[3:] == [[0]]

    def test_the_wait_is_bounded(self, collected):
        self.put(1, 100)
        self.collector.look()
        assert self.cameras() == []
        self.now += 0.11
        self.collector.look()
        assert self.cameras() == [[1]]
        # Its twin comes too late, and is no moment of its own.
        self.put(0, 105)
        self.collector.look()
        assert self.cameras() == [[1]]
