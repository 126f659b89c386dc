"""Whether a map localizes where `d2s map coverage` says it does.

    python benchmarks/coverage.py [--work DIR] [--seeds 11 12 13] [--views 80] [--record]

Simulated buildings are mapped and their coverage is predicted. Then pictures are taken from random
places of the cells, in random directions, and localized. Of views called good nearly all should be
published, of those called bad few. Their limits were chosen on the first building.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from records import write_record

from d2s_ros.data.sources import open_source
from d2s_ros.evaluation.coverage import _level_view, measure_coverage
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.lighting import make_lighting
from d2s_ros.simulation.rendering import render
from d2s_ros.simulation.scene import build_scene
from d2s_ros.simulation.simulate import simulate_log
from d2s_ros.threads import set_passive_omp_wait

#: Of a published pose: further off it is wrong.
_WRONG_M, _WRONG_DEG = 0.5, 10.0
VERDICTS = ('good', 'fair', 'bad')


def asked_views(work: Path, seed: int, count: int) -> list[dict[str, Any]]:
    """Map a building, and return what became of random views with what was predicted for them."""
    config = SimulationConfig(seed=seed, frames=50, width=480, height=360)
    place = work / f'building_{seed}'
    if not (place / 'log').exists():
        simulate_log(config, place / 'log', progress=False)
    if not (place / 'map').exists():
        options = budget('quick', features=FeatureConfig(name='rootsift', max_keypoints=1200))
        build_map(open_source(place / 'log'), place / 'map', options, device='cpu', progress=False)
    scene_map = SceneMap.open(place / 'map')
    coverage = measure_coverage(scene_map)
    localizer = Localizer.from_map(scene_map, device='cpu')
    scene = build_scene(config)
    rng = np.random.default_rng([seed, 77])
    lighting = make_lighting('day')
    found: list[dict[str, Any]] = []
    while len(found) < count:
        cell = coverage.cells[int(rng.integers(len(coverage.cells)))]
        position = cell.middle + np.append(rng.uniform(-0.5, 0.5, 2) * coverage.cell, 0.0)
        heading = float(rng.uniform(0, 360))
        predicted = coverage.view_at(position, heading)
        if predicted is None or not scene.is_free(position[:2]).all():
            continue
        truth = _level_view(position, heading, 0.0)
        image = render(scene, config.camera, truth, lighting, rng).image
        result = localizer.localize(image, config.camera)
        wrong = False
        if result.map_from_camera is not None:
            metres, degrees = pose_error(result.map_from_camera, truth)
            wrong = metres > _WRONG_M or degrees > _WRONG_DEG
        found.append(
            {
                'verdict': predicted.verdict,
                'expected': round(predicted.inliers, 1),
                'inliers': result.num_inliers,
                'published': result.localized,
                'wrong': wrong,
            }
        )
    return found


def main() -> int:
    """Measure, print, and write the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work', type=Path, default=Path('coverage_work'))
    parser.add_argument('--seeds', type=int, nargs='+', default=[11, 12, 13])
    parser.add_argument('--views', type=int, default=80)
    parser.add_argument('--record', action='store_true')
    args = parser.parse_args()
    started = time.time()
    set_passive_omp_wait()
    table = ['| building | ' + ' | '.join(f'{name}: published' for name in VERDICTS) + ' |']
    table.append('|---' * (1 + len(VERDICTS)) + '|')
    views: dict[str, list[dict[str, Any]]] = {}
    for number, seed in enumerate(args.seeds):
        views[str(seed)] = asked_views(args.work, seed, args.views)
        cells = []
        for verdict in VERDICTS:
            of_kind = [view for view in views[str(seed)] if view['verdict'] == verdict]
            cells.append(f'{sum(view["published"] for view in of_kind)} of {len(of_kind)}')
        name = f'{seed} (chosen on)' if number == 0 else f'{seed}'
        table.append(f'| {name} | ' + ' | '.join(cells) + ' |')
        print(table[-1], flush=True)
        for view in sorted(views[str(seed)], key=lambda view: view['expected']):
            print(view, flush=True)
    print('\n'.join(table))
    if args.record:
        print(write_record('coverage', views, started, tables={'views': table}))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
