"""How long a wrong pose could go on: from what makes it wrong to silence or an ERROR, over DDS.

The time runs from the publication of the first image after the fault to the status that refuses
it, as a subscriber sees it, and no pose may come out in between.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticStatus
from ros.helpers import (
    BASE_FROM_CAMERA,
    SECOND,
    START,
    image_msg,
    info_msg,
    newest_status,
    send_transform,
    show,
    values_of,
    wait_for,
)
from ros.stub_localizer import exact_picture

from d2s_ros.data.sources import open_source
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.localization.localizer import Localizer
from d2s_ros.ros import conversions
from d2s_ros.ros.map_loader import LoadedMap

pytestmark = [pytest.mark.ros, pytest.mark.usefixtures('tf2_msgs')]

#: Longest that may pass, in seconds.
TIME_TO_ALERT = 1.0
MAP_FROM_ODOM = RigidTransform(rotation_from_vector([0, 0, 0.7]), np.array([2.0, 3.0, 0.0]))


def ahead(step):
    """Return odometry at 1 m/s, ten images a second."""
    return RigidTransform(np.eye(3), np.array([step / 10, 0.0, 0.0]))


def stamp(step):
    return START + step * SECOND // 10


@pytest.fixture
def odometry(client):
    """Return what sends the extrinsic, and odometry of a way straight ahead."""
    kept = []

    def send(node, steps, odom=ahead):
        extrinsic = [('base_link', 'camera', 0, BASE_FROM_CAMERA)]
        kept.append(send_transform(client, extrinsic, static=True))
        wait_for(lambda: node._source.lookup('base_link', 'camera', None).target_from_source)
        poses = [('odom', 'base_link', stamp(step), odom(step)) for step in range(steps)]
        kept.append(send_transform(client, poses))
        wait_for(
            lambda: node._source.lookup('odom', 'base_link', stamp(steps - 1)).target_from_source
        )

    return send


def alert_of(camera, step, message, info='same'):
    """Show an image that must be refused; return its status and the seconds until that came."""
    before = len(camera.poses)
    start = time.monotonic()
    status = camera.show(message, info=info)
    seconds = time.monotonic() - start
    assert status.level != DiagnosticStatus.OK, status.message
    time.sleep(0.05)
    assert len(camera.poses) == before
    assert camera.poses.stamped(stamp(step)) is None
    return status, seconds


def drive_to(step, mount, map_from_odom=MAP_FROM_ODOM, odom=ahead):
    """Return the image that a camera takes on the way."""
    return image_msg(
        exact_picture(map_from_odom @ odom(step) @ BASE_FROM_CAMERA @ mount), stamp(step)
    )


def test_a_camera_turned_by_five_degrees_is_an_error_until_it_is_mended(
    make_node, client, camera, odometry
):
    node = make_node(transform_timeout=5.0)
    assert node.start()
    odometry(node, 20)
    camera.connect()
    straight = RigidTransform.identity()
    turned = RigidTransform(rotation_from_vector([0, np.radians(5.0), 0]), np.zeros(3))
    for step in range(4):
        assert camera.show(drive_to(step, straight)).message == 'localized'
    status, seconds = alert_of(camera, 4, drive_to(4, turned))
    assert seconds < TIME_TO_ALERT
    assert status.message == 'camera_moved'
    assert '5.0 degrees' in values_of(status)['reason']
    start = time.monotonic()

    def is_error():
        found = newest_status(camera.diagnostics, 'localizer: localization')
        return found.level == DiagnosticStatus.ERROR and 'camera_moved' in found.message

    wait_for(is_error)
    assert time.monotonic() - start < TIME_TO_ALERT
    for step in range(5, 14):
        status, _ = alert_of(camera, step, drive_to(step, turned))
    assert 'on its mount' in values_of(status)['reason']
    # Calibrated again, it is believed with the next image.
    moved = BASE_FROM_CAMERA @ turned
    keep = send_transform(client, [('base_link', 'camera', 0, moved)], static=True)

    def mended():
        found = node._source.lookup('base_link', 'camera', None).target_from_source
        return found is not None and np.allclose(found.matrix, moved.matrix, atol=1e-9)

    wait_for(mended)
    assert camera.show(drive_to(14, turned)).message == 'localized'
    pose = wait_for(lambda: camera.poses.stamped(stamp(14)))
    found = conversions.pose_from_msg(pose.pose.pose)
    np.testing.assert_allclose(found.matrix, (MAP_FROM_ODOM @ ahead(14)).matrix, atol=1e-6)
    del keep


def test_a_robot_that_was_carried_away_is_silent_until_it_is_found(
    make_node, client, camera, odometry
):
    """Its wheels stand still; the pose that its first image elsewhere gives waits for a second."""
    node = make_node(transform_timeout=5.0, max_speed=1.0)
    assert node.start()

    def rest(step):
        return RigidTransform.identity()

    odometry(node, 10, rest)
    camera.connect()
    straight = RigidTransform.identity()
    for step in range(3):
        assert camera.show(drive_to(step, straight, odom=rest)).message == 'localized'
    elsewhere = RigidTransform(rotation_from_vector([0, 0, 2.0]), np.array([-4.0, 9.0, 0.0]))
    status, seconds = alert_of(camera, 3, drive_to(3, straight, elsewhere, rest))
    assert seconds < TIME_TO_ALERT
    assert status.message == 'implausible'
    assert camera.show(drive_to(4, straight, elsewhere, rest)).message == 'localized'
    pose = wait_for(lambda: camera.poses.stamped(stamp(4)))
    found = conversions.pose_from_msg(pose.pose.pose)
    np.testing.assert_allclose(found.matrix, elsewhere.matrix, atol=1e-6)


def test_images_of_the_neighbouring_building_get_no_pose(
    monkeypatch, make_node, camera, day_map, building_logs
):
    """The real localizer: the robot knows where it is, then somebody brings it next door."""
    localizer = Localizer.from_map(day_map, device='cpu')
    loaded = LoadedMap(localizer, 'map', 'v1', 'cpu', True)
    node = make_node(lost_after=3)
    monkeypatch.setattr(node, '_factory', lambda config, device: loaded)
    assert node.start()
    camera.connect()

    def shown(log, count):
        """Yield images with their calibration."""
        for frame, _ in zip(open_source(building_logs / log), range(count), strict=False):
            seen = frame.camera
            yield (
                frame.image,
                info_msg(0, (seen.width, seen.height), seen.fx),
            )

    step = 0
    for image, info in shown('map', 2):
        info.header.stamp = image_msg(image, stamp(step)).header.stamp
        assert camera.show(image_msg(image, stamp(step)), info=info).message == 'localized'
        pose = wait_for(lambda step=step: camera.poses.stamped(stamp(step)))
        status = camera.status.stamped(stamp(step)).status[0]
        level = float(values_of(status)['protection level [m]'])
        sigma = np.array(pose.pose.covariance).reshape(6, 6)[:3, :3]
        assert level >= 3.4 * np.sqrt(np.linalg.eigvalsh(sigma)[-1])
        step += 1
    times = []
    for image, info in shown('other', 4):
        info.header.stamp = image_msg(image, stamp(step)).header.stamp
        times.append(alert_of(camera, step, image_msg(image, stamp(step)), info)[1])
        step += 1
    # The middle one: other work of this machine may hold up an image.
    assert np.median(times) < TIME_TO_ALERT
    wait_for(
        lambda: (
            newest_status(camera.diagnostics, 'localizer: localization').level
            == DiagnosticStatus.ERROR
        )
    )


def test_a_pose_beyond_the_alert_limit_is_not_published(make_node, camera):
    node = make_node(alert_limit=0.5)
    assert node.start()
    camera.connect()
    # The stub's sigma is 0.17 m: its protection level is above half a metre.
    status = show(camera, (10, 0), 0)
    assert status.message == 'uncertain'
    assert 'alert limit' in values_of(status)['reason']
    exact = image_msg(exact_picture(MAP_FROM_ODOM), stamp(1))
    status = camera.show(exact)
    assert status.message == 'localized'
    level = float(values_of(status)['protection level [m]'])
    assert level == pytest.approx(4.25 * 0.01, rel=1e-3)
    assert float(values_of(status)['protection probability']) == 0.99
