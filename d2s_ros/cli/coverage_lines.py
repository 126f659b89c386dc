"""The last lines of a build and of an update: where the map localizes, and what to walk again."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from d2s_ros.errors import InputError, MapFormatError

if TYPE_CHECKING:
    from d2s_ros.evaluation.coverage_summary import CoverageSummary
    from d2s_ros.maps.scene_map import SceneMap


def add_coverage(parser: argparse.ArgumentParser) -> None:
    """Add the option that leaves coverage out."""
    parser.add_argument(
        '--no-coverage',
        action='store_true',
        help='do not predict where the map localizes, which takes some seconds; '
        'd2s map coverage does it later',
    )


def say_coverage(scene_map: SceneMap) -> CoverageSummary | None:
    """Predict where a version localizes and say it; None, and why, where that is not possible."""
    from d2s_ros.evaluation.coverage_summary import summarize_coverage

    try:
        summary = summarize_coverage(scene_map)
    except (InputError, MapFormatError) as error:
        print(f'coverage: not predicted: {error}')
        return None
    for line in summary.sentences():
        print(line)
    return summary
