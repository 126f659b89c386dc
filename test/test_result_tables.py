"""Figures in documents come from the records of the benchmarks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: A cell that is a figure: a number with a unit, a share, a pair of counts.
FIGURE = re.compile(r'^\**~?[-+]?\d[\d.,]*( ?(%|ms|s|MB|px|cm|m|mm|deg|dB))?\**(/\d+)?( \(.*\))?$')
#: The log of experiments is typed, a line is of the state of its day; code writes the reference.
TYPED = ('docs/design/experiments.md', 'docs/reference')


@pytest.fixture
def tables(benchmark_module):
    return benchmark_module('tables')


def test_documents_show_what_the_records_have(tables):
    changed = [
        path.name
        for path in tables.documents()
        if tables.written(path.read_text()) != path.read_text()
    ]
    assert changed == [], 'run `python benchmarks/tables.py`'


def typed_tables(text):
    """Yield the first line of each table of figures that no record made."""
    text = re.sub(r'<!-- result: .*?<!-- end of result -->', '', text, flags=re.DOTALL)
    for table in re.findall(r'(?:^\|.*\n)+', text, re.MULTILINE):
        cells = [c.strip() for line in table.splitlines()[2:] for c in line.strip('|').split('|')]
        if cells and sum(bool(FIGURE.match(cell)) for cell in cells) > 0.25 * len(cells):
            yield table.partition('\n')[0]


def test_no_table_of_figures_is_typed(tables):
    typed = {}
    for path in tables.documents():
        name = str(path.relative_to(ROOT))
        if not name.startswith(TYPED):
            typed[name] = list(typed_tables(path.read_text()))
    assert {name: found for name, found in typed.items() if found} == {}


def test_a_typed_table_is_found():
    assert list(typed_tables('| a | b |\n|---|---|\n| x | 1.5 ms |\n')) == ['| a | b |']
    assert list(typed_tables('| a | b |\n|---|---|\n| x | y |\n')) == []


def test_a_table_is_written_and_a_missing_one_is_an_error(tables, tmp_path):
    folder = tmp_path / 'benchmarks' / 'results'
    folder.mkdir(parents=True)
    record = {
        'commit': 'abc',
        'date': '2026-01-01',
        'machine': 'one',
        'command': 'run',
        'seconds': 2.4,
        'tables': {'rows': ['| a |', '|---|', '| 1 |']},
    }
    (folder / 'made.json').write_text(json.dumps(record))
    text = 'before\n<!-- result: made rows -->\nold\n<!-- end of result -->\nafter\n'
    once = tables.written(text, tmp_path)
    assert '| 1 |\n\nCommit abc, 2026-01-01, one, 2 s: `run`\n\n<!-- end' in once
    assert 'old' not in once
    assert tables.written(once, tmp_path) == once
    for wrong in (text.replace('made rows', 'made others'), text.replace('made rows', 'none rows')):
        with pytest.raises(ValueError, match=r'has no table|no record'):
            tables.written(wrong, tmp_path)


def test_tables_that_a_command_prints_are_kept(benchmark_module):
    tables_of = benchmark_module('command').tables_of
    text = (
        'one line\n\nstage [ms]     median   p95\ndecode           2.71  9.91\n'
        '  of it text     0.25\n\n| a | b |\n|---|---|\n| 1 | 2 |\nafter\n\n| a | c |\n|---|---|\n'
    )
    assert tables_of(text) == {
        'stage [ms]': [
            '| stage [ms] | median | p95 |',
            '|---|---|---|',
            '| decode | 2.71 | 9.91 |',
            '| of it text | 0.25 |  |',
        ],
        'a': ['| a | b |', '|---|---|', '| 1 | 2 |'],
        'a 2': ['| a | c |', '|---|---|'],
    }
