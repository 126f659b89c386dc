"""pycolmap takes SIGTERM over when it is imported; `import_pycolmap` gives it back."""

from __future__ import annotations

import signal
import subprocess
import sys

ENDED = """
import os, signal
from d2s_ros.pycolmap_import import import_pycolmap
import_pycolmap()
os.kill(os.getpid(), signal.SIGTERM)
"""
HANDLED = """
import os, signal, sys
from d2s_ros.pycolmap_import import import_pycolmap
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
import_pycolmap()
os.kill(os.getpid(), signal.SIGTERM)
"""


def run(code, repo_root):
    command = [sys.executable, '-c', code]
    return subprocess.run(command, capture_output=True, text=True, cwd=repo_root, timeout=120)


def test_sigterm_ends_the_process_without_a_stack_trace(repo_root):
    done = run(ENDED, repo_root)
    assert done.returncode == -signal.SIGTERM
    assert done.stderr == ''


def test_a_handler_stays(repo_root):
    done = run(HANDLED, repo_root)
    assert done.returncode == 7
    assert done.stderr == ''
