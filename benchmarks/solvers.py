"""PnP-RANSAC of poselib and of OpenCV behind one contract: are the poses the same after refinement?

    python benchmarks/solvers.py --work FOLDER [--data DATA] [--only NAME ...]

Nine scenes: six of photographs in DATA (scenes and splits of benchmarks/accuracy.py) and three
simulated buildings. Each is mapped once with a short training; FOLDER keeps the maps.
Each query is observed once and solved twice, once with each solver; what follows (guided
refinement, covariance, checks) is the same code. A difference is in metres or units of the map,
and in sigmas of the pose: below 1 the solvers differ by less than the pose is uncertain.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import Scene, photographed_scenes
from records import write_record

from d2s_ros.data.frames import Frame
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.geometry import ransac
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.result import LocalizationResult
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.scene_models.base import View
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import frames

SEEDS = (3, 4, 5)


class Frames(list[Frame]):
    """Frames in memory, as a source."""


def simulated() -> Iterator[Scene]:
    """Yield the buildings."""
    for seed in SEEDS:
        config = SimulationConfig(seed=seed, frames=24, width=480, height=360)
        walk = replace(config, frames=20, trajectory='random', trajectory_seed=1)
        yield Scene(f'building {seed}', Frames(frames(config)), Frames(frames(walk)))


def map_of(scene: Scene, work: Path) -> Path:
    """Return the map of a scene, made if it is not there."""
    path = work / scene.name.replace(' ', '_')
    if not (path / 'current').exists():
        config = budget('quick', features=FeatureConfig(max_keypoints=1024))
        training = replace(config.training, steps=60, images_per_step=2, keypoints_per_image=256)
        build_map(
            scene.mapping, path, replace(config, training=training), device='cpu', progress=False
        )
    return path


def solved(localizer: Localizer, view: View, observation: Any, solver: str) -> LocalizationResult:
    """Return the result of one image with a solver."""
    chosen = ransac.solver_name
    ransac.solver_name = lambda: solver  # type: ignore[assignment]
    try:
        return localizer.localize_view(view, observation=observation)
    finally:
        ransac.solver_name = chosen


def row_of(scene: Scene, work: Path) -> dict[str, Any]:
    """Return the figures of a scene."""
    localizer = Localizer.from_map(map_of(scene, work), device='cpu')
    results: dict[str, list[LocalizationResult]] = {name: [] for name in ransac.SOLVERS}
    errors: dict[str, list[tuple[float, float]]] = {name: [] for name in ransac.SOLVERS}
    count = 0
    for frame in scene.queries:
        assert frame.image is not None
        assert frame.camera is not None
        assert frame.map_from_camera is not None
        count += 1
        view = View(localizer.extractor.extract(frame.image), frame.camera, frame.image)
        observation = localizer.observer.observe(view)
        for name in results:
            result = solved(localizer, view, observation, name)
            results[name].append(result)
            if result.map_from_camera is not None:
                errors[name].append(pose_error(result.map_from_camera, frame.map_from_camera))
    apart, turned, sigmas = [], [], []
    for ours, other in zip(results['poselib'], results['opencv'], strict=True):
        if ours.map_from_camera is None or other.map_from_camera is None:
            continue
        distance, turn = pose_error(ours.map_from_camera, other.map_from_camera)
        assert ours.covariance is not None
        apart.append(distance)
        turned.append(turn)
        sigmas.append(distance / float(np.sqrt(np.linalg.eigvalsh(ours.covariance[:3, :3])[-1])))
    row: dict[str, Any] = {'scene': scene.name, 'queries': count, 'both': len(apart)}
    for name, found in results.items():
        pose_ms = [result.latency_ms['pose'] for result in found if result.localized]
        row[name] = {
            'localized': sum(result.localized for result in found),
            'median': float(np.median([e[0] for e in errors[name]])) if errors[name] else None,
            'worst': max((e[0] for e in errors[name]), default=None),
            'pose_ms': round(float(np.median(pose_ms)), 2) if pose_ms else None,
        }
    if apart:
        row['difference'] = {
            'median': float(np.median(apart)),
            'worst': max(apart),
            'worst_deg': max(turned),
            'worst_sigmas': round(max(sigmas), 3),
        }
    return row


def main() -> int:
    """Print the table and write the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work', type=Path, required=True)
    parser.add_argument('--data', type=Path)
    parser.add_argument('--only', nargs='*', help='scenes; all without')
    args = parser.parse_args()
    started = time.time()
    args.work.mkdir(parents=True, exist_ok=True)
    scenes: list[Scene] = list(photographed_scenes(args.data, None)) if args.data else []
    rows = []
    lines = [
        '| scene | localized: poselib, OpenCV | median error | largest difference | in sigmas |',
        '|---|---|---|---|---|',
    ]
    print('\n'.join(lines))
    for scene in (*scenes, *simulated()):
        if args.only and scene.name not in args.only:
            continue
        row = row_of(scene, args.work)
        rows.append(row)
        one, two, apart = row['poselib'], row['opencv'], row.get('difference')
        lines.append(
            f'| {scene.name} | {one["localized"]}, {two["localized"]} of {row["queries"]} | '
            f'{one["median"]:.4f}, {two["median"]:.4f} | '
            + (f'{apart["worst"]:.5f} | {apart["worst_sigmas"]:.2f} |' if apart else '- | - |')
        )
        print(lines[-1], flush=True)
        measures = ('d2s_ros/localization', 'benchmarks/solvers.py')
        write_record('solvers', rows, started, tables={'scenes': lines}, measures=measures)
    return 0


if __name__ == '__main__':
    sys.exit(main())
