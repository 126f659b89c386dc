"""What a build or an update says of where its map localizes: in short, and at a bounded cost."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2s_ros.evaluation.coverage import Coverage, coverage_advice, measure_coverage
from d2s_ros.evaluation.coverage_picture import draw_coverage
from d2s_ros.maps.files import COVERAGE_FILE
from d2s_ros.maps.scene_map import SceneMap

#: Of a build or an update: so many cells at most, wider ones in large places, and so many mapping
#: images that are localized. Seconds, where `d2s map coverage` may take a minute.
_CELLS, _HELD_OUT = 24, 8
_ADVICE = 3


@dataclass(frozen=True, eq=False)
class CoverageSummary:
    """Where a version of a map localizes.

    Attributes:
        scene_map: The version.
        coverage: What was predicted.
        seconds: What that took.
    """

    scene_map: SceneMap
    coverage: Coverage
    seconds: float

    def sentences(self) -> list[str]:
        """Return shares of the views, and what to walk again, one line each."""
        coverage = self.coverage
        lines = [
            f'coverage: of the views along the mapping path {shares_in_words(coverage)} '
            f'({len(coverage.cells)} cells of {coverage.cell:.2f} {coverage.unit}, '
            f'{self.seconds:.0f} s)'
        ]
        advice = coverage_advice(coverage, _ADVICE)
        return lines + [f'weak place: {text}' for text in advice]

    def picture(self) -> bytes:
        """Return the floor plan as PNG."""
        points = self.scene_map.model.points_in_map + self.scene_map.origin
        return draw_coverage(self.coverage, points)


def shares_in_words(coverage: Coverage) -> str:
    """Return the shares of the views that are good, fair and bad."""
    return ', '.join(f'{share:.0%} {name}' for name, share in coverage.shares.items())


def summarize_coverage(scene_map: SceneMap) -> CoverageSummary:
    """Predict in short where a version localizes, and keep that beside it.

    Raises:
        MapFormatError: the map has no update data.
        InputError: the map cannot leave images out.
    """
    started = time.monotonic()
    coverage = measure_coverage(scene_map, held_out=_HELD_OUT, most_cells=_CELLS)
    write_coverage(scene_map, coverage)
    return CoverageSummary(scene_map, coverage, time.monotonic() - started)


def write_coverage(scene_map: SceneMap, coverage: Coverage) -> dict[str, Any]:
    """Keep what was predicted beside the version, for the node; returns what is written.

    It is no part of the map, which is as it was without it.
    """
    document = {**coverage.to_json(), 'advice': coverage_advice(coverage)}
    assert scene_map.path is not None
    target = Path(scene_map.path) / COVERAGE_FILE
    # A node may be reading.
    temporary = target.with_name(f'.{target.name}.{os.getpid()}')
    temporary.write_text(json.dumps(document))
    os.replace(temporary, target)
    return document
