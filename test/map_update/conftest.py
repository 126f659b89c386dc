"""The small simulated building that updates are tested with."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def logs(building_logs):
    """Return the folder of the logs."""
    return building_logs


@pytest.fixture
def map_path(day_map, tmp_path):
    """Return a copy of the map."""
    return shutil.copytree(day_map, tmp_path / 'map')
