"""One row of the ablation: a variant of the map against matching the whole mapping database.

    python benchmarks/ablation.py DATA --scene fox --row layers-0 [--json OUT.json]
    python benchmarks/ablation.py DATA --scene fox --row all

Every row uses the same features, the same points and the same queries as the matching baseline of
the same run. `--steps` limits the training of every row.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

# First: it decides how threads wait, before any is started.
from accuracy import Built, build, compare, finite

from d2s_ros.data.colmap_model import ColmapSource
from d2s_ros.data.frames import FrameSource
from d2s_ros.evaluation.baseline import TableBaseline
from d2s_ros.features.extractor import FeatureConfig, create_extractor
from d2s_ros.map_building.pipeline import BYTES_BESIDE_KEY, BuildConfig, budget, collect_images
from d2s_ros.mapping.reconstruction import reconstruct
from d2s_ros.training.regression_trainer import RegressionTrainingConfig


def training(**changes: float) -> Callable[[BuildConfig], BuildConfig]:
    """Return a change of the paper recipe's training."""

    def change(config: BuildConfig) -> BuildConfig:
        changed: RegressionTrainingConfig = replace(config.regression_training, **changes)
        return replace(config, regression_training=changed)

    return change


#: Row of the landmark head -> what differs from the budget.
LANDMARK_ROWS: dict[str, dict] = {
    'landmark': {},
    **{f'layers-{count}': {'num_layers': count} for count in (0, 1, 2, 3)},
    **{f'landmarks-{count}': {'num_landmarks': count} for count in (1024, 2048, 4096, 8192)},
    'without-descriptors': {'hidden_inputs': ('descriptors',)},
    'without-keypoints': {'hidden_inputs': ('keypoints',)},
    'without-candidate-points': {'hidden_inputs': ('candidate_points',)},
}
#: Row of the regression head -> recipe and what differs from it.
REGRESSION_ROWS: dict[str, tuple[str, Callable[[BuildConfig], BuildConfig]]] = {
    'paper': ('paper', training()),
    'paper-without-reliability-loss': ('paper', training(alpha_u=0.0)),
    'paper-without-reprojection-loss': ('paper', training(alpha_r=0.0)),
    'paper-without-attention': (
        'paper',
        lambda config: replace(config, regression=replace(config.regression, num_layers=0)),
    ),
    'regression': ('default', training()),
}
#: The bare table, by its number of landmarks.
TABLE_ROWS = {f'table-{count}': count for count in (1024, 2048, 4096, 8192)}
ROWS = ('table', *TABLE_ROWS, *LANDMARK_ROWS, *REGRESSION_ROWS)


def config_of(
    row: str, name: str, features: FeatureConfig, dim: int, steps: int | None
) -> BuildConfig:
    """Return the build configuration of a row that trains, for descriptors of length `dim`."""
    if row in LANDMARK_ROWS:
        changes = dict(LANDMARK_ROWS[row])
        if 'num_landmarks' in changes:
            # The limit is a size; half a landmark more is safe from rounding.
            count = changes.pop('num_landmarks') + 0.5
            changes['max_landmarks_mb'] = count * (dim + BYTES_BESIDE_KEY) / 1e6
        config = replace(budget(name, features=features), **changes)
    else:
        recipe, change = REGRESSION_ROWS[row]
        config = change(budget(name, features=features, head='regression', recipe=recipe))
    config = replace(config, keep_update_data=False)
    if steps is None:
        return config
    return replace(
        config,
        training=replace(config.training, steps=steps),
        regression_training=replace(config.regression_training, steps=steps),
    )


def build_table(source: FrameSource, count: int, config: BuildConfig, weights: str | None) -> Built:
    """Reconstruct, and keep nothing but the table."""
    started = time.monotonic()
    extractor = create_extractor(config.features, weights=weights)
    images, _ = collect_images(source, extractor, config)
    reconstruction = reconstruct(images, config.reconstruction)
    table = TableBaseline(reconstruction, num_landmarks=count)
    return Built(table, reconstruction, table.size_bytes() / 1e6, time.monotonic() - started)


def main() -> int:
    """Print a markdown table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('--scene', required=True)
    parser.add_argument('--split', default='split.json')
    parser.add_argument('--row', nargs='+', required=True, metavar='NAME', help=', '.join(ROWS))
    parser.add_argument('--features', choices=('rootsift', 'superpoint'))
    parser.add_argument('--weights')
    parser.add_argument('--budget', default='standard', choices=('quick', 'standard', 'full'))
    parser.add_argument('--steps', type=int)
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    rows = ROWS if args.row == ['all'] else args.row
    unknown = sorted(set(rows) - set(ROWS))
    if unknown:
        parser.error(f'no row {unknown[0]!r}; rows: {", ".join(ROWS)}')
    folder = args.data / args.scene
    if not (folder / args.split).is_file():
        parser.error(f'{folder / args.split} is not there')
    features = FeatureConfig(name=args.features) if args.features else FeatureConfig()
    dim = create_extractor(features, weights=args.weights).dim
    names = json.loads((folder / args.split).read_text())
    print(
        '| row | localized | baseline | median | ratio to baseline | median [deg] | inlier share | '
        'map [MB] | build [s] |'
    )
    print('|---|---|---|---|---|---|---|---|---|')
    results = []
    for row in rows:
        mapping = ColmapSource(folder, names['map'])
        if row == 'table' or row in TABLE_ROWS:
            config = budget(args.budget, features=features)
            built = build_table(mapping, TABLE_ROWS.get(row, 4096), config, args.weights)
        else:
            config = config_of(row, args.budget, features, dim, args.steps)
            built = build(mapping, config, weights=args.weights)
        result = compare(folder, args.split, features, built, weights=args.weights)
        results.append({'row': row, 'budget': args.budget, **result})
        ours = result['ours']
        print(
            f'| {row} | {ours["localized"]} | {result["baseline"]["localized"]} | '
            f'{ours["median"]:.5f} | {result["ratio"]:.2f} | {ours["median_deg"]:.4f} | '
            f'{ours["inlier_share"] or 0:.2f} | {result["map_mb"]:.2f} | '
            f'{result["build_seconds"]:.0f} |',
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(finite(results), indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
