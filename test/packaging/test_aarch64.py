"""The kernels on ARM64, under emulation, give what they give here."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

COMPILER = shutil.which('aarch64-linux-gnu-gcc')
EMULATOR = shutil.which('qemu-aarch64') or shutil.which('qemu-aarch64-static')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason='no aarch64-linux-gnu-gcc (gcc-aarch64-linux-gnu)'),
    pytest.mark.skipif(EMULATOR is None, reason='no qemu-aarch64 (qemu-user)'),
    pytest.mark.skipif(shutil.which('gcc') is None, reason='no gcc to compare with'),
]


def flags(repo_root):
    """Return the compiler's flags in setup.py: those that every target gets."""
    text = (repo_root / 'setup.py').read_text().partition('extra_compile_args=[')[2]
    lines = text.partition(']')[0].splitlines()
    return [line.strip().strip("',") for line in lines if line.strip().startswith("'")]


def built(repo_root, folder, compiler):
    sources = sorted((repo_root / 'd2s_ros' / 'kernels' / 'c').glob('*.c'))
    program = folder / f'every_kernel_{compiler.rpartition("/")[2]}'
    subprocess.run(
        [
            *(compiler, *flags(repo_root), '-static', '-DD2S_SOURCE_DIGEST="test"'),
            *('-I', sources[0].parent, repo_root / 'test' / 'packaging' / 'every_kernel.c'),
            *(*sources, '-o', program, '-lm'),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return program


def results(*command):
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    rows = (line.split() for line in done.stdout.splitlines())
    return {name: np.array(numbers, float) for _, name, *numbers in rows}


@pytest.fixture(scope='module')
def here(repo_root, tmp_path_factory):
    return results(built(repo_root, tmp_path_factory.mktemp('here'), shutil.which('gcc')))


@pytest.fixture(scope='module')
def program(repo_root, tmp_path_factory):
    return built(repo_root, tmp_path_factory.mktemp('there'), COMPILER)


@pytest.mark.parametrize('processor', ['cortex-a53', 'max'])
def test_every_result_is_the_same(program, here, processor):
    there = results(EMULATOR, '-cpu', processor, program)
    # The Raspberry Pi 3 has no dot products of bytes; newer ones have.
    assert ('products4' in there) == (processor == 'max')
    expected = here['products0']
    assert len(np.unique(expected)) > 50
    for name, numbers in there.items():
        if name.startswith('products'):
            np.testing.assert_array_equal(numbers, expected, err_msg=name)
        elif name in ('search', 'maxima'):
            np.testing.assert_array_equal(numbers, here[name], err_msg=name)
        else:
            np.testing.assert_allclose(numbers, here[name], rtol=1e-4, atol=1e-4, err_msg=name)
    assert len(there) >= 10


def test_no_flag_is_of_one_processor(repo_root):
    assert flags(repo_root)
    assert not [flag for flag in flags(repo_root) if flag.startswith('-m')]
