"""Our map against matching the whole mapping database, in one run.

    python benchmarks/accuracy.py DATA [--scenes fox castle-P30 ...] [--json OUT.json]
    python benchmarks/accuracy.py --simulated FOLDER [--buildings 1 2 3]
    python benchmarks/accuracy.py DATA --folds 4 --scenes castle-P30

DATA is a folder of scenes, each with images/, a COLMAP text model and split files that name the
mapping and the query images. Simulated buildings are rendered into FOLDER (60 mapping images, 120
queries on another way through the building) and used again from there. Both methods use the same
features, the same pycolmap points and the same queries; the ratio of their median errors is what
counts. With --folds every image of a scene is a query once, in a map of the other folds: the splits
of small scenes have only two to ten queries.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

from records import write_record

from d2s_ros.data.colmap_model import ColmapSource
from d2s_ros.data.frames import FrameSource
from d2s_ros.data.sources import open_source
from d2s_ros.evaluation.baseline import MatchingBaseline
from d2s_ros.evaluation.metrics import metrics_from_errors
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.result import LocalizationResult
from d2s_ros.map_building.config import BuildConfig, budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.reconstruction.reconstruction import Reconstruction
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import simulate_log

SCENES = (
    ('fountain-P11', 'split.json'),
    ('lund_door', 'split.json'),
    ('castle-P30', 'split.json'),
    ('fox', 'split.json'),
    ('redkitchen', 'split.json'),
    ('redkitchen', 'split_block.json'),
)

#: Within 5 cm (or hundredths of the unit of maps of arbitrary scale) and 5 degrees.
RECALL = '0.05m/5deg'
#: Queries of a simulated building: differences of 2 points are to be seen.
QUERIES = 120

#: By method, the result and the error of each query.
Outcomes = dict[str, list[tuple[LocalizationResult, tuple[float, float] | None]]]


@dataclass(frozen=True, eq=False)
class Built:
    """A method that is ready to localize, and what it cost."""

    method: Any
    reconstruction: Reconstruction
    map_mb: float
    build_seconds: float


def build(
    source: FrameSource, config: BuildConfig, *, weights: str | None, progress: bool = False
) -> Built:
    """Build a map of the mapping images and open it."""
    with tempfile.TemporaryDirectory() as temporary:
        started = time.monotonic()
        result = build_map(
            source, Path(temporary) / 'map', config, weights=weights, progress=progress
        )
        build_seconds = time.monotonic() - started
        size_mb = result.scene_map.localization_size_bytes() / 1e6
        localizer = Localizer.from_map(Path(temporary) / 'map', weights=weights)
    return Built(localizer, result.reconstruction, size_mb, build_seconds)


@dataclass(frozen=True, eq=False)
class Scene:
    """A name, mapping frames and query frames with true poses."""

    name: str
    mapping: FrameSource
    queries: FrameSource


def photographed_scenes(data: Path, only: list[str] | None) -> Iterator[Scene]:
    """Yield the scenes of a folder."""
    for name, split in SCENES:
        folder = data / name
        if (only and name not in only) or not (folder / split).is_file():
            continue
        names = json.loads((folder / split).read_text())
        yield Scene(
            name + ('' if split == 'split.json' else ' (block)'),
            ColmapSource(folder, names['map']),
            ColmapSource(folder, names['query']),
        )


def folds_of(folder: Path, count: int) -> Iterator[Scene]:
    """Yield a scene `count` times, each time with other images as queries."""
    names = json.loads((folder / 'split.json').read_text())
    images = sorted(names['map'] + names['query'])
    for fold in range(count):
        queries = images[fold::count]
        mapping = [name for name in images if name not in queries]
        yield Scene(
            f'{folder.name} ({count} folds)',
            ColmapSource(folder, mapping),
            ColmapSource(folder, queries),
        )


def simulated_scenes(folder: Path, seeds: list[int]) -> Iterator[Scene]:
    """Yield simulated buildings, rendered if they are not there yet."""
    for seed in seeds:
        logs = []
        for name, frames, trajectory_seed in (
            ('map', 60, 0),
            (f'query_day_{QUERIES}', QUERIES, 21),
        ):
            log = folder / f'b{seed}' / name
            if not (log / 'groundtruth_tum.txt').exists():
                config = SimulationConfig(
                    seed=seed, frames=frames, trajectory_seed=trajectory_seed, poses=False
                )
                log.parent.mkdir(parents=True, exist_ok=True)
                simulate_log(config, log, progress=False)
            logs.append(open_source(log, poses=log / 'groundtruth_tum.txt'))
        yield Scene(f'building {seed}', *logs)


def localize_queries(
    scene: Scene,
    features: FeatureConfig,
    built: Built,
    *,
    weights: str | None,
    known: Outcomes | None = None,
) -> Outcomes:
    """Localize the scene's queries with a method and with matching the whole database.

    Args:
        scene: With the queries.
        features: Of the maps.
        built: The method, and the points of the database.
        weights: Of the features.
        known: Outcomes with the same points, whose baseline is taken.

    Returns:
        For 'ours' and 'baseline' the result and the error (unit of the map, degrees) of each query.
    """
    methods: dict[str, Any] = {'ours': built.method}
    if known is None:
        methods['baseline'] = MatchingBaseline(built.reconstruction)
    extractor = create_extractor(features, weights=weights)
    outcomes: Outcomes = {'ours': [], 'baseline': list(known['baseline']) if known else []}
    for frame in scene.queries:
        assert frame.image is not None
        assert frame.map_from_camera is not None
        found = extractor.extract(frame.image)
        for name, method in methods.items():
            outcome = method.localize_features(found, frame.camera)
            error = None
            if outcome.map_from_camera is not None:
                error = pose_error(outcome.map_from_camera, frame.map_from_camera)
            outcomes[name].append((outcome, error))
    return outcomes


def row_of(name: str, builts: list[Built], outcomes: Outcomes) -> dict:
    """Return the figures of the queries of one or more maps of a scene."""

    def mean(values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    sizes = [MatchingBaseline(built.reconstruction).size_bytes() / 1e6 for built in builts]
    row: dict = {
        'scene': name,
        'mapping_images': round(mean(len(built.reconstruction.images) for built in builts)),
        'build_seconds': round(mean(built.build_seconds for built in builts), 1),
        'map_mb': round(mean(built.map_mb for built in builts), 2),
        'database_mb': round(mean(sizes), 1),
    }
    for method, entries in outcomes.items():
        errors = [error for _, error in entries if error is not None]
        metrics = metrics_from_errors(errors, len(entries))
        shares = [o.num_inliers / max(1, o.num_used) for o, _ in entries if o.localized]
        row[method] = {
            'localized': f'{metrics.num_localized}/{len(entries)}',
            'recall': metrics.recalls[RECALL],
            'median': metrics.median_m,
            'median_deg': metrics.median_deg,
            'max': metrics.max_m,
            'inlier_share': float(np.median(shares)) if shares else None,
            'inliers': float(np.median([o.num_inliers for o, _ in entries])),
            'search_and_pose_ms': float(
                np.median([o.latency_ms.get('total', np.nan) for o, _ in entries])
            ),
        }
    row['ratio'] = row['ours']['median'] / row['baseline']['median']
    return row


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a short table."""
    lines = [
        '| scene | mapping images | localized, ours and peer | median error, ours | peer | map | '
        "peer's database | search and pose, ours | peer |",
        '|---' * 9 + '|',
    ]
    for row in rows:
        ours, base = row['ours'], row['baseline']
        lines.append(
            f'| {row["scene"]} | {row["mapping_images"]} | {ours["localized"]}, '
            f'{base["localized"]} | {ours["median"]:.5f} | {base["median"]:.5f} | '
            f'{row["map_mb"]:.2f} MB | {row["database_mb"]:.1f} MB | '
            f'{ours["search_and_pose_ms"]:.0f} ms | {base["search_and_pose_ms"]:.0f} ms |'
        )
    return lines


def finite(document: Any) -> Any:
    """Return the document with null for numbers that JSON does not have."""
    if isinstance(document, dict):
        return {name: finite(value) for name, value in document.items()}
    if isinstance(document, list):
        return [finite(value) for value in document]
    if isinstance(document, float) and not np.isfinite(document):
        return None
    return document


def passes(row: dict[str, Any], ratio: float) -> bool:
    """Return whether all queries were localized, and as accurately as asked for."""
    found, _, count = row['ours']['localized'].partition('/')
    return found == count and row['ratio'] <= ratio


def wanted(args: argparse.Namespace) -> Iterator[tuple[str, list[Scene]]]:
    """Yield the name of each row and the scenes that it is made of."""
    if args.data and args.folds:
        for name in dict.fromkeys(name for name, _ in SCENES):
            if not args.scenes or name in args.scenes:
                parts = list(folds_of(args.data / name, args.folds))
                yield parts[0].name, parts
    elif args.data:
        for scene in photographed_scenes(args.data, args.scenes):
            yield scene.name, [scene]
    if args.simulated:
        for scene in simulated_scenes(args.simulated, args.buildings):
            yield scene.name, [scene]


def main() -> int:
    """Print a markdown table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, nargs='?')
    parser.add_argument('--simulated', type=Path, metavar='FOLDER')
    parser.add_argument('--buildings', type=int, nargs='+', default=[1, 2, 3], metavar='SEED')
    parser.add_argument('--scenes', nargs='*')
    parser.add_argument('--folds', type=int, help='ask every image of DATA once, in so many maps')
    parser.add_argument('--features', choices=('rootsift', 'superpoint'))
    parser.add_argument('--weights')
    parser.add_argument('--budget', default='standard', choices=('quick', 'standard', 'full'))
    parser.add_argument('--short-keys', type=int, default=0, help='as of d2s build-map')
    parser.add_argument('--json', type=Path)
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    parser.add_argument('--progress', action='store_true')
    parser.add_argument(
        '--check',
        type=float,
        metavar='RATIO',
        help='fail unless every query is localized and no ratio is above this',
    )
    args = parser.parse_args()
    started = time.time()
    lines = [
        '| scene | images | build [s] | map [MB] | database [MB] | localized | '
        'recall ours | baseline | median ours | '
        'median baseline | ratio | deg ours | deg baseline | inlier share ours | baseline | '
        'search and pose ours [ms] | baseline [ms] |',
        '|' + 17 * '---|',
    ]
    print('\n'.join(lines))
    rows = []
    features = FeatureConfig(name=args.features) if args.features else FeatureConfig()
    config = replace(budget(args.budget, features=features), short_keys=args.short_keys)
    for name, parts in wanted(args):
        builts = []
        outcomes: Outcomes = {'ours': [], 'baseline': []}
        for scene in parts:
            built = build(scene.mapping, config, weights=args.weights, progress=args.progress)
            builts.append(built)
            found = localize_queries(scene, features, built, weights=args.weights)
            for method, entries in found.items():
                outcomes[method] += entries
        row = row_of(name, builts, outcomes)
        rows.append(row)
        ours, base = row['ours'], row['baseline']
        lines.append(
            f'| {row["scene"]} | {row["mapping_images"]} | {row["build_seconds"]:.0f} | '
            f'{row["map_mb"]:.2f} | {row["database_mb"]:.1f} | {ours["localized"]} | '
            f'{100 * ours["recall"]:.1f} % | {100 * base["recall"]:.1f} % | '
            f'{ours["median"]:.5f} | {base["median"]:.5f} | **{row["ratio"]:.2f}** | '
            f'{ours["median_deg"]:.4f} | {base["median_deg"]:.4f} | '
            f'{ours["inlier_share"] or 0:.2f} | {base["inlier_share"] or 0:.2f} | '
            f'{ours["search_and_pose_ms"]:.0f} | {base["search_and_pose_ms"]:.0f} |'
        )
        print(lines[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps(finite(rows), indent=1))
    if args.record and rows:
        tables = {'scenes': lines, 'summary': summary(rows)}
        write_record(args.record, finite(rows), started, tables=tables)
    if not rows:
        print('no scene: give DATA with images and splits, or --simulated', file=sys.stderr)
        return 1
    missed = [row['scene'] for row in rows if args.check and not passes(row, args.check)]
    if missed:
        print(f'below what is asked for: {", ".join(missed)}', file=sys.stderr)
    return 1 if missed else 0


if __name__ == '__main__':
    sys.exit(main())
