"""Call the compiled kernels outside their contracts, under the address and undefined sanitizers.

    python -m tools.sanitize --calls 400

Builds the kernels anew with GCC's sanitizers, and makes calls through their wrappers with sizes,
indices, values and shapes that do not fit. Counted are calls that a sanitizer ends, or that raise
anything but ValueError or MemoryError. A call is the one that its seed stands for. Ends with 1 if
something was found.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from d2s_ros.kernels.library import source_digest

ROOT = Path(__file__).resolve().parents[2]
_SOURCES = ROOT / 'd2s_ros' / 'kernels' / 'c'
_CHECKS = 'address,undefined,float-cast-overflow'


def build(folder: Path) -> Path:
    """Compile the kernels with sanitizers; return the library.

    Raises:
        RuntimeError: there is no GCC, or it fails.
    """
    compiler = shutil.which('gcc')
    if compiler is None:
        raise RuntimeError('no gcc here: install it')
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f'_kernels{sysconfig.get_config_var("EXT_SUFFIX")}'
    command = [
        *(compiler, '-shared', '-fPIC', '-std=c11', '-g', '-O1', '-fopenmp', '-Wno-psabi'),
        *(f'-fsanitize={_CHECKS}', f'-fno-sanitize-recover={_CHECKS}', '-fno-omit-frame-pointer'),
        f'-DD2S_SOURCE_DIGEST="{source_digest()}"',
        *map(str, sorted(_SOURCES.glob('*.c'))),
        *('-o', str(target), '-lm'),
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f'gcc failed: {run.stderr.strip()}')
    return target


def environment() -> dict[str, str]:
    """Return the environment of a process that loads the library."""
    names = ('libasan.so', 'libubsan.so')
    found = [
        subprocess.run(['gcc', f'-print-file-name={name}'], capture_output=True, text=True)
        for name in names
    ]
    return {
        **os.environ,
        'LD_PRELOAD': ' '.join(run.stdout.strip() for run in found),
        # Python frees little of what it took at its end; more memory than there is gives NULL.
        'ASAN_OPTIONS': 'detect_leaks=0:allocator_may_return_null=1',
        'UBSAN_OPTIONS': 'print_stacktrace=1',
        'PYTHONPATH': str(ROOT),
        # Several threads, as in a frame: what they write is looked at, too.
        'OMP_NUM_THREADS': '2',
        'D2S_KERNELS': '',
    }


def run_calls(library: Path, first: int, count: int) -> tuple[int, list[str]]:
    """Make calls in processes of their own; go on behind a call that ended one.

    Returns:
        How many calls were made, and what was found.
    """
    made, findings, end = 0, [], first + count
    while first < end:
        command = [sys.executable, '-m', 'tools.sanitize.worker']
        run = subprocess.run(
            [*command, str(library), str(first), str(end - first)],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=600,
        )
        said = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{')]
        if not said:
            raise RuntimeError(f'the worker does not start: {run.stderr.strip()[-2000:]}')
        made += sum('found' not in line for line in said)
        findings += [f'seed {line["seed"]}: {line["found"]}' for line in said if 'found' in line]
        first = said[-1]['seed'] + 1
        if run.returncode:
            lines = [line for line in run.stderr.splitlines() if 'ERROR' in line or 'error' in line]
            told = lines[0] if lines else f'ended with {run.returncode}'
            findings.append(f'seed {said[-1]["seed"]} ({said[-1]["call"]}): {told}')
    return made, findings


def main(argv: list[str] | None = None) -> int:
    """Build and call as the arguments say; returns 1 if anything was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--calls', type=int, default=400, metavar='N', help='default: 400')
    parser.add_argument('--first', type=int, default=0, metavar='SEED', help='first seed')
    parser.add_argument(
        '--build', type=Path, default=ROOT / 'build' / 'sanitized', metavar='DIR', help='folder'
    )
    args = parser.parse_args(argv)
    made, findings = run_calls(build(args.build), args.first, args.calls)
    for finding in findings:
        sys.stdout.write(f'{finding}\n')
    sys.stdout.write(f'{made} calls, {len(findings)} findings\n')
    return int(bool(findings))


if __name__ == '__main__':
    sys.exit(main())
