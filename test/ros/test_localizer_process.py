"""The node as a process of its own, over real DDS."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from ros.helpers import (
    INTERRUPTS,
    LATCHED,
    Camera,
    Collector,
    image_msg,
    info_msg,
    newest_status,
    seconds_to_end,
    values_of,
    wait_for,
)
from ros.stub_localizer import COVARIANCE, picture, pose
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String
from std_srvs.srv import Trigger

from d2s_ros.ros import conversions

pytestmark = pytest.mark.ros

SECOND = 10**9
START = 1_700_000_000 * SECOND


def test_pose_over_dds(start_stub_node, client):
    start_stub_node(best_effort=True)
    camera = Camera(client)
    from tf2_msgs.msg import TFMessage

    transforms = Collector(client, TFMessage, '/tf')
    camera.connect()
    stamp = START + 123456789
    status = camera.show(image_msg(picture(110, 220), stamp))
    assert status.message == 'localized'
    message = wait_for(lambda: camera.poses.stamped(stamp))
    assert message.header.frame_id == 'map'
    expected = pose(110, 220)
    found = conversions.pose_from_msg(message.pose.pose)
    np.testing.assert_allclose(found.matrix, expected.matrix, atol=1e-12)
    np.testing.assert_array_equal(np.array(message.pose.covariance).reshape(6, 6), COVARIANCE)
    transform = wait_for(lambda: transforms.messages)[0].transforms[0]
    assert (transform.header.frame_id, transform.child_frame_id) == ('map', 'camera')
    assert conversions.ns_from_stamp(transform.header.stamp) == stamp
    np.testing.assert_allclose(
        conversions.transform_from_msg(transform.transform), expected.to_tum(), atol=1e-12
    )


def test_bad_input_is_refused_counted_and_shown(start_stub_node, client):
    start_stub_node(image_transport='compressed', diagnostics_period=0.1, lost_after=3)
    camera = Camera(client, compressed=True)
    reports = Collector(client, DiagnosticArray, '/diagnostics')
    camera.connect()
    import cv2

    data = cv2.imencode('.png', picture(10, 20))[1].tobytes()
    jpeg = cv2.imencode('.jpg', picture(10, 20))[1].tobytes()

    def image(number, content=data, kind='png'):
        message = CompressedImage(format=kind, data=content)
        message.header = image_msg(picture(0, 0), START + number * SECOND).header
        return message

    def info(number, **changes):
        return info_msg(START + number * SECOND, **changes)

    zeros = info(2)
    zeros.k = [0.0] * 9
    cases = [
        (image(0, jpeg[: len(jpeg) // 2], 'jpeg'), info(0), 'bad_image'),
        (image(1, b'not an image', 'jpeg'), info(1), 'bad_image'),
        (image(2), zeros, 'no_calibration'),
        (image(3), info(3, model='telescope', d=(0.1,)), 'no_calibration'),
        (image(4), info(4, size=(64, 64)), 'calibration_mismatch'),
        (image(5), info(5, size=(0, 0)), 'no_calibration'),
    ]
    for message, calibration, expected in cases:
        assert camera.show(message, calibration).message == expected
    assert len(camera.poses) == 0

    def lost():
        status = newest_status(reports, 'localizer: localization')
        return status if status and values_of(status)['refused'] == '6' else None

    status = wait_for(lost)
    assert status.level == DiagnosticStatus.ERROR
    assert status.message.startswith('lost: no_calibration: ')
    values = values_of(status)
    assert values['refused: bad_image'] == '2'
    assert values['refused: no_calibration'] == '3'
    assert values['refused: calibration_mismatch'] == '1'
    assert values['localized'] == '0'

    # One good image and everything is well again; half the size is the same camera.
    assert camera.show(image(6), info(6, size=(128, 96))).message == 'localized'
    status = wait_for(
        lambda: (
            found
            if (found := newest_status(reports, 'localizer: localization')).message == 'localized'
            else None
        )
    )
    assert status.level == DiagnosticStatus.OK


def test_an_image_that_is_worked_on_at_the_end_leaves_no_traceback(start_stub_node, client):
    """Its publishers are gone when it is done, and another image waits."""
    process = start_stub_node()
    camera = Camera(client)
    camera.connect()
    assert camera.show(image_msg(picture(1, 1), START)).message == 'localized'
    for second, command in ((1, 251), (2, 0)):
        camera.infos.publish(info_msg(START + second * SECOND))
        camera.images.publish(image_msg(picture(1, 1, command), START + second * SECOND))
        # The first is worked on for longer than this.
        time.sleep(0.1)
    assert process.wait(20) == 0
    assert 'Traceback' not in process.output


@pytest.mark.parametrize('name', sorted(INTERRUPTS))
@pytest.mark.parametrize('busy', [False, True])
def test_signals_end_the_process(start_stub_node, client, name, busy):
    # A stage that takes 60 s must not keep the process either.
    process = start_stub_node(*(['60'] if busy else []))
    camera = Camera(client)
    camera.connect()
    if busy:
        reports = Collector(client, DiagnosticArray, '/diagnostics')
        camera.infos.publish(info_msg(START))

        def received():
            camera.images.publish(image_msg(picture(1, 1), START))
            status = newest_status(reports, 'localizer: input')
            return status and int(values_of(status)['received']) > 0

        wait_for(received)
    else:
        assert camera.show(image_msg(picture(1, 1), START)).message == 'localized'
    process.signal(INTERRUPTS[name])
    # Where more processes want to run than there are processors, each has that much less.
    crowd = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert seconds_to_end(process) < 2.0 * crowd
    assert process.wait(10) == 0
    assert 'Traceback' not in process.output


def test_a_missing_map_is_one_line_and_an_exit_code(start_stub_node, tmp_path):
    process = start_stub_node(map=str(tmp_path / 'nowhere'))
    assert process.wait(120) == 3
    assert 'nowhere is not a map folder' in process.output
    assert 'Traceback' not in process.output


def test_a_wrong_parameter_is_one_line_and_an_exit_code(start_stub_node):
    process = start_stub_node(tf_mode='sideways')
    assert process.wait(120) == 2
    assert "tf_mode is 'sideways'" in process.output
    assert 'Traceback' not in process.output


def test_a_new_map_version_is_loaded_without_missing_a_frame(start_stub_node, client):
    process = start_stub_node(map_check_period=0.05)
    camera = Camera(client)
    versions = Collector(client, String, '/d2s/map_version', LATCHED)
    camera.connect()
    assert camera.show(image_msg(picture(1, 1), START)).message == 'localized'
    wait_for(lambda: [m.data for m in versions.messages] == ['0001'])
    new = process.map_folder / 'new'
    new.write_text('0002')
    new.replace(process.map_folder / 'current')
    number = 1
    while [m.data for m in versions.messages] != ['0001', '0002']:
        assert camera.show(image_msg(picture(1, 1), START + number * SECOND)).message == 'localized'
        number += 1
        assert number < 1000

    # A damaged version is not used, and the node says so.
    reports = Collector(client, DiagnosticArray, '/diagnostics')
    new.write_text('broken')
    new.replace(process.map_folder / 'current')
    status = wait_for(
        lambda: (
            found
            if (found := newest_status(reports, 'localizer: map'))
            and 'the map is damaged' in found.message
            else None
        )
    )
    assert status.level == DiagnosticStatus.WARN
    assert values_of(status)['version'] == '0002'
    assert camera.show(image_msg(picture(1, 1), START + 2000 * SECOND)).message == 'localized'

    # The service loads on request.
    new.write_text('0003')
    new.replace(process.map_folder / 'current')
    reload = client.create_client(Trigger, '/localizer/reload_map')
    assert reload.wait_for_service(10)
    wait_for(lambda: versions.messages[-1].data == '0003')
    answer = reload.call_async(Trigger.Request())
    wait_for(answer.done)
    assert answer.result().success
