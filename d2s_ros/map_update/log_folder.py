"""The logs that lie in a folder."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from d2s_ros.data.bag_storage import is_storage_file

_logger = logging.getLogger(__name__)


def find_logs(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the rosbag2 logs directly in a folder, oldest first; none if it is not there.

    A log is a folder with metadata.yaml or a storage file (while it is written, or after a power
    cut, metadata.yaml is missing), or a single storage file. Hidden entries are left alone; what
    only has the name of a log (a link to nowhere, a FIFO, a device) is left out with a warning.
    """
    root = Path(folder)
    if not root.is_dir():
        return []
    found = []
    for entry in root.iterdir():
        if entry.name.startswith('.'):
            continue
        try:
            status = entry.stat()
            if stat.S_ISDIR(status.st_mode):
                is_log = (entry / 'metadata.yaml').is_file() or any(
                    is_storage_file(part) for part in entry.iterdir()
                )
            else:
                is_log = is_storage_file(entry)
                if is_log and not stat.S_ISREG(status.st_mode):
                    _logger.warning('%s is left out: it is not a regular file', entry)
                    continue
        except (OSError, RuntimeError) as error:
            if is_storage_file(entry) or not entry.is_symlink():
                _logger.warning('%s is left out: %s', entry, error)
            continue
        if is_log:
            found.append((status.st_mtime, entry.name, entry))
    return [entry for _time, _name, entry in sorted(found)]
