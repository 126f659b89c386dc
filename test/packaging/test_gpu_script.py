"""benchmarks/gpu.sh runs without a GPU as far as it can."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_its_steps_run_on_a_cpu(repo_root, building_logs, tmp_path):
    path, log = repo_root / 'test' / 'data' / 'map_format_2', building_logs / 'map'
    done = subprocess.run(
        [repo_root / 'benchmarks' / 'gpu.sh', tmp_path, path, log],
        env={
            **os.environ,
            'D2S_DEVICE': 'cpu',
            'D2S_FRAMES': '3',
            'D2S_FIGURES': '--sizes 320x240:512 --images 10 --batches 1 2 --seconds 0.2 --steps 3',
            'PYTHON': sys.executable,
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / 'frame.status.json').read_text())['exit'] == 0
    assert json.loads((tmp_path / 'frame.json').read_text())['device'] == 'cpu'
    figures = json.loads((tmp_path / 'figures.json').read_text())
    (frames,) = figures['frames'].values()
    assert frames['cuda_graph'] == {'features': 'there is no GPU'}
    (cameras,) = figures['cameras'].values()
    assert set(cameras) == {'1', '2'}
    assert min(cameras.values()) > 0
    assert all(one['a second'] > 0 for one in figures['training'].values()), figures['training']
