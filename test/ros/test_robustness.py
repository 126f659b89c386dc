"""What a robot does to a node: floods, restarts, many transitions, long runs."""

from __future__ import annotations

import os
import pathlib
import signal
import time

import pytest
from ros.helpers import Camera, Collector, image_msg, info_msg, values_of, wait_for
from ros.stub_localizer import picture

pytest.importorskip('rclpy', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState

pytestmark = pytest.mark.ros

SECOND = 10**9
START = 1_700_000_000 * SECOND


def memory_kib(process):
    """Return the resident memory of a process."""
    for line in pathlib.Path(f'/proc/{process.popen.pid}/status').read_text().splitlines():
        if line.startswith('VmRSS:'):
            return int(line.split()[1])
    raise AssertionError('no VmRSS')


def threads(process):
    return len(os.listdir(f'/proc/{process.popen.pid}/task'))


def input_values(reports):
    for message in reversed(reports.messages):
        for status in message.status:
            if status.name == 'localizer: input':
                return values_of(status)
    return {}


class Manager:
    """Drives the node's transitions through its services, as Nav2's manager does."""

    def __init__(self, node):
        self._transitions = {
            'configure': Transition.TRANSITION_CONFIGURE,
            'activate': Transition.TRANSITION_ACTIVATE,
            'deactivate': Transition.TRANSITION_DEACTIVATE,
            'cleanup': Transition.TRANSITION_CLEANUP,
        }
        self._change = node.create_client(ChangeState, '/localizer/change_state')
        self._state = node.create_client(GetState, '/localizer/get_state')
        assert self._change.wait_for_service(90)
        assert self._state.wait_for_service(90)

    def __call__(self, name):
        request = ChangeState.Request(transition=Transition(id=self._transitions[name]))
        future = self._change.call_async(request)
        wait_for(future.done, 90, name)
        return future.result().success

    @property
    def state(self):
        future = self._state.call_async(GetState.Request())
        wait_for(future.done, 90, 'get_state')
        return future.result().current_state.id


def test_a_lifecycle_manager_can_drive_the_node(start_stub_node, client):
    process = start_stub_node(autostart='false')
    manager = Manager(client)
    assert manager.state == State.PRIMARY_STATE_UNCONFIGURED
    (process.map_folder / 'current').rename(process.map_folder / 'away')
    assert not manager('configure')
    assert manager.state == State.PRIMARY_STATE_UNCONFIGURED
    (process.map_folder / 'away').rename(process.map_folder / 'current')
    assert manager('configure')
    assert manager('activate')
    assert manager.state == State.PRIMARY_STATE_ACTIVE
    camera = Camera(client)
    camera.connect()
    assert camera.show(image_msg(picture(1, 1), START)).message == 'localized'
    assert manager('deactivate')
    assert manager('cleanup')
    assert manager.state == State.PRIMARY_STATE_UNCONFIGURED


def test_killed_and_restarted_it_localizes_its_first_images(start_stub_node, client):
    camera = Camera(client)
    for number in range(2):
        stale = camera.images.get_subscription_count(), camera.infos.get_subscription_count()
        process = start_stub_node()
        camera.connect()
        # The killed one stays known for a while.
        wait_for(
            lambda stale=stale: (
                camera.images.get_subscription_count() > stale[0]
                and camera.infos.get_subscription_count() > stale[1]
            )
        )
        # Discovery of the two topics is independent: images may come before any camera_info does.
        deadline, attempt = time.monotonic() + 3.0, 0
        while True:
            stamp = START + number * SECOND + attempt * SECOND // 1000
            status = camera.show(image_msg(picture(1, 1), stamp), timeout=120.0)
            if status.message != 'no_calibration' or time.monotonic() > deadline:
                break
            attempt += 1
        assert status.message == 'localized'
        assert float(values_of(status)['total [ms]']) < 3000
        process.signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL


@pytest.mark.slow
def test_a_hundred_cycles_do_not_grow(start_stub_node, client):
    process = start_stub_node(autostart='false')
    manager = Manager(client)

    def cycles(number):
        for _ in range(number):
            for name in ('configure', 'activate', 'deactivate', 'cleanup'):
                assert manager(name)

    cycles(20)
    before = memory_kib(process), threads(process)
    cycles(100)
    after = memory_kib(process), threads(process)
    assert after[1] <= before[1]
    assert after[0] <= 1.03 * before[0]


@pytest.mark.slow
def test_a_flood_of_images_is_bounded(start_stub_node, client):
    """Far more images than can be handled: memory stays, drops are counted, the newest wins."""
    process = start_stub_node('0.1', diagnostics_period=0.1)
    camera = Camera(client)
    reports = Collector(client, DiagnosticArray, '/diagnostics')
    camera.connect()
    size = (640, 480)
    message, info = image_msg(picture(1, 1, size=size), START), info_msg(START, size=size)
    assert camera.show(message, info).message == 'localized'
    published = [0]
    base = [START + SECOND]

    def flood(images):
        def received():
            published[0] += 1
            base[0] += SECOND // 200
            message.header = image_msg(picture(1, 1), base[0]).header
            camera.images.publish(message)
            return int(input_values(reports).get('received', 0)) >= images

        wait_for(received, 120, f'{images} received images')

    flood(300)
    before = memory_kib(process)
    flood(1500)
    assert memory_kib(process) <= 1.05 * before
    values = input_values(reports)
    assert int(values['dropped']) > 0.5 * int(values['received'])
    last = base[0] + SECOND
    assert camera.show(image_msg(picture(1, 1, size=size), last), info).message == 'localized'


@pytest.mark.slow
def test_memory_is_flat_over_ten_thousand_images(start_stub_node, client):
    process = start_stub_node(transform_timeout=0.0)
    camera = Camera(client)
    camera.connect()
    assert camera.show(image_msg(picture(1, 1), START)).message == 'localized'
    number = [0]

    def run(images):
        for _ in range(images):
            number[0] += 1
            stamp = START + number[0] * SECOND // 30
            camera.images.publish(image_msg(picture(1, 1), stamp))
            assert camera.status.wait_count(number[0] + 1)

    run(2000)
    before = memory_kib(process)
    run(10_000)
    assert memory_kib(process) <= 1.02 * before
    assert len(camera.poses) == 12_001
