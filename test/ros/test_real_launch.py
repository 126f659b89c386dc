"""`ros2 launch` itself, where a ROS distribution has it and the package is installed there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')
pytest.importorskip('launch_ros', reason='launch is not installed; a ROS distribution has it')

from ros.helpers import wait_for

pytestmark = pytest.mark.ros

#: What `ros2 launch PACKAGE FILE` calls.
COMMAND = """
import sys
from ament_index_python.packages import get_package_share_directory
from ros2launch.api import launch_a_launch_file
folder = get_package_share_directory('d2s_ros') + '/launch/'
sys.exit(launch_a_launch_file(launch_file_path=folder + sys.argv[1],
                              launch_file_arguments=sys.argv[2:], noninteractive=True, debug=False))
"""


@pytest.fixture
def launch(domain_id, tmp_path):
    """Return a function that starts a launch file, and gives the process and its log."""
    packages = pytest.importorskip('ament_index_python.packages')
    try:
        packages.get_package_share_directory('d2s_ros')
    except packages.PackageNotFoundError:
        pytest.skip('the package is not in the ament index: source install/setup.bash')
    started = []

    def start(*arguments):
        log = tmp_path / f'launch_{len(started)}.log'
        with log.open('w') as stream:
            process = subprocess.Popen(
                [sys.executable, '-c', COMMAND, 'localize.launch.py', *map(str, arguments)],
                env=dict(os.environ, ROS_DOMAIN_ID=str(domain_id), ROS_LOG_DIR=str(tmp_path)),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A runner in the background has it ignored, and children inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        started.append(process)
        return process, log

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        ((), 'map is missing'),
        (('map:=/nowhere',), 'there is no map at /nowhere'),
        (('map:=/nowhere', 'params_file:=/nope.yaml'), 'there is no file /nope.yaml'),
        (('map:=/nowhere', 'fuse_odometry:=maybe'), 'it must be true or false'),
    ],
)
def test_a_launch_that_cannot_work_ends_with_an_error(launch, arguments, told):
    process, log = launch(*arguments)
    assert process.wait(60) == 1
    assert told in log.read_text()


def test_a_launch_ends_when_it_is_told_to(launch, small_map):
    process, log = launch(f'map:={small_map.path}')
    wait_for(lambda: "frame 'map'" in log.read_text(), 60)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    assert 'escalating' not in log.read_text()
