"""How often a right pose is refused in real scenes, and by which check.

    python benchmarks/availability.py DATA --work FOLDER [--scenes fox walk_loop:1 ...] [--record]

DATA has the scenes of `real_scenes.SCENES`. Each fold's left-out images are asked for in a map of
the others. A pose is right within 5 degrees and 5 % of the map's scene depth of the reference. Of
the frames whose pose the solver has right, published or not, the share that is published counts.
Matching everything says which frames can be placed at all; it takes longest and may be left out.
What takes long is kept in FOLDER; maps under the name that --variant gives.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

from places import Observed
from real_scenes import SCENES, RealScenes
from records import write_record

from d2s_ros.evaluation.baseline import MatchingBaseline
from d2s_ros.evaluation.metrics import rate_bound
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import BuildConfig, budget
from d2s_ros.localization.result import LocalizationResult, first_failure

#: A pose is right within these: scene depths, degrees.
RIGHT_DEPTHS, RIGHT_DEG = 0.05, 5.0
#: What is tuned may look at the folds of these scenes; the others report.
CHOSEN_ON = ('walk_loop', 'fox')


def ask(localizer: Localizer, frame: Observed) -> dict[str, Any]:
    """Localize a frame; errors are of what the solver found, whether it was published or not."""
    result = localizer.localize_features(frame.features, frame.camera, details=True)
    return {'frame': frame.name, **described(result, frame, localizer)}


def described(result: LocalizationResult, frame: Observed, localizer: Localizer) -> dict[str, Any]:
    """Return what counts of a result, JSON types."""
    estimate = result.details.estimate if result.details is not None else None
    depth = localizer.scene_map.manifest.calibration.scene_depth or 1.0
    row: dict[str, Any] = {
        'published': result.localized,
        'keypoints': result.num_keypoints,
        'reliable': result.num_reliable,
        'used': result.num_used,
        'inliers': result.num_inliers,
        'right': False,
        'checks': {check.name: [check.value, check.limit] for check in result.checks},
    }
    failure = first_failure(result.checks)
    if failure is not None:
        row['failed'], row['reason'] = failure.name, failure.reason
    if estimate is None:
        return row
    row['support'] = 0 if estimate.support is None else estimate.support.count
    row['spread'] = estimate.spread(frame.camera)
    row['extent'] = estimate.extent / depth
    values = np.diag(estimate.covariance)
    row['sigma'] = [
        float(np.sqrt(values[:3].max())) / depth,
        float(np.degrees(values[3:].max() ** 0.5)),
    ]
    if frame.truth is not None:
        metres, degrees = pose_error(estimate.camera_from_map.inverse(), frame.truth)
        row['error'] = [metres / depth, degrees]
        row['right'] = metres <= RIGHT_DEPTHS * depth and degrees <= RIGHT_DEG
    return row


def ask_fold(
    scenes: RealScenes,
    scene: str,
    fold: int,
    variant: str,
    config: BuildConfig | None = None,
    *,
    matching: bool = True,
) -> list[dict[str, Any]]:
    """Ask for all left-out images of a fold."""
    scene_map = scenes.map(scene, fold, variant, config)
    localizer = Localizer(scene_map, scenes.extractor)
    by_matching = _matched(scenes, scene, fold) if matching else {}
    depth = scene_map.manifest.calibration.scene_depth or 1.0
    rows = []
    for frame in scenes.split(scene, fold)[1]:
        row = {'scene': scene, 'fold': fold, **ask(localizer, frame)}
        error = by_matching.get(frame.name)
        row['matching_right'] = (
            error is not None and error[0] <= RIGHT_DEPTHS * depth and error[1] <= RIGHT_DEG
        )
        if not matching:
            row['matching_right'] = None
        rows.append(row)
    return rows


def _matched(scenes: RealScenes, scene: str, fold: int) -> dict[str, list[float] | None]:
    """Return the errors of matching everything, from the folder if they are there."""
    path = scenes.work / 'matching' / f'{scene}_{fold}.json'
    if not path.exists():
        baseline = MatchingBaseline(scenes.reconstruction(scene, fold))
        errors: dict[str, list[float] | None] = {}
        for frame in scenes.split(scene, fold)[1]:
            result = baseline.localize_features(frame.features, frame.camera)
            errors[frame.name] = None
            if result.map_from_camera is not None and frame.truth is not None:
                errors[frame.name] = list(pose_error(result.map_from_camera, frame.truth))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(errors))
    known: dict[str, list[float] | None] = json.loads(path.read_text())
    return known


def figures_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what counts of the frames of one scene."""
    right = [row for row in rows if row['right']]
    published = [row for row in rows if row['published']]
    errors = np.array([row['error'] for row in published]) if published else np.zeros((0, 2))
    return {
        'frames': len(rows),
        'matching_right': None
        if any(row['matching_right'] is None for row in rows)
        else sum(row['matching_right'] for row in rows),
        'solver_right': len(right),
        'published_of_right': sum(row['published'] for row in right),
        'published_wrong': sum(not row['right'] for row in published),
        'median_depths': float(np.median(errors[:, 0])) if len(errors) else None,
        'median_deg': float(np.median(errors[:, 1])) if len(errors) else None,
        'reliable': float(np.median([row['reliable'] / max(1, row['keypoints']) for row in rows])),
        'refused_right_by': dict(
            Counter(row['failed'] for row in right if not row['published']).most_common()
        ),
    }


def table(rows: list[dict[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    """Return a markdown table by scene, and its figures."""
    lines = [
        '| scene | frames | matching right | solver right | of them published | 95 % bound '
        '| published wrong | '
        'median [% of depth] | median [deg] | reliable | right ones refused by |',
        '|---' * 11 + '|',
    ]
    names = [name for name in SCENES if any(row['scene'] == name for row in rows)]
    groups = {name: [row for row in rows if row['scene'] == name] for name in names}
    groups['all'] = rows
    groups['reported'] = [row for row in rows if row['scene'] not in CHOSEN_ON]
    figures = {}
    for name, group in groups.items():
        if not group:
            continue
        found = figures[name] = figures_of(group)
        share = 100 * found['published_of_right'] / max(1, found['solver_right'])
        lost = found['solver_right'] - found['published_of_right']
        least = 1.0 - rate_bound(lost, found['solver_right'])
        matched = 'not asked' if found['matching_right'] is None else found['matching_right']
        by = ', '.join(f'{check} {count}' for check, count in found['refused_right_by'].items())
        lines.append(
            f'| {name} | {found["frames"]} | {matched} | {found["solver_right"]} | '
            f'{found["published_of_right"]} ({share:.1f} %) | at least {100 * least:.1f} % | '
            f'{found["published_wrong"]} | '
            f'{100 * (found["median_depths"] or 0):.2f} | {found["median_deg"] or 0:.2f} | '
            f'{100 * found["reliable"]:.0f} % | {by} |'
        )
    return lines, figures


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', type=Path)
    parser.add_argument('--work', type=Path, required=True)
    parser.add_argument(
        '--scenes', nargs='+', default=list(SCENES), help='SCENE: all folds, or SCENE:FOLD'
    )
    parser.add_argument('--skip-matching', action='store_true', help='do not match everything')
    parser.add_argument('--variant', default='now', help='name under which maps are kept')
    parser.add_argument('--json', type=Path, help='every frame')
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    args = parser.parse_args()
    started = time.time()
    scenes = RealScenes(args.data, args.work)
    config = budget('standard')
    rows: list[dict[str, Any]] = []
    for name in args.scenes:
        scene, _, fold = name.partition(':')
        for number in [int(fold)] if fold else range(SCENES[scene].folds):
            rows += ask_fold(
                scenes, scene, number, args.variant, config, matching=not args.skip_matching
            )
            print(f'{scene} {number}', file=sys.stderr, flush=True)
    lines, figures = table(rows)
    print('\n'.join(lines))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows))
    if args.record:
        write_record(args.record, figures, started, tables={'places': lines})
    return 0


if __name__ == '__main__':
    sys.exit(main())
