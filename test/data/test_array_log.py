"""The file that a build's stages are kept in: whole records or none, whatever happens to it."""

from __future__ import annotations

import logging
import resource
import zlib
from contextlib import contextmanager

import numpy as np
import pytest

from d2s_ros.data.array_log import _PREFIX, ArrayLog, StageLog


@contextmanager
def largest_file(size):
    """Let no file grow beyond `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def records():
    rng = np.random.default_rng(0)
    return {
        'a': {'x': rng.normal(size=(5, 3)).astype(np.float32), 'n': np.array([7], np.int64)},
        'empty': {'x': np.zeros((0, 4), np.float32)},
        'b': {'flags': np.array([True, False, True]), 'x': rng.normal(size=40)},
    }


def write(path):
    log = ArrayLog(path)
    for key, arrays in records().items():
        log.append(key, arrays)
    log.close()


def same(log, keys):
    assert log.keys() == list(keys)
    for key in keys:
        found, expected = log.read(key), records()[key]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / 'x.log'
    write(path)
    log = ArrayLog(path)
    same(log, records())
    assert not log.damaged
    # Arrays can be changed, as torch wants, without the file being changed.
    log.read('a')['x'][:] = 0
    same(ArrayLog(path, read_only=True), records())
    log.append('a', {'x': np.ones(3)})
    log.append('c', {'y': np.arange(4)})
    log.close()
    again = ArrayLog(path)
    np.testing.assert_array_equal(again.read('a')['x'], np.ones(3))
    np.testing.assert_array_equal(again.read('c')['y'], np.arange(4))


def test_a_file_cut_off_anywhere_keeps_its_whole_records(tmp_path):
    path = tmp_path / 'x.log'
    write(path)
    whole = path.read_bytes()
    ends = []
    for count in (1, 2, 3):
        log = ArrayLog(tmp_path / f'{count}.log')
        for key in list(records())[:count]:
            log.append(key, records()[key])
        log.close()
        ends.append((tmp_path / f'{count}.log').stat().st_size)
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        log = ArrayLog(path)
        count = sum(end <= length for end in ends)
        same(log, list(records())[:count])
        assert log.damaged == (length not in (0, *ends))
        # It can be written on.
        for key in list(records())[count:]:
            log.append(key, records()[key])
        log.close()
        assert path.read_bytes() == whole


def test_any_changed_byte_is_noticed(tmp_path):
    path = tmp_path / 'x.log'
    write(path)
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        data = bytearray(whole)
        data[position] ^= 0x10
        path.write_bytes(data)
        log = ArrayLog(path, read_only=True)
        assert log.damaged
        same(log, list(records())[: len(log)])


def test_a_full_disk_leaves_whole_records(tmp_path, caplog):
    path = tmp_path / 'x.log'
    log = StageLog(path)
    big = {'x': np.arange(5000.0)}
    assert log.keep('a', big)
    with largest_file(60_000), caplog.at_level(logging.WARNING):
        assert not log.keep('b', big)
        assert not log.keep('c', {'x': np.arange(3)})
    assert len(caplog.messages) == 1
    assert 'starts again' in caplog.messages[0]
    np.testing.assert_array_equal(log.get('a')['x'], big['x'])
    assert log.get('b') is None
    log.close()
    again = ArrayLog(path)
    assert again.keys() == ['a']
    assert not again.damaged


def test_a_stage_without_a_place_keeps_nothing(tmp_path, caplog):
    log = StageLog(None)
    assert not log.keep('a', {'x': np.zeros(2)})
    assert log.get('a') is None
    assert 'a' not in log
    (tmp_path / 'file').write_text('x')
    log = StageLog(tmp_path / 'file' / 'x.log')
    assert not log.keep('a', {'x': np.zeros(2)})
    assert 'cannot write' in caplog.text


def test_read_only_needs_the_file(tmp_path):
    with pytest.raises(OSError):
        ArrayLog(tmp_path / 'none' / 'x.log')
    path = tmp_path / 'x.log'
    write(path)
    data = path.read_bytes()[:-1]
    path.write_bytes(data)
    ArrayLog(path, read_only=True)
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    'header',
    [
        b'',
        b'\x00' * 44,
        b'[]',
        b'{}',
        b'[' * 100_000,
        b'{"key": 3, "arrays": []}',
        b'{"key": "a", "arrays": [["x", "<f8", [4], 0]]}',
        b'{"key": "a", "arrays": [["x", "<f8", [-1], 0]]}',
        b'{"key": "a", "arrays": [["x", "<f8", [1], -8]]}',
        b'{"key": "a", "arrays": [["x", "<f8", [1e9], 0]]}',
        b'{"key": "a", "arrays": [["x", "|O", [1], 0]]}',
        b'{"key": "a", "arrays": [["x", "not a type", [1], 0]]}',
        b'{"key": "a", "arrays": [[1, "<f8", [1], 0]]}',
        b'{"key": "a", "arrays": [["x"]]}',
        b'{"key": "a", "arrays": {"x": 1}}',
        b'\xff\xfe',
    ],
)
def test_records_that_nobody_wrote_end_the_log(tmp_path, header):
    """Their checksum is right: a torn page of zeros has one that is, too."""
    path = tmp_path / 'some.log'
    log = ArrayLog(path)
    log.append('first', {'x': np.arange(3.0)})
    log.close()
    header += b' ' * (-(_PREFIX.size + len(header)) % 64) if header.strip(b'\x00') else b''
    payload = bytes(8)
    checksum = zlib.crc32(payload, zlib.crc32(header))
    record = _PREFIX.pack(b'd2s1', len(header), len(payload), checksum) + header + payload
    path.write_bytes(path.read_bytes() + record)
    stage = StageLog(path)
    assert stage.keys() == ['first']
    assert stage.keep('second', {'y': np.ones(2)})
    stage.close()
    assert StageLog(path).keys() == ['first', 'second']


def test_a_page_of_zeros_ends_the_log(tmp_path):
    path = tmp_path / 'some.log'
    log = ArrayLog(path)
    log.append('first', {'x': np.arange(3.0)})
    log.close()
    whole = path.read_bytes()
    for tail in (b'd2s1' + bytes(124), bytes(4096), b'd2s1', b'd2s1' + bytes(16) + b'd2s1'):
        path.write_bytes(whole + tail)
        assert StageLog(path).keys() == ['first']
