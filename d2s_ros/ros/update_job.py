"""One update as a process of its own: low priority, a log file, a status file."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2s_ros.ros.map_updater_config import MapUpdaterConfig

#: States in which nothing more will happen.
FINAL_STATES = ('done', 'failed', 'cancelled')


@dataclass(frozen=True)
class JobFiles:
    """Where a job writes."""

    log: Path
    status: Path
    report: Path


class UpdateJob:
    """A running `d2s update-map`.

    Attributes:
        id: Name of the job, from its start time.
        files: Where it writes.
        logs: The logs it uses.
    """

    def __init__(self, config: MapUpdaterConfig, folder: Path, logs: Sequence[Path]) -> None:
        """Start the process.

        Raises:
            OSError: the folder cannot be written or the process cannot be started.
        """
        folder.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.timezone.utc)
        self.id = now.strftime('update-%Y%m%d-%H%M%S-') + f'{now.microsecond // 1000:03d}'
        self.logs = list(logs)
        self.files = JobFiles(
            folder / f'{self.id}.log', folder / f'{self.id}.json', folder / f'{self.id}.html'
        )
        command = [
            sys.executable,
            '-m',
            'd2s_ros.cli.main',
            'update-map',
            '--recipe',
            config.recipe,
            '--device',
            config.device,
            '--max-keyframes',
            str(config.max_keyframes),
            '--status-file',
            str(self.files.status),
            '--report',
            str(self.files.report),
            '--quiet',
        ]
        if config.update_mode == 'suggest':
            command.append('--suggest')
        for name in ('weights', 'image_topic', 'camera_info_topic', 'calibration'):
            value = getattr(config, name)
            if value:
                # One word, since a value may begin with a dash.
                command.append(f'--{name.replace("_", "-")}={value}')
        if config.rectified:
            command.append('--rectified')
        command += ['--', config.map, *map(str, self.logs)]
        package = Path(__file__).resolve().parents[2]
        environment = {
            **os.environ,
            'OMP_NUM_THREADS': str(config.threads),
            'PYTHONPATH': os.pathsep.join(
                part for part in (str(package), os.environ.get('PYTHONPATH', '')) if part
            ),
        }
        with open(self.files.log, 'wb') as output:
            self._process = subprocess.Popen(
                ['nice', '-n', str(config.niceness), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self._cancelled = False

    @property
    def running(self) -> bool:
        """Whether the process is still there."""
        return self._process.poll() is None

    def cancel(self) -> None:
        """Ask the process to stop; the map stays as it is, and the run can be resumed."""
        self._cancelled = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)

    def kill(self, timeout: float) -> None:
        """Stop the process, by force after the timeout."""
        if not self.running:
            return
        self.cancel()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(5)

    def status(self) -> dict[str, Any]:
        """Return the job's status; a process that died without a word has failed."""
        # The order matters: a status read before the end might miss the last words.
        ended = not self.running
        try:
            status = json.loads(self.files.status.read_text())
        except (OSError, ValueError, RecursionError):
            status = None
        if not isinstance(status, dict) or not isinstance(status.get('state'), str):
            status = {'state': 'running', 'step': 'starting', 'percent': 0.0}
        if ended and status.get('state') not in FINAL_STATES:
            state = 'cancelled' if self._cancelled else 'failed'
            status = {**status, 'state': state, 'verdict': state, 'reasons': [self._last_words()]}
        if not ended and status.get('state') in FINAL_STATES:
            # The process still writes its report.
            status = {**status, 'state': 'running', 'step': 'report'}
        return dict(status)

    def _last_words(self) -> str:
        if self._cancelled:
            return 'cancelled'
        try:
            lines = self.files.log.read_text(errors='replace').strip().splitlines()
        except OSError:
            lines = []
        last = lines[-1] if lines else 'no output'
        return f'the process ended with status {self._process.returncode}: {last}'
