"""SuperPoint against RootSIFT in whole maps: recall by day and under change.

    python benchmarks/features_in_maps.py DATA --json OUT.json --markdown OUT.md
        [--logs DIR] [--maps DIR] [--seeds 1 2 3] [--every 3] [--scenes fox castle-P30]
        [--also new=NEW.safetensors] [--choose lund_door]

Simulated buildings are mapped by day and queried by day, at dusk and at night; a query is right
within 5 cm and 5 degrees. Scenes of DATA (images/, a COLMAP text model, split.json) are mapped from
their mapping images; their queries come as taken and, in the scenes of --degraded, with other
exposures and blurred; right is within 1 % of the largest distance between mapping cameras and 5
degrees. All features get the same number of keypoints; --also adds SuperPoint with other weights.
Judged in this order: the share of all queries that is published and right, the 95th percentile of
the error of what is published, its median. Weights chosen by some scenes (--choose) are reported on
the others. Rendered logs in --logs and maps in --maps are used again; rows that are in OUT.json
already are kept, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.colmap_model import ColmapSource
from d2s_ros.data.frames import Frame, FrameSource
from d2s_ros.data.sources import open_source
from d2s_ros.data.tum import read_tum
from d2s_ros.features.degradations import Degradation, blurred, exposed
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import simulate_log

Image = NDArray[np.uint8]

#: Of all, what the others are compared with first.
FEATURES = ('rootsift', 'superpoint')
#: Right within this and 5 degrees in simulated buildings, metres.
RIGHT_M = 0.05
RIGHT_DEG = 5.0
#: And on real images within this share of the largest distance between mapping cameras.
RIGHT_SHARE = 0.01
#: A pose this many times further off than what is right is wrong, not merely inaccurate.
WRONG = 10.0

MAP_LOG = {'frames': 60}
QUERY_LOGS: dict[str, dict] = {
    'day': {'frames': 40, 'trajectory_seed': 21},
    'dusk': {'frames': 120, 'trajectory_seed': 22, 'lighting': 'dusk'},
    'night': {'frames': 120, 'trajectory_seed': 23, 'lighting': 'night'},
}
#: Stops of exposure, and lengths of motion blur relative to the longest side of the image.
STOPS = (-4, -3, -2, 2, 3)
BLURS = (0.008, 0.016, 0.024, 0.032)


DEGRADATIONS: dict[str, Degradation] = {
    **{f'exposure {stops:+d}': exposed(stops) for stops in STOPS},
    **{f'blur {share:.1%}': blurred(share) for share in BLURS},
}


def rendered(folder: Path, seed: int, changes: dict) -> Path:
    """Render a log unless it is there."""
    if not (folder / 'groundtruth_tum.txt').exists():
        simulate_log(SimulationConfig(seed=seed, poses=False, **changes), folder, progress=False)
    return folder


def thinned(frames: Iterable[Frame], every: int) -> Iterator[Frame]:
    """Yield every n-th frame, from the middle of the stride."""
    for index, frame in enumerate(frames):
        if index % every == every // 2:
            yield frame


def degraded(frames: Iterable[Frame], name: str, seed: int) -> Iterator[Frame]:
    """Yield the frames as `DEGRADATIONS` says; the same for all features."""
    for index, frame in enumerate(frames):
        if frame.image is not None and name in DEGRADATIONS:
            rng = np.random.default_rng([seed, index, list(DEGRADATIONS).index(name)])
            frame = replace(frame, image=DEGRADATIONS[name](frame.image, rng))
        yield frame


def localize(localizer: Localizer, frames: Iterable[Frame], truths: dict, right: float) -> dict:
    """Localize frames; count the right, the wrong and the refused."""
    errors = []
    count = 0
    for frame in frames:
        truth = truths.get(frame.stamp_ns)
        if truth is None:
            continue
        count += 1
        result = localizer.localize(frame.image, frame.camera)
        if result.map_from_camera is not None:
            errors.append(pose_error(result.map_from_camera, truth))
    found = np.array(errors, np.float64).reshape(-1, 2)
    good = (found[:, 0] <= right) & (found[:, 1] <= RIGHT_DEG)
    return {
        'queries': count,
        'localized': len(found),
        'right': int(good.sum()),
        'wrong': int((found[:, 0] > WRONG * right).sum()),
        'median_m': float(np.median(found[:, 0])) if len(found) else None,
        'median_deg': float(np.median(found[:, 1])) if len(found) else None,
        'p95_m': float(np.percentile(found[:, 0], 95)) if len(found) else None,
        # In units of what is right, so that scenes can be looked at together.
        'relative': [round(float(error / right), 4) for error in np.sort(found[:, 0])],
    }


class Table:
    """Rows by scene, condition and features, saved after each."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: dict[tuple[str, str, str], dict] = {}
        if path is not None and path.is_file():
            for row in json.loads(path.read_text())['rows']:
                self.rows[row['scene'], row['condition'], row['features']] = row

    def add(self, scene: str, condition: str, features: str, figures: dict) -> None:
        """Add a row, print and save it."""
        row = {'scene': scene, 'condition': condition, 'features': features, **figures}
        self.rows[scene, condition, features] = row
        print(json.dumps(row), flush=True)
        if self.path is not None:
            document = {'rows': list(self.rows.values()), 'summary': summary(self.rows)}
            self.path.write_text(json.dumps(document, indent=1) + '\n')


def group(condition: str) -> str:
    """Return the kind of a condition: its strengths are counted together."""
    return condition.split()[0]


def summary(rows: dict[tuple[str, str, str], dict]) -> list[dict]:
    """Return what counts by place, kind of condition and features; simulated buildings together.

    Errors are in units of what is right (`RIGHT_M`, `RIGHT_SHARE`).
    """
    totals: dict[tuple[str, str], dict[str, dict]] = {}
    for (scene, condition, features), row in rows.items():
        place = 'simulated' if scene.startswith('building') else scene
        by_features = totals.setdefault((place, group(condition)), {})
        total = by_features.setdefault(
            features, {'queries': 0, 'localized': 0, 'right': 0, 'wrong': 0, 'relative': []}
        )
        for name in total:
            total[name] += row[name]
    result = []
    for (place, kind), by_features in totals.items():
        entry: dict = {'place': place, 'condition': kind}
        for features, total in by_features.items():
            errors = total.pop('relative')
            entry[features] = {
                **total,
                'recall': round(total['right'] / max(1, total['queries']), 4),
                'p95': round(float(np.percentile(errors, 95)), 4) if errors else None,
                'median': round(float(np.median(errors)), 4) if errors else None,
            }
        result.append(entry)
    return result


def over_all(rows: dict[tuple[str, str, str], dict], scenes: set[str]) -> dict[str, dict]:
    """Return what counts by features, over all rows of some scenes that all features have."""
    names = {features for _, _, features in rows}
    shared = {key[:2] for key in rows if all((*key[:2], name) in rows for name in names)}
    result = {}
    for features in sorted(names):
        chosen = [
            row
            for key, row in rows.items()
            if key[2] == features and key[0] in scenes and key[:2] in shared
        ]
        errors = [error for row in chosen for error in row['relative']]
        medians = [
            np.log(row['relative'][len(row['relative']) // 2]) for row in chosen if row['relative']
        ]
        result[features] = {
            'queries': sum(row['queries'] for row in chosen),
            'right': sum(row['right'] for row in chosen),
            'wrong': sum(row['wrong'] for row in chosen),
            'p95': float(np.percentile(errors, 95)) if errors else None,
            'median': float(np.exp(np.mean(medians))) if medians else None,
        }
    return result


def markdown(table: Table, right: dict[str, float], choose: Sequence[str] = ()) -> str:
    """Return totals and all rows as markdown tables."""
    scenes = {scene for scene, _, _ in table.rows}
    lines = []
    for title, chosen in (
        ('Scenes that choose', scenes & set(choose)),
        ('Scenes that report', scenes - set(choose)),
    ):
        if not chosen:
            continue
        lines += [f'{title}: {", ".join(sorted(chosen))}.', '']
        lines += ['| features | queries | published and right | wrong | 95 % | medians |']
        lines += ['|---|---|---|---|---|---|']
        for features, total in over_all(table.rows, chosen).items():
            share = total['right'] / max(1, total['queries'])
            lines.append(
                f'| {features} | {total["queries"]} | {share:.1%} | {total["wrong"]} | '
                f'{number(total["p95"])} | {number(total["median"])} |'
            )
        lines += ['']
    lines += ['Errors above are in units of what is right; medians: geometric mean over the rows.']
    lines += [
        '',
        '| scene | condition | features | right | published | wrong | median | 95 % | deg |',
    ]
    lines += ['|---|---|---|---|---|---|---|---|---|']
    for row in sorted(table.rows.values(), key=lambda r: (r['scene'], r['condition'])):
        lines.append(
            f'| {row["scene"]} | {row["condition"]} | {row["features"]} | '
            f'{row["right"]}/{row["queries"]} | {row["localized"]} | {row["wrong"]} | '
            f'{number(row["median_m"])} | {number(row["p95_m"])} | {number(row["median_deg"])} |'
        )
    limits = ', '.join(f'{name} {limit:.3g}' for name, limit in right.items())
    lines += ['', f'Right is within 5 degrees and: {limits}.']
    return '\n'.join(lines) + '\n'


def number(value: float | None) -> str:
    """Format a median; none if nothing was localized."""
    return '-' if value is None else f'{value:.4g}'


def weights_of(args: argparse.Namespace, features: str) -> str | None:
    """Return the weight file of `features`; None: the packaged one, or none is needed."""
    return args.weights if features in FEATURES else dict(args.also)[features]


def contestants(args: argparse.Namespace) -> list[str]:
    """Return the names of all that is compared."""
    return [name for name in (*FEATURES, *dict(args.also)) if name not in args.without]


def mapped(
    args: argparse.Namespace, folder: Path, scene: str, features: str, source: FrameSource
) -> Path:
    """Build a map unless it is there."""
    path = folder / f'{scene}-{features}'
    if not (path / 'current').exists():
        name = 'rootsift' if features == 'rootsift' else 'superpoint'
        chosen = FeatureConfig(name=name, max_keypoints=args.max_keypoints)
        config = replace(budget(args.budget, features=chosen), keep_update_data=False)
        weights = weights_of(args, features)
        build_map(source, path, config, device=args.device, weights=weights, progress=False)
    return path


def asked(args: argparse.Namespace, condition: str) -> bool:
    """Whether a condition is to be measured."""
    return args.conditions is None or condition in args.conditions


def opened(args: argparse.Namespace, path: Path, features: str) -> Localizer:
    """Open a map with the features that it was built with."""
    return Localizer.from_map(path, device=args.device, weights=weights_of(args, features))


def run_simulated(args: argparse.Namespace, logs: Path, maps: Path, table: Table) -> None:
    """Map each building by day and query it."""
    for seed in args.seeds:
        scene = f'building {seed}'
        for features in contestants(args):
            open_rows = [
                c for c in QUERY_LOGS if asked(args, c) and (scene, c, features) not in table.rows
            ]
            if not open_rows:
                continue
            mapping = rendered(logs / f'b{seed}' / 'map', seed, MAP_LOG)
            source = open_source(mapping, poses=mapping / 'groundtruth_tum.txt')
            path = mapped(args, maps, f'b{seed}', features, source)
            localizer = opened(args, path, features)
            for condition in open_rows:
                changes = QUERY_LOGS[condition]
                query = rendered(logs / f'b{seed}' / f'query_{condition}', seed, changes)
                truth = read_tum(query / 'groundtruth_tum.txt')
                every = 1 if changes['frames'] <= 40 else args.every
                frames = list(thinned(open_source(query), every))
                truths = {frame.stamp_ns: truth.at(frame.stamp_ns) for frame in frames}
                table.add(scene, condition, features, localize(localizer, frames, truths, RIGHT_M))


def run_real(args: argparse.Namespace, maps: Path, table: Table, right: dict[str, float]) -> None:
    """Map each scene of real images and query it, as taken and degraded."""
    for scene in args.scenes:
        folder = args.data / scene
        names = json.loads((folder / 'split.json').read_text())
        queries = list(ColmapSource(folder, names['query']))
        truths = {frame.stamp_ns: frame.map_from_camera for frame in queries}
        mapping = ColmapSource(folder, names['map'])
        poses = [frame.map_from_camera for frame in mapping if frame.map_from_camera is not None]
        centres = np.array([pose.translation for pose in poses])
        size = float(np.linalg.norm(centres[:, None] - centres[None], axis=2).max())
        right[scene] = RIGHT_SHARE * size
        conditions = ['as taken', *(DEGRADATIONS if scene in args.degraded else ())]
        for features in contestants(args):
            open_rows = [
                c for c in conditions if asked(args, c) and (scene, c, features) not in table.rows
            ]
            if not open_rows:
                continue
            path = mapped(args, maps, scene, features, mapping)
            localizer = opened(args, path, features)
            for condition in open_rows:
                frames = degraded(queries, condition, args.seed)
                figures = localize(localizer, frames, truths, right[scene])
                table.add(scene, condition, features, figures)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, nargs='?', help='folder of real scenes')
    parser.add_argument('--scenes', nargs='*', default=['castle-P30', 'fox'])
    parser.add_argument('--degraded', nargs='*', default=['fox'], help='scenes to degrade')
    parser.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3], help='of buildings')
    parser.add_argument('--every', type=int, default=3, help='use every n-th query of long logs')
    parser.add_argument('--budget', default='standard', choices=('quick', 'standard', 'full'))
    parser.add_argument('--max-keypoints', type=int, default=2048)
    parser.add_argument('--weights', help='weight file of superpoint')
    parser.add_argument(
        '--also',
        nargs='*',
        default=[],
        type=lambda text: tuple(text.split('=', 1)),
        metavar='NAME=WEIGHTS',
        help='SuperPoint with other weights',
    )
    parser.add_argument('--without', nargs='*', default=[], help='features to leave out')
    parser.add_argument('--choose', nargs='*', default=[], help='scenes that weights are chosen by')
    parser.add_argument(
        '--conditions', nargs='*', help='only these: day, dusk, night, as taken, exposure -4 ...'
    )
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--seed', type=int, default=0, help='of the degradations')
    parser.add_argument('--logs', type=Path, help='folder of rendered logs, kept')
    parser.add_argument('--maps', type=Path, help='folder of maps, kept')
    parser.add_argument('--json', type=Path)
    parser.add_argument('--markdown', type=Path)
    return parser


def main() -> int:
    """Print a row per scene, condition and features; returns the exit code."""
    args = build_parser().parse_args()
    table = Table(args.json)
    right = {'simulated': RIGHT_M}
    with tempfile.TemporaryDirectory() as temporary:
        run_simulated(
            args, args.logs or Path(temporary) / 'logs', args.maps or Path(temporary), table
        )
        if args.data is not None:
            run_real(args, args.maps or Path(temporary), table, right)
    text = markdown(table, right, args.choose)
    print(text)
    if args.markdown:
        args.markdown.write_text(text)
    return 0 if table.rows else 1


if __name__ == '__main__':
    sys.exit(main())
