"""Whether covariances tell the truth: normalised squared errors of poses on held-out frames.

    python benchmarks/covariance.py [--work DIR] [--logs DIR] [--data DIR] [--json OUT.json]

Each simulated building is mapped from one log and asked for the poses of another one. The error of
each published pose is whitened by its covariance: its square (NEES) is 6 on average where
covariances are exact, and less where they are cautious. A second table has the share of errors in
the 90 % region by quarters of the predicted sigma, and poses that are off by more than
their protection level. With --data, fox and castle-P30 are judged too, and with --folds left-out
images of real scenes in maps of the others. Logs, maps and features in the folders are used again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# First: it decides how threads wait, before any is started.
from places import Places, is_building
from real_scenes import RealScenes
from records import write_record

from d2s_ros.evaluation.metrics import rate_bound
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.protection import PROTECTION_SIGMAS, protection_level
from d2s_ros.localization.result import LocalizationResult
from d2s_ros.map_building.calibration import pose_difference

#: Share of the chi-square distribution with six degrees of freedom, and the value that bounds it.
QUANTILES = ((0.50, 5.348), (0.90, 10.645), (0.95, 12.592), (0.99, 16.812))
#: Share that the 90 % region must hold in each quarter and condition.
LEAST_IN_90 = 0.85
#: A pose that is off by more is wrong: metres in buildings, scene depths in real scenes.
WRONG = (0.5, 0.05)
#: Condition of the left-out images of real scenes.
REAL = 'real scenes'


def published(
    places: Places, place: str, part: str, every: int = 1
) -> tuple[list[dict[str, Any]], int]:
    """Return what `described` returns of the published poses of a log, and the frames asked."""
    localizer = Localizer.from_map(places.map(place), device='cpu')
    rows = []
    frames = places.observed(place, part, localizer.extractor)[::every]
    for frame in frames:
        result = localizer.localize_features(frame.features, frame.camera)
        if result.localized:
            assert frame.truth is not None
            rows.append(described(result, frame.truth))
    return rows, len(frames)


def published_of_fold(
    scenes: RealScenes, scene: str, fold: int
) -> tuple[list[dict[str, Any]], int]:
    """Return the same of the left-out images of a fold; lengths in scene depths."""
    scene_map = scenes.map(scene, fold, 'now')
    depth = scene_map.manifest.calibration.scene_depth
    localizer = Localizer(scene_map, scenes.extractor)
    rows = []
    frames = scenes.split(scene, fold)[1]
    for frame in frames:
        result = localizer.localize_features(frame.features, frame.camera)
        if result.localized:
            assert frame.truth is not None
            found = described(result, frame.truth)
            rows.append(found | {name: found[name] / depth for name in ('sigma', 'level')})
    return rows, len(frames)


def described(result: LocalizationResult, truth: RigidTransform) -> dict[str, Any]:
    """Return squared errors over the covariance, sigma, and the error over the protection level.

    Args:
        result: A published pose.
        truth: map_from_camera.
    """
    assert result.map_from_camera is not None
    assert result.covariance is not None
    error = pose_difference(result.map_from_camera, truth)
    parts = {'nees': slice(0, 6), 'translation': slice(0, 3), 'rotation': slice(3, 6)}
    found = {
        name: float(error[part] @ np.linalg.solve(result.covariance[part, part], error[part]))
        for name, part in parts.items()
    }
    level = protection_level(result.covariance)
    off = float(np.linalg.norm(error[:3]))
    return found | {'sigma': level / PROTECTION_SIGMAS, 'level': level, 'over_level': off / level}


def quarter_table(rows: dict[str, list[dict[str, Any]]]) -> tuple[list[str], dict[str, Any]]:
    """Return a markdown table of the share of errors in the 90 % region, by predicted difficulty.

    Args:
        rows: What `described` returns of published poses, by condition.
    """
    lines = [
        '| condition | poses | easiest quarter in 90 % | second | third | hardest | '
        'beyond the protection level | 95 % bound | median level |',
        '|---' * 9 + '|',
    ]
    figures = {}
    # Lengths of real scenes have no common unit.
    together = [row for name, part in rows.items() if name != REAL for row in part]
    for name, found in [
        *rows.items(),
        ('all but real scenes' if REAL in rows else 'all', together),
    ]:
        if len(found) < 4:
            continue
        by_sigma = sorted(found, key=lambda row: row['sigma'])
        quarters = [
            float(np.mean([row['nees'] <= QUANTILES[1][1] for row in part]))
            for part in np.array_split(np.array(by_sigma, dtype=object), 4)
        ]
        beyond = sum(row['over_level'] > 1.0 for row in found)
        bound = rate_bound(beyond, len(found))
        level = float(np.median([row['level'] for row in found]))
        unit = '% of depth' if name == REAL else 'cm'
        figures[name] = {
            'poses': len(found),
            'quarters': quarters,
            'beyond': beyond,
            'wrong': sum(row['over_level'] * row['level'] > WRONG[name == REAL] for row in found),
            'bound': bound,
            'median_level': level,
        }
        shares = ' | '.join(f'{100 * share:.0f} %' for share in quarters)
        lines.append(
            f'| {name} | {len(found)} | {shares} | {beyond} | {100 * bound:.1f} % | '
            f'{100 * level:.1f} {unit} |'
        )
    return lines, figures


def row(name: str, found: list[dict[str, Any]], frames: int) -> dict[str, Any]:
    """Return the figures of a place."""
    nees = np.array([one['nees'] for one in found])
    return {
        'place': name,
        'frames': frames,
        'localized': len(found),
        'mean': float(nees.mean()),
        'median': float(np.median(nees)),
        'mean_translation': float(np.mean([one['translation'] for one in found])),
        'mean_rotation': float(np.mean([one['rotation'] for one in found])),
        'coverage': [float((nees <= limit).mean()) for _, limit in QUANTILES],
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
    parser.add_argument('--folds', nargs='+', default=[], metavar='SCENE:FOLD')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('W', 'H'),
        help='of rendered images, if none are there',
    )
    parser.add_argument('--every', type=int, default=1, help='ask about every n-th frame only')
    parser.add_argument('--json', type=Path, help='every place and pose')
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    parser.add_argument('--check', action='store_true', help='fail if the targets are missed')
    args = parser.parse_args()
    started = time.time()
    places = Places(args.work, args.logs, args.data, args.size)
    names = [f'b{seed}' for seed in args.seeds]
    if args.data is not None and not args.folds:
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

    by_condition: dict[str, list[dict[str, Any]]] = {}
    for name in [name for name in names if not is_building(name)]:
        by_condition[name], count = published(places, name, 'query', args.every)
        show(row(name, by_condition[name], count))
    if args.folds:
        scenes = RealScenes(args.data, args.work)
        for name in args.folds:
            scene, _, fold = name.partition(':')
            of_fold, count = published_of_fold(scenes, scene, int(fold))
            show(row(f'{scene}, fold {fold}', of_fold, count))
            by_condition[REAL] = [*by_condition.get(REAL, []), *of_fold]
    buildings = [name for name in names if is_building(name)]
    for part in args.parts if buildings else ():
        found = [published(places, name, part, args.every) for name in buildings]
        title = 'buildings, ' + part.removeprefix('query_').replace('_', ' at ')
        by_condition[title] = [one for rows_of, _ in found for one in rows_of]
        show(row(title, by_condition[title], sum(count for _, count in found)))
    quarters, quarter_figures = quarter_table(by_condition)
    print('\n' + '\n'.join(quarters))
    if args.json:
        args.json.write_text(json.dumps({'places': rows, 'poses': by_condition}))
    if args.record:
        write_record(
            args.record,
            {'places': rows, 'quarters': quarter_figures},
            started,
            tables={'coverage': lines, 'quarters': quarters},
        )
    if args.check:
        least = min(min(figures['quarters']) for figures in quarter_figures.values())
        if least < LEAST_IN_90:
            print(f'only {100 * least:.0f} % of a quarter in the region of 90 %', file=sys.stderr)
            return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
