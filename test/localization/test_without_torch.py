"""A robot without PyTorch localizes as one with it, and says what it cannot do."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from d2s_ros.data.sources import open_source
from d2s_ros.data.tum import read_tum
from d2s_ros.kernels import library
from d2s_ros.localization.localizer import Localizer

pytestmark = pytest.mark.skipif(
    not library.is_built() or os.environ.get('D2S_KERNELS') == 'reference',
    reason='without PyTorch only the compiled kernels compute',
)


@pytest.fixture
def run_without_torch(repo_root):
    """Return a function that runs a module where PyTorch cannot be imported."""

    def run(module, *arguments, **environment):
        return subprocess.run(
            [sys.executable, repo_root / 'test' / 'without_torch.py', module, *map(str, arguments)],
            env={**os.environ, 'PYTHONPATH': str(repo_root), **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def test_the_command_localizes(run_without_torch, repo_root, building_logs, tmp_path):
    path, log = repo_root / 'test' / 'data' / 'map_format_2', building_logs / 'map'
    poses = tmp_path / 'poses.txt'
    done = run_without_torch('d2s_ros.cli.main', 'localize', path, log, '--trajectory', poses)
    assert done.returncode == 0, done.stderr
    found = read_tum(poses)
    localizer, localized = Localizer.from_map(path, device='cpu'), 0
    for frame in open_source(log):
        expected = localizer.localize(frame.image, frame.camera).map_from_camera
        if expected is not None:
            localized += 1
            pose = found.at(frame.stamp_ns)
            np.testing.assert_allclose(pose.matrix, expected.matrix, rtol=1e-4, atol=1e-5)
    assert localized == len(found.stamps_ns) >= 5


@pytest.mark.parametrize(
    ('arguments', 'environment', 'message'),
    [
        (('--device', 'cuda'), {}, 'PyTorch is not installed'),
        (('--precision', 'fp32'), {}, 'PyTorch is not installed'),
        ((), {'D2S_KERNELS': 'reference'}, 'PyTorch'),
    ],
)
def test_what_needs_it_says_so(
    run_without_torch, repo_root, building_logs, tmp_path, arguments, environment, message
):
    path, log = repo_root / 'test' / 'data' / 'map_format_2', building_logs / 'map'
    done = run_without_torch(
        *('d2s_ros.cli.main', 'localize', path, log, '--trajectory', tmp_path / 'poses.txt'),
        *arguments,
        **environment,
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert 'Traceback' not in done.stderr


def test_other_heads_say_so(run_without_torch, repo_root, tmp_path):
    source = repo_root / 'test' / 'data' / 'map_format_2'
    manifests = list(source.rglob('manifest.json'))
    assert len(manifests) == 1
    assert json.loads(manifests[0].read_text())['head'] == 'landmark'
    code = tmp_path / 'ask.py'
    code.write_text(
        'from d2s_ros.errors import UsageError\n'
        'from d2s_ros.scene_models.registry import model_class\n'
        'def main():\n'
        '    for head in ("regression", "labels"):\n'
        '        try:\n'
        '            model_class(head)\n'
        '        except UsageError as error:\n'
        '            print(error)\n'
    )
    done = run_without_torch('ask', PYTHONPATH=f'{repo_root}{os.pathsep}{tmp_path}')
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('PyTorch is not installed') == 2
