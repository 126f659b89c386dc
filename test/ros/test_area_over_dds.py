"""An area in the node, over real DDS: poses in the frame of their place, and an elevator."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from geometry_msgs.msg import PoseWithCovarianceStamped
from maps.test_scene_map import make_map
from ros.helpers import (
    RELIABLE,
    START,
    header,
    image_msg,
    info_msg,
    newest_status,
    values_of,
    wait_for,
)

from d2s_ros.data.sources import open_source
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.maps.files import PLACES_FOLDER
from d2s_ros.maps.store import MapStore
from d2s_ros.ros.conversions import pose_from_msg
from d2s_ros.ros.map_loader import version_token
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import frames

pytestmark = pytest.mark.ros


def test_poses_are_in_the_frame_of_their_place_and_a_new_place_needs_two_images(
    small_area, building_logs, start_process, camera, client
):
    parameters = {**RELIABLE, 'map': small_area, 'device': 'cpu', 'diagnostics_period': 0.1}
    parameters |= {'tf_mode': 'none', 'map_frame': 'site'}
    node = start_process(
        'd2s_ros.ros.localizer_node',
        '--ros-args',
        *(part for key, value in parameters.items() for part in ('-p', f'{key}:={value}')),
    )
    camera.connect()
    config = SimulationConfig(
        seed=4, width=320, height=240, frames=12, rate_hz=1.0, other_place=True
    )
    hall = list(open_source(building_logs / 'map'))[:3]
    annex = list(frames(config))[:3]
    expected = [
        *((frame, 'hall', 'localized') for frame in hall),
        (annex[0], 'annex', 'implausible'),
        *((frame, 'annex', 'localized') for frame in annex[1:]),
    ]
    for number, (frame, place, status) in enumerate(expected):
        stamp = START + number * 10**9
        intrinsics = frame.camera
        info = info_msg(stamp, size=(320, 240), focal=intrinsics.fx)
        info.k[2], info.k[5] = intrinsics.cx, intrinsics.cy
        found = camera.show(image_msg(frame.image, stamp), info)
        values = values_of(found)
        assert found.message == status, values
        assert values['place'] == place
        message = camera.poses.stamped(stamp)
        assert (message is not None) == (status == 'localized')
        assert camera.status.stamped(stamp).header.frame_id == f'site_{place}'
        if message is None:
            assert 'a second image must agree' in values['reason']
            continue
        assert message.header.frame_id == f'site_{place}'
        pose = pose_from_msg(message.pose.pose)
        assert pose_error(pose, frame.map_from_camera)[0] < 0.1
    # Who says where the robot is, in the frame of a place, makes the node forget the last one.
    hint = PoseWithCovarianceStamped(header=header(stamp + 1, 'site_hall'))
    hint.pose.pose.orientation.w = 1.0
    hints = client.create_publisher(PoseWithCovarianceStamped, 'initialpose', 1)
    wait_for(hints.get_subscription_count)

    def noted():
        hints.publish(hint)
        time.sleep(0.2)
        status = newest_status(camera.diagnostics, 'localizer: localization')
        return values_of(status)['initial pose hint'] != 'none'

    wait_for(noted)
    stamp += 10**9
    info = info_msg(stamp, size=(320, 240), focal=intrinsics.fx)
    info.k[2], info.k[5] = intrinsics.cx, intrinsics.cy
    assert camera.show(image_msg(hall[0].image, stamp), info).message == 'localized'
    assert camera.poses.stamped(stamp).header.frame_id == 'site_hall'
    assert node.running


def test_a_new_version_of_a_place_is_seen(small_area, tmp_path):
    root = tmp_path / 'area'
    shutil.copytree(small_area, root)
    before = version_token(root)
    assert before == version_token(root)
    assert np.all([len(before) > 10, version_token(tmp_path / 'none') is None])
    MapStore(root / PLACES_FOLDER / 'annex').write(make_map())
    assert version_token(root) != before
