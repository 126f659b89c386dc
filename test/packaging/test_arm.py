"""What localizing needs has wheels for ARM64, by what the package registry says."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

requirements = pytest.importorskip('packaging.requirements')

#: Jetsons with JetPack 6 (Ubuntu 22.04), and Ubuntu 24.04 on a Raspberry Pi.
PYTHONS = ('3.10', '3.12')
#: pip knows no older one from a newer one; the oldest of these robots has glibc 2.35.
PLATFORMS = ('manylinux2014_aarch64', *(f'manylinux_2_{n}_aarch64' for n in range(17, 36)))
#: What torch brings for CUDA, gigabytes of it: JetPack has its own, and a CPU needs none.
CUDA = ('nvidia-', 'cuda-', 'triton')
#: The largest number of packages that may come to light: an end for the loop.
MOST = 80


def declared(root: Path) -> list[str]:
    """Return install_requires of setup.py."""
    for node in ast.walk(ast.parse((root / 'setup.py').read_text())):
        if isinstance(node, ast.keyword) and node.arg == 'install_requires':
            return ast.literal_eval(node.value)
    raise AssertionError('setup.py has no install_requires')


def wanted(texts: list[str], python: str, extra: str = '') -> list[str]:
    """Return the requirements that hold on an ARM64 robot, without their markers.

    pip takes markers by the machine that it runs on, also where it resolves for another one.
    """
    robot = {
        'platform_machine': 'aarch64',
        'platform_system': 'Linux',
        'sys_platform': 'linux',
        'python_version': python,
        'python_full_version': f'{python}.0',
        'extra': extra,
    }
    found = []
    for requirement in map(requirements.Requirement, texts):
        if requirement.marker is None or requirement.marker.evaluate(robot):
            requirement.marker = None
            found.append(str(requirement))
    return found


def resolve(names: list[str], python: str, folder: Path) -> list[dict]:
    """Return what pip would install of some packages, without what these need."""
    report = folder / 'report.json'
    command = [sys.executable, '-m', 'pip', 'install', '--dry-run', '--quiet', '--no-deps']
    command += ['--ignore-installed', '--only-binary=:all:', '--disable-pip-version-check']
    command += ['--target', str(folder / 'target'), '--report', str(report)]
    command += ['--python-version', python, '--implementation', 'cp']
    for platform in PLATFORMS:
        command += ['--platform', platform]
    done = subprocess.run(
        [*command, *names], capture_output=True, text=True, timeout=240, check=False
    )
    if done.returncode:
        # No network is no fault of the package; a missing wheel is.
        offline = ('Failed to establish', 'Name or service not known', 'Network is unreachable')
        if any(word in done.stderr for word in offline):
            pytest.skip('the package registry cannot be reached')
        pytest.fail(f'not for ARM64 with Python {python}: {done.stderr[-500:]}')
    return json.loads(report.read_text())['install']


def test_poselib_is_not_asked_for_on_arm(repo_root):
    texts = declared(repo_root)
    assert any(text.startswith('poselib') for text in texts)
    for python in PYTHONS:
        names = [requirements.Requirement(text).name for text in wanted(texts, python)]
        assert not {'torch', 'poselib', 'pycolmap'} & set(names)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('python', PYTHONS)
def test_every_wheel_for_localizing_is_there_for_arm(repo_root, tmp_path, python):
    # PyTorch is there too, for maps that need it.
    left, known = wanted([*declared(repo_root), 'torch>=2.6'], python), {}
    while left:
        found = resolve(left, python, tmp_path)
        more: list[str] = []
        for package in found:
            metadata = package['metadata']
            name = metadata['name'].lower().replace('_', '-')
            known[name] = package['download_info']['url'].rpartition('/')[2]
            more += [
                text
                for text in wanted(metadata.get('requires_dist') or [], python)
                if not text.startswith(CUDA)
            ]
        seen = {requirements.Requirement(text).name.lower().replace('_', '-') for text in more}
        left = [
            text
            for text in more
            if requirements.Requirement(text).name.lower().replace('_', '-') not in known
        ]
        assert len(known) + len(seen) < MOST
    assert {'torch', 'numpy', 'opencv-python-headless', 'rosbags', 'safetensors'} <= set(known)
    assert not {'poselib', 'pycolmap'} & set(known)
    for name, file in known.items():
        assert file.endswith(('aarch64.whl', 'any.whl')), f'{name}: {file}'
