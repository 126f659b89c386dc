"""SuperPoint against RootSIFT in whole maps: recall by day and under change.

    python benchmarks/features_in_maps.py DATA --json OUT.json --markdown OUT.md
        [--logs DIR] [--maps DIR] [--seeds 1 2 3] [--every 3] [--scenes fox castle-P30]

Simulated buildings are mapped by day and queried by day, at dusk and at night; a query is right
within 5 cm and 5 degrees. Scenes of DATA (images/, a COLMAP text model, split.json) are mapped from
their mapping images; their queries come as taken and, in the scenes of --degraded, with other
exposures and blurred; right is within 1 % of the largest distance between mapping cameras and 5
degrees. Both features get the same number of keypoints. Rendered logs in --logs and maps in --maps
are used again; rows that are in OUT.json already are kept, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from d2s_ros.threads import wait_passively

wait_passively()

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.colmap_model import ColmapSource
from d2s_ros.data.frames import Frame, FrameSource
from d2s_ros.data.sources import open_source
from d2s_ros.data.tum import read_tum
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import simulate_log

Image = NDArray[np.uint8]

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
#: What done means: recall under change at least this much above RootSIFT's.
TARGET_GAIN = 0.15


def exposed(stops: float) -> Callable[[Image, np.random.Generator], Image]:
    """Return a change of exposure with sensor noise before the 8 bits."""

    def change(image: Image, rng: np.random.Generator) -> Image:
        light = image.astype(np.float32) * 2.0**stops
        light += rng.normal(size=image.shape).astype(np.float32)
        return np.asarray(np.clip(np.rint(light), 0, 255), np.uint8)

    return change


def blurred(share: float) -> Callable[[Image, np.random.Generator], Image]:
    """Return motion blur along a random direction, with sensor noise."""

    def change(image: Image, rng: np.random.Generator) -> Image:
        half = 0.5 * share * max(image.shape[:2])
        size = 2 * int(np.ceil(half)) + 3
        angle = rng.uniform(0, np.pi)
        kernel = np.zeros((size, size), np.float32)
        centre = (size - 1) / 2
        for t in np.linspace(-half, half, 8 * size):
            x, y = centre + t * np.cos(angle), centre + t * np.sin(angle)
            left, top = int(x), int(y)
            for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
                kernel[top + dy, left + dx] += (1 - abs(x - left - dx)) * (1 - abs(y - top - dy))
        result = cv2.filter2D(
            image.astype(np.float32), -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101
        )
        result = np.asarray(result) + rng.normal(size=image.shape).astype(np.float32)
        return np.asarray(np.clip(np.rint(result), 0, 255), np.uint8)

    return change


DEGRADATIONS: dict[str, Callable[[Image, np.random.Generator], Image]] = {
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
    """Return recall by place, kind of condition and features; simulated buildings together."""
    totals: dict[tuple[str, str], dict[str, dict]] = {}
    for (scene, condition, features), row in rows.items():
        place = 'simulated' if scene.startswith('building') else scene
        by_features = totals.setdefault((place, group(condition)), {})
        total = by_features.setdefault(features, {'queries': 0, 'right': 0, 'wrong': 0, 'm': []})
        for name in ('queries', 'right', 'wrong'):
            total[name] += row[name]
        if row['median_m'] is not None:
            total['m'].append(row['median_m'])
    result = []
    for (place, kind), by_features in totals.items():
        entry: dict = {'place': place, 'condition': kind}
        for features, total in by_features.items():
            entry[features] = {
                'queries': total['queries'],
                'recall': round(total['right'] / max(1, total['queries']), 4),
                'wrong': total['wrong'],
                'median_m': float(np.mean(total['m'])) if total['m'] else None,
            }
        result.append(entry)
    return result


def markdown(table: Table, right: dict[str, float]) -> str:
    """Return the summary and all rows as markdown tables."""
    lines = [
        '| place | queries | condition | recall RootSIFT | recall SuperPoint | gain, points |'
        ' wrong RootSIFT / SuperPoint | median RootSIFT | median SuperPoint |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for entry in summary(table.rows):
        if not all(name in entry for name in FEATURES):
            continue
        base, ours = (entry[name] for name in FEATURES)
        gain = 100 * (ours['recall'] - base['recall'])
        lines.append(
            f'| {entry["place"]} | {base["queries"]} | {entry["condition"]} | '
            f'{base["recall"]:.1%} | {ours["recall"]:.1%} | {gain:+.1f} | '
            f'{base["wrong"]} / {ours["wrong"]} | {number(base["median_m"])} | '
            f'{number(ours["median_m"])} |'
        )
    lines += ['', '| scene | condition | features | right | localized | wrong | median | deg |']
    lines += ['|---|---|---|---|---|---|---|---|']
    for row in sorted(table.rows.values(), key=lambda r: (r['scene'], r['condition'])):
        lines.append(
            f'| {row["scene"]} | {row["condition"]} | {row["features"]} | '
            f'{row["right"]}/{row["queries"]} | {row["localized"]} | {row["wrong"]} | '
            f'{number(row["median_m"])} | {number(row["median_deg"])} |'
        )
    limits = ', '.join(f'{name} {limit:.3g}' for name, limit in right.items())
    lines += ['', f'Right is within 5 degrees and: {limits}.']
    return '\n'.join(lines) + '\n'


def number(value: float | None) -> str:
    """Format a median; none if nothing was localized."""
    return '-' if value is None else f'{value:.4g}'


def mapped(
    args: argparse.Namespace, folder: Path, scene: str, features: str, source: FrameSource
) -> Path:
    """Build a map unless it is there."""
    path = folder / f'{scene}-{features}'
    if not (path / 'current').exists():
        chosen = FeatureConfig(name=features, max_keypoints=args.max_keypoints)
        config = replace(budget(args.budget, features=chosen), keep_update_data=False)
        build_map(source, path, config, device=args.device, weights=args.weights, progress=False)
    return path


def run_simulated(args: argparse.Namespace, logs: Path, maps: Path, table: Table) -> None:
    """Map each building by day and query it."""
    for seed in args.seeds:
        scene = f'building {seed}'
        for features in FEATURES:
            open_rows = [c for c in QUERY_LOGS if (scene, c, features) not in table.rows]
            if not open_rows:
                continue
            mapping = rendered(logs / f'b{seed}' / 'map', seed, MAP_LOG)
            source = open_source(mapping, poses=mapping / 'groundtruth_tum.txt')
            path = mapped(args, maps, f'b{seed}', features, source)
            localizer = Localizer.from_map(path, device=args.device, weights=args.weights)
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
        for features in FEATURES:
            open_rows = [c for c in conditions if (scene, c, features) not in table.rows]
            if not open_rows:
                continue
            path = mapped(args, maps, scene, features, mapping)
            localizer = Localizer.from_map(path, device=args.device, weights=args.weights)
            for condition in open_rows:
                frames = degraded(queries, condition, args.seed)
                figures = localize(localizer, frames, truths, right[scene])
                table.add(scene, condition, features, figures)


def main() -> int:
    """Print a row per scene, condition and features; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, nargs='?', help='folder of real scenes')
    parser.add_argument('--scenes', nargs='*', default=['castle-P30', 'fox'])
    parser.add_argument('--degraded', nargs='*', default=['fox'], help='scenes to degrade')
    parser.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3], help='of buildings')
    parser.add_argument('--every', type=int, default=3, help='use every n-th query of long logs')
    parser.add_argument('--budget', default='standard', choices=('quick', 'standard', 'full'))
    parser.add_argument('--max-keypoints', type=int, default=2048)
    parser.add_argument('--weights', help='weight file of superpoint')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--seed', type=int, default=0, help='of the degradations')
    parser.add_argument('--logs', type=Path, help='folder of rendered logs, kept')
    parser.add_argument('--maps', type=Path, help='folder of maps, kept')
    parser.add_argument('--json', type=Path)
    parser.add_argument('--markdown', type=Path)
    args = parser.parse_args()
    table = Table(args.json)
    right = {'simulated': RIGHT_M}
    with tempfile.TemporaryDirectory() as temporary:
        run_simulated(
            args, args.logs or Path(temporary) / 'logs', args.maps or Path(temporary), table
        )
        if args.data is not None:
            run_real(args, args.maps or Path(temporary), table, right)
    text = markdown(table, right)
    print(text)
    if args.markdown:
        args.markdown.write_text(text)
    return 0 if table.rows else 1


if __name__ == '__main__':
    sys.exit(main())
