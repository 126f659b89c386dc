"""Run a command that prints tables, and keep them as a record.

    python benchmarks/command.py NAME -- d2s benchmark MAP INPUT

The tables are named by their first column's heading; a second one with the same heading gets " 2".
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

from records import write_record


def tables_of(text: str) -> dict[str, list[str]]:
    """Return the tables of a text by name, as lines of Markdown."""
    tables: dict[str, list[str]] = {}
    for paragraph in re.split(r'\n\s*\n', text):
        lines = paragraph.strip('\n').splitlines()
        table = [line for line in lines if line.startswith('|')] or _aligned(lines)
        if not table:
            continue
        first = table[0].strip('| ').partition('|')[0].strip() or 'table'
        name, number = first, 1
        while name in tables:
            number += 1
            name = f'{first} {number}'
        tables[name] = table
    return tables


def _aligned(lines: list[str]) -> list[str]:
    """Return columns that stand below each other, as `d2s benchmark` prints them, as Markdown."""
    cells = [re.split(r'\s{2,}', line.strip()) for line in lines]
    if len(cells) < 3 or len(cells[0]) < 3 or min(map(len, cells)) < 2:
        return []
    width = len(cells[0])
    rows = ['| ' + ' | '.join(row + [''] * (width - len(row))) + ' |' for row in cells]
    return [rows[0], '|---' * width + '|', *rows[1:]]


def main() -> int:
    """Run, print and keep; returns the exit code of the command."""
    if len(sys.argv) < 4 or sys.argv[2] != '--':
        print(__doc__, file=sys.stderr)
        return 2
    name, command = sys.argv[1], sys.argv[3:]
    started = time.time()
    if command[0] == 'd2s':
        done_by = [sys.executable, '-m', 'd2s_ros.cli.main', *command[1:]]
    else:
        done_by = command
    done = subprocess.run(done_by, stdout=subprocess.PIPE, text=True)
    sys.stdout.write(done.stdout)
    if done.returncode:
        return done.returncode
    tables = tables_of(done.stdout)
    if not tables:
        print('the command printed no table', file=sys.stderr)
        return 1
    shown = ['python' if part == sys.executable else part for part in command]
    write_record(name, None, started, tables=tables, command=shown)
    return 0


if __name__ == '__main__':
    sys.exit(main())
