"""Whether a map localizes where `d2s map coverage` says it does.

    python benchmarks/coverage.py [DATA] [--work DIR] [--seeds 11 12 13 ...] [--views 80] [--record]

Simulated buildings are mapped and their coverage is predicted. Then pictures are taken from random
places of the cells, in random directions, and localized. Of views called good nearly all should be
published, of those called bad few. The limits were chosen on some buildings and on the first two
parts of the real walk; the others were asked once, after that.

With DATA, real pictures too: a fifth of the walk of redkitchen is mapped, each part once, and asked
about pictures of the other parts. What is predicted is the view of each, where it was taken.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from records import write_record

from d2s_ros.data.frames import Frame
from d2s_ros.data.sources import open_source
from d2s_ros.evaluation.coverage import level_rotation, measure_coverage, measured_predictor
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
#: The limits of the verdicts were chosen on these buildings and on so many first parts.
_CHOSEN_ON, _CHOSEN_PARTS = (11, 12, 13, 14), 2


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
    cache = Outcomes(place / 'outcomes.json')
    found: list[dict[str, Any]] = []
    while len(found) < count:
        cell = coverage.cells[int(rng.integers(len(coverage.cells)))]
        position = cell.middle + np.append(rng.uniform(-0.5, 0.5, 2) * coverage.cell, 0.0)
        heading = float(rng.uniform(0, 360))
        predicted = coverage.view_at(position, heading)
        if predicted is None or not scene.is_free(position[:2]).all():
            continue
        truth = RigidTransform(level_rotation(heading, 0.0), position)

        def localize(truth: RigidTransform = truth, number: int = len(found)) -> LocalizationResult:
            noise = np.random.default_rng([seed, 78, number])
            image = render(scene, config.camera, truth, lighting, noise).image
            return localizer.localize(image, config.camera)

        outcome = cache.of(f'{position.round(4).tolist()} {heading:.3f}', localize, truth)
        found.append({**_prediction(predicted), **outcome})
    cache.write()
    return found


def real_views(data: Path, work: Path) -> list[list[dict[str, Any]]]:
    """Map each part of a real walk, and return what became of pictures of its other parts."""
    scene = data / 'redkitchen'
    names = sorted(file.name for file in (scene / 'images').iterdir())
    length = len(names) // _PARTS
    parts: list[list[dict[str, Any]]] = []
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
        cache = Outcomes(place / 'outcomes.json')
        found = []
        for frame in open_source(scene, image_list=place / 'asked.txt'):
            truth = frame.map_from_camera
            assert truth is not None
            local = truth.moved(-scene_map.origin)
            around = predictor.around(local.translation)
            predicted = predictor.predict(local.rotation, around, measured.found_share)

            def localize(
                localizer: Localizer = localizer, frame: Frame = frame
            ) -> LocalizationResult:
                return localizer.localize(frame.image, frame.camera)

            found.append({**_prediction(predicted), **cache.of(frame.name, localize, truth)})
        cache.write()
        parts.append(found)
    return parts


class Outcomes:
    """What became of views, kept in a file: only predictions are made anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def of(
        self, name: str, localize: Callable[[], LocalizationResult], truth: RigidTransform
    ) -> dict[str, Any]:
        """Return what became of a view: inliers, whether it was published, and wrongly."""
        if name not in self._known:
            result = localize()
            wrong = False
            if result.map_from_camera is not None:
                metres, degrees = pose_error(result.map_from_camera, truth)
                wrong = metres > _WRONG_M or degrees > _WRONG_DEG
            self._known[name] = {
                'inliers': result.num_inliers,
                'published': result.localized,
                'wrong': wrong,
            }
        return dict(self._known[name])

    def write(self) -> None:
        """Keep them."""
        self._path.write_text(json.dumps(self._known))


def _prediction(view: PlannedView) -> dict[str, Any]:
    expected = {'expected': round(view.inliers, 1), 'at_most': round(view.most_inliers, 1)}
    return {'verdict': view.verdict, **expected}


def _row(name: str, views: list[dict[str, Any]]) -> str:
    """Return the row of a table: of how many views of each verdict how many were published."""
    cells = []
    for verdict in VERDICTS:
        of_kind = [view for view in views if view['verdict'] == verdict]
        share = sum(view['published'] for view in of_kind)
        percent = f' ({share / len(of_kind):.0%})' if of_kind else ''
        cells.append(f'{share} of {len(of_kind)}{percent}')
    good = sum(view['verdict'] == 'good' for view in views)
    cells.append(f'{good / len(views):.0%}')
    cells.append(str(sum(view['wrong'] for view in views)))
    return f'| {name} | ' + ' | '.join(cells) + ' |'


def main() -> int:
    """Measure, print, and write the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', nargs='?', type=Path, help='folder with redkitchen')
    parser.add_argument('--work', type=Path, default=Path('coverage_work'))
    parser.add_argument('--seeds', type=int, nargs='+', default=[11, 12, 13, 14, 15, 16, 17])
    parser.add_argument('--views', type=int, default=80)
    parser.add_argument('--record', action='store_true')
    args = parser.parse_args()
    started = time.time()
    set_passive_omp_wait()
    published = ' | '.join(f'{name}: published' for name in VERDICTS)
    table = [f'| views of | {published} | called good | wrong |']
    table.append('|---' * (3 + len(VERDICTS)) + '|')
    views: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds:
        name = f'building {seed}'
        if seed in _CHOSEN_ON:
            name = 'buildings 11 to 14 (limits were chosen on them)'
        views.setdefault(name, []).extend(asked_views(args.work, seed, args.views))
    new = [name for name in views if name.startswith('building ')]
    if args.data is not None:
        parts = real_views(args.data, args.work)
        for name, some in (
            (
                'redkitchen, two fifths of the walk (limits were chosen on them)',
                slice(_CHOSEN_PARTS),
            ),
            ('redkitchen, the other fifths', slice(_CHOSEN_PARTS, None)),
        ):
            views[name] = [view for part in parts[some] for view in part]
    for name, found in views.items():
        if name.startswith('redkitchen, two') and new:
            table.append(_row('these together', [view for one in new for view in views[one]]))
        table.append(_row(name, found))
        for view in sorted(found, key=lambda view: view['expected']):
            print(name, view)
    print('\n'.join(table))
    if args.record:
        print(write_record('coverage', views, started, tables={'views': table}))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
