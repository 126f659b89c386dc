"""TUM files."""

from __future__ import annotations

import numpy as np
import pytest

from d2s_ros.data.tum import Trajectory, associate, format_stamp, read_tum, write_tum
from d2s_ros.errors import InputError
from d2s_ros.geometry.transforms import RigidTransform, interpolate, rotation_from_vector

START_NS = 1_700_000_000_123_456_789


def pose(index: float) -> RigidTransform:
    return RigidTransform(
        rotation_from_vector([0.1, 0.2, 0.1 * index]), np.array([index, 2.0, 3.0])
    )


def trajectory(*stamps: int) -> Trajectory:
    return Trajectory(np.array(stamps), tuple(pose(index) for index in range(len(stamps))))


def test_round_trip_is_exact_in_time(tmp_path):
    stamps = [START_NS, START_NS + 1, START_NS + 10**9]
    write_tum(tmp_path / 'a.txt', stamps, [pose(i) for i in range(3)])
    result = read_tum(tmp_path / 'a.txt')
    assert result.stamps_ns.tolist() == stamps
    for index, found in enumerate(result.poses):
        np.testing.assert_allclose(found.matrix, pose(index).matrix, atol=1e-8)
    assert [file.name for file in tmp_path.iterdir()] == ['a.txt']


def test_comments_blank_lines_and_formats(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('# stamp ...\n\n1 1 2 3 0 0 0 2\n  1.5e0\t4 5 6 0 0 1 0\n')
    result = read_tum(path)
    assert result.stamps_ns.tolist() == [10**9, 15 * 10**8]
    np.testing.assert_allclose(
        result.poses[0].matrix, np.block([[np.eye(3), np.c_[[1, 2, 3]]], [0, 0, 0, 1]])
    )
    np.testing.assert_allclose(result.poses[1].rotation, np.diag([-1, -1, 1]), atol=1e-12)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('1 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 1\n', r'a\.txt:2.*repeats'),
        ('2 0 0 0 0 0 0 1\n\n1 0 0 0 0 0 0 1\n', r'a\.txt:3.*before'),
        ('1 0 0 0 0 0 1\n', r'a\.txt:1.*found 7'),
        ('1 0 0 0 0 0 0 1 9\n', r'a\.txt:1.*found 9'),
        ('1 0 x 0 0 0 0 1\n', r'a\.txt:1.*not a pose'),
        ('1 0 nan 0 0 0 0 1\n', r'a\.txt:1.*not a pose'),
        ('1 0 0 0 0 0 0 0\n', r'a\.txt:1.*not a pose'),
        ('# header\nnow 0 0 0 0 0 0 1\n', r"a\.txt:2.*'now'"),
        ('nan 0 0 0 0 0 0 1\n', 'not a time'),
        ('1e30 0 0 0 0 0 0 1\n', 'not a time'),
        ('# only a comment\n', 'no poses'),
    ],
)
def test_malformed_files(tmp_path, text, message):
    path = tmp_path / 'a.txt'
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_tum(path)


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match='cannot read'):
        read_tum(tmp_path / 'nothing')
    (tmp_path / 'binary').write_bytes(b'\xff\xfe\x00\x81')
    with pytest.raises(InputError, match='not a text file'):
        read_tum(tmp_path / 'binary')


def test_unwritable_files(tmp_path):
    with pytest.raises(InputError, match='cannot write'):
        write_tum(tmp_path / 'no' / 'folder.txt', [], [])


def test_association_takes_the_nearest_within_the_maximum():
    known = trajectory(0, 100_000_000, 200_000_000)
    stamps = [-30_000_000, 4_000_000, 49_000_000, 151_000_000, 260_000_000]
    assert associate(stamps, known, 0.03) == [0, 0, None, None, None]
    assert associate(stamps, known, 0.06) == [0, 0, 0, 2, 2]
    assert associate([], known, 1.0) == []


def test_pose_at_a_time():
    known = trajectory(0, 100_000_000, 1_000_000_000)
    assert known.at(0) is known.poses[0]
    assert known.at(100_050_000) is known.poses[1]
    np.testing.assert_allclose(
        known.at(25_000_000).matrix, interpolate(pose(0), pose(1), 0.25).matrix
    )
    assert known.at(500_000_000) is None
    assert known.at(-1_000_000) is None
    assert known.at(1_001_000_000) is None
    assert Trajectory(np.array([], dtype=np.int64), ()).at(0) is None


def test_trajectories_are_checked():
    with pytest.raises(InputError, match='increase'):
        trajectory(0, 0)
    with pytest.raises(InputError, match='2 stamps'):
        Trajectory(np.array([0, 1]), (pose(0),))


@pytest.mark.parametrize(
    ('stamp', 'text'),
    [(0, '0.000000000'), (START_NS, '1700000000.123456789'), (-5, '-0.000000005')],
)
def test_stamps_as_text(stamp, text):
    assert format_stamp(stamp) == text


@pytest.mark.parametrize('stamp', ['1e999999999', '1e-999999999', 'nan', 'inf', '9' * 400, '1e20'])
def test_stamps_beyond_all_limits_are_refused(tmp_path, stamp):
    path = tmp_path / 'poses.txt'
    path.write_text(f'{stamp} 0 0 0 0 0 0 1\n')
    if stamp == '1e-999999999':
        assert read_tum(path).stamps_ns[0] == 0
        return
    with pytest.raises(InputError, match='not a time'):
        read_tum(path)
