"""An append-only file of named arrays that a kill at any moment, or damage, cannot make wrong.

Every record carries a checksum. Opening the file reads it from its start and drops what follows the
last whole record. Arrays are mapped into memory when they are read, so that what a build keeps of
ten thousand images need not fit in memory.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_logger = logging.getLogger(__name__)

#: Mark, length of the header, length of the payload, crc32 of header and payload.
_PREFIX = struct.Struct('<4sIQI')
_MARK = b'd2s1'
#: Records and arrays begin at multiples of this.
_ALIGNMENT = 64


class ArrayLog:
    """Records of named arrays by key; a key that is written again replaces the record.

    Args:
        path: The file; made if it is missing.
        read_only: Neither make nor repair the file, refuse to append.

    Attributes:
        damaged: Whether the file ended in a record that is not whole.
    """

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self._entries: dict[str, list[tuple[str, str, tuple[int, ...], int]]] = {}
        self._map: NDArray[np.uint8] = np.zeros(0, np.uint8)
        size = self.path.stat().st_size if self.path.exists() else 0
        self._end = self._scan(size) if size else 0
        self.damaged = self._end < size
        if not read_only:
            self._file = open(self.path, 'r+b' if self.path.exists() else 'w+b')  # noqa: SIM115
            self._file.truncate(self._end)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def keys(self) -> list[str]:
        """Return the keys in the order they were written."""
        return list(self._entries)

    def append(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write a record.

        Raises:
            OSError: the disk is full or cannot be written; the file is as it was before.
        """
        described: list[tuple[str, str, tuple[int, ...], int]] = []
        chunks: list[bytes] = []
        offset = 0
        for name, value in arrays.items():
            data = np.ascontiguousarray(value)
            described.append((name, data.dtype.str, data.shape, offset))
            padding = -data.nbytes % _ALIGNMENT
            chunks += [data.tobytes(), bytes(padding)]
            offset += data.nbytes + padding
        header = json.dumps({'key': key, 'arrays': described}).encode()
        header += b' ' * (-(_PREFIX.size + len(header)) % _ALIGNMENT)
        checksum = zlib.crc32(header)
        for chunk in chunks:
            checksum = zlib.crc32(chunk, checksum)
        prefix = _PREFIX.pack(_MARK, len(header), offset, checksum)
        try:
            self._file.seek(self._end)
            for chunk in (prefix, header, *chunks):
                self._file.write(chunk)
            self._file.flush()
        except OSError:
            self._reopen()
            raise
        start = self._end + _PREFIX.size + len(header)
        self._entries[key] = [(n, t, s, start + o) for n, t, s, o in described]
        self._end = start + offset

    def read(self, key: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of a record, mapped from the file; changing them does not change it."""
        if len(self._map) < self._end:
            self._map = _map_file(self.path)
        found = {}
        for name, type_, shape, offset in self._entries[key]:
            dtype = np.dtype(type_)
            size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            data = np.asarray(self._map[offset : offset + size])
            found[name] = data.view(dtype).reshape(shape)
        return found

    def close(self) -> None:
        """Close the file; arrays that were read stay valid."""
        if not self.read_only:
            self._file.close()
        self._map = np.zeros(0, np.uint8)

    def _reopen(self) -> None:
        """Forget what could not be written, buffers included."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = open(self.path, 'r+b')  # noqa: SIM115
        self._file.truncate(self._end)

    def _scan(self, size: int) -> int:
        """Read all records; return where the last whole one ends."""
        data = np.memmap(self.path, np.uint8, mode='r')
        position = 0
        while position + _PREFIX.size <= size:
            prefix = bytes(data[position : position + _PREFIX.size])
            mark, header_length, length, checksum = _PREFIX.unpack(prefix)
            start = position + _PREFIX.size + header_length
            if mark != _MARK or start + length > size:
                break
            if zlib.crc32(data[position + _PREFIX.size : start + length].data) != checksum:
                break
            found = _read_header(bytes(data[position + _PREFIX.size : start]), length)
            if found is None:
                break
            key, arrays = found
            self._entries[key] = [(n, t, s, start + o) for n, t, s, o in arrays]
            position = start + length
        return position


def _read_header(
    header: bytes, length: int
) -> tuple[str, list[tuple[str, str, tuple[int, ...], int]]] | None:
    """Return the key and the arrays (name, type, shape, offset) of a record of `length` bytes.

    None if they cannot be: a page of zeros has a right checksum, too.
    """
    try:
        document = json.loads(header)
        key, arrays = document['key'], []
        for name, type_, shape, offset in document['arrays']:
            dtype = np.dtype(type_)
            whole = all(type(n) is int and n >= 0 for n in (*shape, offset))
            if not whole or dtype.hasobject or not isinstance(name, str):
                return None
            if offset + dtype.itemsize * math.prod(shape) > length:
                return None
            arrays.append((name, type_, tuple(shape), offset))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, SyntaxError):
        return None
    return (key, arrays) if isinstance(key, str) else None


def _map_file(path: Path) -> NDArray[np.uint8]:
    # Private pages, because torch wants arrays that could be written; as nobody does, no memory has
    # to be there for copies of them.
    flags = mmap.MAP_PRIVATE | getattr(mmap, 'MAP_NORESERVE', 0x4000)
    with open(path, 'rb') as file:
        pages = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return np.frombuffer(pages, np.uint8)


class StageLog:
    """An `ArrayLog` that a build can do without: where it cannot be written, that is said once.

    Args:
        path: The file, or None to keep nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._log: ArrayLog | None = None
        self._writable = path is not None
        if path is None:
            return
        try:
            self._log = ArrayLog(path)
        except OSError as error:
            self._give_up(path, error)
            return
        if self._log.damaged:
            _logger.warning(
                '%s is damaged at its end, or was being written: what follows its first %d '
                'records is done again',
                path,
                len(self._log),
            )

    @property
    def path(self) -> Path | None:
        """Return the file, None if nothing is kept."""
        return None if self._log is None else self._log.path

    def keys(self) -> list[str]:
        """Return the keys of what is kept."""
        return [] if self._log is None else self._log.keys()

    def records(self) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
        """Yield the key and the arrays of each record, in the order they were written."""
        for key in self.keys():
            assert self._log is not None
            yield key, self._log.read(key)

    def __contains__(self, key: str) -> bool:
        return self._log is not None and key in self._log

    def get(self, key: str) -> dict[str, NDArray[Any]] | None:
        """Return the arrays of a record, None if there is none."""
        return self._log.read(key) if self._log is not None and key in self._log else None

    def keep(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Write a record; returns whether it can be read back."""
        if self._log is None or not self._writable:
            return False
        try:
            self._log.append(key, arrays)
        except OSError as error:
            self._give_up(self._log.path, error)
            return False
        return True

    def close(self) -> None:
        """Close the file."""
        if self._log is not None:
            self._log.close()

    def _give_up(self, path: Path, error: OSError) -> None:
        self._writable = False
        _logger.warning(
            'cannot write %s (%s): the build goes on, but if it is interrupted this stage starts '
            'again',
            path,
            error.strerror or error,
        )
