"""The verdict follows from the figures, and the figures from the frames."""

from __future__ import annotations

import numpy as np
import pytest

from d2s_ros.map_update.config import GateConfig
from d2s_ros.map_update.promotion import (
    ALL_LOGS,
    FrameScore,
    bootstrap_interval,
    compare,
    decide,
    images_to_try,
    missing_frames,
)

CONFIG = GateConfig()
GOOD = FrameScore(True, 0.01, 0.1, 100)
LOST = FrameScore(False, float('inf'), float('inf'), 0)
FAR = FrameScore(True, 0.3, 0.1, 40)
UNKNOWN = FrameScore(True, float('nan'), float('nan'), 60)


def figures(before, after):
    return compare(before, after, CONFIG, 0.05)


def test_figures_count_wrong_and_missing_poses_alike():
    result = figures([GOOD, LOST, FAR, UNKNOWN], [GOOD, GOOD, FAR, UNKNOWN])
    assert result['with_reference'] == 3
    assert result['incumbent']['recall'] == pytest.approx(1 / 3, abs=1e-4)
    assert result['candidate']['recall'] == pytest.approx(2 / 3, abs=1e-4)
    assert result['candidate']['localized'] == 4
    assert result['gain'] == pytest.approx(1 / 3, abs=1e-4)


def test_a_better_candidate_is_promoted():
    decision = decide(figures([GOOD] * 20, [GOOD] * 20), figures([LOST] * 5, [GOOD] * 5), CONFIG)
    assert decision.promote
    assert '0.0 % to 100.0 %' in decision.reasons[0]


@pytest.mark.parametrize(
    ('old', 'new', 'reason'),
    [
        (([GOOD] * 20, [GOOD] * 18 + [LOST] * 2), ([LOST] * 5, [GOOD] * 5), 'old map falls'),
        (([GOOD] * 20, [GOOD] * 20), ([GOOD] * 5, [GOOD] * 4 + [FAR]), 'new frames falls'),
        (([GOOD] * 20, [GOOD] * 20), ([GOOD] * 5, [GOOD] * 5), 'nothing gained'),
        (([GOOD] * 20, [GOOD] * 20), ([UNKNOWN] * 5, [UNKNOWN] * 5), 'no held-out frame'),
        (([GOOD] * 20, [GOOD] * 20), ([LOST] * 2, [GOOD] * 2), '3 needed'),
        (
            ([GOOD] * 20, [FrameScore(True, 0.03, 0.1, 99)] * 20),
            ([LOST] * 5, [GOOD] * 5),
            'median error',
        ),
    ],
)
def test_others_are_refused_with_the_reason(old, new, reason):
    decision = decide(figures(*old), figures(*new), CONFIG)
    assert not decision.promote
    assert any(reason in text for text in decision.reasons)


def test_a_loss_on_one_earlier_log_is_not_made_up_for_by_another():
    old = figures([GOOD] * 60 + [LOST] * 2, [GOOD] * 58 + [LOST] * 2 + [GOOD] * 2)
    by_log = {
        '': figures([GOOD] * 60, [GOOD] * 58 + [LOST] * 2),
        'dusk': figures([LOST] * 2, [GOOD] * 2),
    }
    new = figures([LOST] * 5, [GOOD] * 5)
    assert decide(old, new, CONFIG).promote
    decision = decide(old, new, CONFIG, by_log)
    assert not decision.promote
    assert decision.reasons == (
        'recall on frames of the first mapping falls to 3.3 points below its best (2.0 allowed)',
    )


def test_one_old_frame_may_be_lost_but_not_one_more_with_every_update():
    old = figures([GOOD] * 20, [GOOD] * 19 + [LOST])
    new = figures([LOST] * 5, [GOOD] * 5)
    first = decide(old, new, CONFIG, {'': old})
    assert first.promote
    missing = missing_frames(first.metrics, [''])
    assert missing == {'': 1, ALL_LOGS: 1}
    again = figures([GOOD] * 19 + [LOST], [GOOD] * 18 + [LOST] * 2)
    second = decide(again, new, CONFIG, {'': again}, missing)
    assert not second.promote
    assert 'falls to 10.0 points below its best (5.0 allowed)' in second.reasons[0]
    # Without a loss of its own an update is not refused for those before; a gain makes up for them.
    same = figures([GOOD] * 19 + [LOST], [GOOD] * 19 + [LOST])
    assert decide(same, new, CONFIG, {'': same}, missing).promote
    back = figures([GOOD] * 19 + [LOST], [GOOD] * 20)
    third = decide(back, new, CONFIG, {'': back}, missing)
    assert missing_frames(third.metrics, ['']) == {}


def test_of_few_old_frames_none_may_be_lost():
    old = figures([GOOD] * 5, [GOOD] * 4 + [LOST])
    assert not decide(old, figures([LOST] * 5, [GOOD] * 5), CONFIG).promote


def test_frames_below_the_best_of_logs_that_become_one_are_added():
    gate = {
        'old': {'missing_frames': 2},
        'old_logs': {'': {'missing_frames': 0}, 'a': {'missing_frames': 1}, 'b': {}},
    }
    assert missing_frames(gate, ['', 'earlier logs', 'c']) == {'earlier logs': 1, ALL_LOGS: 2}
    assert missing_frames(None, ['']) == {}


def test_every_log_is_tried_alike_and_many_are_pooled():
    config = GateConfig(max_old_images=40, max_old_logs=4)
    few = images_to_try([''] * 60 + ['dusk'] * 8, config)
    assert {log: len(rows) for log, rows in few.items()} == {'': 20, 'dusk': 8}
    assert few[''][0] == 0
    assert few[''][-1] == 59
    assert few['dusk'] == list(range(60, 68))
    logs = [''] * 30 + [f'log{n // 10}' for n in range(60)]
    many = images_to_try(logs, config)
    assert list(many) == ['', 'earlier logs', 'log4', 'log5']
    assert {logs[i] for i in many['earlier logs']} == {'log0', 'log1', 'log2', 'log3'}
    assert all(len(rows) == 10 for rows in many.values())
    four = images_to_try([''] * 5 + [f'log{n // 5}' for n in range(15)], config)
    assert list(four) == ['', 'log0', 'log1', 'log2']


def test_the_interval_covers_the_mean_and_narrows_with_frames():
    rng = np.random.default_rng(0)
    few = bootstrap_interval(rng.normal(0.2, 1.0, 20), 0.9, 2000)
    many = bootstrap_interval(rng.normal(0.2, 1.0, 2000), 0.9, 2000)
    assert few[0] < 0.2 < few[1]
    assert many[0] < 0.2 < many[1]
    assert many[1] - many[0] < 0.3 * (few[1] - few[0])
