"""The node in this process, in a private context, with a stub in place of the localizer."""

from __future__ import annotations

import functools
import gc
import threading

import numpy as np
import pytest
from ros.helpers import (
    BASE_FROM_CAMERA,
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
    odom_from_base,
    position,
    show,
    values_of,
    wait_for,
)
from ros.stub_localizer import COVARIANCE, picture, pose

pytest.importorskip('rclpy', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Path
from rcl_interfaces.msg import Log
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_msgs.msg import String

from d2s_ros import kernels
from d2s_ros.errors import ConfigError
from d2s_ros.geometry.transforms import RigidTransform, covariance_of_body
from d2s_ros.kernels import library
from d2s_ros.ros import conversions
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.outputs import PICTURES

pytestmark = [pytest.mark.ros, pytest.mark.usefixtures('tf2_msgs')]

SUCCESS = TransitionCallbackReturn.SUCCESS


def test_transitions_are_checked_and_can_be_repeated(make_node, camera):
    node = make_node()
    for cycle in range(3):
        assert node.trigger_configure() == SUCCESS
        assert node.trigger_activate() == SUCCESS
        camera.connect()
        assert show(camera, (cycle, 2), cycle).message == 'localized'
        assert node.trigger_deactivate() == SUCCESS
        assert node.trigger_cleanup() == SUCCESS
        wait_for(lambda: not camera.images.get_subscription_count())
    assert [round(100 * position(message)[0]) for message in camera.poses.messages] == [0, 1, 2]


def test_a_failed_configure_can_be_repaired(make_node, map_folder, client):
    reports = Collector(client, DiagnosticArray, '/diagnostics')
    (map_folder / 'current').unlink()
    node = make_node()
    assert not node.start()
    status = wait_for(
        lambda: (
            found
            if (found := newest_status(reports, 'localizer: localization'))
            and found.level != b'\x01'
            else None
        )
    )
    assert status.level == DiagnosticStatus.ERROR
    assert 'is not a map folder' in status.message
    (map_folder / 'current').write_text('0007')
    assert node.start()


def test_an_inactive_node_localizes_nothing(make_node, client, camera):
    node = make_node()
    assert node.trigger_configure() == SUCCESS
    versions = Collector(client, String, '/d2s/map_version', LATCHED)
    wait_for(lambda: versions.messages)
    assert versions.messages[0].data == '0001'
    assert not client.count_subscribers('/camera/image_raw')
    assert node.trigger_activate() == SUCCESS
    camera.connect()
    assert show(camera, (1, 1), 0).message == 'localized'


def test_map_to_odom_composes_with_odometry_to_the_pose(make_node, client, camera):
    node = make_node(transform_tolerance=0.25, transform_timeout=5.0)
    transforms = collect_transforms(client)
    assert node.start()
    keep = drive(node, client, 1.0)
    camera.connect()
    stamp = START + 6 * SECOND // 10
    status = camera.show(image_msg(picture(120, 50), stamp))
    assert status.message == 'localized'
    message = wait_for(lambda: camera.poses.stamped(stamp))
    expected = pose(120, 50) @ BASE_FROM_CAMERA.inverse()
    found = conversions.pose_from_msg(message.pose.pose)
    np.testing.assert_allclose(found.matrix, expected.matrix, atol=1e-9)
    np.testing.assert_allclose(
        np.array(message.pose.covariance).reshape(6, 6),
        covariance_of_body(COVARIANCE, pose(120, 50), BASE_FROM_CAMERA.inverse()),
        atol=1e-12,
    )
    transform = wait_for(lambda: last_transform(transforms))
    assert (transform.header.frame_id, transform.child_frame_id) == ('map', 'odom')
    assert conversions.ns_from_stamp(transform.header.stamp) == stamp + SECOND // 4
    map_from_odom = RigidTransform.from_tum(conversions.transform_from_msg(transform.transform))
    # Interpolated between the samples at 0.5 and 0.75 s, to the stamp of the image.
    np.testing.assert_allclose(
        (map_from_odom @ odom_from_base(0.6)).matrix, expected.matrix, atol=1e-3
    )
    values = node.facts()
    assert (values.tf_mode, values.pose_frame) == ('map_to_odom', 'base_link')

    # Odometry ends before the image: a pose, but no transform for it.
    node.set_parameters([Parameter('transform_timeout', value=0.0)])
    assert show(camera, (1, 1), 20).message == 'localized'
    wait_for(lambda: node.facts().transforms_missed == 1)
    assert 'base_link' in node.facts().transform_problem
    del keep


def test_extrinsic_from_parameters_and_prefix(make_node, client, camera):
    node = make_node(
        tf_mode='map_to_base',
        base_from_camera=BASE_FROM_CAMERA.to_tum(),
        frame_prefix='robot1/',
        map_frame='hall',
    )
    transforms = collect_transforms(client)
    assert node.start()
    camera.connect()
    assert show(camera, (30, 40), 0).message == 'localized'
    message = wait_for(lambda: camera.poses.messages)[0]
    assert message.header.frame_id == 'hall'
    expected = pose(30, 40) @ BASE_FROM_CAMERA.inverse()
    np.testing.assert_allclose(position(message), expected.translation, atol=1e-9)
    transform = wait_for(lambda: transforms.messages)[0].transforms[0]
    assert (transform.header.frame_id, transform.child_frame_id) == ('hall', 'robot1/base_link')


def test_no_pose_of_the_wrong_body(make_node, camera):
    node = make_node(tf_mode='map_to_base')
    assert node.start()
    camera.connect()
    status = show(camera, (30, 40), 0)
    assert status.message == 'no_extrinsic'
    assert values_of(status)['reason']
    assert len(camera.poses) == 0


def test_no_transform_in_mode_none(make_node, client, camera):
    node = make_node(tf_mode='none')
    assert node.start()
    camera.connect()
    assert show(camera, (30, 40), 0).message == 'localized'
    assert client.count_publishers('/tf') == 0


def test_refusals_publish_nothing_and_recovery_is_immediate(make_node, client, camera):
    node = make_node(lost_after=2)
    transforms = collect_transforms(client)
    reports = Collector(client, DiagnosticArray, '/diagnostics')
    assert node.start()
    camera.connect()

    def level():
        status = newest_status(reports, 'localizer: localization')
        return (status.level, status.message) if status else None

    assert show(camera, (9, 9), 0).message == 'localized'
    black = np.zeros((48, 64), np.uint8)
    for number in (1, 2):
        assert camera.show(image_msg(black, START + number * SECOND)).message == 'too_few_keypoints'
        if number == 1:
            wait_for(
                lambda: (
                    level()
                    == (
                        DiagnosticStatus.WARN,
                        'not localized: too_few_keypoints: the image is black',
                    )
                )
            )
    wait_for(
        lambda: level() == (DiagnosticStatus.ERROR, 'lost: too_few_keypoints: the image is black')
    )
    assert len(camera.poses) == 1
    assert len(transforms) == 1
    assert show(camera, (200, 9), 30).message == 'localized'
    wait_for(lambda: level() == (DiagnosticStatus.OK, 'localized'))
    wait_for(lambda: len(camera.poses) == 2)


def test_stamps_out_of_order_duplicated_from_the_future_and_jumping(make_node, camera):
    node = make_node()
    assert node.start()
    camera.connect()

    def at(seconds):
        stamp = START + int(seconds * SECOND)
        return camera.show(image_msg(picture(1, 1), stamp), info_msg(stamp)).message

    assert at(10.0) == 'localized'
    assert at(9.5) == 'out_of_order'
    assert at(10.1) == 'localized'
    status = camera.show(image_msg(picture(1, 1), 2_100_000_000 * SECOND))
    assert status.message == 'future_stamp'
    # A stamp from the future must not make the present look old.
    assert at(10.2) == 'localized'
    assert at(2.0) == 'localized'
    figures = node.figures()
    assert figures.time_jumps == 1
    # The same stamp again gives no second pose.
    camera.images.publish(image_msg(picture(1, 1), START + 2 * SECOND))
    wait_for(lambda: node.figures().refused.get('duplicate_stamp'))
    assert len(camera.poses) == 4


def test_simulated_time_may_start_late_and_jump_back(make_node, client, camera):
    node = make_node(use_sim_time=True, max_future=1.0)
    assert node.start()
    camera.connect()
    # Before the first /clock nothing can be in the future.
    assert show(camera, (1, 1), 0).message == 'localized'
    clock = client.create_publisher(Clock, '/clock', 10)
    wait_for(clock.get_subscription_count)

    def set_time(seconds):
        stamp = START + seconds * SECOND
        clock.publish(Clock(clock=conversions.stamp_from_ns(stamp)))
        wait_for(lambda: node.get_clock().now().nanoseconds == stamp)

    set_time(100)
    assert show(camera, (1, 1), 1000).message == 'localized'
    assert show(camera, (1, 1), 1020).message == 'future_stamp'
    set_time(10)
    assert show(camera, (1, 1), 1001).message == 'future_stamp'
    assert show(camera, (1, 1), 100).message == 'localized'
    assert node.figures().time_jumps == 1


def test_camera_info_late_and_changing(make_node, camera):
    node = make_node()
    node.set_parameters([Parameter('camera_info_timeout', value=0.01)])
    assert node.start()
    camera.connect()
    stamp = START
    status = camera.show(image_msg(picture(1, 1), stamp), None)
    assert status.message == 'no_calibration'
    assert 'no camera_info on /camera/camera_info' in values_of(status)['reason']
    stamp += SECOND
    assert camera.show(image_msg(picture(1, 1), stamp), info_msg(stamp)).message == 'localized'
    localizer = node._keeper.loaded.localizer
    assert localizer.cameras[-1].fx == 50.0
    stamp += SECOND
    changed = info_msg(stamp, focal=60.0)
    assert camera.show(image_msg(picture(1, 1), stamp), changed).message == 'localized'
    assert localizer.cameras[-1].fx == 60.0
    # The image is half the size of the calibration, then of another shape.
    stamp += SECOND
    larger = info_msg(stamp, size=(128, 96), focal=60.0)
    assert camera.show(image_msg(picture(1, 1), stamp), larger).message == 'localized'
    assert (localizer.cameras[-1].width, localizer.cameras[-1].fx) == (64, 30.0)
    stamp += SECOND
    other = info_msg(stamp, size=(128, 72))
    status = camera.show(image_msg(picture(1, 1), stamp), other)
    assert status.message == 'calibration_mismatch'


def test_a_calibration_that_the_images_contradict_is_an_error(make_node, camera):
    node = make_node()
    assert node.start()
    camera.connect()
    messages = []
    for index in range(4):
        stamp = START + index * SECOND
        status = camera.show(image_msg(picture(1, 1, 249), stamp), info_msg(stamp))
        messages.append(status.message)
    assert messages == ['localized'] * 2 + ['calibration_mismatch'] * 2
    assert 'cx by -' in values_of(status)['reason']

    def level():
        return newest_status(camera.diagnostics, 'localizer: input').level

    wait_for(lambda: level() == DiagnosticStatus.ERROR)
    # Another camera_info is believed until its images contradict it.
    stamp += SECOND
    mended = info_msg(stamp, focal=60.0)
    assert camera.show(image_msg(picture(1, 1, 249), stamp), mended).message == 'localized'
    wait_for(lambda: level() != DiagnosticStatus.ERROR)


def test_a_bug_in_the_localizer_is_a_counted_refusal(make_node, camera):
    node = make_node()
    assert node.start()
    camera.connect()
    status = camera.show(image_msg(picture(1, 1, 255), START))
    assert status.message == 'internal_error'
    assert values_of(status)['reason'] == 'ValueError: a bug'
    assert show(camera, (1, 1), 50).message == 'localized'


def test_a_result_that_cannot_be_given_out_is_counted_and_told(make_node, client):
    # rcl keeps one publisher to /rosout for each name: a node of another test with the same name
    # closes it whenever the garbage collector comes to that node.
    camera = Camera(client, namespace='/told')
    reports = Collector(client, DiagnosticArray, '/diagnostics')
    # As rosout is published: for those who come late too.
    kept = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    told = Collector(client, Log, '/rosout', kept)
    node = make_node(namespace='/told')
    assert node.start()
    camera.connect()
    camera.infos.publish(info_msg(START))
    camera.images.publish(image_msg(picture(1, 1, 253), START))

    def counted():
        status = newest_status(reports, 'told/localizer: localization')
        return status is not None and values_of(status).get('refused: internal_error') == '1'

    wait_for(counted)
    wait_for(lambda: any('without covariance' in message.msg for message in told.messages))
    assert len(camera.poses) == 0
    assert show(camera, (1, 1), 50).message == 'localized'


def test_a_missing_compiled_part_is_told(make_node, client, monkeypatch, tmp_path):
    """The loader looks where nothing was built."""
    monkeypatch.setattr(library, '_FOLDER', tmp_path)
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    monkeypatch.setattr(library, '_functions', functools.cache(library._functions.__wrapped__))
    kept = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    told = Collector(client, Log, '/rosout', kept)
    assert make_node(namespace='/uncompiled').start()
    wait_for(lambda: any('compiled part' in message.msg for message in told.messages))


def test_gpu_out_of_memory_is_an_error_and_reconfiguring_recovers(make_node, client, camera):
    reports = Collector(client, DiagnosticArray, '/diagnostics')
    node = make_node()
    assert node.start()
    camera.connect()
    status = camera.show(image_msg(picture(1, 1, 254), START))
    assert status.message == 'internal_error'
    wait_for(lambda: node._state_machine.current_state[1] == 'unconfigured')
    status = wait_for(
        lambda: (
            found
            if (found := newest_status(reports, 'localizer: localization'))
            and found.level == DiagnosticStatus.ERROR
            else None
        )
    )
    assert 'out of memory' in status.message
    assert len(camera.poses) == 0
    assert node.start()
    camera.connect()
    assert show(camera, (1, 1), 50).message == 'localized'


def test_gpu_out_of_memory_falls_back_only_if_allowed(make_node, camera):
    node = make_node(allow_cpu_fallback=True)
    assert node.start()
    camera.connect()
    camera.show(image_msg(picture(1, 1, 254), START))
    wait_for(lambda: node.facts().device == 'cpu')
    assert camera.show(image_msg(picture(1, 1, 254), START + SECOND)).message == 'localized'
    assert node.facts().state == 'active'


def test_map_deleted_under_the_running_node(make_node, map_folder, client, camera):
    reports = Collector(client, DiagnosticArray, '/diagnostics')
    node = make_node(map_check_period=0.02)
    assert node.start()
    camera.connect()
    (map_folder / 'current').unlink()
    map_folder.rmdir()
    status = wait_for(
        lambda: (
            found
            if (found := newest_status(reports, 'localizer: map')) and 'is gone' in found.message
            else None
        )
    )
    assert status.level == DiagnosticStatus.WARN
    assert show(camera, (1, 1), 0).message == 'localized'
    map_folder.mkdir()
    (map_folder / 'current').write_text('0002')
    wait_for(lambda: node.facts().map_version == '0002')
    assert show(camera, (1, 1), 9).message == 'localized'


def test_pictures_points_and_path_only_when_wanted(make_node, client, camera):
    node = make_node()
    assert node.start()
    camera.connect()
    assert show(camera, (1, 1), 0).message == 'localized'
    pictures = Collector(client, Image, '/d2s/debug_image')
    small = Collector(client, CompressedImage, '/d2s/debug_image/compressed')
    points = Collector(client, PointCloud2, '/d2s/scene_points')
    paths = Collector(client, Path, '/d2s/path')
    wait_for(
        lambda: all(
            node._outputs.wanted(name) for name in (*PICTURES, 'd2s/scene_points', 'd2s/path')
        )
    )
    assert show(camera, (2, 2), 10).message == 'localized'
    image = conversions.image_from_msg(wait_for(lambda: pictures.messages)[-1])
    assert image.shape == (48, 64, 3)
    assert image[20, 20, 1] > image[20, 20, 2]
    assert image[30, 40, 2] > image[30, 40, 1]
    message = wait_for(lambda: small.messages)[-1]
    assert message.header == pictures.messages[-1].header
    decoded = conversions.image_from_msg(message)
    assert np.abs(decoded.astype(int) - image).mean() < 12
    # The node's own pictures are no input for it.
    assert node._image_topics() == ['/camera/image_raw']
    cloud = wait_for(lambda: points.messages)[-1]
    assert cloud.header.frame_id == 'map'
    values = np.frombuffer(cloud.data, '<f4').reshape(-1, 4)
    np.testing.assert_allclose(values[:, :3], [[1, 2, 3], [4, 5, 6]])
    path = wait_for(lambda: [m for m in paths.messages if len(m.poses) == 2])[0]
    assert [round(100 * p.pose.position.x) for p in path.poses] == [1, 2]


def test_an_image_that_proves_nothing_leans_on_odometry(make_node, client, camera):
    node = make_node(transform_timeout=5.0, tracking_seconds=1.0)
    assert node.start()
    keep = drive(node, client, 2.0)
    camera.connect()
    # Nothing proven yet: nothing to lean on.
    assert show(camera, (0, 0, 252), 1).message == 'too_few_inliers'
    assert show(camera, (120, 50), 5).message == 'localized'
    status = show(camera, (0, 0, 252), 10)
    assert status.message == 'localized'
    assert values_of(status)['with prior'] == 'True'
    message = wait_for(lambda: camera.poses.stamped(START + SECOND))
    moved = odom_from_base(0.5).inverse() @ odom_from_base(1.0)
    expected = pose(120, 50) @ BASE_FROM_CAMERA.inverse() @ moved
    found = conversions.pose_from_msg(message.pose.pose)
    np.testing.assert_allclose(found.matrix, expected.matrix, atol=1e-3)
    # What leans on a pose does not hold up the next: 1.0 s after the proven one it ends.
    assert show(camera, (0, 0, 252), 16).message == 'too_few_inliers'
    node.set_parameters([Parameter('tracking_seconds', value=0.0)])
    assert show(camera, (120, 50), 17).message == 'localized'
    assert show(camera, (0, 0, 252), 18).message == 'too_few_inliers'
    del keep


def test_images_and_odometry_are_fused(make_node, client, camera):
    node = make_node(transform_timeout=5.0, fuse_odometry=True, odometry_drift=0.05)
    transforms = collect_transforms(client)
    assert node.start()
    keep = drive(node, client, 3.0)
    camera.connect()

    def published(place, number):
        assert show(camera, place, number).message == 'localized'
        message = wait_for(lambda: camera.poses.stamped(START + number * SECOND // 10))
        covariance = np.array(message.pose.covariance).reshape(6, 6)
        return conversions.pose_from_msg(message.pose.pose), covariance

    start, first = published((100, 100), 0)
    alone = pose(100, 100) @ BASE_FROM_CAMERA.inverse()
    np.testing.assert_allclose(start.matrix, alone.matrix, atol=1e-9)
    image = pose(120, 100) @ BASE_FROM_CAMERA.inverse()
    found, second = published((120, 100), 1)
    expected = alone @ odom_from_base(0.1)
    between = np.linalg.norm(found.translation - expected.translation)
    assert 0 < between < np.linalg.norm(image.translation - expected.translation)
    assert np.trace(second[:3, :3]) < np.trace(first[:3, :3])
    transform = wait_for(
        lambda: (
            (sent := last_transform(transforms))
            # Dated ahead by transform_tolerance.
            and conversions.ns_from_stamp(sent.header.stamp) == START + 6 * SECOND // 10
            and sent
        )
    )
    map_from_odom = RigidTransform.from_tum(conversions.transform_from_msg(transform.transform))
    np.testing.assert_allclose(
        (map_from_odom @ odom_from_base(0.1)).matrix, found.matrix, atol=1e-3
    )
    # What cannot be is held back, and the second image that says so is believed.
    status = show(camera, (250, 250), 2)
    assert status.message == 'implausible'
    assert 'odometry' in values_of(status)['reason']
    # Odometry ends: the image alone, and a warning.
    node.set_parameters([Parameter('transform_timeout', value=0.0)])
    found, _ = published((50, 50), 60)
    expected = pose(50, 50) @ BASE_FROM_CAMERA.inverse()
    np.testing.assert_allclose(found.matrix, expected.matrix, atol=1e-9)
    assert 'base_link' in node.facts().transform_problem
    del keep


def test_fused_poses_without_a_transform(make_node, client, camera):
    node = make_node(transform_timeout=5.0, fuse_odometry=True, odometry_drift=0.05, tf_mode='none')
    assert node.start()
    keep = drive(node, client, 1.0)
    camera.connect()
    covariances = []
    for number in range(2):
        assert show(camera, (100 + 10 * number, 100), number).message == 'localized'
        stamp = START + number * SECOND // 10
        message = wait_for(lambda stamp=stamp: camera.poses.stamped(stamp))
        covariances.append(np.array(message.pose.covariance).reshape(6, 6))
    assert np.trace(covariances[1]) < np.trace(covariances[0])
    assert not node.facts().transform_problem
    del keep


@pytest.mark.parametrize('wrong', [{'tf_mode': 'map_to_camera'}, {'pose_frame': 'camera'}])
def test_odometry_is_not_fused_where_it_is_not_looked_up(wrong):
    with pytest.raises(ConfigError, match='fuse_odometry'):
        LocalizerNodeConfig(fuse_odometry=True, **wrong)


def test_speeds_are_not_checked_in_a_map_of_unknown_scale(make_node, client, camera):
    node = make_node(max_speed=1.0, metric=False)
    assert node.start()
    camera.connect()
    assert show(camera, (0, 0), 0).message == 'localized'
    assert show(camera, (250, 0), 1).message == 'localized'


def test_implausible_poses_are_held_back_until_confirmed(make_node, client, camera):
    node = make_node(max_speed=1.0)
    assert node.start()
    camera.connect()
    assert show(camera, (10, 0), 0).message == 'localized'
    status = show(camera, (250, 0), 1)
    assert status.message == 'implausible'
    assert '2.400 m' in values_of(status)['reason']
    assert show(camera, (15, 0), 2).message == 'localized'
    # Carried away: the second image there is believed.
    assert show(camera, (250, 0), 3).message == 'implausible'
    assert show(camera, (251, 0), 4).message == 'localized'
    # Told so by an operator, the first one is.
    publisher = client.create_publisher(PoseWithCovarianceStamped, '/initialpose', 1)
    wait_for(publisher.get_subscription_count)
    publisher.publish(
        conversions.pose_with_covariance(RigidTransform.identity(), np.eye(6), START, 'map')
    )
    wait_for(lambda: node.facts().hint)
    assert show(camera, (5, 0), 5).message == 'localized'
    assert len(wait_for(lambda: len(camera.poses) == 4 and camera.poses.messages)) == 4


def test_initial_pose_is_a_hint_only(make_node, client, camera):
    node = make_node()
    assert node.start()
    camera.connect()
    publisher = client.create_publisher(PoseWithCovarianceStamped, '/initialpose', 1)
    wait_for(publisher.get_subscription_count)

    def hint(x, frame):
        far = RigidTransform(np.eye(3), np.array([x, 0, 0]))
        publisher.publish(conversions.pose_with_covariance(far, np.eye(6), START, frame))

    hint(50.0, 'odom')
    hint(60.0, 'map')
    wait_for(lambda: 'x 60.000' in node.facts().hint)
    assert show(camera, (1, 1), 0).message == 'localized'
    np.testing.assert_allclose(position(wait_for(lambda: camera.poses.messages)[0])[0], 0.01)


def test_namespaces_keep_robots_apart(make_node, client):
    first = make_node(namespace='/robot1', image_topic='camera/image_raw', tf_mode='none')
    second = make_node(namespace='/robot2', image_topic='camera/image_raw', tf_mode='none')
    assert first.start()
    assert second.start()
    cameras = [
        Camera(client, f'/{name}/camera/image_raw', namespace=f'/{name}')
        for name in ('robot1', 'robot2')
    ]
    for number, camera in enumerate(cameras):
        camera.connect()
        assert show(camera, (number, 5), 0).message == 'localized'
    for number, camera in enumerate(cameras):
        messages = wait_for(lambda camera=camera: camera.poses.messages)
        assert len(messages) == 1
        assert round(100 * position(messages[0])[0]) == number


def test_transport_is_found_and_followed(make_node, client):
    node = make_node()
    assert node.start()
    assert node.facts().transport == ''
    compressed = Camera(client, compressed=True)
    compressed.connect()
    wait_for(lambda: node.facts().transport == 'compressed')
    for publisher in (compressed.images, compressed.infos):
        client.destroy_publisher(publisher)
    raw = Camera(client)
    raw.connect()
    wait_for(lambda: node.facts().transport == 'raw')
    assert show(raw, (3, 3), 0).message == 'localized'


def test_more_images_than_can_be_handled(make_node, camera):
    node = make_node(delay=0.05)
    assert node.start()
    camera.connect()
    camera.infos.publish(info_msg(START))
    wait_for(lambda: node._work._pipeline._readers[0]._infos.find(START, 0))
    message = image_msg(picture(1, 1, size=(640, 480)), START)
    calibration = info_msg(START, size=(640, 480))
    camera.infos.publish(calibration)
    for number in range(400):
        message.header = image_msg(picture(1, 1), START + number * SECOND // 200).header
        camera.images.publish(message)
    last = START + 400 * SECOND // 200
    message.header = image_msg(picture(1, 1), last).header

    def newest():
        camera.images.publish(message)
        return camera.status.stamped(last)

    wait_for(newest)
    received, dropped = node._work.counts
    figures = node.figures()
    handled = figures.localized + sum(figures.refused.values())
    assert dropped > 0
    # Every image is accounted for: handled, replaced by a newer one, or one of the two in hand.
    assert 0 <= received - dropped - handled <= 2


def test_lifecycle_cycles_leave_nothing_behind(make_node, camera):
    node = make_node()

    def cycle():
        assert node.trigger_configure() == SUCCESS
        assert node.trigger_activate() == SUCCESS
        assert node.trigger_deactivate() == SUCCESS
        assert node.trigger_cleanup() == SUCCESS

    def count():
        gc.collect()
        return (
            threading.active_count(),
            len(list(node.publishers)),
            len(list(node.subscriptions)),
            len(list(node.timers)),
            len(list(node.services)),
            len(node._managed_entities),
        )

    cycle()
    before = count()
    for _ in range(10):
        cycle()
    assert count() == before
