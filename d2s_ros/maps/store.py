"""The versions of a map folder: written, made live, gone back to, stripped, pruned."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from d2s_ros import __version__
from d2s_ros.errors import MapFormatError, UsageError
from d2s_ros.maps.files import (
    BUILDING_SUFFIX,
    COVERAGE_FILE,
    CURRENT_FILE,
    LOCALIZATION_FILE,
    LOCK_FILE,
    MANIFEST_FILE,
    UPDATE_FILE,
    UPDATES_FOLDER,
    current_text,
    delete,
    list_versions,
    manifest_file_digest,
    open_lock,
    read_current,
    sync_folder,
    write_synced,
)
from d2s_ros.maps.manifest import (
    FORMAT_VERSION,
    MapManifest,
    manifest_document,
    manifest_text,
    read_manifest,
)
from d2s_ros.maps.scene_map import SceneMap, serialize

#: What is being written; left behind only by a writer that was killed.
_NEW_PREFIX = '.new-'
#: What is being deleted.
_OLD_PREFIX = '.old-'
_NEW_CURRENT_PREFIX = '.current-'


class MapStore:
    """The versions of one map folder."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser()

    def versions(self) -> list[str]:
        """Return the names of complete versions, oldest first."""
        return list_versions(self.root)

    def current(self) -> str | None:
        """Return the name of the live version, None if there is none yet.

        Raises:
            MapFormatError: if the file that names it is damaged.
        """
        named = read_current(self.root)
        return named[0] if named else None

    def write(
        self,
        scene_map: SceneMap,
        update_data: dict[str, NDArray[Any]] | None = None,
        *,
        promote: bool = True,
        unless_live: bool = False,
    ) -> SceneMap:
        """Write a new version; it becomes live in one atomic step, or not at all.

        Args:
            scene_map: The map.
            update_data: What updates need, if they are to be possible.
            promote: Make the version live.
            unless_live: Write nothing if the live version holds the same data.

        Returns:
            The map with the manifest that was written (version, parent, hashes), or is live.
        """
        _check_root(self.root)
        created_root = not self.root.exists()
        versions = self.root / 'versions'
        with self._locked(create=True):
            try:
                self._remove_leftovers()
                manifest = self._write_next(scene_map, update_data, promote, unless_live)
            except BaseException:
                if created_root:
                    self._remove_empty()
                raise
        return replace(scene_map, manifest=manifest, path=versions / manifest.version)

    def check_writable(self) -> None:
        """Check that a map may be written here, before the work of building one.

        Raises:
            MapFormatError: the path is a file or holds something else.
        """
        _check_root(self.root)

    def _write_next(
        self,
        scene_map: SceneMap,
        update_data: dict[str, NDArray[Any]] | None,
        promote: bool,
        unless_live: bool,
    ) -> MapManifest:
        versions = self.root / 'versions'
        numbers = [int(entry.name) for entry in versions.iterdir() if entry.name.isdigit()]
        version = f'{max(numbers, default=0) + 1:04d}'
        # Nobody else writes while the lock is held.
        folder = versions / f'{_NEW_PREFIX}{os.getpid()}'
        folder.mkdir()
        try:
            current = self.current() or ''
            manifest = _write_version(folder, scene_map, update_data, version, current)
            if unless_live and current:
                live = read_manifest(versions / current)
                if live.files == manifest.files:
                    shutil.rmtree(folder)
                    return live
            os.replace(folder, versions / version)
            sync_folder(versions)
            if promote:
                self._set_current(version)
        except BaseException:
            # An interrupt may come when everything is done: what is live stays.
            if (versions / version).exists() and self.current() != version:
                os.replace(versions / version, folder)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return manifest

    def _remove_leftovers(self) -> None:
        """Remove what writers left that were killed; the lock is held, so none is at work."""
        for folder in (self.root / 'versions').glob(f'{_NEW_PREFIX}*'):
            shutil.rmtree(folder, ignore_errors=True)
        for file in self.root.glob(f'{_NEW_CURRENT_PREFIX}*'):
            file.unlink(missing_ok=True)

    def _remove_empty(self) -> None:
        """Remove the folder if it holds nothing but the lock."""
        with contextlib.suppress(OSError):
            (self.root / 'versions').rmdir()
            (self.root / LOCK_FILE).unlink()
            self.root.rmdir()

    def promote(self, version: str) -> None:
        """Make a version live.

        Raises:
            MapFormatError: if it does not exist or is damaged.
        """
        if version not in self.versions():
            raise MapFormatError(
                f'{self.root} has no version {version}; it has: {", ".join(self.versions())}'
            )
        SceneMap.open(self.root / 'versions' / version)
        with self._locked():
            self._set_current(version)

    def suggested(self) -> str:
        """Return the newest version that an update suggests in place of the live one.

        Raises:
            MapFormatError: no version of the live one's children waits to be promoted.
        """
        current = self.current()
        for version in reversed(self.versions()):
            manifest = read_manifest(self.root / 'versions' / version)
            update = manifest.metrics.get('update', {})
            if version != current and manifest.parent == current and update.get('suggested'):
                return version
        raise MapFormatError(f'no version of {self.root} waits to be promoted')

    def rollback(self) -> str:
        """Make the parent of the live version live and return its name.

        Raises:
            MapFormatError: if there is nothing to go back to.
        """
        current = self.current()
        if current is None:
            raise MapFormatError(f'{self.root} is not a map: it has no live version')
        parent = read_manifest(self.root / 'versions' / current).parent
        if not parent or parent not in self.versions():
            raise MapFormatError(
                f'version {current} has no parent to go back to (versions: '
                f'{", ".join(self.versions())})'
            )
        self.promote(parent)
        return parent

    def strip(self, version: str | None = None) -> list[str]:
        """Delete the update data of one version, or of all; localization keeps working.

        Of all versions, also what updates and an interrupted build have left: features of images,
        pictures of trajectories, names and paths of logs. Nothing outside the map folder and
        `MAP.building` is touched: of a link, the link is deleted and never what it names.

        Returns:
            What is left that tells of the images, one line each.

        Raises:
            MapFormatError: there is no such version, or a link stands in for a folder of it.
            UsageError: a build or an update of this map is at work.
        """
        names = self.versions()
        if not names or (version and version not in names):
            raise MapFormatError(
                f'{self.root} has no version {version or ""}; it has: {", ".join(names) or "none"}'
            )
        versions = self.root / 'versions'
        with self._locked(), contextlib.ExitStack() as stack:
            folders = [versions / version] if version else list(versions.iterdir())
            for folder in (versions, *folders):
                if folder.is_symlink():
                    raise MapFormatError(
                        f'{folder} is a link to {os.readlink(folder)}; strip the map there, or '
                        'delete the link'
                    )
            if version is None:
                resolved = self.root.resolve()
                building = resolved.with_name(resolved.name + BUILDING_SUFFIX)
                # While others are at work, what they write would come back.
                _take_lock(stack, self.root / UPDATES_FOLDER / 'lock', f'an update of {self.root}')
                _take_lock(stack, building / LOCK_FILE, f'a build of {self.root}')
                for leftover in (self.root / UPDATES_FOLDER, building):
                    delete(leftover)
                for prefix in (_NEW_PREFIX, _OLD_PREFIX):
                    for folder in versions.glob(f'{prefix}*'):
                        delete(folder)
                folders = [folder for folder in folders if folder.is_dir()]
            for folder in folders:
                (folder / UPDATE_FILE).unlink(missing_ok=True)
                # Its cells are where images were taken.
                (folder / COVERAGE_FILE).unlink(missing_ok=True)
        return self._left_after_strip(version)

    def _left_after_strip(self, version: str | None) -> list[str]:
        left = ['points and descriptors of landmarks, from which views of the place can be guessed']
        names = self.versions()
        updated = [
            name
            for name in names
            if (read_manifest(self.root / 'versions' / name).metrics.get('update') or {})
        ]
        if updated:
            left.append(f'names of logs in the manifests of versions {", ".join(updated)}')
        whole = [name for name in names if (self.root / 'versions' / name / UPDATE_FILE).exists()]
        if whole:
            left.append(f'update data of versions {", ".join(whole)}')
        if version is not None and (self.root / UPDATES_FOLDER).exists():
            left.append(
                'what updates remember, with paths of logs; strip all versions to delete it'
            )
        return left

    def prune(self, keep: int, max_bytes: int) -> list[str]:
        """Delete old versions, oldest first, but never the live one or its parent.

        Args:
            keep: Versions to keep beside those two.
            max_bytes: Size of all versions to get below, as far as that is possible.

        Returns:
            The names of the deleted versions.
        """
        deleted: list[str] = []
        with self._locked():
            folder = self.root / 'versions'
            # Nobody else writes while the lock is held: these are left from a killed process.
            for leftover in (*folder.glob(f'{_NEW_PREFIX}*'), *folder.glob(f'{_OLD_PREFIX}*')):
                shutil.rmtree(leftover, ignore_errors=True)
            current = self.current()
            protected = {current}
            if current is not None:
                protected.add(read_manifest(folder / current).parent)
            sizes = {name: _folder_size(folder / name) for name in self.versions()}
            free = [name for name in sizes if name not in protected]
            while free and (len(free) > keep or sum(sizes.values()) > max_bytes):
                name = free.pop(0)
                aside = folder / f'{_OLD_PREFIX}{name}'
                os.replace(folder / name, aside)
                shutil.rmtree(aside, ignore_errors=True)
                del sizes[name]
                deleted.append(name)
        return deleted

    @contextlib.contextmanager
    def _locked(self, *, create: bool = False) -> Iterator[None]:
        path = self.root / LOCK_FILE
        while True:
            if create:
                (self.root / 'versions').mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                try:
                    handle = stack.enter_context(open_lock(path))
                except FileNotFoundError:
                    # Another writer that failed removed the folder it had made.
                    if create:
                        continue
                    raise
                fcntl.flock(handle, fcntl.LOCK_EX)
                # Whoever held the lock before may have removed the folder.
                if not path.exists() or not os.path.samestat(
                    os.fstat(handle.fileno()), path.stat()
                ):
                    continue
                yield
                return

    def _set_current(self, version: str) -> None:
        digest = manifest_file_digest(self.root / 'versions' / version)
        temporary = self.root / f'{_NEW_CURRENT_PREFIX}{os.getpid()}'
        try:
            write_synced(temporary, current_text(version, digest).encode())
            os.replace(temporary, self.root / CURRENT_FILE)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(self.root)


def _take_lock(stack: contextlib.ExitStack, lock: Path, who: str) -> None:
    """Take a lock if there is one, until the stack closes.

    Raises:
        UsageError: somebody else holds it.
    """
    try:
        handle = stack.enter_context(open_lock(lock, create=False))
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UsageError(f'{who} is at work; wait for it, or stop it') from error


def _check_root(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise MapFormatError(f'{root} is a file; give a folder for the map')
    known = {'versions', CURRENT_FILE, LOCK_FILE, UPDATES_FOLDER}
    # A writer that failed may remove the folder that it made at any moment.
    with contextlib.suppress(FileNotFoundError):
        foreign = sorted({entry.name for entry in root.iterdir()} - known)
        foreign = [name for name in foreign if not name.startswith(_NEW_CURRENT_PREFIX)]
        if foreign:
            raise MapFormatError(
                f'{root} holds other files ({foreign[0]}); give a new or an existing map folder'
            )


def _write_version(
    folder: Path,
    scene_map: SceneMap,
    update_data: dict[str, NDArray[Any]] | None,
    version: str,
    parent: str,
) -> MapManifest:
    contents = {LOCALIZATION_FILE: serialize(scene_map.model.tensors())}
    if update_data:
        contents[UPDATE_FILE] = serialize(update_data)
    files = {}
    for name, data in contents.items():
        write_synced(folder / name, data)
        files[name] = {'size': len(data), 'sha256': hashlib.sha256(data).hexdigest()}
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
    manifest = replace(
        scene_map.manifest,
        version=version,
        parent=parent,
        created=created,
        files=files,
        software=__version__,
        format_version=FORMAT_VERSION,
    )
    write_synced(folder / MANIFEST_FILE, manifest_text(manifest_document(manifest)))
    sync_folder(folder)
    return manifest


def _folder_size(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in folder.iterdir() if entry.is_file())
