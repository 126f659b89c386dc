"""A build on a cluster of two nodes, of which one is killed: the maps are those of one process.

Two `ray start` on the loopback; each node has one core.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, FrameList
from map_building.doubling import traced
from map_building.test_split_building import CONFIG, SPLIT, WALK

from d2s_ros.errors import D2SError, InputError
from d2s_ros.map_building.cluster import RayRunner
from d2s_ros.map_building.part_tasks import build_place
from d2s_ros.map_building.split_building import build_split_area
from d2s_ros.map_building.tasks import LocalRunner
from d2s_ros.maps.area import read_area
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.simulation.simulate import frames


def free_port() -> int:
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return int(found.getsockname()[1])


def start_node(*where: str) -> subprocess.Popen:
    """Start a node that lives as long as the process that is returned."""
    path = os.pathsep.join([str(ROOT), str(ROOT / 'test')])
    environment = {
        **os.environ,
        'RAY_USAGE_STATS_ENABLED': '0',
        # Else they hardly run beside other jobs.
        'RAY_worker_niceness': '0',
        'PYTHONPATH': path,
    }
    return subprocess.Popen(
        [
            str(Path(sys.executable).with_name('ray')),
            'start',
            *where,
            '--num-cpus=1',
            '--object-store-memory=200000000',
            '--disable-usage-stats',
            '--block',
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def raylet_of(node: subprocess.Popen) -> int:
    """Return the process that manages a node."""
    for entry in Path('/proc').iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / 'stat').read_text().rpartition(')')[2].split()[1])
            name = (entry / 'comm').read_text().strip()
        except OSError:
            continue
        if parent == node.pid and name == 'raylet':
            return int(entry.name)
    return 0


class Tracing(RayRunner):
    """Leaves a file for each task that is begun, and kills a node while both build a map."""

    def __init__(self, address: str, folder: Path, second: subprocess.Popen) -> None:
        super().__init__(address)
        self.folder, self.second, self.places = folder, second, []
        self.finished: set[str] = set()
        self.killed_at = 0.0

    def kill_second(self) -> None:
        victim = raylet_of(self.second)
        while not self.killed_at:
            begun = [p for k in self.places for p in self.folder.glob(f'{k}.*')]
            if any(int(path.read_text() or 0) == victim for path in begun):
                time.sleep(1.0)
                self.killed_at = time.monotonic()
                os.kill(victim, signal.SIGKILL)
            time.sleep(0.1)

    def run(self, tasks):
        def changed():
            for task in tasks:
                key = task.keys[0]
                if task.function is build_place:
                    self.places.append(key)
                arguments = (str(self.folder), key, task.function, *task.arguments)
                yield replace(task, function=traced, arguments=arguments)

        for records in super().run(changed()):
            self.finished |= set(records)
            yield records


def same_maps(first: Path, second: Path) -> bool:
    """Return whether two areas have the same maps to the last bit."""
    areas = read_area(first), read_area(second)
    if list(areas[0].places) != list(areas[1].places):
        return False
    files = [
        [SceneMap.open(area.folder(name)).manifest.files for name in area.places] for area in areas
    ]
    return files[0] == files[1]


def wait_for(condition, seconds: float = 240.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, 'the cluster did not start'
        time.sleep(0.5)


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    """The area that one process builds."""
    path = tmp_path_factory.mktemp('areas') / 'here'
    with LocalRunner(1) as runner:
        build_split_area(FrameList(list(frames(WALK))), path, CONFIG, SPLIT, runner, progress=False)
    return path


@pytest.mark.slow
def test_one_process_and_two_build_the_same_maps(here, tmp_path):
    with LocalRunner(2) as runner:
        build_split_area(
            FrameList(list(frames(WALK))), tmp_path / 'two', CONFIG, SPLIT, runner, progress=False
        )
    assert same_maps(tmp_path / 'two', here)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_node_changes_nothing_and_what_was_done_stays_done(here, tmp_path):
    ray = pytest.importorskip('ray', reason='Ray is not installed: pip install d2s_ros[cluster]')
    traces = tmp_path / 'traces'
    traces.mkdir()
    address = f'127.0.0.1:{free_port()}'
    port = address.rpartition(':')[2]
    nodes = [start_node('--head', f'--port={port}', '--include-dashboard=false')]
    try:
        wait_for(lambda: raylet_of(nodes[0]))
        nodes.append(start_node(f'--address={address}'))
        wait_for(lambda: raylet_of(nodes[1]))
        with Tracing(address, traces, nodes[1]) as runner:
            assert isinstance(runner, Tracing)
            wait_for(lambda: ray.cluster_resources().get('CPU') == 2.0)
            killer = threading.Thread(target=runner.kill_second, daemon=True)
            killer.start()
            build_split_area(
                FrameList(list(frames(WALK))),
                tmp_path / 'there',
                CONFIG,
                SPLIT,
                runner,
                progress=False,
            )
            assert runner.killed_at
            killer.join()
            wait_for(lambda: ray.cluster_resources().get('CPU') == 1.0)
    finally:
        for node in nodes:
            os.killpg(node.pid, signal.SIGTERM)
        for node in nodes:
            node.wait(60)
    assert same_maps(tmp_path / 'there', here)
    begun = [path.name.rpartition('.')[0] for path in traces.iterdir()]
    repeated = {name for name in begun if begun.count(name) > 1}
    # The map that the lost node was making, and nothing else.
    assert len(repeated) == 1
    assert repeated <= set(runner.places)


def test_without_ray_or_a_cluster_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(InputError, match=r'pip install "d2s_ros\[cluster\]"'):
        RayRunner('auto')


@pytest.mark.timeout(60)
def test_where_no_cluster_is_the_message_says_so_soon(monkeypatch, tmp_path):
    pytest.importorskip('ray', reason='Ray is not installed: pip install d2s_ros[cluster]')
    from ray._private import services

    gone = f'127.0.0.1:{free_port()}'
    with pytest.raises(D2SError, match=f'no Ray cluster at {gone} .* does not answer'):
        RayRunner(gone)
    with pytest.raises(D2SError, match=r'no Ray cluster at here .*not HOST:PORT'):
        RayRunner('here')
    monkeypatch.setenv('RAY_ADDRESS', f'ray://{gone}')
    with pytest.raises(D2SError, match=f'no Ray cluster at auto .ray://{gone} does not answer'):
        RayRunner('auto')
    monkeypatch.delenv('RAY_ADDRESS')
    monkeypatch.setenv('RAY_TMPDIR', str(tmp_path))
    # Another test may run a cluster at the same time.
    monkeypatch.setattr(services, 'find_gcs_addresses', list)
    with pytest.raises(D2SError, match=r'no Ray cluster at auto .Could not find any'):
        RayRunner('auto')
    # What a cluster that was killed leaves behind.
    (tmp_path / 'ray').mkdir()
    (tmp_path / 'ray' / 'ray_current_cluster').write_text(gone)
    port = gone.rpartition(':')[2]
    with pytest.raises(D2SError, match=f'no Ray cluster at auto .*:{port} does not answer'):
        RayRunner('auto')
