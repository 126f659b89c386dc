"""Inputs that once hung, ended or surprised a reader, and the fuzzers that look for more."""

from __future__ import annotations

import logging
import os
import random
import signal
from pathlib import Path

import pytest

from tools.fuzz import worker
from tools.fuzz.__main__ import main, run_batch
from tools.fuzz.mutations import mutate_bytes, mutate_text
from tools.fuzz.targets import TARGETS, make_input

CORPUS = Path(__file__).parent / 'corpus'
PAST_FAILURES = sorted(path.relative_to(CORPUS).as_posix() for path in CORPUS.glob('*/*'))


@pytest.fixture(autouse=True)
def quiet():
    """Thousands of warnings are right here, and slow."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


@pytest.mark.parametrize('name', PAST_FAILURES)
def test_past_failures(tmp_path, name):
    target = TARGETS[name.partition('/')[0]]
    assert worker.check_input(target, (CORPUS / name).read_bytes(), tmp_path) is None


@pytest.mark.parametrize('name', TARGETS)
def test_whole_inputs_are_read(tmp_path, name):
    """A target that refused everything would find nothing."""
    target = TARGETS[name]
    for index, data in enumerate(target.seeds()):
        folder = tmp_path / str(index)
        folder.mkdir()
        target.read(data, folder)


@pytest.mark.parametrize('name', ['calibration', 'tum', 'colmap-images-bin', 'image', 'metadata'])
def test_a_few_mutated_inputs(tmp_path, name):
    for seed in range(30):
        folder = tmp_path / str(seed)
        folder.mkdir()
        assert worker.check_input(TARGETS[name], make_input(TARGETS[name], seed), folder) is None


def test_mutations_are_repeatable_and_change_something():
    for mutate in (mutate_bytes, mutate_text):
        made = [mutate(b'a: [1, 2]\nb: text\n', random.Random(seed)) for seed in range(60)]
        assert made == [mutate(b'a: [1, 2]\nb: text\n', random.Random(s)) for s in range(60)]
        assert len(set(made)) > 40


MADE_UP = """
import os, signal
from tools.fuzz import targets
from tools.fuzz.targets import Target
targets.MAX_CPU_SECONDS, targets.MAX_KILOBYTES = 0.5, 100_000
def read(data, folder):
    if data == b'1':
        raise KeyError('undocumented')
    if data == b'2':
        bytearray(200 * 2**20)
    if data == b'3':
        os.kill(os.getpid(), signal.SIGSEGV)
    while data == b'4':
        sum(range(1000))
targets.TARGETS['tum'] = Target('tum', lambda: [b''], lambda d, r: d, read)
targets.make_input = lambda target, seed: str(seed).encode()
"""


def test_what_is_found(tmp_path, monkeypatch):
    """In processes of their own: what this one has taken before would hide what an input takes."""
    (tmp_path / 'sitecustomize.py').write_text(MADE_UP)
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), str(root)]))
    result = run_batch('tum', 0, 6)
    assert result.inputs == 6
    assert [(item['seed'], item['kind']) for item in result.findings] == [
        (1, 'KeyError'),
        (2, 'memory'),
        (3, 'signal 11'),
        (4, 'time'),
    ]


def test_the_command(capsys, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(Path(__file__).resolve().parents[2]))
    assert main(['--inputs', '12', '--only', 'tum']) == 0
    assert 'tum: 12 inputs, found: nothing' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(['--only', 'nothing'])
