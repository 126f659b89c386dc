"""Records of benchmarks know when the code that they measured has changed."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from benchmarks import records


@pytest.fixture
def repository(tmp_path):
    def commit(text):
        (tmp_path / 'code').mkdir(exist_ok=True)
        (tmp_path / 'code' / 'a.py').write_text(text)
        for arguments in (
            ['add', 'code'],
            ['-c', 'user.name=a', '-c', 'user.email=a@example.org', 'commit', '-qm', text],
        ):
            subprocess.run(['git', '-C', str(tmp_path), *arguments], check=True)

    subprocess.run(['git', 'init', '-q', str(tmp_path)], check=True)
    commit('one')
    return tmp_path, commit


def test_a_record_is_stale_once_the_code_changes(repository):
    root, commit = repository
    path = records.write_record('a', {'m': 1.5}, time.time(), measures=['code'], root=root)
    record = records.read_record(path)
    assert record['figures'] == {'m': 1.5}
    assert record['clean']
    assert records.status(root)[0].endswith('current')
    commit('two')
    assert 'stale: 1 commits since' in records.status(root)[0]


def test_changes_that_were_not_committed_are_noted(repository):
    root, _ = repository
    (root / 'code' / 'a.py').write_text('changed')
    path = records.write_record('a', {}, time.time(), measures=['code'], root=root)
    assert not records.read_record(path)['clean']
    assert 'not committed' in records.status(root)[0]


def test_a_record_without_its_commit_is_an_error(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps({'figures': {}}))
    with pytest.raises(ValueError, match='commit'):
        records.read_record(path)


def test_the_records_of_the_repository_are_whole():
    for path in records.RESULTS.glob('*.json'):
        records.read_record(path)
