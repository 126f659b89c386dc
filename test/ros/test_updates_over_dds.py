"""Localizer and map updater as processes over DDS: a whole update, and updates that are killed."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from ros.helpers import (  # noqa: E402
    LATCHED,
    RELIABLE,
    Camera,
    Collector,
    image_msg,
    info_msg,
    position,
    values_of,
    wait_for,
)
from std_msgs.msg import String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from d2s_ros.data.sources import open_source  # noqa: E402
from d2s_ros.data.tum import read_tum  # noqa: E402
from d2s_ros.maps.files import COVERAGE_FILE  # noqa: E402
from d2s_ros.maps.scene_map import SceneMap  # noqa: E402
from d2s_ros.maps.store import MapStore  # noqa: E402
from d2s_ros.maps.verification import verify  # noqa: E402
from d2s_ros.simulation.config import SimulationConfig  # noqa: E402
from d2s_ros.simulation.simulate import simulate_log  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.slow]

SECOND = 1_000_000_000
#: An update of this small building, on a machine that does much else.
PATIENCE = 900.0


@pytest.fixture(scope='session')
def changed_logs(tmp_path_factory):
    """Return a folder with two drives through the building at dusk."""
    root = tmp_path_factory.mktemp('changed')
    changed = SimulationConfig(
        seed=4, width=320, height=240, rate_hz=1.0, poses=False, lighting='dusk'
    )
    simulate_log(replace(changed, frames=20, trajectory_seed=5), root / 'log', progress=False)
    simulate_log(replace(changed, frames=12, trajectory_seed=6), root / 'query', progress=False)
    return root


class Robot:
    """Both nodes as processes on one map, with what a test sees of them."""

    def __init__(self, start_process, client, map_path, log_dir):
        self._start, self.map_path, self.log_dir = start_process, map_path, log_dir
        self.localizer = start_process(
            'd2s_ros.ros.localizer_node',
            *self._settings(map=map_path, device='cpu', map_check_period=0.2, **RELIABLE),
        )
        self.updater = None
        self.start_updater()
        self.camera = Camera(client)
        self.versions = Collector(client, String, '/d2s/map_version', LATCHED)
        self.status = Collector(client, DiagnosticArray, '/d2s/update_status', LATCHED)
        self._clients = {
            name: client.create_client(Trigger, f'/d2s/{name}')
            for name in ('update_map', 'rollback_map')
        }
        self._stamp = 1_700_000_000 * SECOND

    @staticmethod
    def _settings(**parameters):
        flat = [part for item in parameters.items() for part in ('-p', '{}:={}'.format(*item))]
        return ['--ros-args', *flat]

    def start_updater(self):
        settings = {'map': self.map_path, 'log_dir': self.log_dir, 'status_period': 0.05}
        self.updater = self._start(
            'd2s_ros.ros.map_updater_node',
            *self._settings(device='cpu', min_free_megabytes=1, **settings),
        )

    def call(self, name):
        """Return the answer of a service, also of a node that has just been started again."""
        client = self._clients[name]
        while True:
            wait_for(client.service_is_ready, what=name)
            future = client.call_async(Trigger.Request())
            deadline = time.monotonic() + 20.0
            while time.monotonic() < deadline:
                if future.done():
                    result = future.result()
                    if 'is running already' in result.message:
                        # The answer before came too late; this one names the job as well.
                        return Trigger.Response(success=True, message=result.message.split()[0])
                    return result
                time.sleep(0.005)
            client.remove_pending_request(future)

    def version(self):
        messages = self.versions.messages
        return messages[-1].data if messages else ''

    def states(self, job):
        """Return all statuses of a job that have come."""
        values = [values_of(message.status[0]) for message in self.status.messages]
        return [value for value in values if value.get('job') == job]

    def show(self, frame):
        """Show a frame as if it was taken now; return the status and the pose message, if any."""
        self._stamp += SECOND
        camera = frame.camera
        info = info_msg(self._stamp, (camera.width, camera.height), camera.fx)
        info.k[2], info.k[5] = camera.cx, camera.cy
        info.p[2], info.p[6] = camera.cx, camera.cy
        status = self.camera.show(image_msg(frame.image, self._stamp), info)
        return status, self.camera.poses.stamped(self._stamp)


@pytest.fixture
def robot(start_process, client, day_map, tmp_path):
    """Return a robot in the building that was mapped by day."""
    map_path = shutil.copytree(day_map, tmp_path / 'map')
    (tmp_path / 'logs').mkdir()
    robot = Robot(start_process, client, map_path, tmp_path / 'logs')
    robot.camera.connect()
    return robot


def test_a_map_is_updated_and_taken_while_frames_are_localized(robot, building_logs, changed_logs):
    day = [frame for frame in open_source(building_logs / 'map') if frame.image is not None]
    assert robot.show(day[0])[0].message == 'localized'
    assert robot.version() == '0001'
    shutil.copytree(changed_logs / 'log', robot.log_dir / 'log')
    answer = robot.call('update_map')
    assert answer.success
    job = answer.message
    shown = 0

    def finished():
        nonlocal shown
        # Every frame gets its answer, whatever the updater does.
        assert robot.show(day[shown % len(day)])[0].message == 'localized'
        shown += 1
        states = robot.states(job)
        return states and states[-1]['state'] != 'running' and states[-1]

    final = wait_for(finished, PATIENCE, 'the end of the update')
    assert final['state'] == 'done'
    assert final['verdict'] == 'promoted', final['reasons']
    assert (robot.map_path / 'versions' / '0002' / COVERAGE_FILE).exists()
    assert shown >= 3
    percents = [float(state['percent']) for state in robot.states(job)]
    assert percents == sorted(percents)
    assert {'training', 'gate'} & {state['step'] for state in robot.states(job)}
    assert float(final['new: candidate recall']) >= float(final['new: incumbent recall'])

    wait_for(lambda: robot.version() == '0002', what='the new version')
    truth = read_tum(changed_logs / 'query' / 'groundtruth_tum.txt')
    errors = []
    for frame in open_source(changed_logs / 'query'):
        _, pose = robot.show(frame)
        if pose is not None:
            errors.append(np.linalg.norm(position(pose) - truth.at(frame.stamp_ns).translation))
    assert len(errors) >= 3
    assert np.median(errors) < 0.1

    again = robot.call('update_map')
    assert not again.success
    assert 'nothing new' in again.message
    assert robot.call('rollback_map').message == '0001'
    wait_for(lambda: robot.version() == '0001', what='the old version')
    assert robot.show(day[1])[0].message == 'localized'
    assert robot.localizer.running


def jobs_of(map_path):
    """Return the processes that update a map."""
    found = []
    for entry in os.listdir('/proc'):
        if not entry.isdigit():
            continue
        try:
            with open(f'/proc/{entry}/cmdline', 'rb') as file:
                words = file.read().split(b'\0')
        except OSError:
            continue
        if b'update-map' in words and str(map_path).encode() in words:
            found.append(int(entry))
    return found


@pytest.mark.timeout(0)
def test_kill_9_at_random_moments_leaves_a_map_that_the_next_update_improves(
    robot, building_logs, changed_logs, tmp_path
):
    """D2S_KILLS sets how often; what happened is written to the file D2S_KILL_TABLE."""
    count = int(os.environ.get('D2S_KILLS', '3'))
    rng = np.random.default_rng(0)
    day = [frame for frame in open_source(building_logs / 'map') if frame.image is not None]
    shutil.copytree(changed_logs / 'log', robot.log_dir / 'log')
    stop = threading.Event()
    answers, gaps = [], []

    def drive():
        while not stop.is_set():
            before = time.monotonic()
            answers.append(robot.show(day[len(answers) % len(day)])[0].message)
            gaps.append(time.monotonic() - before)
            stop.wait(0.5)

    def update(killed=''):
        """Run an update to its end; return its verdict and how long it took."""
        started = time.monotonic()
        while True:
            answer = robot.call('update_map')
            if answer.success and answer.message != killed:
                break
            if answer.message == killed:
                # It takes a moment until the killed process is gone.
                time.sleep(0.1)
                continue
            # An updater that was killed leaves its job running.
            if 'nothing new' in answer.message:
                return 'finished by the orphan', time.monotonic() - started
            assert 'another process' in answer.message, answer.message
            time.sleep(0.2)

        def finished():
            states = robot.states(answer.message)
            return states and states[-1]['state'] != 'running' and states[-1]

        final = wait_for(finished, PATIENCE, 'the end of the update')
        assert final['state'] == 'done', final['reasons']
        return final['verdict'], time.monotonic() - started

    def check():
        assert verify(robot.map_path) == []
        assert SceneMap.open(robot.map_path).manifest.version == MapStore(robot.map_path).current()

    def forget():
        """Make the log new again, and the first version live."""
        (robot.map_path / '.updates' / 'ledger.json').unlink()
        store = MapStore(robot.map_path)
        while store.current() != '0001':
            store.rollback()

    driver = threading.Thread(target=drive)
    driver.start()
    rows = []

    def tell():
        path = os.environ.get('D2S_KILL_TABLE')
        if path:
            lines = [
                '| kill | of | after [s] | in step | next update | its seconds |',
                '|' + '---|' * 6,
            ]
            lines += ['| ' + ' | '.join(map(str, row)) + ' |' for row in rows]
            lines.append(
                f'\n{len(answers)} frames shown, {answers.count("localized")} localized; slowest '
                f'answer {max(gaps):.2f} s; an update without kill takes {duration:.1f} s'
            )
            Path(path).write_text('\n'.join(lines) + '\n')

    try:
        verdict, duration = update()
        assert verdict == 'promoted'
        forget()
        for number in range(count):
            target = ('trainer', 'updater', 'both')[number % 3]
            answer = robot.call('update_map')
            assert answer.success, answer.message
            delay = rng.uniform(0.0, 1.0) * duration
            time.sleep(delay)
            states = robot.states(answer.message)
            step = states[-1]['step'] if states else 'starting'
            if target != 'updater':
                for process in jobs_of(robot.map_path):
                    os.kill(process, signal.SIGKILL)
            if target != 'trainer':
                robot.updater.signal(signal.SIGKILL)
                robot.updater.wait(10)
                robot.start_updater()
            check()
            verdict, seconds = update(answer.message)
            check()
            rows.append((number, target, round(delay, 1), step, verdict, round(seconds, 1)))
            tell()
            forget()
    finally:
        stop.set()
        driver.join()
    assert len(rows) == count
    assert all(verdict in ('promoted', 'finished by the orphan') for *_, verdict, _ in rows)
    assert set(answers) == {'localized'}
    assert robot.localizer.running
