"""One MCAP storage file of a rosbag2 log.

The file may come from anybody: a chunk unpacks to at most MAX_UNPACKED_BYTES, chunks do not nest,
and there are no more records than a file of its size can hold.
"""

from __future__ import annotations

import heapq
import logging
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from d2s_ros.data.bag_records import RawMessage, StorageError, Topic
from d2s_ros.data.unpacking import (
    MAX_UNPACKED_BYTES,
    ZSTD_MAGIC,
    UnpackingError,
    unpack,
)

_logger = logging.getLogger(__name__)

MCAP_MAGIC = b'\x89MCAP0\r\n'
_HEADER, _FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _STATISTICS, _DATA_END = (
    0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0B, 0x0F,
)  # fmt: skip
#: What is read; everything else is passed over.
_READ = (_HEADER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _STATISTICS)
#: Footer record and magic at the end of a whole file.
_END_BYTES = 9 + 20 + 8
#: Records without a message, such as indexes, that are passed over in any file.
_FREE_RECORDS = 500_000
#: Bytes of unpacked chunks that one reading may come to: of any file, and per byte of it.
_FREE_UNPACKED, _UNPACKED_RATIO = 2**29, 1000
_Message = tuple[str, int, bytes | memoryview]


class _DamageError(Exception):
    """The file ends inside a record, or a record makes no sense."""


@dataclass
class _Channels:
    """What the ids of messages mean; the summary and the data repeat it."""

    schemas: dict[int, str] = field(default_factory=dict)
    #: Topic name, type, message encoding.
    channels: dict[int, tuple[str, str, str]] = field(default_factory=dict)

    def take(self, opcode: int, record: bytes | memoryview) -> None:
        if opcode == _SCHEMA:
            self.schemas[_unpack_from('<H', record)[0]] = _text(record, 2)[0]
        elif opcode == _CHANNEL:
            channel, schema = _unpack_from('<HH', record)
            name, end = _text(record, 4)
            encoding, _end = _text(record, end)
            self.channels[channel] = (name, self.schemas.get(schema, ''), encoding)


class McapFile:
    """The messages of an .mcap file.

    Attributes:
        topics: By name.
        foreign: Topics that are not in CDR, with their encoding.
        problem: Why the file may hold less than was recorded; empty if nothing is wrong.
    """

    def __init__(self, path: Path, label: Path, partial: bool) -> None:
        """Read the summary, or all records where there is none.

        Args:
            path: The file.
            label: How messages call it.
            partial: Leave out what cannot be read.

        Raises:
            StorageError: no MCAP file, or damage unless partial.
        """
        self._path, self._label, self._partial = path, label, partial
        self.problem = ''
        self.foreign: list[str] = []
        self._size = path.stat().st_size
        self._known = _Channels()
        counts: dict[int, int] | None = None
        try:
            with path.open('rb') as stream:
                self._data_start = self._read_header(stream)
                try:
                    counts = self._read_summary(stream)
                except _DamageError as error:
                    self._stop(str(error))
        except _DamageError as error:
            raise StorageError(str(error)) from error
        if counts is None:
            counts = {}
            for channel, _stamp, _data in self._scan(None):
                counts[channel] = counts.get(channel, 0) + 1
        totals: dict[str, tuple[str, int]] = {}
        for channel, (name, kind, encoding) in self._known.channels.items():
            if encoding != 'cdr':
                self.foreign.append(f'{name} ({encoding or "no encoding"}, {kind or "no schema"})')
            else:
                before = totals.get(name, ('', 0))[1]
                totals[name] = (kind, before + counts.get(channel, 0))
        self.topics: Mapping[str, Topic] = {
            name: Topic(name, *total) for name, total in totals.items()
        }

    def messages(self, topics: Collection[str]) -> Iterator[RawMessage]:
        """Yield the messages of some topics in the order of time.

        Raises:
            StorageError: damage, unless partial.
        """
        for channel, stamp, data in self._scan(set(topics)):
            name, _kind, encoding = self._known.channels[channel]
            if encoding != 'cdr':
                continue
            if data[:4] == ZSTD_MAGIC:
                try:
                    data = unpack(data, 'zstd')
                except UnpackingError as error:
                    if not self._partial:
                        raise StorageError(f'a message of {name}: {error}') from error
                    _logger.warning('%s: a message of %s: %s', self._label, name, error)
                    continue
            yield name, stamp, bytes(data)

    def _read_header(self, stream: BinaryIO) -> int:
        if stream.read(8) != MCAP_MAGIC:
            raise _DamageError('the file does not begin like an MCAP file')
        opcode, record = self._record(stream)
        profile = _text(record, 0)[0] if opcode == _HEADER else None
        if profile is None:
            raise _DamageError('the file does not begin like an MCAP file')
        if profile == 'ros1':
            raise StorageError(
                'it holds messages of ROS 1; convert it with: rosbags-convert --src FILE --dst '
                'FOLDER (of the package rosbags)'
            )
        return stream.tell()

    def _read_summary(self, stream: BinaryIO) -> dict[int, int] | None:
        """Return the messages by channel, None if the file does not tell."""
        if self._size < self._data_start + _END_BYTES:
            raise _DamageError('it has no end')
        stream.seek(-_END_BYTES, 2)
        end = stream.read(_END_BYTES)
        if not end.endswith(MCAP_MAGIC) or end[:9] != b'\x02\x14' + bytes(7):
            raise _DamageError('it has no end')
        (start,) = struct.unpack_from('<Q', end, 9)
        if not start:
            return None
        stop = self._size - _END_BYTES
        if not self._data_start <= start <= stop:
            raise _DamageError('the place of its summary makes no sense')
        stream.seek(start)
        counts = None
        while stream.tell() < stop:
            opcode, record = self._record(stream)
            self._known.take(opcode, record)
            if opcode == _STATISTICS:
                size = _unpack_from('<I', record, 42)[0]
                if size % 10 or 46 + size > len(record):
                    raise _DamageError('its statistics make no sense')
                counts = dict(struct.iter_unpack('<HQ', record[46 : 46 + size]))
        if counts is None or not set(counts) <= set(self._known.channels):
            return None
        if sum(counts.values()) > _FREE_UNPACKED + _UNPACKED_RATIO * self._size:
            raise _DamageError('its statistics make no sense')
        return counts

    def _scan(self, topics: set[str] | None) -> Iterator[tuple[int, int, bytes | memoryview]]:
        """Yield channel, time and data of the messages of some topics (of all, without data)."""
        with self._path.open('rb') as stream:
            stream.seek(self._data_start)
            try:
                yield from self._scan_stream(stream, topics)
            except (_DamageError, OSError) as error:
                self._stop(str(error))
                _logger.warning('%s: reading stops early: %s', self._label, error)

    def _scan_stream(
        self, stream: BinaryIO, topics: set[str] | None
    ) -> Iterator[tuple[int, int, bytes | memoryview]]:
        budget = _Budget(self._size)
        # Chunks overlap a little in time where several writers are at work.
        waiting: list[tuple[int, int, int, bytes | memoryview]] = []
        waiting_bytes = number = 0
        cut_off = False
        while (head := stream.read(9)) and head[0] not in (_FOOTER, _DATA_END):
            record = self._body(stream, head)
            budget.count_record()
            cut_off = head[0] == _CHUNK and len(record) < _unpack_from('<Q', head, 1)[0]
            before: int | None = None
            found: Iterator[tuple[int, int, bytes | memoryview]]
            if head[0] == _CHUNK:
                (before,) = _unpack_from('<Q', record)
                found = self._chunk(record, topics, budget)
            else:
                found = self._message(head[0], record, topics)
            for channel, stamp, data in found:
                number += 1
                waiting_bytes += len(data)
                heapq.heappush(waiting, (stamp, number, channel, data))
            if waiting_bytes > MAX_UNPACKED_BYTES:
                before = None
            # What is older than the beginning of this chunk has had its turn.
            while waiting and (before is None or waiting[0][0] < before):
                stamp, _number, channel, data = heapq.heappop(waiting)
                waiting_bytes -= len(data)
                yield channel, stamp, data
            if cut_off:
                break
        while waiting:
            stamp, _number, channel, data = heapq.heappop(waiting)
            yield channel, stamp, data
        if not head or cut_off:
            raise _DamageError('the file ends before its data do')

    def _chunk(
        self, record: bytes, topics: set[str] | None, budget: _Budget
    ) -> Iterator[tuple[int, int, bytes | memoryview]]:
        try:
            size, checksum = _unpack_from('<QI', record, 16)
            compression, position = _text(record, 28)
            packed = memoryview(record)[position + 8 :]
            budget.count_unpacked(size)
            cut_off = not compression and len(packed) < size
            data = bytes(packed) if cut_off else unpack(packed, compression, size)
            if checksum and not cut_off and zlib.crc32(data) != checksum:
                raise _DamageError('the checksum of a chunk does not fit')
            view, position = memoryview(data), 0
            while position < len(view):
                if position + 9 > len(view):
                    raise _DamageError('a chunk ends inside a record')
                opcode, length = view[position], _unpack_from('<Q', view, position + 1)[0]
                position += 9 + length
                if opcode == _CHUNK or not opcode or position > len(view):
                    raise _DamageError('a record of a chunk makes no sense')
                budget.count_record()
                yield from self._message(opcode, view[position - length : position], topics)
        except (_DamageError, UnpackingError) as error:
            if not self._partial or budget.spent:
                raise _DamageError(str(error)) from error
            # The next chunk begins where this one's record ends.
            self.problem = str(error)
            _logger.warning('%s: a chunk is left out: %s', self._label, error)

    def _message(
        self, opcode: int, record: bytes | memoryview, topics: set[str] | None
    ) -> Iterator[tuple[int, int, bytes | memoryview]]:
        if opcode != _MESSAGE:
            self._known.take(opcode, record)
            return
        channel, _sequence, stamp = _unpack_from('<HIQ', record)
        known = self._known.channels.get(channel)
        if known is None or stamp >= 2**63:
            return
        if topics is None:
            yield channel, stamp, b''
        elif known[0] in topics:
            # A copy: what waits must not keep the whole chunk.
            yield channel, stamp, bytes(record[22:])

    def _record(self, stream: BinaryIO) -> tuple[int, bytes]:
        head = stream.read(9)
        return (head[0] if head else 0), self._body(stream, head)

    def _body(self, stream: BinaryIO, head: bytes) -> bytes:
        """Return the record behind its head; empty where nothing here reads records of its kind.

        Of a chunk that is cut off, what is there.
        """
        if len(head) < 9 or not head[0]:
            raise _DamageError('the file ends inside a record')
        (size,) = struct.unpack_from('<Q', head, 1)
        left = self._size - stream.tell()
        if size > left and not (head[0] == _CHUNK and self._partial):
            raise _DamageError('the file ends inside a record')
        if head[0] not in _READ:
            stream.seek(size, 1)
            return b''
        if size > MAX_UNPACKED_BYTES:
            raise _DamageError(f'a record of {size} bytes; at most {MAX_UNPACKED_BYTES} are read')
        return stream.read(min(size, left))

    def _stop(self, why: str) -> None:
        if not self._partial:
            raise StorageError(why)
        self.problem = why


class _Budget:
    """How much one reading may come to; a file that wants more is made to waste time."""

    def __init__(self, file_bytes: int) -> None:
        self._records = _FREE_RECORDS + file_bytes
        self._unpacked = _FREE_UNPACKED + _UNPACKED_RATIO * file_bytes
        self.spent = False

    def count_record(self) -> None:
        self._records -= 1
        if self._records < 0:
            self.spent = True
            raise _DamageError('it has more records than a file of its size can hold')

    def count_unpacked(self, size: int) -> None:
        self._unpacked -= size
        if self._unpacked < 0:
            self.spent = True
            raise _DamageError('it unpacks to more than a file of its size can hold')


def _unpack_from(form: str, record: bytes | memoryview, position: int = 0) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, record, position)
    except struct.error as error:
        raise _DamageError('a record is too short') from error


def _text(record: bytes | memoryview, position: int) -> tuple[str, int]:
    (length,) = _unpack_from('<I', record, position)
    end = position + 4 + length
    if end > len(record):
        raise _DamageError('a text is longer than its record')
    return bytes(record[position + 4 : end]).decode('utf-8', 'replace'), end
