"""Rows of the ablation: variants of the map against matching the whole mapping database.

    python benchmarks/ablation.py DATA --scene fox --row layers-0 [--json OUT.json]
    python benchmarks/ablation.py --simulated FOLDER --scene 'building 1' --row all --changed

Every row uses the same features, the same points and the same queries as the matching baseline of
the same run; 'train' is the time from points to map. `--steps` limits the training of every row.
With `--changed` a building is also asked at dusk, at night and with furniture moved.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

# First: it decides how threads wait, before any is started.
from accuracy import (
    Built,
    Outcomes,
    Scene,
    finite,
    localize_queries,
    photographed_scenes,
    row_of,
    simulated_scenes,
)
from places import Places
from records import write_record

import numpy as np

from d2s_ros.evaluation.baseline import TableBaseline
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureConfig, FeatureExtractor
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.pose_solver import reprojection_errors
from d2s_ros.map_building.config import BuildConfig, budget
from d2s_ros.map_building.images import collect_images
from d2s_ros.map_building.scene_model import train_map
from d2s_ros.reconstruction.pipeline import reconstruct
from d2s_ros.reconstruction.reconstruction import Reconstruction
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.scene_models.regression.trainer import RegressionTrainingConfig


def training(**changes: Any) -> Callable[[BuildConfig], BuildConfig]:
    """Return a change of the paper recipe's training."""

    def change(config: BuildConfig) -> BuildConfig:
        changed: RegressionTrainingConfig = replace(config.regression_training, **changes)
        return replace(config, regression_training=changed)

    return change


#: Row of the landmark head -> what differs from the budget.
LANDMARK_ROWS: dict[str, dict] = {
    'landmark': {},
    **{f'layers-{count}': {'num_layers': count} for count in (0, 1, 2, 3)},
    **{f'landmarks-{count}': {'max_landmarks': count} for count in (1024, 2048, 4096, 8192, 16384)},
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
#: Rows of the default map that change only how it is used.
LOCALIZER_ROWS: dict[str, dict] = {'without-guided-refinement': {'guided_refinement': False}}
#: States of a building that a map by day is asked in.
CHANGED = ('dusk', 'night', 'moved')
#: The bare table, by its number of landmarks.
TABLE_ROWS = {f'table-{count}': count for count in (1024, 2048, 4096, 8192)}
ROWS = ('table', *TABLE_ROWS, *LANDMARK_ROWS, *LOCALIZER_ROWS, *REGRESSION_ROWS)


def config_of(row: str, name: str, features: FeatureConfig, steps: int | None) -> BuildConfig:
    """Return the build configuration of a row that trains."""
    if row in LANDMARK_ROWS or row in LOCALIZER_ROWS:
        changes = LANDMARK_ROWS.get(row, {})
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


def build_row(
    row: str,
    config: BuildConfig,
    reconstruction: Reconstruction,
    scene: Scene,
    extractor: FeatureExtractor,
) -> Built:
    """Make what a row localizes with from points that all rows share."""
    started = time.monotonic()
    if row == 'table' or row in TABLE_ROWS:
        table = TableBaseline(reconstruction, num_landmarks=TABLE_ROWS.get(row, 4096))
        return Built(table, reconstruction, table.size_bytes() / 1e6, time.monotonic() - started)
    scene_map, _ = train_map(reconstruction, extractor, config, source=scene.mapping)
    seconds = time.monotonic() - started
    localizer = Localizer(
        scene_map, extractor, config=LocalizerConfig(**LOCALIZER_ROWS.get(row, {}))
    )
    with tempfile.TemporaryDirectory() as temporary:
        MapStore(Path(temporary) / 'map').write(scene_map)
        size = SceneMap.open(Path(temporary) / 'map').localization_size_bytes()
    return Built(localizer, reconstruction, size / 1e6, seconds)


def coordinate_error_px(built: Built, scene: Scene, extractor: FeatureExtractor) -> float | None:
    """Return how far scene coordinates project from their keypoints, median px.

    With the true poses, of the more reliable half of each image's keypoints: it tells networks
    apart that localize nothing yet.
    """
    if not isinstance(built.method, Localizer):
        return None
    errors: list[np.ndarray] = []
    for frame in scene.queries:
        assert frame.image is not None
        assert frame.camera is not None
        assert frame.map_from_camera is not None
        features = extractor.extract(frame.image)
        details = built.method.localize_features(features, frame.camera, details=True).details
        if details is None:
            continue
        half = details.reliability >= np.median(details.reliability)
        ideal = frame.camera.undistort(details.keypoints[half])
        points = details.points_in_map[half].astype(np.float64)
        camera_from_map = frame.map_from_camera.inverse()
        errors.append(reprojection_errors(camera_from_map, ideal, points, frame.camera.ideal)[0])
    found = np.concatenate(errors) if errors else np.array([])
    return float(np.median(found)) if len(found) else None


def changed(folder: Path, seed: int) -> Iterator[Scene]:
    """Yield the queries under each change, every third frame, without mapping frames."""
    places = Places(folder, logs=folder)
    for name in CHANGED:
        frames = list(places.source(f'b{seed}', f'query_{name}'))[::3]
        yield Scene(name, [], frames)


def main() -> int:
    """Print a markdown table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, nargs='?')
    parser.add_argument('--simulated', type=Path, metavar='FOLDER')
    parser.add_argument('--scene', required=True)
    parser.add_argument('--row', nargs='+', required=True, metavar='NAME', help=', '.join(ROWS))
    parser.add_argument('--changed', action='store_true', help='ask a building under change too')
    parser.add_argument('--features', choices=('rootsift', 'superpoint'))
    parser.add_argument('--weights')
    parser.add_argument('--keypoints', type=int, help='most keypoints of an image')
    parser.add_argument('--budget', default='standard', choices=('quick', 'standard', 'full'))
    parser.add_argument('--steps', type=int)
    parser.add_argument('--json', type=Path)
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    args = parser.parse_args()
    started = time.time()
    rows = ROWS if args.row == ['all'] else args.row
    unknown = sorted(set(rows) - set(ROWS))
    if unknown:
        parser.error(f'no row {unknown[0]!r}; rows: {", ".join(ROWS)}')
    scenes: Iterator[Scene] = iter(())
    if args.data:
        scenes = photographed_scenes(args.data, [args.scene.removesuffix(' (block)')])
    elif args.simulated:
        scenes = simulated_scenes(args.simulated, [int(args.scene.split()[-1])])
    scene = next((item for item in scenes if item.name == args.scene), None)
    if scene is None:
        parser.error(f'scene {args.scene!r} is not there')
    features = FeatureConfig(name=args.features) if args.features else FeatureConfig()
    if args.keypoints:
        features = replace(features, max_keypoints=args.keypoints)
    extractor = create_extractor(features, weights=args.weights)
    base = budget(args.budget, features=features)
    images, _ = collect_images(scene.mapping, extractor, base)
    reconstruction = reconstruct(images, base.reconstruction)
    lines = [
        '| row | queries | localized | baseline | median | ratio to baseline | median [deg] | '
        'inlier share | coordinates [px] | map [MB] | train [s] |',
        '|' + 11 * '---|',
    ]
    print('\n'.join(lines))
    parts = [Scene('as mapped', [], scene.queries)]
    if args.changed:
        parts += changed(args.simulated, int(args.scene.split()[-1]))
    results = []
    known: dict[str, Outcomes] = {}
    for row in rows:
        config = base
        if row != 'table' and row not in TABLE_ROWS:
            config = config_of(row, args.budget, features, args.steps)
        built = build_row(row, config, reconstruction, scene, extractor)
        for part in parts:
            outcomes = localize_queries(
                part, features, built, weights=args.weights, known=known.get(part.name)
            )
            known[part.name] = outcomes
            result = row_of(part.name, [built], outcomes)
            pixels = coordinate_error_px(built, part, extractor)
            result['coordinates_px'] = pixels
            results.append({'row': row, 'budget': args.budget, **result})
            ours = result['ours']
            lines.append(
                f'| {row} | {part.name} | {ours["localized"]} | '
                f'{result["baseline"]["localized"]} | {ours["median"]:.5f} | '
                f'{result["ratio"]:.2f} | {ours["median_deg"]:.4f} | '
                f'{ours["inlier_share"] or 0:.2f} | '
                f'{"-" if pixels is None else f"{pixels:.1f}"} | {result["map_mb"]:.2f} | '
                f'{result["build_seconds"]:.0f} |'
            )
            print(lines[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps(finite(results), indent=1) + '\n')
    if args.record:
        write_record(args.record, finite(results), started, tables={'rows': lines})
    return 0


if __name__ == '__main__':
    sys.exit(main())
