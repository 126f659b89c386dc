"""Messages of a rosbag2 log as raw bytes, from complete logs and from what is left of broken ones.

Complete logs are read with rosbags. A log that was cut off (a full disk, a killed recorder, a
robot without power) has no index or metadata; `SalvagedLog` scans its files from the start and
stops where they stop making sense.
"""

from __future__ import annotations

import logging
import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from d2s_ros.errors import BagError

_logger = logging.getLogger(__name__)

STORAGE_SUFFIXES = ('.mcap', '.db3')
_MCAP_MAGIC = b'\x89MCAP0\r\n'
#: A record longer than this in a broken file is a wrong length, not a message.
_MAX_RECORD_BYTES = 2**30


@dataclass(frozen=True)
class Topic:
    """One topic of a log: name, type such as 'sensor_msgs/msg/Image', number of messages."""

    name: str
    type: str
    count: int


#: Topic name, receive time in ns, CDR bytes.
RawMessage = tuple[str, int, bytes]


class Log(Protocol):
    """A log that can be read several times."""

    topics: tuple[Topic, ...]

    def messages(self, topics: Sequence[str]) -> Iterator[RawMessage]:
        """Yield the messages of some topics."""
        ...


def open_log(path: Path, partial: bool = False) -> Log:
    """Open a rosbag2 folder or a single .mcap or .db3 file.

    Args:
        path: Folder with metadata.yaml, or one storage file.
        partial: Read what is there of a log that is cut off or still being written.

    Raises:
        BagError: missing, empty, cut off (unless partial), of an unknown storage.
    """
    if not path.exists():
        raise BagError(f'{path} does not exist')
    if path.is_file() and path.suffix not in STORAGE_SUFFIXES:
        raise BagError(f'{path} is not a rosbag2 file (.mcap or .db3)')
    return SalvagedLog(path) if partial else CompleteLog(path)


def storage_files(path: Path) -> list[Path]:
    """Return the storage files of a log, in the order in which they were written."""
    if path.is_file():
        return [path]
    files = [file for file in path.iterdir() if file.suffix in STORAGE_SUFFIXES]

    def split_number(file: Path) -> tuple[int, str]:
        digits = file.stem.rpartition('_')[2]
        return (int(digits) if digits.isdigit() else -1, file.name)

    return sorted(files, key=split_number)


class CompleteLog:
    """A finished log, read through its index; damage is an error."""

    def __init__(self, path: Path) -> None:
        """Check that the log is complete and list its topics."""
        self._path = path
        if path.is_dir() and not (path / 'metadata.yaml').is_file():
            if not storage_files(path):
                raise BagError(f'{path} is not a rosbag2 folder (no metadata.yaml)')
            raise BagError(
                f'{path} has no metadata.yaml: it is still being recorded or recording was cut '
                f'off; stop the recorder or run `ros2 bag reindex {path}`'
            )
        for file in storage_files(path):
            _refuse_unfinished(file)
        with self._reader() as reader:
            self.topics = tuple(
                Topic(name, info.msgtype or '', info.msgcount)
                for name, info in sorted(reader.topics.items())
            )
            if not reader.message_count:
                raise BagError(f'{path} is empty: it holds no messages')

    def messages(self, topics: Sequence[str]) -> Iterator[RawMessage]:
        """Yield the messages of some topics in the order of time.

        Raises:
            BagError: where the log is damaged, or holds fewer messages than its metadata says.
        """
        expected = sum(topic.count for topic in self.topics if topic.name in topics)
        found = 0
        with self._reader() as reader:
            connections = [item for item in reader.connections if item.topic in topics]
            if not connections:
                return
            for connection, stamp, data in self._guarded(reader.messages(connections)):
                found += 1
                yield connection.topic, int(stamp), bytes(data)
        if found < expected:
            raise self._damaged(f'{found} of {expected} messages found')

    def _reader(self) -> _ReaderContext:
        return _ReaderContext(self._path, self._damaged)

    def _guarded(self, messages: Iterator[Any]) -> Iterator[Any]:
        while True:
            try:
                message = next(messages)
            except StopIteration:
                return
            except Exception as error:  # a parser on damaged bytes fails in any way
                raise self._damaged(error) from error
            yield message

    def _damaged(self, why: object) -> BagError:
        text = ' '.join(str(why).split()) or type(why).__name__
        return BagError(
            f'{self._path} is damaged, cut off or still being written ({text}); run `ros2 bag '
            f'reindex`, record it again, or read only what is left of it'
        )


class _ReaderContext:
    """Opens and closes a rosbags reader, turning whatever it raises into a BagError."""

    def __init__(self, path: Path, damaged: Callable[[object], BagError]) -> None:
        self._path = path
        self._damaged = damaged

    def __enter__(self) -> Any:
        from rosbags.rosbag2 import Reader

        try:
            self._reader = Reader(self._path)
            self._reader.open()
        except Exception as error:
            raise self._damaged(error) from error
        return self._reader

    def __exit__(self, *_exception: object) -> None:
        self._reader.close()


def _refuse_unfinished(file: Path) -> None:
    """Notice what SQLite would pass over in silence: data beside the file, a torn last page."""
    if file.suffix != '.db3':
        return
    with file.open('rb') as stream:
        page_bytes = int.from_bytes(stream.read(18)[16:18], 'big')
    page_bytes = 65536 if page_bytes == 1 else page_bytes
    if page_bytes and file.stat().st_size % page_bytes:
        raise BagError(
            f'{file} is cut off or damaged: its size is not a whole number of pages; record it '
            f'again, or read only what is left of it'
        )
    for suffix in ('-wal', '-journal'):
        companion = file.with_name(file.name + suffix)
        if companion.is_file() and companion.stat().st_size > 0:
            raise BagError(
                f'{file} is still being recorded (there is {companion.name}); stop the recorder '
                f'first'
            )


class SalvagedLog:
    """What can be read of the files of a log, in the order in which it was written."""

    def __init__(self, path: Path) -> None:
        """Scan the files once to count the messages per topic."""
        self._path = path
        self._files = storage_files(path)
        if not self._files:
            raise BagError(f'{path} holds no .mcap or .db3 file')
        counts: dict[str, tuple[str, int]] = {}
        for name, message_type, _stamp, _data in self._scan():
            counts[name] = (message_type, counts.get(name, ('', 0))[1] + 1)
        if not counts:
            raise BagError(f'nothing of {path} can be read: record it again')
        self.topics = tuple(Topic(name, *counts[name]) for name in sorted(counts))

    def messages(self, topics: Sequence[str]) -> Iterator[RawMessage]:
        """Yield the readable messages of some topics."""
        for name, _type, stamp, data in self._scan():
            if name in topics:
                yield name, stamp, data

    def _scan(self) -> Iterator[tuple[str, str, int, bytes]]:
        for file in self._files:
            scan = _scan_mcap if file.suffix == '.mcap' else _scan_sqlite
            yield from scan(file)


def _scan_sqlite(path: Path) -> Iterator[tuple[str, str, int, bytes]]:
    try:
        uri = f'{path.resolve().as_uri()}?mode=ro&immutable=1'
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            # Lets SQLite open a file that is shorter than its header says.
            connection.execute('PRAGMA writable_schema=ON')
            topics = {
                int(row[0]): (str(row[1]), str(row[2]))
                for row in connection.execute('SELECT id, name, type FROM topics')
            }
            rows = connection.execute('SELECT topic_id, timestamp, data FROM messages ORDER BY id')
            for topic_id, stamp, data in rows:
                if topic_id in topics and isinstance(data, bytes):
                    yield (*topics[topic_id], int(stamp), data)
    except sqlite3.Error as error:
        _logger.warning('%s: reading stops early: %s', path, error)


class _CutOffError(Exception):
    """The file ends inside a record, or a record makes no sense."""


def _scan_mcap(path: Path) -> Iterator[tuple[str, str, int, bytes]]:
    schemas: dict[int, str] = {}
    channels: dict[int, tuple[str, str]] = {}
    try:
        with path.open('rb') as stream:
            if stream.read(8) != _MCAP_MAGIC:
                raise _CutOffError('the file does not begin like an MCAP file')
            yield from _scan_mcap_records(stream, schemas, channels)
    except (_CutOffError, OSError, UnicodeDecodeError, struct.error) as error:
        _logger.warning('%s: reading stops early: %s', path, error)


def _scan_mcap_records(
    stream: BinaryIO, schemas: dict[int, str], channels: dict[int, tuple[str, str]]
) -> Iterator[tuple[str, str, int, bytes]]:
    while True:
        opcode = stream.read(1)
        if not opcode or opcode[0] in (0x02, 0x0F):  # end of file, footer, end of the data
            return
        (size,) = struct.unpack('<Q', _exact(stream, 8))
        if size > _MAX_RECORD_BYTES:
            raise _CutOffError(f'a record of {size} bytes')
        if opcode[0] == 0x06:
            yield from _scan_mcap_chunk(stream, size, schemas, channels)
            continue
        record = _exact(stream, size)
        if opcode[0] == 0x03:
            schemas[struct.unpack_from('<H', record)[0]] = _text(record, 2)[0]
        elif opcode[0] == 0x04:
            channel, schema = struct.unpack_from('<HH', record)
            channels[channel] = (_text(record, 4)[0], schemas.get(schema, ''))
        elif opcode[0] == 0x05:
            channel, _sequence, stamp = struct.unpack_from('<HIQ', record)
            if channel in channels:
                yield (*channels[channel], stamp, record[22:])


def _scan_mcap_chunk(
    stream: BinaryIO, size: int, schemas: dict[int, str], channels: dict[int, tuple[str, str]]
) -> Iterator[tuple[str, str, int, bytes]]:
    available = stream.read(size)
    if len(available) < 32:
        raise _CutOffError('the file ends inside a chunk')
    (unpacked_size,) = struct.unpack_from('<Q', available, 16)
    compression, position = _text(available, 28)
    packed = available[position + 8 :]
    if unpacked_size > _MAX_RECORD_BYTES:
        raise _CutOffError(f'a chunk of {unpacked_size} bytes')
    if compression and len(available) < size:
        raise _CutOffError('the file ends inside a compressed chunk')
    yield from _scan_mcap_records(BytesIO(_unpack(packed, compression)), schemas, channels)
    if len(available) < size:
        raise _CutOffError('the file ends inside a chunk')


def _unpack(data: bytes, compression: str) -> bytes:
    try:
        if compression == '':
            return data
        if compression == 'lz4':
            import lz4.frame

            return bytes(lz4.frame.decompress(data))
        if compression == 'zstd':
            return bytes(_zstd().decompress(data))
    except Exception as error:  # each decompressor has its own errors
        raise _CutOffError(f'a chunk that cannot be unpacked: {error}') from error
    raise _CutOffError(f'chunks of the unknown compression {compression!r}')


def _zstd() -> Any:
    import importlib

    # Part of Python since 3.14; before that, rosbags brings one of the others.
    for name in ('compression.zstd', 'backports.zstd', 'zstandard'):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise _CutOffError('chunks compressed with zstd, but no package that unpacks them')


def _exact(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise _CutOffError('the file ends inside a record')
    return data


def _text(record: bytes, position: int) -> tuple[str, int]:
    (length,) = struct.unpack_from('<I', record, position)
    end = position + 4 + length
    if end > len(record):
        raise _CutOffError('a text is longer than its record')
    return record[position + 4 : end].decode(), end
