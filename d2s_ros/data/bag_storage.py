"""Messages of a rosbag2 log as raw bytes: complete logs, and what is left of broken ones.

A log is a folder with metadata.yaml and storage files (.db3 or .mcap, each also compressed as
.zstd), or one storage file. Complete logs are checked against their metadata. A log that was cut
off (a full disk, a killed recorder, a robot without power) has no metadata, and reading it with
`partial` stops where its files stop making sense.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2s_ros.data.bag_mcap import McapFile
from d2s_ros.data.bag_records import RawMessage, StorageError, StorageFile, Topic
from d2s_ros.data.bag_sqlite import SqliteFile, torn_page
from d2s_ros.data.safe_yaml import load_yaml
from d2s_ros.data.unpacking import unpack_file
from d2s_ros.errors import BagError, InputError

__all__ = ['Log', 'RawMessage', 'Topic', 'is_storage_file', 'open_log', 'storage_files']

_logger = logging.getLogger(__name__)

_COMPRESSED = '.zstd'
STORAGE_SUFFIXES = ('.mcap', '.db3', f'.mcap{_COMPRESSED}', f'.db3{_COMPRESSED}')
_METADATA = 'metadata.yaml'
#: A log of a thousand files and two hundred topics has 400 KB.
_MAX_METADATA_BYTES = 4_000_000
_ROS1_MAGIC = b'#ROSBAG V'


class Log:
    """A rosbag2 log that can be read several times.

    Attributes:
        topics: Topics with messages in CDR, the encoding of ROS 2, by name.
        foreign: Topics in another encoding, which are not read.
    """

    def __init__(self, path: Path, partial: bool = False) -> None:
        """Find the files and count the messages.

        Args:
            path: Folder, or one storage file.
            partial: Read what is there of a log that is cut off or still being written.

        Raises:
            BagError: missing, empty, damaged or cut off (unless partial), or no rosbag2 log.
        """
        self._path, self._partial = path, partial
        paths, metadata = self._find_files()
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        self._files: list[StorageFile] = []
        problems = []
        for file in paths:
            try:
                self._files.append(self._open(file))
            except (BagError, StorageError, OSError) as error:
                if not partial:
                    raise self._damaged(error) from error
                problems.append(f'{file.name}: {_one_line(error)}')
                _logger.warning('%s is not read: %s', file, error)
        problems += [file.problem for file in self._files if file.problem]
        self.foreign = tuple(dict.fromkeys(name for file in self._files for name in file.foreign))
        totals: dict[str, tuple[str, int]] = {}
        for opened in self._files:
            for topic in opened.topics.values():
                totals[topic.name] = (topic.type, totals.get(topic.name, ('', 0))[1] + topic.count)
        self.topics = tuple(Topic(name, *totals[name]) for name in sorted(totals))
        if not any(topic.count for topic in self.topics):
            if self.foreign:
                raise BagError(
                    f'{path} holds no messages of ROS 2 (CDR): {", ".join(self.foreign[:5])}; '
                    'convert it to a rosbag2 log'
                )
            if partial:
                why = f' ({"; ".join(problems[:3])})' if problems else ''
                raise BagError(f'nothing of {path} can be read{why}: record it again')
            raise BagError(f'{path} is empty: it holds no messages')
        if not partial and metadata is not None:
            self._compare(metadata)

    def messages(self, topics: Collection[str]) -> Iterator[RawMessage]:
        """Yield the messages of some topics in the order of time, file by file.

        Raises:
            BagError: where the log is damaged, or holds fewer messages than it says.
        """
        expected = sum(topic.count for topic in self.topics if topic.name in topics)
        found = 0
        try:
            for file in self._files:
                for message in file.messages(topics):
                    found += 1
                    yield message
        except (StorageError, OSError) as error:
            if not self._partial:
                raise self._damaged(error) from error
            _logger.warning('%s: reading stops early: %s', self._path, error)
        if found < expected and not self._partial:
            raise self._damaged(f'{found} of {expected} messages found')

    def _find_files(self) -> tuple[list[Path], _Metadata | None]:
        path = self._path
        if not path.exists():
            raise BagError(f'{path} does not exist')
        if not path.is_dir():
            require_regular(path)
            if is_ros1(path):
                raise BagError(
                    f'{path} is a ROS 1 bag; convert it with: rosbags-convert --src {path} '
                    f'--dst {path.with_suffix("")} (of the package rosbags)'
                )
            if not is_storage_file(path):
                raise BagError(f'{path} is not a rosbag2 file (.mcap or .db3, also .zstd)')
            return [path], None
        files = storage_files(path)
        metadata = None
        if (path / _METADATA).is_file():
            try:
                metadata = _Metadata.read(path / _METADATA)
            except InputError as error:
                if not self._partial:
                    raise self._damaged(error) from error
                _logger.warning('%s is not used: %s', path / _METADATA, error)
        elif not files:
            raise BagError(f'{path} is not a rosbag2 folder (no metadata.yaml, .mcap or .db3)')
        elif not self._partial:
            raise BagError(
                f'{path} has no metadata.yaml: it is still being recorded or recording was cut '
                f'off; stop the recorder, run `ros2 bag reindex {path}`, or read what is there '
                'with --partial'
            )
        if metadata is not None:
            files = self._named(files, metadata)
        if not files:
            raise BagError(f'{path} holds no .mcap or .db3 file')
        return files, metadata

    def _named(self, files: list[Path], metadata: _Metadata) -> list[Path]:
        """Return the files in the order of the metadata, or those that took their place."""
        there = {file.name: file for file in files}
        there.update({file.name + _COMPRESSED: file for file in files})
        missing = [name for name in metadata.files if name not in there]
        if not missing:
            return [there[name] for name in metadata.files] or files
        names = ', '.join(missing[:3]) + (', ...' if len(missing) > 3 else '')
        if len(missing) == len(metadata.files) == len(files):
            _logger.warning(
                '%s: metadata.yaml names %s, which is not there; %s is read instead',
                self._path,
                names,
                ', '.join(file.name for file in files[:3]),
            )
            return files
        if self._partial:
            _logger.warning('%s: missing: %s', self._path, names)
            return files
        found = ', '.join(file.name for file in files[:5]) or 'none'
        raise BagError(
            f'{self._path}: {len(missing)} of {len(metadata.files)} storage files are missing '
            f'({names}; files there: {found}); put them back, rename them as metadata.yaml says, '
            f'run `ros2 bag reindex {self._path}`, or read what is there with --partial'
        )

    def _open(self, path: Path) -> StorageFile:
        require_regular(path)
        file = path
        problem = ''
        if path.suffix == _COMPRESSED:
            if self._unpacked is None:
                self._unpacked = tempfile.TemporaryDirectory(prefix='d2s_log_')
            file = Path(self._unpacked.name) / path.stem
            problem = unpack_file(path, file, self._partial)
        if not file.stat().st_size:
            raise StorageError('the file is empty')
        if file.suffix == '.mcap':
            opened: StorageFile = McapFile(file, path, self._partial)
        else:
            torn = torn_page(file)
            if torn and not self._partial:
                raise StorageError(torn)
            opened = SqliteFile(file, path, self._partial)
        opened.problem = problem or opened.problem
        return opened

    def _compare(self, metadata: _Metadata) -> None:
        counts = {topic.name: topic.count for topic in self.topics}
        for name, expected in metadata.counts.items():
            if counts.get(name, 0) < expected and not any(
                foreign.startswith(f'{name} (') for foreign in self.foreign
            ):
                raise self._damaged(f'{counts.get(name, 0)} of {expected} messages of {name} found')

    def _damaged(self, why: object) -> BagError:
        text = _one_line(why)
        if isinstance(why, BagError):
            return why
        if 'ROS 1' in text or 'still being recorded' in text:
            return BagError(f'{self._path}: {text}')
        return BagError(
            f'{self._path} is damaged, cut off or still being written ({text}); run `ros2 bag '
            f'reindex`, record it again, or read only what is left of it with --partial'
        )


@dataclass(frozen=True)
class _Metadata:
    """What metadata.yaml promises: file names, and messages by topic."""

    files: tuple[str, ...]
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> _Metadata:
        """Read a metadata.yaml.

        Raises:
            InputError: not readable, too large, or not what rosbag2 writes.
        """
        require_regular(path)
        if path.stat().st_size > _MAX_METADATA_BYTES:
            raise InputError(f'metadata.yaml has {path.stat().st_size} bytes')
        try:
            text = path.read_text(encoding='utf-8')
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f'metadata.yaml cannot be read: {error}') from error
        document = load_yaml(text, 'metadata.yaml', _MAX_METADATA_BYTES)
        information = _member(document, 'rosbag2_bagfile_information', dict)
        files = _member(information, 'relative_file_paths', list)
        topics = _member(information, 'topics_with_message_count', list)
        counts: dict[str, int] = {}
        for topic in topics:
            name = _member(_member(topic, 'topic_metadata', dict), 'name', str)
            counts[name] = counts.get(name, 0) + int(_member(topic, 'message_count', int))
        if not all(isinstance(name, str) for name in files):
            raise InputError('metadata.yaml: relative_file_paths holds something else than names')
        # Old recorders wrote absolute paths.
        return cls(tuple(Path(name).name for name in files), counts)


def open_log(path: Path, partial: bool = False) -> Log:
    """Open a rosbag2 folder or a single storage file; see `Log`."""
    try:
        return Log(path, partial)
    except OSError as error:
        raise BagError(f'cannot read {path}: {error.strerror or error}') from error


def is_storage_file(path: Path) -> bool:
    """Return whether a file has the name of a rosbag2 storage file."""
    return path.name.endswith(STORAGE_SUFFIXES)


def is_ros1(path: Path) -> bool:
    """Return whether a regular file is a bag of ROS 1."""
    try:
        with path.open('rb') as stream:
            return stream.read(len(_ROS1_MAGIC)) == _ROS1_MAGIC
    except OSError:
        return False


def storage_files(path: Path) -> list[Path]:
    """Return the storage files of a log, in the order in which they were written.

    Of a file that lies there both compressed and unpacked, the unpacked one.
    """
    if not path.is_dir():
        return [path]
    names = {entry.name for entry in path.iterdir() if is_storage_file(entry)}
    files = [path / name for name in names if name.removesuffix(_COMPRESSED) not in names - {name}]

    def split_number(file: Path) -> tuple[int, str]:
        digits = file.name.partition('.')[0].rpartition('_')[2]
        number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 12 else -1
        return (number, file.name)

    return sorted(files, key=split_number)


def require_regular(path: Path) -> None:
    """Refuse what would wait for ever or never end when it is read.

    Raises:
        BagError: a folder, a FIFO, a device, or nothing.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise BagError(f'cannot read {path}: {error.strerror}') from error
    if not stat.S_ISREG(mode):
        raise BagError(f'{path} is not a regular file; give a recorded log')


def _member(values: Any, key: str, kind: type) -> Any:
    value = values.get(key) if isinstance(values, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f'metadata.yaml has no valid {key}')
    return value


def _one_line(error: object) -> str:
    return ' '.join(str(error).split()) or type(error).__name__
