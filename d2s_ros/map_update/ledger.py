"""What map updates remember beside the versions of a map: used logs, and who is at work.

Layout, in the map's folder:

    .updates/ledger.json    logs that updates have used, with the outcome
    .updates/lock           held by the running update
    .updates/work/          unfinished runs, to be resumed
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from d2s_ros.data.sources import LogOptions
from d2s_ros.errors import InputError
from d2s_ros.maps.files import UPDATES_FOLDER, open_lock

_logger = logging.getLogger(__name__)

#: Verdict on a log that could not be read.
UNREADABLE = 'unreadable'
_LEDGER = 'ledger.json'


class UpdateRunningError(InputError):
    """Another update of the same map is at work."""


class UpdateLedger:
    """The used logs of one map."""

    def __init__(self, map_path: str | os.PathLike[str]) -> None:
        self.folder = Path(map_path).expanduser() / UPDATES_FOLDER

    def entries(self) -> list[dict[str, Any]]:
        """Return what is recorded, oldest first; a damaged ledger is told and counts as empty."""
        path = self.folder / _LEDGER
        try:
            document = json.loads(path.read_text())
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as error:
            _logger.warning('%s is damaged (%s): logs in it count as new', path, error)
            return []
        if not isinstance(document, list):
            _logger.warning('%s is damaged (not a list): logs in it count as new', path)
            return []
        return [entry for entry in document if isinstance(entry, dict)]

    def record(
        self,
        logs: Sequence[dict[str, Any]],
        verdict: str,
        version: str,
        options: LogOptions | None = None,
    ) -> None:
        """Remember logs, given by their `identity`, as used.

        Args:
            logs: The logs.
            verdict: On them, or UNREADABLE.
            version: Of the map that was written; '' without.
            options: How logs that are unreadable were read.
        """
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
        how = {} if options is None else {'options': asdict(options)}
        added = [
            {**log, 'verdict': verdict, 'version': version, 'time': now, **how} for log in logs
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json_atomically(self.folder / _LEDGER, [*self.entries(), *added])

    def unused(self, logs: Sequence[Path], options: LogOptions | None = None) -> list[Path]:
        """Return the logs that no update has used, or that have grown since.

        A log that was unreadable with other options counts as unused.
        """
        how = asdict(options or LogOptions())
        used = [
            (entry.get('path'), entry.get('bytes'))
            for entry in self.entries()
            if entry.get('verdict') != UNREADABLE or entry.get('options') == how
        ]
        found = []
        for log in logs:
            key = identity(log)
            if (key['path'], key['bytes']) not in used:
                found.append(log)
        return found

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the map's update lock; it is released when the process ends, however it ends.

        Raises:
            UpdateRunningError: if another update holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open_lock(self.folder / 'lock') as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UpdateRunningError(
                    f'an update of {self.folder.parent} is running; wait for it or cancel it'
                ) from error
            yield

    def running(self) -> bool:
        """Return whether an update is at work."""
        try:
            with self.locked():
                return False
        except UpdateRunningError:
            return True


def identity(log: Path) -> dict[str, Any]:
    """Return the path and size of a log."""
    path = Path(os.path.realpath(log))
    try:
        if path.is_dir():
            size = sum(entry.stat().st_size for entry in path.rglob('*') if entry.is_file())
        else:
            size = path.stat().st_size
    except OSError:
        # Removed, or not to be read: that is told where it is opened.
        size = 0
    return {'path': str(path), 'bytes': size}


def write_json_atomically(path: Path, document: Any) -> None:
    """Write JSON so that readers see the old or the new document, also after a power cut."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    with open(temporary, 'w') as handle:
        json.dump(document, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)
