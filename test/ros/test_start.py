"""Signals while a node is still importing: it ends with 0 and without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

pytestmark = pytest.mark.ros

ROOT = Path(__file__).resolve().parents[2]


def interrupted(domain, number, module, *arguments):
    """Send a signal to a node the moment it imports a module; return status and complaints."""
    command = 'import sys; from d2s_ros.ros import start; sys.exit(start.localizer())'
    process = subprocess.Popen(
        [sys.executable, '-u', '-X', 'importtime', '-c', command, *arguments],
        env=dict(os.environ, PYTHONPATH=str(ROOT), ROS_DOMAIN_ID=str(domain)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines, sent = [], False
    for line in process.stderr:
        if line.startswith('import time:'):
            if not sent and line.split('|')[-1].strip() == module:
                process.send_signal(number)
                sent = True
        else:
            lines.append(line)
    assert sent, f'{module} was not imported'
    return process.wait(30), ''.join(lines)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ('module', 'arguments'),
    [
        ('numpy', ()),
        # The localizer is imported when the map is loaded.
        ('safetensors._safetensors_rust', ('--ros-args', '-p', 'map:=/nowhere')),
    ],
)
def test_a_signal_while_importing(domain_id, number, module, arguments):
    status, complaints = interrupted(domain_id, number, module, *arguments)
    assert 'Traceback' not in complaints
    assert status == 0
