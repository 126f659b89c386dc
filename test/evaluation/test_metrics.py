"""Metrics on errors made by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from d2s_ros.data.frames import Frame
from d2s_ros.errors import InputError
from d2s_ros.evaluation.metrics import evaluate_trajectory, metrics_from_errors, rate_bound
from d2s_ros.evaluation.run import localize_log, summarise
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.localization.result import LocalizationResult, LocalizationStatus


def pose(x, degrees=0.0):
    return RigidTransform(rotation_from_vector([0, 0, np.radians(degrees)]), np.array([x, 0, 0]))


def test_errors_by_hand():
    errors = [(0.005, 0.5), (0.03, 1.0), (0.04, 6.0), (2.0, 90.0)]
    metrics = metrics_from_errors(errors, 5)
    assert (metrics.num_frames, metrics.num_localized) == (5, 4)
    assert metrics.median_m == pytest.approx(0.035)
    assert metrics.median_deg == pytest.approx(3.5)
    assert metrics.p95_m == pytest.approx(np.percentile([0.005, 0.03, 0.04, 2.0], 95))
    assert (metrics.max_m, metrics.max_deg) == (2.0, 90.0)
    # A frame without a pose counts as wrong; both limits must hold, the limit itself is within.
    assert metrics.recalls['0.01m/1deg'] == pytest.approx(1 / 5)
    assert metrics.recalls['0.05m/5deg'] == pytest.approx(2 / 5)
    assert metrics.recalls['0.1m/10deg'] == pytest.approx(3 / 5)
    assert metrics.recalls['0.25m/2deg'] == pytest.approx(2 / 5)
    edge = metrics_from_errors([(0.05, 5.0)], 1)
    assert edge.recalls['0.05m/5deg'] == 1.0


def test_nothing_localized():
    metrics = metrics_from_errors([], 7)
    assert metrics.to_dict()['median_m'] is None
    assert json.dumps(metrics.to_dict(), allow_nan=False)
    assert set(metrics.recalls.values()) == {0.0}
    assert 'localized    0 (0.0 %)' in metrics.table()


def test_trajectories_by_stamp():
    truth = {10**9 * i: pose(i) for i in range(5)}
    estimate = {10**9: pose(1.1), 2 * 10**9 + 500_000: pose(2.0, 3.0), 9 * 10**9: pose(0)}
    metrics = evaluate_trajectory(estimate, truth)
    assert (metrics.num_frames, metrics.num_localized, metrics.num_unmatched) == (5, 2, 1)
    assert metrics.max_m == pytest.approx(0.1)
    assert metrics.max_deg == pytest.approx(3.0)
    assert 'not judged   1' in metrics.table()


def test_a_frame_is_judged_once():
    truth = {0: pose(0), 10**9: pose(1)}
    estimate = {-400: pose(5), 300: pose(0.2), 500: pose(7), 10**9: pose(1)}
    metrics = evaluate_trajectory(estimate, truth)
    assert (metrics.num_localized, metrics.num_unmatched) == (2, 2)
    assert metrics.max_m == pytest.approx(0.2)
    assert max(metrics.recalls.values()) <= 1


def test_what_cannot_be_compared():
    with pytest.raises(InputError, match='no poses'):
        evaluate_trajectory({0: pose(0)}, {})
    with pytest.raises(InputError, match='same log'):
        evaluate_trajectory({0: pose(0)}, {10**12: pose(0)})
    assert evaluate_trajectory({}, {0: pose(0)}).num_localized == 0


class TwoFrames:
    def __len__(self):
        return 2

    def __iter__(self):
        yield Frame('a', 1, None, error='broken JPEG')
        yield Frame('b', 2, np.zeros((4, 4), np.uint8), None, error='camera_info is all zeros')


class Recorder:
    """Says what `Localizer` says of missing images and cameras."""

    def localize(self, image, camera, *, details=False):
        status = LocalizationStatus
        return LocalizationResult(status.BAD_IMAGE if image is None else status.NO_CALIBRATION, 'x')


def test_frames_keep_the_reason_of_the_reader():
    recorder: Any = Recorder()
    results = [result for _, result in localize_log(recorder, TwoFrames())]
    assert [result.reason for result in results] == ['broken JPEG', 'camera_info is all zeros']
    summary = summarise(results)
    assert (summary['frames'], summary['localized']) == (2, 0)
    assert summary['refused'] == {'bad_image': 1, 'no_calibration': 1}
    assert json.dumps(summary, allow_nan=False)


def test_summary_by_hand():
    def localized(inliers, used, total):
        return LocalizationResult(
            LocalizationStatus.LOCALIZED,
            map_from_camera=pose(0),
            num_inliers=inliers,
            num_used=used,
            latency_ms={'total': total},
        )

    summary = summarise([localized(50, 100, 10.0), localized(90, 100, 30.0)])
    assert summary['median_inliers'] == 70
    assert summary['median_inlier_share'] == pytest.approx(0.7)
    assert summary['latency_ms']['total'] == {'median': 20.0, 'p95': 29.0}
    assert summary['refused'] == {}


def test_the_bound_of_a_rate_is_where_so_few_events_are_improbable():
    # Nothing in n trials: (1 - rate)^n is 5 %.
    assert np.isclose(rate_bound(0, 3475), 1 - 0.05 ** (1 / 3475), rtol=1e-6)
    assert rate_bound(0, 30_000) < 1.0e-4 < rate_bound(0, 29_000)
    # Of a table of Clopper and Pearson.
    assert np.isclose(rate_bound(1, 100), 0.0466, atol=1e-4)
    assert np.isclose(rate_bound(5, 10), 0.7776, atol=1e-4)
    assert rate_bound(10, 10) == 1.0
    assert rate_bound(3, 100, 0.99) > rate_bound(3, 100)
