"""The logs that lie in a folder."""

from __future__ import annotations

import os
from pathlib import Path

from d2s_ros.data.bag_storage import STORAGE_SUFFIXES


def find_logs(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the rosbag2 logs directly in a folder, oldest first; none if it is not there.

    A log is a folder with metadata.yaml or a storage file (while it is written, or after a power
    cut, metadata.yaml is missing), or a single storage file. Hidden entries are left alone.
    """
    root = Path(folder)
    if not root.is_dir():
        return []
    found = []
    for entry in root.iterdir():
        if entry.name.startswith('.'):
            continue
        if entry.is_dir():
            is_log = (entry / 'metadata.yaml').is_file() or any(
                part.suffix in STORAGE_SUFFIXES for part in entry.iterdir()
            )
        else:
            is_log = entry.suffix in STORAGE_SUFFIXES
        if is_log:
            found.append(entry)
    return sorted(found, key=lambda entry: (entry.stat().st_mtime, entry.name))
