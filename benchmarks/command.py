"""Run a command that prints Markdown tables, and keep them as a record.

    python benchmarks/command.py NAME -- d2s benchmark MAP INPUT

The tables are named by their first column's heading; a second one with the same heading gets " 2".
"""

from __future__ import annotations

import subprocess
import sys
import time

from records import write_record


def tables_of(text: str) -> dict[str, list[str]]:
    """Return the Markdown tables of a text by name."""
    tables: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in [*text.splitlines(), '']:
        if line.startswith('|'):
            lines.append(line)
        elif lines:
            first = lines[0].strip('| ').partition('|')[0].strip() or 'table'
            name, number = first, 1
            while name in tables:
                number += 1
                name = f'{first} {number}'
            tables[name] = lines
            lines = []
    return tables


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
