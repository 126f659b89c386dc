"""Whether a map localizes where `d2s map coverage` says it does.

    python benchmarks/coverage.py [DATA] [--work DIR] [--seeds 11 12 13 14] [--views 80] [--record]

Simulated buildings are mapped and their coverage is predicted. Then pictures are taken from random
places of the cells, in random directions, and localized. Of views called good nearly all should be
published, of those called bad few. Their limits were chosen on the first building.

With DATA, real pictures too: a fifth of the walk of redkitchen is mapped, each part once, and asked
about pictures of the other parts. What is predicted is the view of each, where it was taken.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from records import write_record

from d2s_ros.data.sources import open_source
from d2s_ros.evaluation.coverage import _level_view, measure_coverage, measured_predictor
from d2s_ros.evaluation.view_prediction import PlannedView
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.result import LocalizationResult
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
#: The real walk is cut into so many parts; of the others every n-th picture is asked.
_PARTS, _EVERY = 5, 4


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
        found.append(_outcome(predicted, result, truth))
    return found


def real_views(data: Path, work: Path) -> list[dict[str, Any]]:
    """Map parts of a real walk, and return what became of pictures of its other parts."""
    scene = data / 'redkitchen'
    names = sorted(file.name for file in (scene / 'images').iterdir())
    length = len(names) // _PARTS
    found: list[dict[str, Any]] = []
    for part in range(_PARTS):
        place = work / f'redkitchen_{part}'
        place.mkdir(parents=True, exist_ok=True)
        mapped = names[part * length : (part + 1) * length]
        (place / 'map.txt').write_text('\n'.join(mapped) + '\n')
        others = [name for name in names if name not in set(mapped)][::_EVERY]
        (place / 'asked.txt').write_text('\n'.join(others) + '\n')
        if not (place / 'map').exists():
            options = budget('quick', features=FeatureConfig(name='rootsift', max_keypoints=1200))
            source = open_source(scene, image_list=place / 'map.txt')
            build_map(source, place / 'map', options, device='cpu', progress=False)
        scene_map = SceneMap.open(place / 'map')
        measured = measured_predictor(scene_map)
        predictor = measured.predictor
        localizer = Localizer.from_map(scene_map, device='cpu')
        for frame in open_source(scene, image_list=place / 'asked.txt'):
            truth = frame.map_from_camera
            assert truth is not None
            local = truth.moved(-scene_map.origin)
            predicted = predictor.predict(
                local, predictor.unhidden(local.translation), measured.found_share
            )
            result = localizer.localize(frame.image, frame.camera)
            found.append(_outcome(predicted, result, truth))
    return found


def _outcome(
    predicted: PlannedView, result: LocalizationResult, truth: RigidTransform
) -> dict[str, Any]:
    """Return what was predicted of a view, and what became of it."""
    wrong = False
    if result.map_from_camera is not None:
        metres, degrees = pose_error(result.map_from_camera, truth)
        wrong = metres > _WRONG_M or degrees > _WRONG_DEG
    return {
        'verdict': predicted.verdict,
        'expected': round(predicted.inliers, 1),
        'inliers': result.num_inliers,
        'published': result.localized,
        'wrong': wrong,
    }


def _row(name: str, views: list[dict[str, Any]]) -> str:
    """Return the row of a table: of how many views of each verdict how many were published."""
    cells = []
    for verdict in VERDICTS:
        of_kind = [view for view in views if view['verdict'] == verdict]
        share = sum(view['published'] for view in of_kind)
        percent = f' ({share / len(of_kind):.0%})' if of_kind else ''
        cells.append(f'{share} of {len(of_kind)}{percent}')
    cells.append(str(sum(view['wrong'] for view in views)))
    return f'| {name} | ' + ' | '.join(cells) + ' |'


def main() -> int:
    """Measure, print, and write the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', nargs='?', type=Path, help='folder with redkitchen')
    parser.add_argument('--work', type=Path, default=Path('coverage_work'))
    parser.add_argument('--seeds', type=int, nargs='+', default=[11, 12, 13, 14])
    parser.add_argument('--views', type=int, default=80)
    parser.add_argument('--record', action='store_true')
    args = parser.parse_args()
    started = time.time()
    set_passive_omp_wait()
    table = ['| views of | ' + ' | '.join(f'{name}: published' for name in VERDICTS) + ' | wrong |']
    table.append('|---' * (2 + len(VERDICTS)) + '|')
    views: dict[str, list[dict[str, Any]]] = {}
    for number, seed in enumerate(args.seeds):
        name = f'building {seed}' + (' (limits were chosen on it)' if number == 0 else '')
        views[name] = asked_views(args.work, seed, args.views)
    if args.data is not None:
        views['redkitchen, parts of the walk'] = real_views(args.data, args.work)
    for name, found in views.items():
        table.append(_row(name, found))
        for view in sorted(found, key=lambda view: view['expected']):
            print(name, view)
    print('\n'.join(table))
    if args.record:
        print(write_record('coverage', views, started, tables={'views': table}))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
