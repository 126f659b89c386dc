"""Areas: a folder that names several maps as places, with an index that says where to look.

Layout of an area, see docs/reference/map_format.md:

    AREA/area.json                   the manifest, replaced atomically
    AREA/index-<digest>.safetensors  global descriptors of the mapping images (`area_index`)
    AREA/places/NAME/                a map folder, with its own versions and updates
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2s_ros import __version__
from d2s_ros.errors import MapFormatError, UsageError
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.maps.area_index import AreaIndex
from d2s_ros.maps.files import (
    AREA_FILE,
    LOCK_FILE,
    MAX_MANIFEST,
    PLACES_FOLDER,
    open_lock,
    read_current,
    read_regular,
    sync_folder,
    write_synced,
)
from d2s_ros.maps.manifest import read_manifest
from d2s_ros.maps.verification import verify

AREA_FORMAT = 1
#: Largest index that is read, in bytes.
_MAX_INDEX = 1 << 30
_INDEX_PREFIX, _INDEX_SUFFIX = 'index-', '.safetensors'
_NEW_PREFIX = '.area-'
#: Names of places are names of folders, and end names of frames.
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.-]{0,63}')
_FRAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_./-]{0,255}')


@dataclass(frozen=True, eq=False)
class Place:
    """One map of an area.

    Attributes:
        name: Of the place and of its folder.
        area_from_place: Takes points of the place's map to the area's frame; None if unknown.
    """

    name: str
    area_from_place: RigidTransform | None = None


@dataclass(frozen=True, eq=False)
class Area:
    """An area as it is on disk.

    Attributes:
        root: Its folder.
        frame: Name of the area's frame.
        features_hash: Of the features of all places.
        places: By name, in the order of the index.
        index_file: Name of the file of the index.
        index_digest: Its sha256.
        digest: Of the manifest.
    """

    root: Path
    frame: str
    features_hash: str
    places: dict[str, Place]
    index_file: str
    index_digest: str
    digest: str = ''

    def folder(self, name: str) -> Path:
        """Return the map folder of a place.

        Raises:
            UsageError: there is no such place.
        """
        if name not in self.places:
            raise UsageError(f'{self.root} has no place {name!r}; it has: {", ".join(self.places)}')
        return self.root / PLACES_FOLDER / name

    def frame_of(self, name: str) -> str:
        """Return the frame of poses in a place: the area's, or its own where nobody knows more."""
        if self.places[name].area_from_place is not None:
            return self.frame
        return f'{self.frame}_{name}'

    def frames(self) -> list[str]:
        """Return the frames that poses of the area may be in."""
        return list(dict.fromkeys(map(self.frame_of, self.places)))

    def versions(self) -> dict[str, str]:
        """Return the live version of each place, empty where there is none.

        Raises:
            MapFormatError: a file that names one is damaged.
        """
        named = {name: read_current(self.folder(name)) for name in self.places}
        return {name: '' if found is None else found[0] for name, found in named.items()}

    def version(self) -> str:
        """Return what identifies the manifest and the live versions of all places."""
        parts = [self.digest, *(f'{name} {of}' for name, of in self.versions().items())]
        return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:12]

    def read_index(self) -> AreaIndex:
        """Read the index.

        Raises:
            MapFormatError: it is missing or damaged, or of other places.
        """
        path = self.root / self.index_file
        try:
            data = read_regular(path, _MAX_INDEX)
        except OSError as error:
            raise MapFormatError(
                f'{self.root} lacks {self.index_file}; restore the area or build it again'
            ) from error
        if hashlib.sha256(data).hexdigest() != self.index_digest:
            raise MapFormatError(
                f'{path} is damaged (its hash differs from {AREA_FILE}); restore the area or build '
                'it again'
            )
        return AreaIndex.from_bytes(data, len(self.places), path)


def is_area(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder is an area."""
    return (Path(path).expanduser() / AREA_FILE).exists()


def check_place_name(name: str) -> str:
    """Return the name of a place.

    Raises:
        UsageError: it cannot be one.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f'a place cannot be named {name!r}: letters of ASCII, digits, _, - and . only, at most '
            '64, beginning with a letter or digit'
        )
    return name


def read_area(path: str | os.PathLike[str]) -> Area:
    """Read and check the manifest of an area.

    Raises:
        MapFormatError: it is missing, damaged or of another format.
    """
    root = Path(path).expanduser()
    file = root / AREA_FILE
    try:
        raw = read_regular(file, MAX_MANIFEST)
        document = json.loads(raw)
    except FileNotFoundError as error:
        raise MapFormatError(f'{root} is not an area: it has no {AREA_FILE}') from error
    except (OSError, ValueError, RecursionError) as error:
        raise MapFormatError(f'{file} is damaged ({error}); restore it or build again') from error
    if not isinstance(document, dict):
        raise MapFormatError(f'{file} is damaged (not an object); restore it or build again')
    found = document.get('format_version')
    if found != AREA_FORMAT or isinstance(found, bool):
        raise MapFormatError(
            f'{root} has area format {found!r:.80}, this software reads {AREA_FORMAT}; build the '
            'area again'
        )
    digest = document.pop('digest', None)
    if _text({**document, 'digest': digest}) != raw or digest != _digest(document):
        raise MapFormatError(f'{file} is damaged (digest differs); restore it or build again')
    try:
        return _area_of(root, document, str(digest))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, UsageError) as error:
        raise MapFormatError(f'{file} is incomplete ({error}); build the area again') from error


def _area_of(root: Path, document: dict[str, Any], digest: str) -> Area:
    known = {'format_version', 'software', 'frame', 'features_hash', 'places', 'index'}
    if set(document) != known:
        raise ValueError(f'its keys are {sorted(document)}')
    frame, index = document['frame'], document['index']
    if not isinstance(frame, str) or not _FRAME.fullmatch(frame):
        raise ValueError(f'frame is {frame!r:.80}')
    if not isinstance(document['features_hash'], str):
        raise TypeError('features_hash is no text')
    places: dict[str, Place] = {}
    for entry in document['places']:
        name = check_place_name(entry['name'])
        if name in places:
            raise ValueError(f'place {name} is there twice')
        places[name] = Place(name, _transform(entry['area_from_place']))
    if not places:
        raise ValueError('there are no places')
    file, sha256 = index['file'], index['sha256']
    if not re.fullmatch(r'[0-9a-f]{64}', sha256) or file != _index_name(sha256):
        raise ValueError(f'index is {index!r:.120}')
    return Area(root, frame, document['features_hash'], places, file, sha256, digest)


def _transform(values: Any) -> RigidTransform | None:
    if values is None:
        return None
    numbers = [float(value) for value in values if type(value) is float]
    if len(values) != 7 or len(numbers) != 7 or not all(map(math.isfinite, numbers)):
        raise ValueError(f'area_from_place is {values!r:.120}, expected seven finite numbers')
    if not 0.99 < math.hypot(*numbers[3:]) < 1.01:
        raise ValueError(f'the quaternion of area_from_place is {numbers[3:]}')
    return RigidTransform.from_tum(numbers)


def _index_name(sha256: str) -> str:
    return f'{_INDEX_PREFIX}{sha256[:12]}{_INDEX_SUFFIX}'


def _digest(document: dict[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _text(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True).encode()


def write_area(
    path: str | os.PathLike[str], *, frame: str, places: list[Place], index: AreaIndex
) -> Area:
    """Write the manifest and the index of an area whose places are there.

    Both become valid in one atomic step, or not at all; the caller holds the area (`locked`).

    Raises:
        MapFormatError: a place is no map, or of other features than the first.
    """
    root = Path(path).expanduser()
    made_with = {}
    for place in places:
        check_place_name(place.name)
        folder = root / PLACES_FOLDER / place.name
        current = read_current(folder)
        if current is None:
            raise MapFormatError(f'{folder} is not a map: it has no live version')
        manifest = read_manifest(folder / 'versions' / current[0])
        made_with[place.name] = (manifest.features, manifest.features_hash)
    first, *others = made_with
    for name in others:
        if made_with[name] != made_with[first]:
            raise MapFormatError(
                f'the places {first} and {name} of {root} were built with different features; '
                'build all with the same'
            )
    data = index.to_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    document = {
        'format_version': AREA_FORMAT,
        'software': __version__,
        'frame': frame,
        'features_hash': made_with[first][1],
        'places': [
            {
                'name': place.name,
                'area_from_place': None
                if place.area_from_place is None
                else [float(value) for value in place.area_from_place.to_tum()],
            }
            for place in places
        ],
        'index': {'file': _index_name(sha256), 'sha256': sha256},
    }
    digest = _digest(document)
    area = _area_of(root, document, digest)
    temporary = root / f'{_NEW_PREFIX}{os.getpid()}'
    try:
        write_synced(temporary, data)
        os.replace(temporary, root / area.index_file)
        write_synced(temporary, _text({**document, 'digest': digest}))
        os.replace(temporary, root / AREA_FILE)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(root)
    # Of indices before this one and of writers that were killed.
    for left in (*root.glob(f'{_INDEX_PREFIX}*{_INDEX_SUFFIX}'), *root.glob(f'{_NEW_PREFIX}*')):
        if left.name != area.index_file:
            left.unlink(missing_ok=True)
    return area


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Hold an area, new or existing, for writing; gives its folder.

    Raises:
        MapFormatError: the path is a file, a map or holds something else.
        UsageError: somebody else writes it.
    """
    root = Path(path).expanduser()
    if root.exists() and not root.is_dir():
        raise MapFormatError(f'{root} is a file; give a folder for the area')
    if root.is_dir() and not is_area(root):
        foreign = sorted({entry.name for entry in root.iterdir()} - {PLACES_FOLDER, LOCK_FILE})
        foreign = [name for name in foreign if not name.startswith(_NEW_PREFIX)]
        if foreign:
            raise MapFormatError(
                f'{root} holds other files ({foreign[0]}); give a new or an existing area'
            )
    (root / PLACES_FOLDER).mkdir(parents=True, exist_ok=True)
    with open_lock(root / LOCK_FILE) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f'another process writes {root}; wait for it, or stop it') from error
        yield root


def verify_area(path: str | os.PathLike[str]) -> list[str]:
    """Check an area and every version of its places; return what is wrong, empty if nothing."""
    try:
        area = read_area(path)
    except MapFormatError as error:
        return [str(error)]
    problems: list[str] = []
    try:
        area.read_index()
    except MapFormatError as error:
        problems.append(str(error))
    for name in area.places:
        problems += verify(area.folder(name))
    return problems
