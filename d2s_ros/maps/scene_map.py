"""A map as a bundle: a manifest, what localization needs, and apart from it what updates need.

Layout of a map folder, see docs/map_format.md:

    MAP/current                      name and digest of the live version, replaced atomically
    MAP/versions/0001/manifest.json
    MAP/versions/0001/localization.safetensors
    MAP/versions/0001/update.safetensors   (optional: `d2s map strip` deletes it)
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from d2s_ros import __version__
from d2s_ros.config import from_dict, to_dict
from d2s_ros.errors import CalibrationError, ConfigError, MapFormatError
from d2s_ros.features.extractor import FeatureConfig
from d2s_ros.geometry.cameras import Camera
from d2s_ros.scene_models.base import SceneModel
from d2s_ros.scene_models.registry import model_class

FORMAT_VERSION = 2
LOCALIZATION_FILE = 'localization.safetensors'
UPDATE_FILE = 'update.safetensors'
_MANIFEST_FILE = 'manifest.json'
_CURRENT_FILE = 'current'
#: What map updates remember about a map, beside its versions.
UPDATES_FOLDER = '.updates'
_LOCK_FILE = '.lock'
#: What is being written; left behind only by a writer that was killed.
_NEW_PREFIX = '.new-'
#: What is being deleted.
_OLD_PREFIX = '.old-'
_NEW_CURRENT_PREFIX = '.current-'


@dataclass(frozen=True)
class Calibration:
    """Figures measured on the mapping images when the map was built.

    Attributes:
        sigma_px: Noise of a keypoint of scale 1, one axis.
        covariance_scale: Factor that makes pose covariances agree with held-out errors.
        reliability_threshold: Keypoints below it are not given to the pose solver.
        scene_depth: Median depth of what the mapping images show; 0 if unknown.
        reliable_share: Median share of a mapping image's keypoints that are reliable; 0 if unknown.
        chance_evidence, chance_scale: Median evidence for poses that are chance, and the scale of
            the exponential tail above it; 0 if unknown.
    """

    sigma_px: float = 0.5
    covariance_scale: float = 1.0
    reliability_threshold: float = 0.5
    scene_depth: float = 0.0
    reliable_share: float = 0.0
    chance_evidence: float = 0.0
    chance_scale: float = 0.0


@dataclass(frozen=True, eq=False)
class MapManifest:
    """What a map says about itself; see docs/map_format.md."""

    features: FeatureConfig
    features_hash: str
    head: str
    network: dict[str, Any]
    cameras: tuple[Camera, ...]
    calibration: Calibration = field(default_factory=Calibration)
    map_frame: str = 'map'
    metric: bool = True
    version: str = ''
    parent: str = ''
    created: str = ''
    software: str = __version__
    metrics: dict[str, Any] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True, eq=False)
class SceneMap:
    """A map in memory.

    Attributes:
        manifest: What the map says about itself.
        model: Tells where the keypoints of an image lie.
        path: Folder of the version it was read from, None if never written.
    """

    manifest: MapManifest
    model: SceneModel
    path: Path | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SceneMap:
        """Read the live version of a map folder, or a version's own folder.

        Raises:
            MapFormatError: missing, damaged (any flipped or missing byte), or of another format.
        """
        folder = _version_folder(Path(path))
        manifest = read_manifest(folder)
        data = _read_checked(folder, LOCALIZATION_FILE, manifest)
        try:
            kind = model_class(manifest.head)
        except ConfigError as error:
            raise MapFormatError(
                f'{folder} has a scene model that this software does not know ({error}); use the '
                'software that built it'
            ) from error
        try:
            model = kind.from_tensors(manifest.network, load_tensors(data))
            return cls(manifest, model, folder)
        except (SafetensorError, KeyError, ValueError, RuntimeError, ConfigError) as error:
            raise MapFormatError(
                f'{folder / LOCALIZATION_FILE} does not fit its manifest ({error}); build the map '
                'again'
            ) from error

    def load_update_data(self) -> dict[str, NDArray[Any]]:
        """Read what updates need.

        Raises:
            MapFormatError: if it was stripped or is damaged.
        """
        if self.path is None or UPDATE_FILE not in self.manifest.files:
            raise MapFormatError(
                'this map has no update data (stripped, or built without); localization works, '
                'updates need a map built with it'
            )
        if not (self.path / UPDATE_FILE).exists():
            raise MapFormatError(
                f'{self.path} has lost its update data ({UPDATE_FILE}); localization works, '
                'updates do not'
            )
        tensors: dict[str, NDArray[Any]] = load_tensors(
            _read_checked(self.path, UPDATE_FILE, self.manifest)
        )
        return tensors

    def localization_size_bytes(self) -> int:
        """Return the size of what a robot needs, without the feature extractor."""
        return int(self.manifest.files.get(LOCALIZATION_FILE, {}).get('size', 0))


class MapStore:
    """The versions of one map folder."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def versions(self) -> list[str]:
        """Return the names of complete versions, oldest first."""
        folder = self.root / 'versions'
        if not folder.is_dir():
            return []
        return sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.is_dir()
            and not entry.name.startswith('.')
            and (entry / _MANIFEST_FILE).exists()
        )

    def current(self) -> str | None:
        """Return the name of the live version, None if there is none yet.

        Raises:
            MapFormatError: if the file that names it is damaged.
        """
        named = self._read_current()
        return named[0] if named else None

    def _read_current(self) -> tuple[str, str] | None:
        """Return name and digest (empty if written by hand without one) of the live version."""
        path = self.root / _CURRENT_FILE
        try:
            text = path.read_bytes().decode()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise MapFormatError(f'{path} cannot be read: {error}') from error
        name, _, digest = text.removesuffix('\n').partition(' ')
        if not name.isalnum() or (digest and text != _current_text(name, digest)):
            raise MapFormatError(
                f'{path} is damaged; write the name of a version into it (versions: '
                f'{", ".join(self.versions()) or "none"})'
            )
        return name, digest

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
        folder = Path(tempfile.mkdtemp(prefix=_NEW_PREFIX, dir=versions))
        try:
            current = self.current() or ''
            manifest = _write_version(folder, scene_map, update_data, version, current)
            if unless_live and current:
                live = read_manifest(versions / current)
                if live.files == manifest.files:
                    shutil.rmtree(folder)
                    return live
            os.chmod(folder, 0o755)
            os.replace(folder, versions / version)
            _sync_folder(versions)
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
            (self.root / _LOCK_FILE).unlink()
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

    def strip(self, version: str | None = None) -> None:
        """Delete the update data of one version, or of all; localization keeps working."""
        names = self.versions()
        if not names or (version and version not in names):
            raise MapFormatError(
                f'{self.root} has no version {version or ""}; it has: {", ".join(names) or "none"}'
            )
        with self._locked():
            for name in [version] if version else names:
                (self.root / 'versions' / name / UPDATE_FILE).unlink(missing_ok=True)
            if version is None:
                # Unfinished updates hold descriptors of their logs.
                shutil.rmtree(self.root / UPDATES_FOLDER / 'work', ignore_errors=True)

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
        path = self.root / _LOCK_FILE
        while True:
            if create:
                (self.root / 'versions').mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                try:
                    handle = stack.enter_context(open(path, 'w'))
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
        digest = _file_digest(self.root / 'versions' / version)
        temporary = self.root / f'{_NEW_CURRENT_PREFIX}{os.getpid()}'
        try:
            _write_synced(temporary, _current_text(version, digest).encode())
            os.replace(temporary, self.root / _CURRENT_FILE)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(self.root)


def _current_text(version: str, digest: str) -> str:
    return f'{version} {digest}\n'


def _file_digest(folder: Path) -> str:
    """Return the digest of a version's manifest; through it, of everything in the version."""
    return hashlib.sha256((folder / _MANIFEST_FILE).read_bytes()).hexdigest()


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Check every version of a map folder, or one version; return what is wrong, empty if nothing.

    Stripped update data is not an error.
    """
    root = Path(path)
    if (root / _MANIFEST_FILE).exists():
        folders = [root]
        problems: list[str] = []
    else:
        problems = []
        try:
            _version_folder(root)
        except MapFormatError as error:
            problems.append(str(error))
        versions = root / 'versions'
        folders = sorted(
            entry
            for entry in (versions.iterdir() if versions.is_dir() else ())
            if not entry.name.startswith('.')
        )
    for folder in folders:
        try:
            scene_map = SceneMap.open(folder)
            if folder != root and scene_map.manifest.version != folder.name:
                problems.append(f'{folder} holds version {scene_map.manifest.version}')
            if UPDATE_FILE in scene_map.manifest.files and (folder / UPDATE_FILE).exists():
                _read_checked(folder, UPDATE_FILE, scene_map.manifest)
        except MapFormatError as error:
            problems.append(str(error))
    return problems


def read_manifest(folder: Path) -> MapManifest:
    """Read and check the manifest of a version's folder.

    Raises:
        MapFormatError: missing, damaged, or of another format version.
    """
    path = folder / _MANIFEST_FILE
    try:
        raw = path.read_bytes()
        document = json.loads(raw)
    except FileNotFoundError as error:
        raise MapFormatError(f'{folder} has no {_MANIFEST_FILE}: not a map') from error
    except (OSError, ValueError) as error:
        raise MapFormatError(
            f'{path} is damaged ({error}); restore the map or build it again'
        ) from error
    if not isinstance(document, dict):
        raise MapFormatError(f'{path} is damaged (not an object); restore or build again')
    found = document.get('format_version')
    if found != FORMAT_VERSION:
        raise MapFormatError(
            f'{folder} has map format {found}, this software reads {FORMAT_VERSION}; build the '
            'map again'
        )
    canonical = _manifest_text(document) == raw
    digest = document.pop('digest', None)
    if not canonical or digest != _digest(document):
        raise MapFormatError(f'{path} is damaged (digest differs); restore or build again')
    try:
        return MapManifest(
            features=from_dict(FeatureConfig, document['features']),
            features_hash=document['features_hash'],
            head=document['head'],
            network=document['network'],
            cameras=tuple(Camera.from_dict(camera) for camera in document['cameras']),
            calibration=from_dict(Calibration, document['calibration']),
            map_frame=document['map_frame'],
            metric=document['metric'],
            version=document['version'],
            parent=document['parent'],
            created=document['created'],
            software=document['software'],
            metrics=document['metrics'],
            build=document['build'],
            files=document['files'],
        )
    except (KeyError, TypeError, ConfigError, CalibrationError) as error:
        raise MapFormatError(f'{path} is incomplete ({error}); build the map again') from error


def manifest_document(manifest: MapManifest) -> dict[str, Any]:
    """Return the manifest as it is written, with its digest."""
    document = {
        'format_version': manifest.format_version,
        'version': manifest.version,
        'parent': manifest.parent,
        'created': manifest.created,
        'software': manifest.software,
        'map_frame': manifest.map_frame,
        'metric': manifest.metric,
        'features': to_dict(manifest.features),
        'features_hash': manifest.features_hash,
        'head': manifest.head,
        'network': manifest.network,
        'cameras': [camera.to_dict() for camera in manifest.cameras],
        'calibration': to_dict(manifest.calibration),
        'metrics': manifest.metrics,
        'build': manifest.build,
        'files': manifest.files,
    }
    return {**document, 'digest': _digest(document)}


def _manifest_text(document: dict[str, Any]) -> bytes:
    """Return the one way to write a manifest, so that a change of white space shows as well."""
    return json.dumps(document, indent=1, sort_keys=True).encode()


def _digest(document: dict[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _check_root(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise MapFormatError(f'{root} is a file; give a folder for the map')
    if root.is_dir() and any(root.iterdir()):
        known = {'versions', _CURRENT_FILE, _LOCK_FILE, UPDATES_FOLDER}
        foreign = sorted(entry.name for entry in root.iterdir() if entry.name not in known)
        foreign = [name for name in foreign if not name.startswith(_NEW_CURRENT_PREFIX)]
        if foreign:
            raise MapFormatError(
                f'{root} holds other files ({foreign[0]}); give a new or an existing map folder'
            )


def _version_folder(path: Path) -> Path:
    if (path / _MANIFEST_FILE).exists():
        return path
    if not path.exists():
        raise MapFormatError(
            f'there is no map at {path}; build one with: d2s build-map INPUT --map'
        )
    store = MapStore(path)
    named = store._read_current()
    if named is None:
        raise MapFormatError(f'{path} is not a map: it has no file named {_CURRENT_FILE}')
    current, digest = named
    folder = path / 'versions' / current
    if not folder.is_dir():
        raise MapFormatError(
            f'{path / _CURRENT_FILE} names version {current!r}, which is not there; versions: '
            f'{", ".join(store.versions()) or "none"}'
        )
    if digest and (folder / _MANIFEST_FILE).exists() and _file_digest(folder) != digest:
        raise MapFormatError(
            f'{path}: {_CURRENT_FILE} and the manifest of version {current} do not fit; '
            'one of them is damaged, restore the map or build it again'
        )
    return folder


def _read_checked(folder: Path, name: str, manifest: MapManifest) -> bytes:
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise MapFormatError(f'{folder} lacks {name}; restore the map or build it again') from error
    expected = manifest.files.get(name, {})
    if len(data) != expected.get('size') or hashlib.sha256(data).hexdigest() != expected.get(
        'sha256'
    ):
        raise MapFormatError(
            f'{folder / name} is damaged (its hash differs from the manifest); restore the map or '
            'build it again'
        )
    return data


def _write_version(
    folder: Path,
    scene_map: SceneMap,
    update_data: dict[str, NDArray[Any]] | None,
    version: str,
    parent: str,
) -> MapManifest:
    contents = {LOCALIZATION_FILE: _serialize(scene_map.model.tensors())}
    if update_data:
        contents[UPDATE_FILE] = _serialize(update_data)
    files = {}
    for name, data in contents.items():
        _write_synced(folder / name, data)
        files[name] = {'size': len(data), 'sha256': hashlib.sha256(data).hexdigest()}
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
    manifest = replace(
        scene_map.manifest,
        version=version,
        parent=parent,
        created=created,
        files=files,
        software=__version__,
    )
    _write_synced(folder / _MANIFEST_FILE, _manifest_text(manifest_document(manifest)))
    _sync_folder(folder)
    return manifest


def _serialize(tensors: dict[str, NDArray[Any]]) -> bytes:
    # safetensors writes an array's memory as it lies: other layouts would come back scrambled.
    return save_tensors({name: np.asarray(value, order='C') for name, value in tensors.items()})


def quantise(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Return int8 vectors (M, D) and their scales (M,), the largest entry mapped to 127."""
    # Not below what float16 can tell from zero; unit vectors are far above it.
    scale = np.maximum(np.abs(vectors).max(axis=1) / 127.0, 1e-4)
    scale = scale.astype(np.float16).astype(np.float32)
    quantised = np.clip(np.rint(vectors / scale[:, None]), -127, 127).astype(np.int8)
    return quantised, scale.astype(np.float16)


def dequantise(quantised: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return L2-normalised float32 vectors (M, D) of `quantise`'s result."""
    vectors = quantised.astype(np.float32) * scales.astype(np.float32)[:, None]
    return np.asarray(
        vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32
    )


def _folder_size(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in folder.iterdir() if entry.is_file())


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, 'wb') as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
