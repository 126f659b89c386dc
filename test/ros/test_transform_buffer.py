"""The transform buffer that stands in for tf2_ros."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.ros.transform_buffer import TransformBuffer

MS = 1_000_000


def moving(seconds):
    """Return odom_from_base of a smooth motion."""
    return RigidTransform(
        rotation_from_vector([0, 0, 0.5 * seconds]), np.array([seconds, 2 * seconds, 0])
    )


@pytest.fixture
def buffer():
    result = TransformBuffer()
    for index in range(21):
        result.insert(
            'odom', 'base', index * 100 * MS, tuple(moving(index / 10).to_tum()), static=False
        )
    result.insert('base', 'mast', 0, (0, 0, 1, 0, 0, 0, 1), static=True)
    result.insert('mast', 'camera', 0, (0.1, 0, 0, -0.5, 0.5, -0.5, 0.5), static=True)
    result.insert('base', 'lidar', 0, (0, 0.3, 0, 0, 0, 0, 2.0), static=True)
    return result


def test_interpolates_between_samples(buffer):
    found = buffer.lookup('odom', 'base', 1_234 * MS).target_from_source
    np.testing.assert_allclose(found.matrix, moving(1.234).matrix, atol=1e-9)


def test_composes_along_the_tree_in_both_directions(buffer):
    mast = RigidTransform(np.eye(3), np.array([0, 0, 1.0]))
    camera = mast @ RigidTransform.from_tum([0.1, 0, 0, -0.5, 0.5, -0.5, 0.5])
    expected = moving(1.05) @ camera
    found = buffer.lookup('odom', 'camera', 1_050 * MS).target_from_source
    np.testing.assert_allclose(found.matrix, expected.matrix, atol=1e-9)
    back = buffer.lookup('camera', 'odom', 1_050 * MS).target_from_source
    np.testing.assert_allclose((back @ found).matrix, np.eye(4), atol=1e-9)
    # Between two branches; the common frame need not be the root, and no time is needed.
    lidar = RigidTransform(np.eye(3), np.array([0, 0.3, 0]))
    across = buffer.lookup('lidar', 'camera', 99_000_000 * MS).target_from_source
    np.testing.assert_allclose(across.matrix, (lidar.inverse() @ camera).matrix, atol=1e-9)
    # Old names with a leading slash mean the same.
    assert buffer.lookup('/lidar', '/camera', None).target_from_source is not None


def test_never_extrapolates(buffer):
    after = buffer.lookup('odom', 'base', 2_001 * MS)
    assert after.target_from_source is None
    assert after.may_arrive
    assert '0.001 s before' in after.reason
    before = buffer.lookup('odom', 'base', -1 * MS)
    assert before.target_from_source is None
    assert not before.may_arrive
    newest = buffer.lookup('odom', 'base', None).target_from_source
    np.testing.assert_allclose(newest.matrix, moving(2.0).matrix, atol=1e-9)


def test_unknown_and_unconnected_frames_say_so(buffer):
    assert "'moon' is not known" in buffer.lookup('odom', 'moon', 0).reason
    buffer.insert('a', 'b', 0, (0, 0, 0, 0, 0, 0, 1), static=True)
    found = buffer.lookup('odom', 'b', 0, timeout=60.0)
    assert 'not connected' in found.reason


def test_waits_for_what_may_still_arrive(buffer):
    def later():
        buffer.insert('odom', 'base', 2_100 * MS, tuple(moving(2.1).to_tum()), static=False)

    timer = threading.Timer(0.05, later)
    timer.start()
    found = buffer.lookup('odom', 'base', 2_050 * MS, timeout=20.0).target_from_source
    timer.join()
    np.testing.assert_allclose(found.matrix, moving(2.05).matrix, atol=1e-9)


def test_a_jump_back_starts_again(buffer):
    buffer.insert('odom', 'base', 500 * MS, tuple(moving(9.0).to_tum()), static=False)
    np.testing.assert_allclose(
        buffer.lookup('odom', 'base', 500 * MS).target_from_source.matrix,
        moving(9.0).matrix,
        atol=1e-9,
    )
    assert buffer.lookup('odom', 'base', 1_500 * MS).target_from_source is None
    assert buffer.lookup('base', 'camera', 0).target_from_source is not None


def test_restart_keeps_the_past_and_what_is_static(buffer):
    buffer.restart_at(200 * MS)
    assert buffer.lookup('odom', 'base', 300 * MS).target_from_source is not None
    assert buffer.lookup('odom', 'base', 1_900 * MS).target_from_source is None
    assert buffer.lookup('base', 'camera', 0).target_from_source is not None


def test_late_samples_are_sorted_in(buffer):
    buffer.insert('odom', 'base', 1_950 * MS, tuple(moving(1.8).to_tum()), static=False)
    found = buffer.lookup('odom', 'base', 1_950 * MS).target_from_source
    np.testing.assert_allclose(found.matrix, moving(1.8).matrix, atol=1e-9)
    assert buffer.lookup('odom', 'base', 2_000 * MS).target_from_source is not None


def test_memory_is_bounded():
    buffer = TransformBuffer(cache_ns=1000 * MS, max_samples=200, max_frames=10)
    for index in range(20_000):
        buffer.insert('odom', 'base', index * MS, (0, 0, 0, 0, 0, 0, 1), static=False)
    assert len(buffer) <= 1.2 * 1000
    for index in range(50):
        buffer.insert('odom', f'part{index}', 0, (0, 0, 0, 0, 0, 0, 1), static=False)
    assert buffer.ignored == 41
    assert buffer.lookup('odom', 'base', 19_999 * MS).target_from_source is not None


def test_a_frame_can_change_its_parent(buffer):
    buffer.insert('map', 'base', 1 * MS, (5, 0, 0, 0, 0, 0, 1), static=False)
    found = buffer.lookup('map', 'camera', 1 * MS).target_from_source
    np.testing.assert_allclose(found.translation, [5.1, 0, 1], atol=1e-9)


def test_invalid_transforms_are_ignored():
    buffer = TransformBuffer()
    for parent, child, values in (
        ('a', 'a', (0, 0, 0, 0, 0, 0, 1)),
        ('', 'b', (0, 0, 0, 0, 0, 0, 1)),
        ('a', 'b', (0, 0, 0, 0, 0, 0, 0)),
        ('a', 'b', (np.nan, 0, 0, 0, 0, 0, 1)),
        ('a', 'b', (0, 0, 1)),
    ):
        assert not buffer.insert(parent, child, 0, values, static=False)
    assert buffer.ignored == 5
    # A loop of frames ends the search instead of hanging it.
    buffer.insert('x', 'y', 0, (0, 0, 0, 0, 0, 0, 1), static=True)
    buffer.insert('y', 'x', 0, (0, 0, 0, 0, 0, 0, 1), static=True)
    assert buffer.lookup('z', 'x', 0).target_from_source is None
