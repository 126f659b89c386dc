"""What becomes of images whose calibration is wrong, and of those whose calibration is right.

    python benchmarks/wrong_calibration.py DATA --work FOLDER --places FOLDER [--logs DIR]

The left-out images of two folds of walk_loop and of one of fox, whose maps `availability.py` left
in FOLDER, and those of simulated buildings by day are asked about with calibrations that are off as
people get them wrong. A pose is wrong if it is off by more than ten times the median error with the
right calibration. The node sees the same images in order and puts together what the last twenty
tell. With the right calibration, images of more light and of moved furniture are asked about.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

from places import Observed, Places
from real_scenes import RealScenes
from records import write_record

from d2s_ros.evaluation.metrics import rate_bound
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.result import LocalizationStatus
from d2s_ros.tracking.calibration_watch import CalibrationWatch

#: Wrong poses are off by more than so many median errors.
WRONG_MEDIANS = 10.0
_K1 = -0.2
#: Places that nothing was chosen on, and the one that thresholds were chosen on (b1).
_BUILDINGS, _REAL = ('b1', 'b2'), (('walk_loop', 1), ('walk_loop', 3), ('fox', 0))
#: Logs of a building that are asked about with the right calibration.
_CONDITIONS = ('query_day', 'query_dusk', 'query_night', 'query_moved')
#: Poses of the solver that are right, m and degrees.
_RIGHT = (0.05, 5.0)


def bent(camera: Camera) -> Camera:
    """Return a camera with the distortion of a wide lens."""
    return replace(camera.ideal, model='plumb_bob', distortion=(_K1, 0.0, 0.0, 0.0, 0.0))


def seen_by(frame: Observed, camera: Camera) -> Observed:
    """Return a frame as another camera at the same place would have taken it."""
    rays = frame.camera.normalize(frame.features.keypoints)
    keep = np.isfinite(rays).all(axis=1, keepdims=True)
    rays = np.column_stack([np.where(keep, rays, 0.0), np.ones(len(rays))])
    keypoints = camera.project(rays).astype(np.float32)
    return replace(frame, features=replace(frame.features, keypoints=keypoints))


def shifted(frame: Observed) -> Observed:
    """Give the principal point 30 px off, of an image 640 px wide."""
    camera = frame.camera
    return replace(frame, camera=replace(camera, cx=camera.cx + 30.0 * camera.width / 640.0))


def narrowed(frame: Observed) -> Observed:
    """Give fx alone 10 % too large."""
    return replace(frame, camera=replace(frame.camera, fx=1.1 * frame.camera.fx))


def without_distortion(frame: Observed) -> Observed:
    """Give no distortion of a lens that has one."""
    return replace(seen_by(frame, bent(frame.camera)), camera=frame.camera.ideal)


def rectified(frame: Observed) -> Observed:
    """Give the raw camera's distortion of an image that is rectified."""
    return replace(seen_by(frame, frame.camera.ideal), camera=bent(frame.camera))


FAULTS: dict[str, Callable[[Observed], Observed]] = {
    'none': lambda frame: frame,
    'principal point off by 30 px': shifted,
    'fx alone 10 % too large': narrowed,
    'k1 of -0.2 missing': without_distortion,
    'rectified, with k1 of -0.2 given': rectified,
}


def ask(localizer: Localizer, frames: list[Observed]) -> dict[str, dict[str, Any]]:
    """Return by fault what single images and the node make of it."""
    return {
        fault: ask_with(localizer, list(map(change, frames))) for fault, change in FAULTS.items()
    }


def ask_with(localizer: Localizer, frames: list[Observed]) -> dict[str, Any]:
    """Return the errors of published poses, when the node told and what it published, statuses."""
    limits = localizer.estimator.config.limits
    watch, errors, by_node, told = CalibrationWatch(), [], [], 0
    right, lost = 0, 0
    statuses: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for count, frame in enumerate(frames, start=1):
        assert frame.truth is not None
        result = localizer.localize_features(frame.features, frame.camera, details=True)
        statuses[result.status.value] += 1
        problem = watch.check(result, limits.max_focal_error, limits.max_intrinsics_error)
        told = told or (count if problem else 0)
        mismatch = result.status is LocalizationStatus.CALIBRATION_MISMATCH
        if mismatch or problem:
            reasons.update([problem or result.reason])
        assert result.details is not None
        estimate = result.details.estimate
        if estimate is not None and (mismatch or result.localized):
            distance, degrees = pose_error(estimate.camera_from_map.inverse(), frame.truth)
            close = distance <= _RIGHT[0] and degrees <= _RIGHT[1]
            right += close
            lost += close and (mismatch or bool(problem))
        if result.map_from_camera is not None:
            errors.append(list(pose_error(result.map_from_camera, frame.truth)))
            by_node += [errors[-1]] if not problem else []
    return {
        'images': len(frames),
        'errors': errors,
        'by_node': by_node,
        'told': told,
        'right': right,
        'lost': lost,
        'statuses': dict(statuses.most_common()),
        'reasons': dict(reasons.most_common(3)),
    }


def wrong(errors: list[list[float]], faults: dict[str, dict[str, Any]]) -> int:
    """Return how many errors are above ten medians of those with the right calibration."""
    right = np.median(np.array(faults['none']['errors']), axis=0)
    rows = np.array(errors).reshape(-1, 2)
    return int((rows > WRONG_MEDIANS * right).any(axis=1).sum())


def table(places: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Return a markdown table of wrong calibrations."""
    lines = [
        '| place | what is wrong | images | published | wrong | the node tells with image '
        '| published by the node | wrong | refused because |',
        '|---' * 9 + '|',
    ]
    total: Counter[str] = Counter()
    for place, faults in places.items():
        for fault, row in faults.items():
            if fault == 'none':
                continue
            counts = [len(row['errors']), wrong(row['errors'], faults)]
            counts += [len(row['by_node']), wrong(row['by_node'], faults)]
            total.update(dict(zip('pwnx', counts, strict=True)), images=row['images'])
            why = ', '.join(f'{s} {n}' for s, n in row['statuses'].items() if s != 'localized')
            lines.append(
                f'| {place} | {fault} | {row["images"]} | {counts[0]} | {counts[1]} | '
                f'{row["told"] or "never"} | {counts[2]} | {counts[3]} | {why} |'
            )
    told = [row['told'] for faults in places.values() for k, row in faults.items() if k != 'none']
    lines.append(
        f'| all | | {total["images"]} | {total["p"]} | {total["w"]} | in {sum(map(bool, told))} of '
        f'{len(told)} rows, at the latest {max(told)} | {total["n"]} | {total["x"]} | |'
    )
    return lines


def false_alarms(asked: dict[str, dict[str, Any]]) -> list[str]:
    """Return a markdown table of images with the right calibration."""
    lines = [
        '| images | asked | right but for the calibration | refused for it | 95 % bound |',
        '|---' * 5 + '|',
    ]
    keys = ('images', 'right', 'lost')
    total = {key: sum(int(row[key]) for row in asked.values()) for key in keys}
    for name, row in {**asked, 'all': total}.items():
        images, right, lost = (int(row[key]) for key in keys)
        bound = 100 * rate_bound(lost, right)
        lines.append(f'| {name} | {images} | {right} | {lost} | {bound:.1f} % |')
    return lines


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', type=Path)
    parser.add_argument('--work', type=Path, required=True, help='of availability.py')
    parser.add_argument('--places', type=Path, required=True, help='work folder of refusal.py')
    parser.add_argument('--logs', type=Path, help='rendered logs (default: in that folder)')
    parser.add_argument('--variant', default='now')
    parser.add_argument('--every', type=int, default=1, help='ask about each n-th image')
    parser.add_argument('--right-every', type=int, default=3, help='the same, right calibrations')
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    args = parser.parse_args()
    started = time.time()
    scenes, places = RealScenes(args.data, args.work), Places(args.places, args.logs)
    asked, right = {}, {}
    for scene, fold in _REAL:
        scene_map = scenes.map(scene, fold, args.variant)
        localizer = Localizer(scene_map, scenes.extractor)
        frames = scenes.split(scene, fold)[1]
        name = f'{scene}, fold {fold}'
        asked[name] = ask(localizer, frames[:: args.every])
        right[name] = ask_with(localizer, frames)
    for building in _BUILDINGS:
        localizer = Localizer.from_map(places.map(building), device='cpu')
        name = f'building {building[1:]}'
        for condition in _CONDITIONS:
            frames = places.observed(building, condition, localizer.extractor)
            if condition == 'query_day':
                asked[name] = ask(localizer, frames[:: args.every])
            kind = condition.removeprefix('query_')
            right[f'{name}, {kind}'] = ask_with(localizer, frames[:: args.right_every])
    tables = {'faults': table(asked), 'false_alarms': false_alarms(right)}
    print('\n\n'.join('\n'.join(lines) for lines in tables.values()))
    if args.record:
        write_record(args.record, {'wrong': asked, 'right': right}, started, tables=tables)
    return 0


if __name__ == '__main__':
    sys.exit(main())
