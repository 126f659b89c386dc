"""Whether covariances tell the truth: normalised squared errors of poses on held-out frames.

    python benchmarks/covariance.py [--work DIR] [--logs DIR] [--data DIR] [--json OUT.json]

Each simulated building is mapped from one log and asked for the poses of another one. The error of
each published pose is whitened by its covariance: its square (NEES) should be 6 on average, and
follow the chi-square distribution with six degrees of freedom. With --data, fox and castle-P30 are
judged too. Logs, maps and features in the folders are used again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

# First: it decides how threads wait, before any is started.
from places import Places, is_building
from records import write_record

from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.calibration import pose_difference

#: Share of the chi-square distribution with six degrees of freedom, and the value that bounds it.
QUANTILES = ((0.50, 5.348), (0.90, 10.645), (0.95, 12.592), (0.99, 16.812))


def normalised_errors(places: Places, place: str, part: str) -> tuple[np.ndarray, int]:
    """Return squared errors (N, 3) of the whole pose, its translation and its rotation; frames."""
    localizer = Localizer.from_map(places.map(place), device='cpu')
    rows = []
    frames = places.observed(place, part, localizer.extractor)
    for frame in frames:
        result = localizer.localize_features(frame.features, frame.camera)
        if result.map_from_camera is None or result.covariance is None:
            continue
        assert frame.truth is not None
        error = pose_difference(result.map_from_camera, frame.truth)
        rows.append(
            [
                float(error[part] @ np.linalg.solve(result.covariance[part, part], error[part]))
                for part in (slice(0, 6), slice(0, 3), slice(3, 6))
            ]
        )
    return np.array(rows).reshape(-1, 3), len(frames)


def row(name: str, values: np.ndarray, frames: int) -> dict:
    """Return the figures of a place."""
    return {
        'place': name,
        'frames': frames,
        'localized': len(values),
        'mean': float(values[:, 0].mean()),
        'median': float(np.median(values[:, 0])),
        'mean_translation': float(values[:, 1].mean()),
        'mean_rotation': float(values[:, 2].mean()),
        'coverage': [float((values[:, 0] <= limit).mean()) for _, limit in QUANTILES],
    }


def main() -> int:
    """Print a markdown table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work', type=Path, default=Path('covariance_output'))
    parser.add_argument('--logs', type=Path, help='rendered logs (default: in the work folder)')
    parser.add_argument('--data', type=Path, help='folder of fox and castle-P30')
    parser.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3])
    parser.add_argument(
        '--parts', nargs='+', default=['query_day'], help='logs of the buildings to judge'
    )
    parser.add_argument('--json', type=Path)
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    parser.add_argument('--check', action='store_true', help='fail if the targets are missed')
    args = parser.parse_args()
    started = time.time()
    places = Places(args.work, args.logs, args.data)
    names = [f'b{seed}' for seed in args.seeds]
    if args.data is not None:
        names += [name for name in ('fox', 'castle-P30') if (args.data / name).is_dir()]
    lines = [
        '| place | localized | mean NEES | median | translation (3) | rotation (3) | '
        + ' | '.join(f'in {100 * share:.0f} %' for share, _ in QUANTILES)
        + ' |',
        '|---' * (6 + len(QUANTILES)) + '|',
    ]
    print('\n'.join(lines))
    rows: list[dict] = []

    def show(entry: dict) -> None:
        rows.append(entry)
        lines.append(
            f'| {entry["place"]} | {entry["localized"]}/{entry["frames"]} | {entry["mean"]:.2f} | '
            f'{entry["median"]:.2f} | {entry["mean_translation"]:.2f} | '
            f'{entry["mean_rotation"]:.2f} | '
            + ' | '.join(f'{100 * share:.0f} %' for share in entry['coverage'])
            + ' |'
        )
        print(lines[-1], flush=True)

    for name in [name for name in names if not is_building(name)]:
        show(row(name, *normalised_errors(places, name, 'query')))
    buildings = [name for name in names if is_building(name)]
    for part in args.parts if buildings else ():
        found = [normalised_errors(places, name, part) for name in buildings]
        values = np.concatenate([values for values, _ in found])
        title = 'buildings, ' + part.removeprefix('query_').replace('_', ' at ')
        show(row(title, values, sum(count for _, count in found)))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    if args.record:
        write_record(args.record, rows, started, tables={'coverage': lines})
    if args.check and buildings:
        total = rows[-1]
        off = [
            abs(found - share)
            for found, (share, _) in zip(total['coverage'], QUANTILES, strict=True)
        ]
        if not 4.5 <= total['mean'] <= 7.5 or max(off) > 0.05:
            print('the covariances miss the targets', file=sys.stderr)
            return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
