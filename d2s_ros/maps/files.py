"""The files of a map folder: their names, which version is live, and writing to disk for good.

Layout of a map folder, see docs/reference/map_format.md:

    MAP/current                      name and digest of the live version, replaced atomically
    MAP/versions/0001/manifest.json
    MAP/versions/0001/localization.safetensors
    MAP/versions/0001/update.safetensors   (optional: `d2s map strip` deletes it)
    MAP/versions/0001/changes.png          (of updates: what changed in the place)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import IO

from d2s_ros.errors import MapFormatError

LOCALIZATION_FILE = 'localization.safetensors'
UPDATE_FILE = 'update.safetensors'
MANIFEST_FILE = 'manifest.json'
CURRENT_FILE = 'current'
#: The manifest of an area, a folder that holds several maps (`area`).
AREA_FILE = 'area.json'
#: The maps of an area.
PLACES_FOLDER = 'places'
#: The picture of what an update found changed; of no use to the map.
CHANGES_FILE = 'changes.png'
#: Where a version localizes, by `d2s map coverage`; no part of the map.
COVERAGE_FILE = 'coverage.json'
#: What map updates remember about a map, beside its versions.
UPDATES_FOLDER = '.updates'
LOCK_FILE = '.lock'
#: What an unfinished build has done is kept beside the map, in a folder of its name and this.
BUILDING_SUFFIX = '.building'

#: Largest files that are read, in bytes: what is larger is none of these.
_MAX_CURRENT = 4096
MAX_MANIFEST = 64 << 20
#: Longest name of a version.
_MAX_NAME = 64


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Read a file that is one: never waits for a pipe, never reads a device.

    Args:
        path: The file, or a link to it.
        max_bytes: Refuse larger files.

    Raises:
        MapFormatError: it is no regular file, or larger.
        OSError: it is missing or cannot be read.
    """
    # Without O_NONBLOCK, opening a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, 'rb') as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise MapFormatError(f'{path} is not a regular file; restore the map or build it again')
        if found.st_size > max_bytes:
            raise MapFormatError(
                f'{path} has {found.st_size} bytes, at most {max_bytes} are expected; restore the '
                'map or build it again'
            )
        # Not max_bytes, which may be a number of a damaged manifest, beyond what read takes.
        return file.read(found.st_size)


def open_lock(path: Path, *, create: bool = True) -> IO[bytes]:
    """Open a file to lock; never waits for a pipe.

    Raises:
        MapFormatError: it is no regular file.
        OSError: it cannot be opened, or is missing and not to be made.
    """
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise MapFormatError(f'{path} is not a regular file; delete it')
    return open(descriptor, 'r+b')


def delete(path: Path) -> None:
    """Delete a file, a folder, or a link itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
        text = read_regular(path, _MAX_CURRENT).decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise MapFormatError(f'{path} cannot be read: {error}') from error
    name, _, digest = text.removesuffix('\n').partition(' ')
    known = name.isascii() and name.isalnum() and len(name) <= _MAX_NAME
    if not known or (digest and text != current_text(name, digest)):
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
    return hashlib.sha256(read_regular(folder / MANIFEST_FILE, MAX_MANIFEST)).hexdigest()


def version_folder(path: Path) -> Path:
    """Return the folder of the live version of a map folder, or the version's folder given.

    Raises:
        MapFormatError: there is no map, or the file that names the live version is damaged.
    """
    if (path / MANIFEST_FILE).exists():
        return path
    if not path.exists():
        raise MapFormatError(
            f'there is no map at {path}; build one with: d2s build-map INPUT --map {path}'
        )
    if (path / AREA_FILE).exists():
        raise MapFormatError(
            f'{path} is an area, and one map is needed here: give that of a place, '
            f'{path / PLACES_FOLDER}/NAME'
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
    try:
        differs = bool(digest) and manifest_file_digest(folder) != digest
    except OSError:
        # Reading the manifest says what is wrong with it.
        differs = False
    if differs:
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
