"""Write the tables of results in the documents from the records of the benchmarks.

    python benchmarks/tables.py            README and docs: each table as its record has it
    python benchmarks/tables.py --check    ends with 1 if that would change a document

A document names a table with a pair of comments, and what stands between them is written here:

    <!-- result: accuracy scenes -->
    <!-- end of result -->

`accuracy` is benchmarks/results/accuracy.json and `scenes` one of its tables. Below the table
stands which commit was measured, when, where and with which command.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from records import ROOT, read_record

_BLOCK = re.compile(
    r'(?P<open><!-- result: (?P<record>\S+) (?P<table>.+?) -->\n)(?P<body>.*?)'
    r'(?P<close><!-- end of result -->)',
    re.DOTALL,
)


def documents(root: Path = ROOT) -> Iterator[Path]:
    """Yield README and the documents."""
    yield root / 'README.md'
    yield from sorted((root / 'docs').rglob('*.md'))


def written(text: str, root: Path = ROOT) -> str:
    """Return a document with its tables as the records have them.

    Raises:
        ValueError: a record or a table is missing.
    """

    def block(match: re.Match[str]) -> str:
        path = root / 'benchmarks' / 'results' / f'{match["record"]}.json'
        if not path.is_file():
            raise ValueError(f'no record {match["record"]}; run its benchmark with --record')
        record = read_record(path)
        tables = record.get('tables', {})
        if match['table'] not in tables:
            raise ValueError(f'{path.name} has no table {match["table"]!r}, but {sorted(tables)}')
        rows = '\n'.join(tables[match['table']])
        state = record['commit'] + ('' if record.get('clean', True) else ' and changes since')
        source = (
            f'Commit {state}, {record["date"]}, {record["machine"]}, '
            f'{record["seconds"]:.0f} s: `{record["command"]}`'
        )
        return f'{match["open"]}\n{rows}\n\n{source}\n\n{match["close"]}'

    return _BLOCK.sub(block, text)


def main() -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true')
    args = parser.parse_args()
    changed = []
    for path in documents():
        before = path.read_text()
        after = written(before)
        if after != before:
            changed.append(str(path.relative_to(ROOT)))
            if not args.check:
                path.write_text(after)
    print('\n'.join(changed) or 'all tables are as their records have them')
    return 1 if args.check and changed else 0


if __name__ == '__main__':
    sys.exit(main())
