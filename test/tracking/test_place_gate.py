"""A pose in another place of an area needs a second one that agrees."""

from __future__ import annotations

import pytest

from d2s_ros.tracking.place_gate import PlaceGate

SECOND = 10**9


def follow(gate, *steps):
    """Return which poses, given as (seconds, place), are accepted."""
    return [not gate.check(int(t * SECOND), place, f'map_{place}') for t, place in steps]


def test_the_first_pose_is_believed_and_a_single_other_place_is_not():
    gate = PlaceGate()
    assert follow(gate, (1, 'f5'), (2, 'f5'), (3, 'f6'), (4, 'f5')) == [True, True, False, True]
    assert gate.place == 'f5'
    # What was held back before is no evidence any more.
    assert follow(gate, (5, 'f6'), (6, 'f7'), (7, 'f6')) == [False, False, False]


def test_an_elevator_ends_in_the_right_place_with_the_second_image():
    gate = PlaceGate()
    assert follow(gate, (1, 'f5'), (9, 'f6'), (10, 'f6')) == [True, False, True]
    assert gate.changed
    assert follow(gate, (11, 'f6')) == [True]
    assert not gate.changed
    reason = gate.check(12 * SECOND, 'f5', 'map_f5')
    assert 'in f5' in reason
    assert 'was in f6' in reason


def test_places_of_one_frame_need_no_second_image():
    gate = PlaceGate()
    assert gate.check(SECOND, 'west', 'map') == ''
    assert gate.check(2 * SECOND, 'east', 'map') == ''
    assert not gate.changed


@pytest.mark.parametrize('forgotten', [True, False])
def test_after_a_long_time_or_when_told_the_next_place_is_believed(forgotten):
    gate = PlaceGate()
    follow(gate, (1, 'f5'))
    if forgotten:
        gate.reset()
    assert follow(gate, (2 if forgotten else 60, 'f6')) == [True]


def test_a_single_map_is_never_held_back():
    gate = PlaceGate()
    assert all(gate.check(t * SECOND, '', '') == '' for t in range(1, 9))
