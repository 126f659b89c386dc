"""The files of a map folder: their names, which version is live, and writing to disk for good.

Layout of a map folder, see docs/map_format.md:

    MAP/current                      name and digest of the live version, replaced atomically
    MAP/versions/0001/manifest.json
    MAP/versions/0001/localization.safetensors
    MAP/versions/0001/update.safetensors   (optional: `d2s map strip` deletes it)
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from d2s_ros.errors import MapFormatError

LOCALIZATION_FILE = 'localization.safetensors'
UPDATE_FILE = 'update.safetensors'
MANIFEST_FILE = 'manifest.json'
CURRENT_FILE = 'current'
#: What map updates remember about a map, beside its versions.
UPDATES_FOLDER = '.updates'
LOCK_FILE = '.lock'


def list_versions(root: Path) -> list[str]:
    """Return the names of complete versions of a map folder, oldest first."""
    folder = root / 'versions'
    if not folder.is_dir():
        return []
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith('.') and (entry / MANIFEST_FILE).exists()
    )


def read_current(root: Path) -> tuple[str, str] | None:
    """Return name and digest (empty if written by hand without one) of the live version.

    Returns:
        None if the folder has no live version yet.

    Raises:
        MapFormatError: the file that names it is damaged.
    """
    path = root / CURRENT_FILE
    try:
        text = path.read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise MapFormatError(f'{path} cannot be read: {error}') from error
    name, _, digest = text.removesuffix('\n').partition(' ')
    if not name.isalnum() or (digest and text != current_text(name, digest)):
        raise MapFormatError(
            f'{path} is damaged; write the name of a version into it (versions: '
            f'{", ".join(list_versions(root)) or "none"})'
        )
    return name, digest


def current_text(version: str, digest: str) -> str:
    """Return what the file says that names the live version."""
    return f'{version} {digest}\n'


def manifest_file_digest(folder: Path) -> str:
    """Return the digest of a version's manifest; through it, of everything in the version."""
    return hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()


def version_folder(path: Path) -> Path:
    """Return the folder of the live version of a map folder, or the version's folder given.

    Raises:
        MapFormatError: there is no map, or the file that names the live version is damaged.
    """
    if (path / MANIFEST_FILE).exists():
        return path
    if not path.exists():
        raise MapFormatError(
            f'there is no map at {path}; build one with: d2s build-map INPUT --map'
        )
    named = read_current(path)
    if named is None:
        raise MapFormatError(f'{path} is not a map: it has no file named {CURRENT_FILE}')
    current, digest = named
    folder = path / 'versions' / current
    if not folder.is_dir():
        raise MapFormatError(
            f'{path / CURRENT_FILE} names version {current!r}, which is not there; versions: '
            f'{", ".join(list_versions(path)) or "none"}'
        )
    if digest and (folder / MANIFEST_FILE).exists() and manifest_file_digest(folder) != digest:
        raise MapFormatError(
            f'{path}: {CURRENT_FILE} and the manifest of version {current} do not fit; '
            'one of them is damaged, restore the map or build it again'
        )
    return folder


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with open(path, 'wb') as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
