"""Storage files as recorders leave them, and as somebody might make them to do harm."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import time

import lz4.frame
import numpy as np
import pytest
import yaml
from backports import zstd
from data.bag_writing import START_NS, camera_log, storage_file, write_bag

from d2s_ros.data.bag_storage import open_log, storage_files
from d2s_ros.data.bags import BagSource
from d2s_ros.data.sources import open_source
from d2s_ros.errors import BagError, D2SError, InputError

MCAP_MAGIC = b'\x89MCAP0\r\n'


def record(opcode: int, body: bytes) -> bytes:
    return bytes([opcode]) + struct.pack('<Q', len(body)) + body


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack('<I', len(data)) + data


def chunk(data: bytes, compression: str = '', size: int | None = None) -> bytes:
    packed = {'': bytes, 'zstd': zstd.compress, 'lz4': lz4.frame.compress}[compression](data)
    size = len(data) if size is None else size
    head = struct.pack('<QQQI', 0, 1, size, 0) + text(compression)
    return record(6, head + struct.pack('<Q', len(packed)) + packed)


def mcap(path, body: bytes, profile: str = 'ros2', end: bool = True):
    data = MCAP_MAGIC + record(1, text(profile) + text('test')) + body
    if end:
        data += record(15, bytes(4)) + record(2, bytes(20)) + MCAP_MAGIC
    path.write_bytes(data)
    return path


def channel(topic: str, kind: str, encoding: str = 'cdr', schema: str = 'ros2msg') -> bytes:
    return record(3, struct.pack('<H', 1) + text(kind) + text(schema) + text('')) + record(
        4, struct.pack('<HH', 1, 1) + text(topic) + text(encoding) + bytes(4)
    )


def message(data: bytes, stamp: int = START_NS) -> bytes:
    return record(5, struct.pack('<HIQQ', 1, 0, stamp, stamp) + data)


@pytest.mark.parametrize('partial', [False, True])
@pytest.mark.parametrize('storage', ['sqlite3', 'mcap'])
@pytest.mark.parametrize('mode', ['file', 'message'])
def test_compressed_logs_hold_what_was_recorded(tmp_path, storage, mode, partial):
    plain = write_bag(tmp_path / 'plain', camera_log(5), storage)
    packed = write_bag(tmp_path / 'packed', camera_log(5), storage, compression=mode)
    assert (storage_file(packed).suffix == '.zstd') == (mode == 'file')
    expected = list(
        open_log(plain).messages(['/camera/camera_info', '/camera/image_raw/compressed'])
    )
    assert len(expected) == 10
    for path in (packed, storage_file(packed)):
        log = open_log(path, partial)
        assert [topic.count for topic in log.topics] == [5, 5]
        assert list(log.messages([topic.name for topic in log.topics])) == expected


def test_a_compressed_file_that_was_unpacked_beside_is_read_once(tmp_path):
    bag = write_bag(tmp_path / 'bag', camera_log(3), compression='file')
    packed = storage_file(bag)
    packed.with_suffix('').write_bytes(zstd.decompress(packed.read_bytes()))
    assert [file.name for file in storage_files(bag)] == ['bag.db3']
    assert len(BagSource(bag)) == 3


def test_a_compressed_file_that_is_cut_off(tmp_path):
    bag = write_bag(tmp_path / 'bag', camera_log(40), 'mcap', compression='file')
    file = storage_file(bag)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(BagError, match=r'cannot be unpacked.*--partial'):
        open_log(bag)


@pytest.mark.parametrize('suffix', ['-wal', '-journal'])
def test_what_sqlite_left_after_a_power_cut_is_read(tmp_path, suffix):
    """The recorder never closed its file: the last images are in the log beside it."""
    whole = write_bag(tmp_path / 'whole', camera_log(6))
    live = tmp_path / 'live.db3'
    connection = sqlite3.connect(live)
    connection.execute(f'PRAGMA journal_mode={"WAL" if suffix == "-wal" else "DELETE"}')
    connection.execute('PRAGMA wal_autocheckpoint=0')
    with sqlite3.connect(storage_file(whole)) as source:
        script = '\n'.join(source.iterdump())
    connection.executescript(script)
    connection.commit()
    if suffix == '-journal':
        connection.execute('PRAGMA cache_size=1')
        connection.execute('BEGIN')
        # Torn: half of what a transaction wrote is in the file.
        connection.execute('UPDATE messages SET data = zeroblob(100000) WHERE topic_id > 0')
    cut = tmp_path / 'cut'
    cut.mkdir()
    shutil.copy(live, cut / 'cut_0.db3')
    shutil.copy(f'{live}{suffix}', cut / f'cut_0.db3{suffix}')
    connection.close()
    before = sorted((file.name, file.stat().st_size) for file in cut.iterdir())
    with pytest.raises(BagError, match=rf'still being recorded.*cut_0\.db3{suffix}.*--partial'):
        open_source(cut / 'cut_0.db3')
    frames = list(open_source(cut, partial=True))
    expected = list(open_source(whole))
    assert len(frames) == 6
    for frame, other in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(frame.image, other.image)
    assert sorted((file.name, file.stat().st_size) for file in cut.iterdir()) == before


def test_a_renamed_storage_file_is_read_with_a_warning(tmp_path, caplog):
    bag = write_bag(tmp_path / 'bag', camera_log(3))
    storage_file(bag).rename(bag / 'kitchen_0.db3')
    assert len(BagSource(bag)) == 3
    assert 'names bag.db3, which is not there; kitchen_0.db3 is read' in caplog.text


def test_a_missing_part_of_a_split_log_is_named(tmp_path):
    bag = write_bag(tmp_path / 'bag', camera_log(3))
    metadata = bag / 'metadata.yaml'
    document = yaml.safe_load(metadata.read_text())
    document['rosbag2_bagfile_information']['relative_file_paths'].append('bag_1.db3')
    metadata.write_text(yaml.safe_dump(document))
    with pytest.raises(BagError, match=r'1 of 2 storage files are missing \(bag_1\.db3'):
        BagSource(bag)
    assert len(BagSource(bag, partial=True)) == 3


def test_logs_of_other_systems_are_told_by_name(tmp_path):
    protobuf = mcap(
        tmp_path / 'p.mcap',
        channel('/image', 'foxglove.CompressedImage', 'protobuf', 'protobuf')
        + message(b'\n\x02hi'),
        profile='',
    )
    for partial in (False, True):
        with pytest.raises(BagError, match=r'no messages of ROS 2.*/image \(protobuf, foxglove'):
            open_source(protobuf, partial=partial)
    ros1 = mcap(tmp_path / 'r.mcap', channel('/image', 'x', 'ros1') + message(b''), profile='ros1')
    with pytest.raises(BagError, match=r'ROS 1; convert it with: rosbags-convert') as error:
        open_source(ros1)
    assert 'damaged' not in str(error.value)
    old = tmp_path / 'old.bag'
    old.write_bytes(b'#ROSBAG V2.0\n' + bytes(4096))
    with pytest.raises(BagError, match='is a ROS 1 bag; convert it'):
        open_source(old)
    folder = tmp_path / 'folder'
    folder.mkdir()
    shutil.copy(old, folder)
    with pytest.raises(InputError, match=r'old\.bag is a ROS 1 bag'):
        open_source(folder)


def test_an_mcap_without_a_profile_is_read_if_its_messages_are(tmp_path):
    body = channel('/chatter', 'std_msgs/msg/String') + message(b'\0\1\0\0\2\0\0\0a\0')
    assert [topic.count for topic in open_log(mcap(tmp_path / 'a.mcap', body, '')).topics] == [1]


def test_messages_of_overlapping_chunks_come_in_the_order_of_time(tmp_path):
    def part(*stamps):
        data = b''.join(message(bytes(4), stamp) for stamp in stamps)
        head = struct.pack('<QQQI', min(stamps), max(stamps), len(data), 0) + text('')
        return record(6, head + struct.pack('<Q', len(data)) + data)

    body = channel('/a', 'std_msgs/msg/Empty') + part(1, 4, 3) + part(2, 6, 5) + part(7)
    log = open_log(mcap(tmp_path / 'a.mcap', body))
    assert [stamp for _topic, stamp, _data in log.messages(['/a'])] == [1, 2, 3, 4, 5, 6, 7]


def test_a_damaged_chunk_of_a_broken_log_does_not_lose_the_others(tmp_path):
    def part(*stamps):
        return chunk(b''.join(message(bytes(4), stamp) for stamp in stamps), 'zstd')

    middle = bytearray(part(3, 4))
    middle[-20:-10] = bytes(10)
    body = channel('/a', 'std_msgs/msg/Empty') + part(1, 2) + bytes(middle) + part(5, 6)
    path = mcap(tmp_path / 'a.mcap', body)
    with pytest.raises(BagError, match='damaged'):
        open_log(path)
    log = open_log(path, partial=True)
    assert [stamp for _topic, stamp, _data in log.messages(['/a'])] == [1, 2, 5, 6]


def database(path, script: str):
    folder = write_bag(path, camera_log(3))
    connection = sqlite3.connect(storage_file(folder))
    connection.executescript(script)
    connection.commit()
    connection.close()
    return folder


HUGE = 'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)'
BOMBS = {
    'zstd chunk': lambda p: mcap(p / 'a.mcap', chunk(bytes(2**28 + 9), 'zstd')),
    'zstd chunk that lies about its size': lambda p: mcap(
        p / 'a.mcap', chunk(bytes(2**27), 'zstd', size=1000)
    ),
    'lz4 chunk': lambda p: mcap(p / 'a.mcap', chunk(bytes(2**28 + 9), 'lz4')),
    'many chunks': lambda p: mcap(p / 'a.mcap', chunk(b'\x7f' + bytes(2**26), 'zstd') * 20),
    'many small records': lambda p: mcap(
        p / 'a.mcap', chunk((b'\x7f' + bytes(8)) * 1_000_000, 'zstd') * 2
    ),
    'zstd message': lambda p: mcap(
        p / 'a.mcap',
        channel('/a', 'sensor_msgs/msg/CompressedImage') + message(zstd.compress(bytes(2**28 + 9))),
    ),
    'chunks in chunks': lambda p: mcap(p / 'a.mcap', nested(3000)),
    'a record of 2^62 bytes': lambda p: mcap(p / 'a.mcap', b'\x05' + struct.pack('<Q', 2**62)),
    'view without end': lambda p: database(
        p / 'bag',
        f'DROP TABLE messages; CREATE VIEW messages AS {HUGE} SELECT i AS id, 1 AS topic_id, '
        'i AS timestamp, zeroblob(1000000) AS data FROM n;',
    ),
    'generated column': lambda p: database(
        p / 'bag',
        'DROP TABLE messages; CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, '
        'timestamp INTEGER, data BLOB GENERATED ALWAYS AS (zeroblob(900000000)));'
        'INSERT INTO messages(topic_id, timestamp) VALUES (1, 1), (2, 2);',
    ),
    'blob of 800 MB of which nothing is there': lambda p: database(
        p / 'bag', 'UPDATE messages SET data = zeroblob(300000000) WHERE id = 2;'
    ),
    'file of zeros': lambda p: file_of_zeros(p),
    'text for a time': lambda p: database(
        p / 'bag', "UPDATE messages SET timestamp = 'abc' WHERE id = 3"
    ),
    'text for data': lambda p: database(p / 'bag', "UPDATE messages SET data = 'abc'"),
    'topic of a number': lambda p: database(p / 'bag', 'UPDATE topics SET name = 5, type = 6'),
}


def nested(depth: int) -> bytes:
    data = b''
    for _level in range(depth):
        data = chunk(data)
    return data


def file_of_zeros(folder):
    path = folder / 'zeros.db3.zstd'
    path.write_bytes(zstd.compress(bytes(2**28 + 9)))
    return path


@pytest.mark.parametrize('name', BOMBS)
@pytest.mark.parametrize('partial', [False, True])
def test_a_log_made_to_do_harm_is_refused_in_time(tmp_path, name, partial):
    """Within seconds and a part of the memory that it asks for."""
    import resource

    path = BOMBS[name](tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    try:
        frames = list(open_source(path, partial=partial))
    except BagError:
        frames = []
    assert len(frames) <= (3 if partial else 0)
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000


@pytest.mark.parametrize('kind', ['fifo', 'device', 'folder', 'loop', 'nowhere', 'empty'])
@pytest.mark.parametrize('inside', [False, True])
def test_what_is_no_file_is_refused(tmp_path, kind, inside):
    folder = tmp_path / 'log'
    folder.mkdir()
    path = folder / 'a.mcap'
    if kind == 'fifo':
        os.mkfifo(path)
    elif kind == 'device':
        path.symlink_to('/dev/zero')
    elif kind == 'folder':
        path.mkdir()
    elif kind == 'empty':
        path.write_bytes(b'')
    else:
        path.symlink_to(path if kind == 'loop' else '/nowhere')
    for partial in (False, True):
        with pytest.raises(D2SError):
            open_source(folder if inside else path, partial=partial)


@pytest.mark.parametrize(
    'spoil',
    [
        lambda text: text.replace('message_count: 3', 'message_count: [1]'),
        lambda text: text.replace('name: /camera/camera_info', 'name: {a: 1}'),
        lambda text: '[' * 100_000,
        lambda text: 'a: &a [1,1]\nb: [*a,*a]\n' + text,
        lambda text: text + '# ' + 'x' * 5_000_000,
        lambda text: text.replace('relative_file_paths:', 'relative_file_path:'),
        lambda text: '\x00',
        lambda text: '',
    ],
)
def test_metadata_with_odd_contents(tmp_path, spoil):
    bag = write_bag(tmp_path / 'bag', camera_log(3))
    metadata = bag / 'metadata.yaml'
    metadata.write_text(spoil(metadata.read_text()))
    started = time.process_time()
    with pytest.raises(BagError, match=r'metadata\.yaml'):
        open_log(bag)
    assert len(BagSource(bag, partial=True)) == 3
    assert time.process_time() - started < 5


def test_metadata_that_is_a_fifo_or_a_folder(tmp_path):
    bag = write_bag(tmp_path / 'bag', camera_log(3))
    (bag / 'metadata.yaml').unlink()
    os.mkfifo(bag / 'metadata.yaml')
    with pytest.raises(BagError, match=r'metadata\.yaml'):
        open_log(bag)
    assert len(BagSource(bag, partial=True)) == 3
