"""Results of benchmarks as files: what was measured, of which commit, where, how and how long.

    python benchmarks/records.py        which records are older than the code that they measure

A benchmark calls `write_record` at its end. Documents take figures from these files and name the
commit.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'benchmarks' / 'results'
#: What every record must have.
KEYS = ('commit', 'date', 'machine', 'command', 'seconds')


def git(*arguments: str, root: Path = ROOT) -> str:
    """Return what git prints."""
    done = subprocess.run(
        ['git', '-C', str(root), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def machine() -> str:
    """Return processor and cores that this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith('model name'):
                name = line.partition(':')[2].strip()
                break
    return f'{name}, {len(os.sched_getaffinity(0))} cores'


def write_record(
    name: str,
    figures: Any,
    started: float,
    *,
    tables: Mapping[str, Sequence[str]] | None = None,
    command: Sequence[str] = (),
    measures: Sequence[str] = ('d2s_ros',),
    root: Path = ROOT,
) -> Path:
    """Write benchmarks/results/NAME.json.

    Args:
        name: Of the record; the file of an earlier run is replaced.
        figures: What was measured, JSON types.
        started: `time.time()` at the start of the run.
        tables: By name, the lines of the Markdown tables that documents show (`tables.py`).
        command: What was run, if it is not this process.
        measures: Paths of the repository whose changes make the record stale.
        root: Of the repository.
    """
    record = {
        'commit': git('rev-parse', '--short=10', 'HEAD', root=root),
        'clean': not git('status', '--porcelain', '--', *measures, root=root),
        'date': time.strftime('%Y-%m-%d', time.gmtime()),
        'machine': machine(),
        'command': shlex.join(map(_without_folder, command or ['python', *sys.argv])),
        'seconds': round(time.time() - started, 1),
        'measures': list(measures),
        'tables': {title: list(lines) for title, lines in (tables or {}).items()},
        'figures': figures,
    }
    path = root / 'benchmarks' / 'results' / f'{name}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + '\n')
    return path


def _without_folder(argument: str) -> str:
    """Return an argument of the command line without the folders of this machine."""
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def read_record(path: Path) -> dict[str, Any]:
    """Return a record.

    Raises:
        ValueError: something is missing.
    """
    record: dict[str, Any] = json.loads(path.read_text())
    missing = [key for key in KEYS if key not in record]
    if missing:
        raise ValueError(f'{path} has no {", ".join(missing)}; measure it again')
    return record


def status(root: Path = ROOT) -> list[str]:
    """Return a line for each record: whether the code it measures has changed since."""
    lines = []
    for path in sorted((root / 'benchmarks' / 'results').glob('*.json')):
        record = read_record(path)
        measures = record.get('measures', ['d2s_ros'])
        since = git('rev-list', '--count', f'{record["commit"]}..HEAD', '--', *measures, root=root)
        age = 'current' if since == '0' else f'stale: {since} commits since'
        if not record.get('clean', True):
            age += ', measured with changes that were not committed'
        lines.append(f'{path.stem}: {record["commit"]}, {age}')
    return lines


if __name__ == '__main__':
    print('\n'.join(status()) or 'no records yet')
