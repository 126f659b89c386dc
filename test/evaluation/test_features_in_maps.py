"""The comparison of features in maps: degradations, and how recall is counted."""

import json
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def benchmark(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
    import features_in_maps

    return features_in_maps


def test_degradations_change_light_and_sharpness_as_named(benchmark):
    image = np.zeros((120, 200, 3), np.uint8)
    image[60, 100] = 240
    rng = np.random.default_rng(0)
    dark = benchmark.exposed(-2)(np.full((120, 200, 3), 200, np.uint8), rng)
    assert dark.mean() == pytest.approx(50, abs=0.5)
    assert benchmark.exposed(2)(np.full((9, 9, 3), 100, np.uint8), rng).min() == 255
    length = 0.05 * 200
    blurred = benchmark.blurred(0.05)(image, rng).astype(float)
    bright = np.argwhere(blurred[:, :, 0] > 8)
    extent = np.linalg.norm(bright.max(axis=0) - bright.min(axis=0))
    assert extent == pytest.approx(length, abs=2.5)
    # All features see the same degraded image.
    one, other = (
        benchmark.blurred(0.03)(image, np.random.default_rng([0, 5, 1])) for _ in range(2)
    )
    np.testing.assert_array_equal(one, other)


def test_recall_adds_up_over_buildings_and_strengths(benchmark, tmp_path):
    table = benchmark.Table(tmp_path / 'a.json')
    figures: dict[str, Any] = {
        'localized': 9,
        'wrong': 1,
        'median_m': 0.01,
        'median_deg': 0.1,
        'p95_m': 0.03,
    }
    figures['relative'] = [0.1, 0.2, 0.4]
    for scene, condition, features, right in (
        ('building 1', 'night', 'rootsift', 4),
        ('building 2', 'night', 'rootsift', 6),
        ('building 1', 'night', 'superpoint', 8),
        ('building 2', 'night', 'superpoint', 10),
        ('fox', 'blur 0.8%', 'rootsift', 7),
        ('fox', 'blur 1.6%', 'rootsift', 2),
    ):
        table.add(scene, condition, features, {'queries': 10, 'right': right, **figures})
    rows = {(row['place'], row['condition']): row for row in benchmark.summary(table.rows)}
    assert rows['simulated', 'night']['rootsift']['recall'] == 0.5
    assert rows['simulated', 'night']['superpoint']['recall'] == 0.9
    assert rows['simulated', 'night']['superpoint']['queries'] == 20
    assert rows['simulated', 'night']['superpoint']['median'] == pytest.approx(0.2)
    assert rows['fox', 'blur']['rootsift']['recall'] == 0.45
    # Only what all features have is added up; scenes that choose are told apart.
    totals = benchmark.over_all(table.rows, {'building 1', 'building 2', 'fox'})
    assert [totals[name]['right'] for name in ('rootsift', 'superpoint')] == [10, 18]
    assert totals['rootsift']['median'] == pytest.approx(0.2)
    text = benchmark.markdown(table, {'simulated': 0.05}, ['building 1'])
    assert 'Scenes that choose: building 1.' in text
    assert '| superpoint | 10 | 80.0% | 1 | 0.38 | 0.2 |' in text
    # An interrupted run goes on from the file.
    again = benchmark.Table(tmp_path / 'a.json')
    assert again.rows == table.rows
    assert json.loads((tmp_path / 'a.json').read_text())['summary']


def test_other_weights_are_superpoint_by_another_name(benchmark):
    args = benchmark.build_parser().parse_args(
        ['--weights', 'a', '--also', 'new=b.safetensors', 'x=c', '--without', 'rootsift']
    )
    assert benchmark.contestants(args) == ['superpoint', 'new', 'x']
    assert benchmark.weights_of(args, 'new') == 'b.safetensors'
    assert benchmark.weights_of(args, 'superpoint') == 'a'
