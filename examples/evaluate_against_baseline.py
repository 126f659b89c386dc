"""Compare a map with matching the whole mapping database, in the same run.

    python examples/evaluate_against_baseline.py MAPPING QUERIES OUTPUT

The peer uses the same features, the same reconstruction and the same pose solver; it keeps every
descriptor of every mapping image.
"""

from __future__ import annotations

import sys
from pathlib import Path

from d2s_ros.data.sources import open_source
from d2s_ros.evaluation.baseline import MatchingBaseline
from d2s_ros.evaluation.map_evaluation import evaluate_map, markdown_table, summary
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import build_map


def main(mapping: str, queries: str, output: str) -> None:
    """Build a map, evaluate it beside the peer and print the table."""
    built = build_map(open_source(mapping), Path(output) / 'map', budget('quick'), progress=False)
    evaluation = evaluate_map(
        Localizer.from_map(built.scene_map),
        open_source(queries),
        baseline=MatchingBaseline(built.reconstruction),
    )
    print(markdown_table(summary(evaluation), evaluation.unit))


if __name__ == '__main__':
    main(*sys.argv[1:])
