"""Feed mutated files to everything that reads what others wrote.

    python -m tools.fuzz --minutes 10
    python -m tools.fuzz --inputs 50000 --only bag,image --save findings/

Each input is the one that its target and seed stand for, so a finding can be made again with
--only TARGET --first SEED --inputs 1. Counted are signals (the process died), exceptions other
than D2SError, more than 10 s of CPU time, and more than 1 GiB of memory above the start.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.fuzz.targets import TARGETS, make_input

#: Most of a short batch would be spent on imports.
_BATCH = 1000
#: A process that says nothing for so long hangs.
_SILENCE_SECONDS = 180.0


@dataclass
class Result:
    """Counts of one target."""

    inputs: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)


def run_batch(name: str, first: int, count: int, deadline: float | None = None) -> Result:
    """Read inputs in processes of their own; go on behind an input that ended one.

    Args:
        name: Target.
        first, count: Seeds.
        deadline: time.monotonic() at which to stop early; None to finish.
    """
    result = Result()
    end = first + count
    while first < end:
        command = [sys.executable, '-m', 'tools.fuzz.worker', name, str(first), str(end - first)]
        environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=errors, bufsize=0
            )
            last, stopped = _follow(process, result, deadline)
            code = process.wait()
            errors.seek(0)
            text = errors.read().decode('utf-8', 'replace').strip().splitlines()[-1:]
        if last is None:
            raise RuntimeError(f'the worker of {name} does not start: {text}')
        if stopped == 'deadline':
            return result
        if stopped == 'silence':
            result.findings.append({'seed': last, 'kind': 'hang', 'where': ''})
        elif code != 0:
            result.findings.append({'seed': last, 'kind': f'signal {-code}', 'text': ''.join(text)})
        first = last + 1
    return result


def _follow(
    process: subprocess.Popen[bytes], result: Result, deadline: float | None
) -> tuple[int | None, str]:
    """Take what a worker says; return its last seed and why it was stopped, if it was."""
    assert process.stdout is not None
    last, rest = None, b''
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = _SILENCE_SECONDS
            if deadline is not None:
                left = min(left, max(0.0, deadline - time.monotonic()))
            if not selector.select(left):
                process.kill()
                late = deadline is not None and time.monotonic() >= deadline
                return last, 'deadline' if late else 'silence'
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                return last, ''
            *lines, rest = (rest + data).split(b'\n')
            for line in lines:
                said = json.loads(line)
                last = said['seed']
                if 'kind' in said:
                    result.findings.append(said)
                else:
                    result.inputs += 1


def main(argv: list[str] | None = None) -> int:
    """Fuzz as the arguments say; returns 1 if anything was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--minutes', type=float, help='stop after this time')
    parser.add_argument('--inputs', type=int, help='stop after this many inputs')
    parser.add_argument('--only', help=f'targets, of {",".join(TARGETS)}')
    parser.add_argument('--first', type=int, default=0, metavar='SEED', help='first seed')
    parser.add_argument(
        '--save', type=Path, metavar='DIR', help='write inputs that found something'
    )
    args = parser.parse_args(argv)
    names = args.only.split(',') if args.only else list(TARGETS)
    unknown = sorted(set(names) - set(TARGETS))
    if unknown:
        parser.error(f'unknown target {unknown[0]}; targets: {", ".join(TARGETS)}')
    if args.minutes is None and args.inputs is None:
        args.minutes = 1.0
    deadline = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    results = {name: Result() for name in names}
    first, left = args.first, args.inputs
    try:
        while (left is None or left > 0) and (deadline is None or time.monotonic() < deadline):
            for name in names:
                count = _BATCH if left is None else min(_BATCH, left)
                if count <= 0 or (deadline is not None and time.monotonic() >= deadline):
                    break
                found = run_batch(name, first, count, deadline)
                results[name].inputs += found.inputs
                results[name].findings += found.findings
                if left is not None:
                    left -= count
            first += _BATCH
    except KeyboardInterrupt:
        sys.stdout.write('interrupted; what was done until then:\n')
    return report(results, args.save)


def report(results: dict[str, Result], save: Path | None) -> int:
    """Print counts and findings, and write the inputs of the findings."""
    out = sys.stdout
    for name, result in results.items():
        kinds = Counter(f'{f["kind"]} {f.get("where", "")}'.strip() for f in result.findings)
        told = ', '.join(f'{count} x {kind}' for kind, count in kinds.most_common()) or 'nothing'
        out.write(f'{name}: {result.inputs} inputs, found: {told}\n')
        for finding in result.findings[:5]:
            out.write(f'   seed {finding["seed"]}: {finding["kind"]} {finding.get("text", "")}\n')
        for finding in result.findings:
            if save is None:
                break
            folder = save / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / str(finding['seed'])).write_bytes(make_input(TARGETS[name], finding['seed']))
    inputs = sum(result.inputs for result in results.values())
    findings = sum(len(result.findings) for result in results.values())
    out.write(f'{inputs} inputs, {findings} findings\n')
    return int(findings > 0)


if __name__ == '__main__':
    sys.exit(main())
