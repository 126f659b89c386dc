"""What becomes of images whose calibration is wrong: one real and one simulated place.

    python benchmarks/wrong_calibration.py DATA --work FOLDER --places FOLDER [--logs DIR]

The left-out images of a fold of walk_loop, whose map `availability.py` left in FOLDER, and those of
building 1 by day are asked about with calibrations that are off as people get them wrong. A pose is
wrong if it is off by more than ten times the median error with the right calibration. 'By the
node' is what a node that has seen the images before publishes, which averages what focal length
the last twenty fit.
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

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.tracking.plausibility import FocalWatch

#: Wrong poses are off by more than so many median errors.
WRONG_MEDIANS = 10.0
_K1 = -0.2
_SIMULATED, _REAL = 'b1', ('walk_loop', 1)


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
    """Return by fault the errors of published poses, those the node publishes, and statuses."""
    found: dict[str, dict[str, Any]] = {}
    limit = localizer.estimator.config.limits.max_focal_error
    for fault, change in FAULTS.items():
        watch, errors, by_node = FocalWatch(), [], []
        statuses: Counter[str] = Counter()
        for frame in map(change, frames):
            result = localizer.localize_features(frame.features, frame.camera)
            statuses[result.status.value] += 1
            problem = watch.check(result, limit)
            if result.map_from_camera is None:
                continue
            assert frame.truth is not None
            errors.append(list(pose_error(result.map_from_camera, frame.truth)))
            by_node += [errors[-1]] if not problem else []
        found[fault] = {
            'images': len(frames),
            'errors': errors,
            'by_node': by_node,
            'statuses': dict(statuses.most_common()),
        }
    return found


def table(places: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Return a markdown table."""
    lines = [
        '| place | what is wrong | images | published | wrong | by the node | wrong '
        '| median error over the right one | refused because |',
        '|---' * 9 + '|',
    ]
    for place, faults in places.items():
        right = np.median(np.array(faults['none']['errors']), axis=0)
        for fault, row in faults.items():
            counts = []
            for name in ('errors', 'by_node'):
                errors = np.array(row[name]).reshape(-1, 2)
                wrong = int((errors > WRONG_MEDIANS * right).any(axis=1).sum())
                counts.append(f'{len(errors)} | {wrong}')
            errors = np.array(row['errors']).reshape(-1, 2)
            ratio = f'{np.median(errors[:, 0]) / right[0]:.1f}' if len(errors) else 'none'
            why = ', '.join(f'{s} {n}' for s, n in row['statuses'].items() if s != 'localized')
            lines.append(
                f'| {place} | {fault} | {row["images"]} | {" | ".join(counts)} | {ratio} | {why} |'
            )
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
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    args = parser.parse_args()
    started = time.time()
    scenes, places = RealScenes(args.data, args.work), Places(args.places, args.logs)
    asked = {}
    scene, fold = _REAL
    localizer = Localizer(scenes.map(scene, fold, args.variant), scenes.extractor)
    asked[scene] = ask(localizer, scenes.split(scene, fold)[1][:: args.every])
    localizer = Localizer.from_map(places.map(_SIMULATED), device='cpu')
    frames = places.observed(_SIMULATED, 'query_day', localizer.extractor)
    asked['building 1'] = ask(localizer, frames[:: args.every])
    lines = table(asked)
    print('\n'.join(lines))
    if args.record:
        write_record(args.record, asked, started, tables={'faults': lines})
    return 0


if __name__ == '__main__':
    sys.exit(main())
