"""The updater node over DDS: refusals with reasons, its job, status, cancel and rollback."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from ros.helpers import LATCHED, Collector, values_of, wait_for  # noqa: E402
from std_msgs.msg import Float32  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from d2s_ros.cli import update_map  # noqa: E402
from d2s_ros.cli.options import log_options  # noqa: E402
from d2s_ros.data.sources import LogOptions  # noqa: E402
from d2s_ros.features.types import FeatureConfig  # noqa: E402
from d2s_ros.map_update.ledger import UNREADABLE, UpdateLedger, identity  # noqa: E402
from d2s_ros.maps.manifest import MapManifest  # noqa: E402
from d2s_ros.maps.scene_map import SceneMap  # noqa: E402
from d2s_ros.maps.store import MapStore  # noqa: E402
from d2s_ros.ros import parameter_docs  # noqa: E402
from d2s_ros.ros.map_updater_config import MapUpdaterConfig  # noqa: E402
from d2s_ros.ros.map_updater_node import MapUpdaterNode  # noqa: E402
from d2s_ros.scene_models.landmark.config import LandmarkConfig  # noqa: E402
from d2s_ros.scene_models.landmark.model import LandmarkModel  # noqa: E402
from d2s_ros.scene_models.landmark.network import LandmarkNetwork  # noqa: E402
from d2s_ros.scene_models.landmark.stored_network import StoredNetwork  # noqa: E402
from d2s_ros.scene_models.landmark.table import LandmarkTable  # noqa: E402

pytestmark = pytest.mark.ros


@pytest.fixture
def map_path(tmp_path):
    """Return a map of two versions, small and of no place, without update data."""
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(64, 128)).astype(np.float32)
    table = LandmarkTable(
        keys / np.linalg.norm(keys, axis=1, keepdims=True),
        rng.normal(size=(64, 3)).astype(np.float32),
        np.tile(np.eye(3, dtype=np.float32), (64, 1, 1)),
        np.zeros(3, np.float32),
        1.0,
    )
    config = LandmarkConfig(num_landmarks=64, num_layers=0)
    manifest = MapManifest(
        FeatureConfig(name='rootsift'),
        'rootsift-v1-contrast0.005',
        'landmark',
        {'num_landmarks': 64, 'num_layers': 0},
        (),
    )
    scene_map = SceneMap(
        manifest, LandmarkModel(table, StoredNetwork.of(LandmarkNetwork(config).eval()))
    )
    store = MapStore(tmp_path / 'map')
    store.write(scene_map)
    store.write(scene_map)
    return tmp_path / 'map'


@pytest.fixture
def updater(spinner, client, tmp_path, map_path, request):
    logs = tmp_path / 'logs'
    logs.mkdir()
    settings = {
        'map': str(map_path),
        'log_dir': str(logs),
        'status_period': 0.05,
        'niceness': 0,
        **getattr(request, 'param', {}),
    }
    node = spinner.add(
        MapUpdaterNode(
            context=spinner.context,
            parameter_overrides=[Parameter(name, value=value) for name, value in settings.items()],
        )
    )
    node.logs = logs
    yield node
    node.close()


class Caller:
    def __init__(self, client):
        self._client = client
        self.status = Collector(client, DiagnosticArray, '/d2s/update_status', LATCHED)
        self.progress = Collector(client, Float32, '/d2s/update_progress', LATCHED)
        self._clients = {
            name: client.create_client(Trigger, f'/d2s/{name}')
            for name in ('update_map', 'cancel_update', 'rollback_map', 'promote_map')
        }

    def __call__(self, name):
        wait_for(self._clients[name].service_is_ready, what=name)
        future = self._clients[name].call_async(Trigger.Request())
        wait_for(future.done, what=f'the answer of {name}')
        return future.result()

    def state(self):
        messages = self.status.messages
        return values_of(messages[-1].status[0]) if messages else {}


@pytest.fixture
def call(client, updater):
    return Caller(client)


def make_log(folder, size=1000):
    folder.mkdir()
    (folder / 'metadata.yaml').write_text('rosbag2_bagfile_information: {}\n')
    (folder / 'data.db3').write_bytes(os.urandom(size))


def test_refusals_say_why(updater, call, map_path):
    wait_for(lambda: call.state().get('state') == 'idle', what='the latched status')
    (map_path / 'current').rename(map_path / 'away')
    answer = call('update_map')
    assert not answer.success
    assert 'no map' in answer.message
    (map_path / 'away').rename(map_path / 'current')
    answer = call('update_map')
    assert not answer.success
    assert 'no rosbag2 log' in answer.message
    make_log(updater.logs / 'bag')
    updater.set_parameters([Parameter('min_free_megabytes', value=10**9)])
    answer = call('update_map')
    assert not answer.success
    assert 'too full' in answer.message
    answer = call('cancel_update')
    assert not answer.success
    assert 'no update is running' in answer.message


def test_a_job_runs_elsewhere_and_its_failure_is_told(updater, call, map_path):
    """The map has no update data, so the job must fail, and say so in status and log file."""
    make_log(updater.logs / 'bag')
    answer = call('update_map')
    assert answer.success
    job = answer.message
    again = call('update_map')
    assert not again.success
    state = wait_for(
        lambda: call.state() if call.state().get('state') == 'failed' else None, 60, 'the failure'
    )
    assert state['job'] == job
    # Who follows it needs no text: the first is 0, and none is less than the one before.
    shares = [message.data for message in call.progress.messages]
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert 0.0 <= float(state['percent']) <= 100.0
    assert 'update data' in state['reasons']
    log = map_path / '.updates' / 'jobs' / f'{job}.log'
    assert 'update data' in log.read_text()
    assert MapStore(map_path).current() == '0002'


def test_cancel_stops_the_process(updater, call, map_path):
    make_log(updater.logs / 'bag')
    assert call('update_map').success
    assert call('cancel_update').success
    wait_for(lambda: call.state().get('state') in ('cancelled', 'failed'), 60, 'the end of the job')
    assert MapStore(map_path).current() == '0002'


@pytest.mark.parametrize(
    'text', ['[' * 100_000, '[]', '{}', '{"state": 3}', '{"state": "done", "figures": [1]}', '\xff']
)
def test_a_status_file_that_somebody_broke(updater, call, text):
    make_log(updater.logs / 'bag')
    assert call('update_map').success
    status = updater._job.files.status
    updater._job.kill(5)
    status.write_bytes(text.encode('latin-1'))
    updater._look()
    # The node still answers.
    assert not call('cancel_update').success


def test_no_peer_has_it_write_elsewhere(updater, call, map_path, tmp_path):
    for name in ('map', 'log_dir', 'job_dir', 'weights'):
        (result,) = updater.set_parameters([Parameter(name, value=str(tmp_path / 'elsewhere'))])
        assert not result.successful
        assert 'not running' in result.reason
    assert updater.config.map == str(map_path)
    make_log(updater.logs / 'bag')
    assert call('update_map').success
    assert call('cancel_update').success
    assert not (tmp_path / 'elsewhere').exists()


CAMERA: dict[str, Any] = {
    'image_topic': '/-odd/image',
    'camera_info_topic': '/left/camera_info',
    'calibration': '~/left.yaml',
    'rectified': True,
}


@pytest.mark.parametrize('updater', [CAMERA], indirect=True)
def test_logs_are_read_as_the_parameters_say(updater, call, map_path):
    options = LogOptions(
        CAMERA['image_topic'],
        CAMERA['camera_info_topic'],
        os.path.expanduser('~/left.yaml'),
        rectified=True,
    )
    ledger = UpdateLedger(map_path)
    make_log(updater.logs / 'bag')
    ledger.record([identity(updater.logs / 'bag')], UNREADABLE, '', options)
    answer = call('update_map')
    assert not answer.success
    assert 'cannot be read' in answer.message
    # Another log: its update is told how to read it.
    make_log(updater.logs / 'second')
    assert call('update_map').success
    command = updater._job._process.args
    call('cancel_update')
    parser = argparse.ArgumentParser()
    update_map.add_arguments(parser)
    told = parser.parse_args(
        [word for word in command[command.index('update-map') + 1 :] if word != '--quiet']
    )
    assert log_options(told) == options
    assert told.logs == [str(updater.logs / 'second')]


def test_what_could_not_be_read_otherwise_is_tried(updater, call, map_path):
    make_log(updater.logs / 'bag')
    log = identity(updater.logs / 'bag')
    UpdateLedger(map_path).record([log], UNREADABLE, '', LogOptions(rectified=True))
    assert call('update_map').success
    call('cancel_update')


@pytest.mark.parametrize('updater', [{'update_mode': 'frozen'}], indirect=True)
def test_a_frozen_map_is_not_updated(updater, call):
    make_log(updater.logs / 'bag')
    answer = call('update_map')
    assert not answer.success
    assert 'frozen' in answer.message


def test_what_was_suggested_is_promoted_by_hand(updater, call, map_path):
    answer = call('promote_map')
    assert not answer.success
    assert 'waits to be promoted' in answer.message
    store = MapStore(map_path)
    live = SceneMap.open(map_path)
    manifest = dataclasses.replace(live.manifest, metrics={'update': {'suggested': True}})
    store.write(dataclasses.replace(live, manifest=manifest), promote=False)
    assert store.current() == '0002'
    answer = call('promote_map')
    assert answer.success
    assert answer.message == store.current() == '0003'


def test_rollback(updater, call, map_path):
    answer = call('rollback_map')
    assert answer.success
    assert answer.message == '0001'
    assert MapStore(map_path).current() == '0001'
    answer = call('rollback_map')
    assert not answer.success
    assert 'no parent' in answer.message


def test_the_parameter_file_is_up_to_date(repo_root):
    text = (repo_root / 'config' / 'map_updater.yaml').read_text()
    assert text == parameter_docs.yaml_text(MapUpdaterConfig, 'map_updater')
