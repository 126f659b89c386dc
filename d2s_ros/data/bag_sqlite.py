"""One sqlite3 storage file of a rosbag2 log (.db3).

The file may come from anybody: only real tables are read (a view can make rows without end), one
value is at most MAX_UNPACKED_BYTES long, and there cannot be more rows than the file has bytes.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import tempfile
from array import array
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from d2s_ros.data.bag_records import RawMessage, StorageError, Topic
from d2s_ros.data.unpacking import MAX_UNPACKED_BYTES, ZSTD_MAGIC, UnpackingError, unpack
from d2s_ros.errors import InputError

_logger = logging.getLogger(__name__)

#: What SQLite leaves beside a database whose writer did not end in order.
COMPANION_SUFFIXES = ('-wal', '-journal')
_MAX_TOPICS = 10_000
_MAX_TEXT = 1_000


class SqliteFile:
    """The messages of a .db3 file; its index is kept in memory, 16 bytes a message.

    Attributes:
        topics: By name.
        foreign: Topics that are not in CDR, with their serialization.
        problem: Why the file may hold less than was recorded; empty if nothing is wrong.
    """

    def __init__(self, path: Path, label: Path, partial: bool) -> None:
        """Read the topics and the index.

        Args:
            path: The file.
            label: How messages call it.
            partial: Leave out what cannot be read, and read the write-ahead log.

        Raises:
            StorageError: no rosbag2 database, or damage unless partial.
            InputError: the disk is full.
        """
        self._label = label
        self._partial = partial
        self.problem = ''
        self.foreign: list[str] = []
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        companions = left_companions(path)
        self._path = self._copied(path, companions) if companions else path
        self._rows: dict[str, array[int]] = {}
        self._types: dict[str, str] = {}
        try:
            with closing(self._connect()) as connection:
                self._read_index(connection)
        except (sqlite3.Error, OverflowError, ValueError) as error:
            self._stop(str(error))
        self.topics: Mapping[str, Topic] = {
            name: Topic(name, self._types[name], len(rows) // 2)
            for name, rows in self._rows.items()
        }

    def messages(self, topics: Collection[str]) -> Iterator[RawMessage]:
        """Yield the messages of some topics in the order of time.

        Raises:
            StorageError: a message cannot be read, unless partial.
        """
        order = []
        for name in topics:
            rows = self._rows.get(name, array('q'))
            order += [(rows[at], rows[at + 1], name) for at in range(0, len(rows), 2)]
        order.sort()
        lost = 0
        with closing(self._connect()) as connection:
            for stamp, row, name in order:
                try:
                    found = connection.execute(
                        'SELECT data FROM messages WHERE rowid = ?', (row,)
                    ).fetchone()
                    data = found[0] if found else None
                    if not isinstance(data, bytes):
                        raise UnpackingError('no data')
                    if data.startswith(ZSTD_MAGIC):
                        data = unpack(data, 'zstd')
                except (sqlite3.Error, UnpackingError) as error:
                    if not self._partial:
                        raise StorageError(f'message {row} cannot be read: {error}') from error
                    lost += 1
                    continue
                yield name, stamp, data
        if lost:
            _logger.warning('%s: %d messages cannot be read', self._label, lost)

    def _read_index(self, connection: sqlite3.Connection) -> None:
        tables = dict(
            connection.execute(
                "SELECT name, type = 'table' AND rootpage > 0 FROM sqlite_master "
                "WHERE name IN ('topics', 'messages')"
            ).fetchmany(4)
        )
        if tables != {'topics': 1, 'messages': 1}:
            raise StorageError('it has no tables named topics and messages')
        for table in tables:
            columns = connection.execute(f'PRAGMA table_xinfo({table})').fetchmany(100)
            if any(column[6] in (2, 3) or column[1].lower() == 'rowid' for column in columns):
                raise StorageError(f'its table {table} has columns that no recorder makes')
        names: dict[int, str] = {}
        rows = connection.execute('SELECT id, name, type, serialization_format FROM topics')
        for key, name, kind, form in rows.fetchmany(_MAX_TOPICS):
            texts = (name, kind, form)
            if not isinstance(key, int) or not all(isinstance(text, str) for text in texts):
                self._stop('a topic has no name or type')
            elif max(map(len, texts)) > _MAX_TEXT:
                self._stop(f'a topic has a name or type of {max(map(len, texts))} characters')
            elif form != 'cdr':
                self.foreign.append(f'{name} ({form})')
            else:
                names[key] = name
                self._types[name] = kind
                self._rows.setdefault(name, array('q'))
        limit = self._path.stat().st_size
        unusable = 0
        # In the order of the table: an ORDER BY would need an index, or sort all of it.
        found = connection.execute('SELECT rowid, topic_id, timestamp FROM messages')
        for number, (row, topic, stamp) in enumerate(found):
            if number > limit:
                raise StorageError('it has more messages than bytes')
            if not isinstance(stamp, int):
                unusable += 1
            elif topic in names:
                self._rows[names[topic]].extend((stamp, row))
        if unusable:
            self._stop(f'{unusable} messages have no time')

    def _stop(self, why: str) -> None:
        if not self._partial:
            raise StorageError(why)
        self.problem = why

    def _copied(self, path: Path, companions: list[Path]) -> Path:
        """Return a copy that SQLite may repair with what its writer left beside it."""
        if not self._partial:
            raise StorageError(
                f'{path.name} is still being recorded, or its recorder was cut off: '
                f'{companions[0].name} holds a part of it; stop the recorder, or read what is '
                'there with --partial'
            )
        self._copy = tempfile.TemporaryDirectory(prefix='d2s_log_')
        folder = Path(self._copy.name)
        files = [path, *companions]
        needed = sum(file.stat().st_size for file in files)
        if needed > shutil.disk_usage(folder).free:
            raise InputError(
                f'the disk of {folder} is too full to copy {path.name} and {companions[0].name}; '
                'free space or set TMPDIR to another disk'
            )
        for file in files:
            shutil.copyfile(file, folder / file.name)
        return folder / path.name

    def _connect(self) -> sqlite3.Connection:
        options = 'mode=rw' if self._copy is not None else 'mode=ro&immutable=1'
        connection = sqlite3.connect(f'{self._path.resolve().as_uri()}?{options}', uri=True)
        connection.text_factory = lambda data: data.decode('utf-8', 'replace')
        if hasattr(connection, 'setlimit'):  # since Python 3.11
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_UNPACKED_BYTES)
        connection.execute('PRAGMA trusted_schema=OFF')
        # Lets SQLite open a file that is shorter than its header says.
        connection.execute('PRAGMA writable_schema=ON')
        return connection


def left_companions(path: Path) -> list[Path]:
    """Return the write-ahead log or journal that lies beside a database and is not empty."""
    found = (path.with_name(path.name + suffix) for suffix in COMPANION_SUFFIXES)
    return [file for file in found if file.is_file() and file.stat().st_size > 0]


def torn_page(path: Path) -> str:
    """Return why a database cannot be complete: its size is no whole number of pages."""
    with path.open('rb') as stream:
        page_bytes = int.from_bytes(stream.read(18)[16:18], 'big')
    page_bytes = 65536 if page_bytes == 1 else page_bytes
    if page_bytes and path.stat().st_size % page_bytes:
        return 'its size is not a whole number of pages: it is cut off or damaged'
    return ''
