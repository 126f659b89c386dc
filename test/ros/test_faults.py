"""Faults that robots showed: each is put right or told, and none is silent."""

from __future__ import annotations

import math
import threading
import time
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest
from ros.helpers import (
    LATCHED,
    SECOND,
    START,
    Camera,
    Collector,
    collect_transforms,
    drive,
    image_msg,
    info_msg,
    last_transform,
    newest_status,
    send_transform,
    show,
    values_of,
    wait_for,
)
from ros.stub_localizer import picture

pytest.importorskip('rclpy', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseWithCovarianceStamped
from rcl_interfaces.msg import Log
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import Empty, Trigger

from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.ros import conversions
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.map_loader import version_token
from d2s_ros.ros.map_updater_config import MapUpdaterConfig
from d2s_ros.ros.transform_buffer import Lookup, TransformBuffer

pytestmark = pytest.mark.ros

KEPT = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
BLACK = np.zeros((48, 64), np.uint8)


def compressed(stamp_ns, image):
    message = CompressedImage(format='png', data=cv2.imencode('.png', image)[1].tobytes())
    message.header = image_msg(image, stamp_ns).header
    return message


def present(image=None):
    """Return an image of the present, as drivers send them."""
    return image_msg(picture(1, 1) if image is None else image, time.time_ns())


class TestTopics:
    @pytest.mark.parametrize('raw', [True, False])
    @pytest.mark.parametrize('transport', ['auto', 'named'])
    def test_a_remapped_camera(self, make_node, client, raw, transport):
        """One rule for the image moves its compressed twin and its calibration along."""
        named = 'raw' if raw else 'compressed'
        node = make_node(
            remap=['/camera/image_raw:=/front/image'],
            reliable=False,
            image_transport='auto' if transport == 'auto' else named,
        )
        assert node.start()
        camera = Camera(client, '/front/image', compressed=not raw)
        camera.connect()
        image = picture(1, 1)
        message = image_msg(image, START) if raw else compressed(START, image)
        assert camera.show(message).message == 'localized'
        assert node.facts().image_topic == '/front/image' + ('' if raw else '/compressed')
        assert node.facts().info_topic == '/front/camera_info'

    def test_a_calibration_with_a_rule_of_its_own(self, make_node):
        node = make_node(
            remap=['/camera/image_raw:=/front/image', '/camera/camera_info:=/calibration']
        )
        assert node.start()
        assert node.facts().info_topic == '/calibration'

    @pytest.mark.parametrize('transport', ['auto', 'compressed'])
    def test_types_count_not_names(self, make_node, client, transport):
        node = make_node(image_topic='/web/picture', image_transport=transport, reliable=False)
        assert node.start()
        camera = Camera(client, '/web/picture', compressed=True, suffix='')
        camera.connect()
        assert camera.show(compressed(START, picture(1, 1))).message == 'localized'
        facts = node.facts()
        assert (facts.transport, facts.image_topic) == ('compressed', '/web/picture')
        assert facts.publishers == 1

    def test_reliability_is_that_of_the_publisher(self, make_node, client):
        node = make_node(reliable=False, image_transport='raw')
        assert node.start()
        best_effort = QoSProfile(depth=1, reliability=2)
        publisher = client.create_publisher(Image, '/camera/image_raw', best_effort)
        wait_for(publisher.get_subscription_count)
        client.destroy_publisher(publisher)
        camera = Camera(client)
        camera.connect()
        (info,) = wait_for(
            lambda: [
                info
                for info in client.get_subscriptions_info_by_topic('/camera/image_raw')
                if info.qos_profile.reliability == 1
            ]
        )
        assert info.node_name == 'localizer'
        # Half a megabyte is what the shared memory of Fast DDS takes: best effort loses these.
        image = np.zeros((1080, 1920, 3), np.uint8)
        image[0, :3, 0] = 1, 1, 0
        for number in range(5):
            message = image_msg(image, START + number * SECOND)
            camera.images.publish(message)
            wait_for(lambda count=number: node.facts().received > count, 20)

    def test_a_latched_calibration(self, make_node, client):
        latched = client.create_publisher(CameraInfo, '/camera/camera_info', LATCHED)
        latched.publish(info_msg(START - SECOND))
        node = make_node()
        assert node.start()
        camera = Camera(client)
        camera.connect()
        wait_for(lambda: latched.get_subscription_count() > 1)

        def localized():
            message = image_msg(picture(1, 1), START + time.monotonic_ns())
            return camera.show(message, None).message == 'localized'

        wait_for(localized, 10)

    def test_rectified_images_with_the_calibration_of_raw_ones(self, make_node, client):
        bent = {'d': (-0.12, 0.03, 0.0, 0.0, 0.0)}
        node = make_node(image_topic='/camera/image_rect', reliable=False)
        assert node.start()
        camera = Camera(client, '/camera/image_rect')
        camera.connect()
        status = camera.show(image_msg(picture(1, 1), START), info_msg(START, **bent))
        assert status.message == 'calibration_mismatch'
        assert 'rectified' in values_of(status)['reason']
        later = START + SECOND
        assert camera.show(image_msg(picture(1, 1), later), info_msg(later)).message == 'localized'

    def test_the_calibration_of_another_camera_is_told(self, make_node, client, camera):
        node = make_node()
        assert node.start()
        camera.connect()
        info = info_msg(START, frame='depth_optical_frame')
        assert camera.show(image_msg(picture(1, 1), START), info).message == 'localized'
        assert "'depth_optical_frame'" in node.facts().input_problem
        assert 'another camera' in node.facts().input_problem


class TestStamps:
    def test_zero(self, make_node, camera):
        node = make_node()
        assert node.start()
        camera.connect()
        status = camera.show(image_msg(picture(1, 1), 0))
        assert status.message == 'no_stamp'
        assert 'zero' in values_of(status)['reason']

    def test_odometry_of_another_clock(self, make_node, client, camera):
        """The base must not get a second parent beside the odometry."""
        node = make_node(transform_timeout=0.0)
        transforms = collect_transforms(client)
        assert node.start()
        keep = drive(node, client, 1.0)
        camera.connect()
        early = START - 3600 * SECOND
        assert camera.show(image_msg(picture(1, 1), early)).message == 'localized'
        facts = node.facts()
        assert facts.tf_mode == 'map_to_odom'
        assert '3601.0 s before' in facts.transform_problem
        assert 'clocks' in facts.transform_problem
        assert last_transform(transforms) is None
        del keep


class TestFrames:
    def test_a_leading_slash_is_dropped(self, make_node, client, camera):
        node = make_node(
            base_frame='/base_link', odom_frame='/odom', map_frame='/map', transform_timeout=5.0
        )
        transforms = collect_transforms(client)
        assert node.start()
        keep = drive(node, client, 1.0)
        camera.connect()
        assert show(camera, (1, 1), 0).message == 'localized'
        sent = wait_for(lambda: last_transform(transforms))
        assert (sent.header.frame_id, sent.child_frame_id) == ('map', 'odom')
        assert camera.poses.messages[0].header.frame_id == 'map'
        del keep

    def test_another_node_that_sends_the_same(self, make_node, client, camera):
        node = make_node(transform_timeout=5.0)
        reports = Collector(client, DiagnosticArray, '/diagnostics')
        assert node.start()
        keep = drive(node, client, 1.0)
        camera.connect()
        assert show(camera, (1, 1), 0).message == 'localized'
        assert not node.facts().conflict
        other = [('map', 'odom', START, RigidTransform.identity())]
        keep = keep, send_transform(client, other)

        def told():
            status = newest_status(reports, 'localizer: transforms')
            return status if status and 'another node' in status.message else None

        status = wait_for(told)
        assert status.level == DiagnosticStatus.WARN
        assert 'map -> odom' in status.message
        assert 'test_client' in status.message
        del keep

    def test_a_loop_does_not_last(self):
        now = [0.0]
        buffer = TransformBuffer(clock=lambda: now[0])
        still = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)

        def insert(parent, child, static=False):
            return buffer.insert(parent, child, START + int(now[0] * SECOND), still, static=static)

        assert insert('base', 'camera', static=True)
        assert insert('odom', 'base')
        assert not insert('base', 'odom')
        assert not insert('camera', 'base')
        assert buffer.lookup('odom', 'camera', START).target_from_source is not None
        # The wrong one came first: it gives way to one that is sent when it is not.
        other = TransformBuffer(clock=lambda: now[0])
        assert other.insert('base', 'odom', START + 10**6 * SECOND, still, static=False)
        now[0] = 5.0
        assert not other.insert('odom', 'base', START, still, static=False)
        now[0] = 11.0
        assert other.insert('odom', 'base', START, still, static=False)
        # What is static is not stale.
        now[0] = 100.0
        assert not insert('camera', 'base')

    @pytest.mark.parametrize('values', [(1e308, 0, 0), (0, -2e9, 0), (math.inf, 0, 0)])
    def test_absurd_distances_are_refused(self, values):
        buffer = TransformBuffer()
        assert not buffer.insert('odom', 'base', START, (*values, 0, 0, 0, 1), static=False)


class TestMaps:
    @pytest.mark.parametrize('content', [b'\xff\xfe0001\n', b'0' * 300])
    def test_a_version_that_is_no_name(self, make_node, map_folder, camera, content):
        node = make_node(map_check_period=0.02)
        assert node.start()
        camera.connect()
        (map_folder / 'current').write_bytes(content)
        wait_for(lambda: node.facts().map_version != '0001' or node.facts().map_problem)
        assert show(camera, (1, 1), 0).message == 'localized'

    def test_a_pipe_is_not_read(self, tmp_path):
        import os

        os.mkfifo(tmp_path / 'current')
        assert version_token(str(tmp_path)) is None

    @pytest.mark.parametrize(
        'wanted', [{'tf_mode': 'map_to_odom'}, {'fuse_odometry': True}, {'pose_frame': 'base'}]
    )
    def test_a_map_of_unknown_scale_is_not_mixed_with_metres(self, make_node, wanted):
        node = make_node(metric=False, **wanted)
        assert not node.start()
        assert 'arbitrary' in node.fault

    def test_a_map_of_unknown_scale_gives_poses_of_the_camera(self, make_node, client, camera):
        node = make_node(metric=False, transform_timeout=5.0)
        transforms = collect_transforms(client)
        reports = Collector(client, DiagnosticArray, '/diagnostics')
        assert node.start()
        keep = drive(node, client, 1.0)
        camera.connect()
        assert show(camera, (1, 1), 0).message == 'localized'
        sent = wait_for(lambda: last_transform(transforms))
        assert sent.child_frame_id == 'camera'
        assert node.facts().pose_frame == 'camera'
        status = wait_for(lambda: newest_status(reports, 'localizer: map'))
        assert status.level == DiagnosticStatus.WARN
        assert 'arbitrary' in status.message
        del keep

    def test_a_tilde_is_expanded(self, monkeypatch):
        monkeypatch.setenv('HOME', '/home/robot')
        assert LocalizerNodeConfig(map='~/map', weights='~/w').map == '/home/robot/map'
        config = MapUpdaterConfig(log_dir='~/logs', job_dir='~/jobs')
        assert (config.log_dir, config.job_dir) == ('/home/robot/logs', '/home/robot/jobs')


class TestConsole:
    """What an operator sees who has no diagnostics open."""

    @pytest.fixture
    def lines(self, client):
        told = Collector(client, Log, '/rosout', KEPT)

        def said(*words):
            return wait_for(
                lambda: [
                    message.msg
                    for message in told.messages
                    if all(word in message.msg for word in words)
                ],
                20,
                f'a line with {words}',
            )

        return said

    def test_states_and_lines(self, make_node, client, lines):
        states = Collector(client, String, '/seen/d2s/state', LATCHED)
        node = make_node(namespace='/seen', lost_after=3, warn_no_image=0.1, max_sped=3.0)
        other = client.create_publisher(Image, '/other/image', 1)
        assert node.start()
        lines('unknown parameter max_sped', 'max_speed')
        lines('no image on /camera/image_raw', '/other/image')
        client.destroy_publisher(other)
        camera = Camera(client, namespace='/seen')
        camera.connect()
        assert camera.show(image_msg(picture(1, 1), START), None).message == 'no_calibration'
        lines('images refused', 'no_calibration', '/camera/camera_info')
        assert show(camera, (1, 1), 10).message == 'localized'
        lines('first pose')
        for number in range(11, 14):
            assert camera.show(image_msg(BLACK, START + number * SECOND)).message != 'localized'
        lines('lost: 3 images in a row', 'too_few_keypoints')
        assert show(camera, (1, 1), 200).message == 'localized'
        lines('found again')
        wait_for(
            lambda: (
                [message.data for message in states.messages][-3:]
                == ['localized', 'lost', 'localized']
            )
        )

    def test_a_flood_of_wrong_initial_poses_is_told_once(self, make_node, client):
        told = Collector(client, Log, '/rosout', KEPT)
        node = make_node(namespace='/flood')
        assert node.start()
        publisher = client.create_publisher(PoseWithCovarianceStamped, '/flood/initialpose', 10)
        wait_for(publisher.get_subscription_count)
        wrong = conversions.pose_with_covariance(
            RigidTransform.identity(), np.eye(6), START, 'nowhere'
        )
        for _ in range(50):
            publisher.publish(wrong)
            time.sleep(0.01)
        count = sum('initial pose ignored' in message.msg for message in told.messages)
        assert count == 1


class TestServices:
    def test_localize_once_and_reinitialize(self, make_node, client, camera):
        node = make_node(tracking_seconds=5.0, max_speed=1.0)
        assert node.start()
        camera.connect()
        once = client.create_client(Trigger, '/localizer/localize_once')
        assert once.wait_for_service(20)
        for image, success, words in (
            (picture(120, 50), True, 'map_from_camera 1.200000 0.500000'),
            (BLACK, False, 'too_few_keypoints'),
        ):
            answer = once.call_async(Trigger.Request())
            wait_for(lambda: node._callable._waiting)
            camera.infos.publish(info_msg(START))
            while not answer.done():
                camera.images.publish(image_msg(image, START + time.monotonic_ns()))
                time.sleep(0.1)
            assert answer.result().success == success
            assert words in answer.result().message
        # Nothing leans on poses that were forgotten.
        assert camera.show(present()).message == 'localized'
        assert camera.show(present(picture(0, 0, 252))).message == 'localized'
        again = client.create_client(Trigger, '/localizer/reinitialize')
        assert again.wait_for_service(20)
        answer = again.call_async(Trigger.Request())
        wait_for(answer.done)
        assert camera.show(present(picture(0, 0, 252))).message == 'too_few_inliers'

    def test_the_behaviour_tree_of_nav2_calls_what_exists(
        self, make_node, client, camera, repo_root
    ):
        """Its nodes are Nav2's or BehaviorTree.CPP's, and the service that it calls works."""
        tree = ElementTree.parse(repo_root / 'config' / 'examples' / 'nav2_look_when_lost.xml')
        (behaviour,) = tree.getroot().findall('BehaviorTree')
        assert tree.getroot().get('main_tree_to_execute') == behaviour.get('ID')
        nodes = list(behaviour.iter())[1:]
        control = {'RecoveryNode', 'PipelineSequence', 'RateController', 'ReactiveFallback'}
        control |= {'Sequence', 'ForceSuccess'}
        leaves = {'ComputePathToPose', 'FollowPath', 'ClearEntireCostmap', 'GoalUpdated'}
        leaves |= {'CancelControl', 'ReinitializeGlobalLocalization', 'Spin', 'Wait'}
        assert {node.tag for node in nodes} == control | leaves
        for node in nodes:
            assert bool(len(node)) == (node.tag in control)
            # The first child is tried, the second one is what to do when it fails.
            assert node.tag != 'RecoveryNode' or len(node) == 2
        (forget,) = behaviour.iter('ReinitializeGlobalLocalization')

        node = make_node(tracking_seconds=5.0, max_speed=1.0)
        assert node.start()
        camera.connect()
        assert camera.show(present()).message == 'localized'
        assert camera.show(present(picture(0, 0, 252))).message == 'localized'
        # Nav2 calls services with an empty request and an empty answer.
        service = client.create_client(Empty, forget.get('service_name'))
        assert service.wait_for_service(20)
        answer = service.call_async(Empty.Request())
        wait_for(answer.done)
        assert camera.show(present(picture(0, 0, 252))).message == 'too_few_inliers'


class Tf2Consumer:
    """The buffer of tf2 with the calls of `TransformBuffer`."""

    def __init__(self):
        import tf2_ros

        self.buffer, self._unknown = tf2_ros.Buffer(), tf2_ros.TransformException

    def insert(self, parent, child, stamp_ns, values, *, static):
        place = RigidTransform.from_tum(values)
        message = conversions.transform_to_msg(place, stamp_ns, parent, child)
        (self.buffer.set_transform_static if static else self.buffer.set_transform)(message, 'test')

    def lookup(self, target, source, stamp_ns):
        from rclpy.time import Time

        try:
            message = self.buffer.lookup_transform(target, source, Time(nanoseconds=stamp_ns))
        except self._unknown:
            return Lookup(None, 'unknown')
        values = conversions.transform_from_msg(message.transform)
        return Lookup(RigidTransform.from_tum(values))


class TestHeldTransform:
    """map -> odom goes on while images are refused, and ends where it must."""

    @pytest.fixture(params=['own', 'tf2'])
    def robot(self, client, request):
        """Yield a robot that stands still and sends odometry, and a consumer of its transforms."""
        from tf2_msgs.msg import TFMessage

        if request.param == 'tf2':
            pytest.importorskip(
                'tf2_ros', reason='tf2_ros is not installed; a ROS distribution has it'
            )

        from d2s_ros.ros.tf import TF_QOS, TF_STATIC_QOS

        class Robot:
            def __init__(self):
                self.moves = True
                self.buffer = Tf2Consumer() if request.param == 'tf2' else TransformBuffer()
                self._publisher = client.create_publisher(TFMessage, '/tf', TF_QOS)
                self._static = client.create_publisher(TFMessage, '/tf_static', TF_STATIC_QOS)
                self._static.publish(self.message('base_link', 'camera'))
                client.create_subscription(TFMessage, '/tf', self.take, TF_QOS)
                self._end = threading.Event()
                # A thread of its own: the client has much to do here.
                self._thread = threading.Thread(target=self.send)
                self._thread.start()

            def message(self, parent, child):
                still = RigidTransform.identity()
                return TFMessage(
                    transforms=[conversions.transform_to_msg(still, time.time_ns(), parent, child)]
                )

            def send(self):
                while not self._end.wait(0.05):
                    if self.moves:
                        self._publisher.publish(self.message('odom', 'base_link'))

            def close(self):
                self._end.set()
                self._thread.join()

            def take(self, message):
                for item in message.transforms:
                    if item.child_frame_id == 'odom':
                        stamp = conversions.ns_from_stamp(item.header.stamp)
                        values = conversions.transform_from_msg(item.transform)
                        self.buffer.insert('map', 'odom', stamp, values, static=False)

            def known(self):
                """Whether the consumer finds the robot in the map at the present."""
                # It has odometry of the present, however busy this machine is.
                now = time.time_ns()
                self.buffer.insert('odom', 'base_link', now, (0, 0, 0, 0, 0, 0, 1), static=False)
                return self.buffer.lookup('map', 'base_link', now).target_from_source is not None

        result = Robot()
        yield result
        result.close()

    def test_black_images(self, start_stub_node, client, camera, robot):
        start_stub_node(transform_timeout=1.0, transform_hold=6.0, diagnostics_period=0.2)
        reports = Collector(client, DiagnosticArray, '/diagnostics')
        camera.connect()

        def transforms():
            return newest_status(reports, 'localizer: transforms')

        def ended(words):
            status = transforms()
            return status.level == DiagnosticStatus.ERROR and words in status.message

        wait_for(lambda: camera.show(present()).message == 'localized' and robot.known())
        asked = failed = 0
        end = time.monotonic() + 4.0
        next_image = 0.0
        while time.monotonic() < end:
            if time.monotonic() > next_image:
                camera.images.publish(present(BLACK))
                next_image = time.monotonic() + 0.1
            asked += 1
            failed += not robot.known()
            time.sleep(0.01)
        assert asked > 50
        assert failed <= 0.01 * asked
        values = values_of(transforms())
        assert values['tf_mode'] == 'map_to_odom'
        assert int(values['sent again']) > 20
        # It is held for a while only.
        wait_for(lambda: ended('no image was localized for 6 s'), 20)
        sent = values_of(transforms())['sent again']
        time.sleep(0.3)
        assert values_of(transforms())['sent again'] == sent
        assert camera.show(present()).message == 'localized'
        wait_for(lambda: not ended(''), 10)
        # Odometry stops: so does what is built on it, and that is told.
        robot.moves = False
        wait_for(lambda: ended('odom -> base_link ended'), 20)

    def test_a_log_played_without_its_clock_is_not_run_ahead_of(self, make_node, client, camera):
        node = make_node(transform_timeout=5.0)
        assert node.start()
        keep = drive(node, client, 1.0)
        camera.connect()
        assert show(camera, (1, 1), 0).message == 'localized'
        time.sleep(0.3)
        assert node.facts().transforms_resent == 0
        assert node.facts().transforms_sent == 1
        del keep
