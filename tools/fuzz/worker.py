"""One process that reads inputs, one after another, and says what each did to it.

python -m tools.fuzz.worker TARGET FIRST_SEED COUNT: prints one JSON line for each finding, and
before each input its seed, so that whoever started it knows which input ended the process.
"""

from __future__ import annotations

import json
import logging
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from d2s_ros.errors import D2SError
from tools.fuzz.targets import MAX_CPU_SECONDS, MAX_KILOBYTES, TARGETS, Target, make_input

#: Beyond this the process ends, for the sake of the computer.
_ADDRESS_SPACE = 8 * 2**30


class _TooLongError(BaseException):
    """Raised by the timer; a BaseException, so that no parser's own handler takes it."""


def check_input(target: Target, data: bytes, folder: Path) -> dict[str, Any] | None:
    """Read one input; return what was wrong, None if nothing was.

    Args:
        target: What reads it.
        data: The input.
        folder: An empty folder for it.
    """
    _reset_peak()
    before = _peak_kilobytes()
    started = time.process_time()
    finding: dict[str, Any] | None = None
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, MAX_CPU_SECONDS)
    try:
        target.read(data, folder)
    except D2SError:
        pass
    except _TooLongError:
        finding = {'kind': 'time', 'where': ''}
    except MemoryError:
        finding = {'kind': 'memory', 'where': ''}
    except Exception as error:
        last = [f for f in traceback.extract_tb(error.__traceback__) if 'd2s_ros' in f.filename]
        where = f'{Path(last[-1].filename).name}:{last[-1].lineno}' if last else ''
        finding = {'kind': type(error).__name__, 'where': where, 'text': str(error)[:200]}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if finding is None and time.process_time() - started > MAX_CPU_SECONDS:
        finding = {'kind': 'time', 'where': ''}
    if finding is None and _peak_kilobytes() - before > MAX_KILOBYTES:
        finding = {'kind': 'memory', 'where': ''}
    return finding


def _too_long(number: int, frame: FrameType | None) -> None:
    raise _TooLongError


def _reset_peak() -> None:
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        return


def _peak_kilobytes() -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmHWM:'):
            return int(line.split()[1])
    return 0


def main() -> int:
    """Read inputs as the arguments say."""
    name, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    target = TARGETS[name]
    logging.disable(logging.CRITICAL)
    target.seeds()
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(prefix='d2s_fuzz_') as root:
        for seed in range(first, first + count):
            sys.stdout.write(json.dumps({'seed': seed}) + '\n')
            sys.stdout.flush()
            folder = Path(root) / 'input'
            folder.mkdir()
            finding = check_input(target, make_input(target, seed), folder)
            shutil.rmtree(folder)
            if finding is not None:
                sys.stdout.write(json.dumps({'seed': seed, **finding}) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
