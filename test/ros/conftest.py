"""Fixtures for tests over real DDS: an own domain, a client node, node processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

import pytest

rclpy = pytest.importorskip('rclpy', reason='rclpy is not installed')

from rclpy.context import Context  # noqa: E402
from rclpy.exceptions import InvalidHandle  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from ros import stub_localizer  # noqa: E402
from ros.helpers import RELIABLE, Camera  # noqa: E402

from d2s_ros.ros.localizer_node import LocalizerNode  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


_next_domain = os.getpid() % 80


@pytest.fixture
def domain_id():
    """Take a DDS domain that nobody else on this machine tests in, another one for each test.

    A process that was killed stays known to its domain for a while, which would confuse the next.
    """
    global _next_domain
    for _ in range(80):
        candidate = 20 + _next_domain % 80
        _next_domain += 1
        path = pathlib.Path(tempfile.gettempdir()) / f'd2s_ros_test_domain_{candidate}.lock'
        with open(path, 'w') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            yield candidate
            return
    pytest.skip('no free DDS domain')


@pytest.fixture(scope='session')
def tf2_msgs():
    """Make sure that tf2_msgs can be imported, as `make` does."""
    from d2s_ros.ros import message_support

    try:
        message_support.ensure()
    except message_support.TypeSupportError as error:
        pytest.skip(str(error))


class Spinner:
    """A private context with one executor spinning in a thread."""

    def __init__(self, domain):
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.executor = SingleThreadedExecutor(context=self.context)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._end = False
        self._thread.start()

    def _spin(self):
        while not self._end:
            # As `GroupExecutor` does: tests destroy subscriptions in another thread.
            with contextlib.suppress(InvalidHandle):
                self.executor.spin_once(timeout_sec=0.05)

    def add(self, node):
        self.executor.add_node(node)
        return node

    def stop(self):
        """Stop spinning; nodes stay."""
        self._end = True
        self._thread.join(10)

    def close(self):
        self.stop()
        for node in self.executor.get_nodes():
            node.destroy_node()
        self.executor.shutdown()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def spinner(domain_id):
    """Return a `Spinner` of the test's domain."""
    result = Spinner(domain_id)
    yield result
    result.close()


@pytest.fixture
def client(spinner):
    """Return a node that tests publish and subscribe with."""
    return spinner.add(Node('test_client', context=spinner.context))


class Process:
    """A node process with its output."""

    def __init__(self, command, environment):
        self._log = tempfile.TemporaryFile('w+')  # noqa: SIM115
        self.popen = subprocess.Popen(
            command, env=environment, stdout=self._log, stderr=subprocess.STDOUT, cwd=ROOT
        )

    @property
    def output(self):
        self._log.seek(0)
        return self._log.read()

    def signal(self, number):
        self.popen.send_signal(number)

    def wait(self, timeout):
        return self.popen.wait(timeout)

    @property
    def running(self):
        return self.popen.poll() is None

    def close(self):
        if self.running:
            self.popen.kill()
            self.popen.wait(10)
        self._log.close()


@pytest.fixture
def start_process(domain_id):
    """Return a function that starts a Python module or script with arguments."""
    processes = []

    def start(target, *arguments):
        environment = dict(
            os.environ,
            PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / 'test')]),
            ROS_DOMAIN_ID=str(domain_id),
        )
        how = [str(target)] if str(target).endswith('.py') else ['-m', str(target)]
        command = [sys.executable, *how, *map(str, arguments)]
        process = Process(command, environment)
        processes.append(process)
        return process

    yield start
    failed = [process for process in processes if process.popen.poll() not in (None, 0)]
    for process in failed:
        print(process.output)
    for process in processes:
        process.close()


@pytest.fixture
def start_stub_node(start_process, tmp_path, tf2_msgs):
    """Return a function that starts the real node with a stub in place of the localizer."""
    folder = tmp_path / 'map'
    folder.mkdir()
    (folder / 'current').write_text('0001')

    def start(*arguments, best_effort=False, **parameters):
        defaults = {'map': folder, 'diagnostics_period': 0.05}
        parameters = {**defaults, **({} if best_effort else RELIABLE), **parameters}
        settings = [f'{name}:={value}' for name, value in parameters.items()]
        flat = [part for setting in settings for part in ('-p', setting)]
        process = start_process(HERE / 'stub_node.py', *arguments, '--ros-args', *flat)
        process.map_folder = folder
        return process

    return start


@pytest.fixture
def map_folder(tmp_path):
    """Return the folder of a map of the stub."""
    folder = tmp_path / 'map'
    folder.mkdir()
    (folder / 'current').write_text('0001')
    return folder


@pytest.fixture
def make_node(spinner, map_folder, tf2_msgs):
    """Return a function that makes a node here, with a stub in place of the localizer."""
    nodes = []

    def make(*, delay=0.0, metric=True, reliable=True, remap=(), namespace='', **parameters):
        parameters.setdefault('map', str(map_folder))
        defaults = RELIABLE if reliable else {}
        parameters = {**defaults, 'diagnostics_period': 0.05, **parameters}
        rules = [part for rule in remap for part in ('-r', rule)]
        node = LocalizerNode(
            localizer_factory=stub_localizer.factory(delay, metric),
            context=spinner.context,
            namespace=namespace,
            cli_args=['--ros-args', *rules] if rules else None,
            parameter_overrides=[Parameter(name, value=v) for name, v in parameters.items()],
        )
        nodes.append(node)
        spinner.add(node)
        return node

    yield make
    spinner.stop()
    for node in nodes:
        assert node.close(10)


@pytest.fixture
def camera(client):
    """Return a `Camera` on the default topics."""
    return Camera(client)
