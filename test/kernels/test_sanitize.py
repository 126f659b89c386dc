"""Calls that do not fit, of kernels that were built with sanitizers."""

from __future__ import annotations

import shutil

import pytest

from tools.sanitize.__main__ import build, environment, run_calls

pytestmark = pytest.mark.skipif(shutil.which('gcc') is None, reason='no gcc')


@pytest.fixture(scope='module')
def sanitized(tmp_path_factory):
    if '/' not in environment()['LD_PRELOAD']:
        pytest.skip('no sanitizers beside gcc')
    return build(tmp_path_factory.mktemp('sanitized'))


def test_no_call_reads_or_writes_beyond_an_array(sanitized):
    assert run_calls(sanitized, 0, 180) == (180, [])


def test_what_was_found_once(sanitized):
    """Directions of another dimension, boolean rows."""
    for seed in (491, 887):
        assert run_calls(sanitized, seed, 1) == (1, [])


def test_a_read_beyond_an_array_is_seen(sanitized):
    made, (finding,) = run_calls(sanitized, -1, 2)
    assert made == 2
    assert 'heap-buffer-overflow' in finding
