"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from d2s_ros.threads import wait_passively

wait_passively()
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def repo_root() -> Path:
    """Return the root of the checkout."""
    return ROOT


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Return the folder of real data sets, which are not part of the repository."""
    path = Path(os.environ.get('D2S_SHARED_DATA', ROOT.parent / 'shared' / 'data'))
    if not path.is_dir():
        pytest.skip(f'no real data at {path}; set D2S_SHARED_DATA')
    return path


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a seeded random generator."""
    return np.random.default_rng(7)
