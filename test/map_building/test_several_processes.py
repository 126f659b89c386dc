"""Training by two processes over gloo: equal weights, and those of a single process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.verification import verify
from d2s_ros.scene_models.landmark.model import LandmarkModel
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import simulate_log

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name('training_process.py')


def torchrun(count, *arguments, check=True):
    environment = {
        **os.environ,
        'PYTHONPATH': f'{ROOT}:{ROOT / "test"}',
        'OMP_NUM_THREADS': '1',
    }
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command += ['--nproc-per-node', str(count), *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0 or not check, done.stderr[-3000:]
    return done


@pytest.mark.parametrize('head', ['landmark', 'regression'])
def test_two_processes_train_what_one_does(tmp_path, head):
    """The same batches: weights equal bit by bit on both ranks, and to rounding on one."""
    torchrun(2, SCRIPT, head, tmp_path / 'two')
    torchrun(1, SCRIPT, head, tmp_path / 'one')
    first = torch.load(tmp_path / 'two.0.pt', weights_only=True)
    second = torch.load(tmp_path / 'two.1.pt', weights_only=True)
    alone = torch.load(tmp_path / 'one.0.pt', weights_only=True)
    start = torch.load(tmp_path / 'one.start.pt', weights_only=True)
    assert first['network'].keys() == alone['network'].keys()
    moved, apart = 0.0, 0.0
    for name, value in first['network'].items():
        assert torch.equal(value, second['network'][name]), name
        moved += float((alone['network'][name] - start['network'][name]).square().sum())
        apart += float((alone['network'][name] - value).square().sum())
    assert moved > 0.01
    # The landmark head computes in bfloat16, and Adam amplifies its rounding.
    assert apart < (2e-3 if head == 'landmark' else 1e-4) * moved
    assert first['figures']['steps'] == alone['figures']['steps'] == 20
    # The loss of the batch, not of one process's share.
    assert first['figures']['loss'] == pytest.approx(alone['figures']['loss'], rel=1e-3)
    assert first['figures']['loss'] == second['figures']['loss']


@pytest.mark.slow
def test_the_command_under_torchrun(tmp_path):
    """One map, written once, said once, and localizing."""
    log, target, alone = tmp_path / 'log', tmp_path / 'map', tmp_path / 'alone'
    simulate_log(SimulationConfig(seed=3, frames=12, width=480, height=360), log, progress=False)
    options = ['--budget', 'standard', '--steps', '40', '--max-keypoints', '600', '--quiet']
    options += ['--device', 'cpu', '--features', 'rootsift']
    done = torchrun(2, '-m', 'd2s_ros.cli.main', 'build-map', log, '--map', target, *options)
    assert done.stdout.count('version 0001, 12 images') == 1
    assert verify(target) == []
    assert not target.with_name('map.building').exists()
    torchrun(1, '-m', 'd2s_ros.cli.main', 'build-map', log, '--map', alone, *options)
    two, model = SceneMap.open(target), SceneMap.open(alone).model
    assert isinstance(two.model, LandmarkModel)
    assert isinstance(model, LandmarkModel)
    assert (two.model.table.points_in_map == model.table.points_in_map).all()
    for name, value in two.model.network.state_dict().items():
        torch.testing.assert_close(value, model.network.state_dict()[name], atol=0.02, rtol=0.05)
    assert two.manifest.metrics['holdout_localized'] >= 1
    # More processes than images in a step: said by the first process, and all end.
    many = torchrun(
        5, '-m', 'd2s_ros.cli.main', 'build-map', log, '--map', tmp_path / 'm', *options,
        check=False,
    )  # fmt: skip
    assert many.returncode != 0
    assert '5 processes cannot share the 4 images of a training step' in many.stderr
