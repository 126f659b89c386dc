"""Logs that could spoil a map, through the command line in processes of their own."""

from __future__ import annotations

import pytest

from d2s_ros.maps.store import MapStore
from d2s_ros.maps.verification import verify

pytestmark = pytest.mark.slow


@pytest.fixture
def poisoned(benchmark_module):
    return benchmark_module('poisoned_updates')


def everything(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted((path / 'versions').rglob('*'))
        if file.is_file()
    }


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ('darkness', 'keypoints'),
        ('plain_wall', 'keypoints'),
        ('wrong_focal_length', 'focal length seems wrong'),
    ],
)
def test_useless_frames_are_dropped_with_the_reason(
    poisoned, logs, map_path, tmp_path, change, reason
):
    log = poisoned.rewrite(logs / 'dusk', tmp_path / 'log', getattr(poisoned, change))
    before = everything(map_path)
    outcome = poisoned.update(map_path, [log], tmp_path)
    assert outcome.code == 4
    assert outcome.verdict == 'nothing_usable'
    assert outcome.frames == (0, 0, 8)
    assert any(reason in text for text in outcome.dropped)
    assert everything(map_path) == before


@pytest.mark.parametrize('change', ['wrong_principal_point', 'wrong_distortion'])
def test_other_wrong_calibrations_do_not_make_the_map_worse(
    poisoned, logs, map_path, tmp_path, change
):
    log = poisoned.rewrite(logs / 'dusk', tmp_path / 'log', getattr(poisoned, change))
    before = poisoned.recall(map_path, [logs / 'map'])
    outcome = poisoned.update(map_path, [log], tmp_path)
    assert outcome.reasons
    assert verify(map_path) == []
    assert poisoned.recall(map_path, [logs / 'map']) >= before


def test_another_building_beside_a_good_log_adds_nothing(poisoned, logs, map_path, tmp_path):
    outcome = poisoned.update(map_path, [logs / 'other', logs / 'dusk'], tmp_path)
    used, held_out, dropped = outcome.frames
    assert dropped >= 8
    assert used + held_out >= 1
    assert used + held_out + dropped == 16
    assert verify(map_path) == []


def test_a_log_that_is_being_written_is_used_as_far_as_it_goes(poisoned, logs, map_path, tmp_path):
    with poisoned.being_written(logs / 'dusk', tmp_path / 'log', 60.0) as log:
        outcome = poisoned.update(map_path, [log], tmp_path)
    assert outcome.code in (0, 4)
    assert 1 <= sum(outcome.frames) <= 8
    assert verify(map_path) == []
    assert MapStore(map_path).current() in ('0001', '0002')
