"""Every row of the ablation is a configuration that can be built."""

from __future__ import annotations

import sys

import pytest

from d2s_ros.features.types import FeatureConfig


@pytest.fixture
def ablation(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
    import ablation

    yield ablation
    for name in ('ablation', 'accuracy', 'places'):
        sys.modules.pop(name, None)


def test_rows_differ_from_each_other(ablation):
    features = FeatureConfig()
    trained = [*ablation.LANDMARK_ROWS, *ablation.REGRESSION_ROWS]
    configs = {row: ablation.config_of(row, 'quick', features, 7) for row in trained}
    for row, config in configs.items():
        steps = config.training if config.head == 'landmark' else config.regression_training
        assert steps.steps == 7, row
        assert config.head == ('regression' if row in ablation.REGRESSION_ROWS else 'landmark')
    assert configs['layers-2'].num_layers == 2
    assert configs['landmarks-1024'].max_landmarks == 1024
    assert configs['without-descriptors'].hidden_inputs == ('descriptors',)
    assert configs['paper-without-reprojection-loss'].regression_training.alpha_r == 0
    assert configs['paper-without-attention'].regression.num_layers == 0
    # Only these are what the budget gives anyway.
    same = [row for row, config in configs.items() if config == configs['landmark']]
    assert set(same) <= {'landmark', 'layers-0'}
    others = {'table', *ablation.TABLE_ROWS, *ablation.LOCALIZER_ROWS}
    assert set(ablation.ROWS) == others | set(trained)
