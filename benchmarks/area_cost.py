"""What a frame costs in an area of many places, over one map: CPU time of the same images.

    python benchmarks/area_cost.py AREA LOG --work WORK [--places 50]

LOG was taken in the first place of AREA, whose places are real rivals of each other. The area is
filled up with places as large as the first, whose landmarks look like nothing there is: the parts
of their keys, and of the descriptors of their mapping images, are in a random order. The last place
is named by a prior as in a node that tracks, or not at all.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

import numpy as np
from records import write_record

from d2s_ros.data.sources import open_source
from d2s_ros.localization.area_localizer import AreaLocalizer
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.pose_prior import PosePrior
from d2s_ros.localization.result import LocalizationResult
from d2s_ros.maps.area import Place, locked, read_area, write_area
from d2s_ros.maps.files import PLACES_FOLDER
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.update_data import MappingData
from d2s_ros.scene_models.landmark.model import LandmarkModel


def fill(area_path: Path, path: Path, count: int) -> None:
    """Write an area with the places of another and made-up ones."""
    shutil.copytree(area_path, path)
    area = read_area(path)
    first = next(iter(area.places))
    scene_map = SceneMap.open(area.folder(first))
    model = scene_map.model
    assert isinstance(model, LandmarkModel)
    images = [one.features.descriptors for one in MappingData.from_map(scene_map).images]
    index, places = area.read_index(), list(area.places.values())
    rng = np.random.default_rng(0)
    with locked(path):
        for number in range(len(places), count):
            codes = model.table.codes
            assert codes is not None
            order = rng.permutation(len(codes.codebook))
            codes = replace(codes, codebook=codes.codebook[order], codes=codes.codes[:, order])
            table = replace(model.table, keys=codes.decode(), codes=codes)
            other = replace(scene_map, model=replace(model, table=table), path=None)
            columns = np.arange(codes.dim).reshape(len(order), -1)[order].ravel()
            name = f'made-up-{number}'
            MapStore(path / PLACES_FOLDER / name).write(other)
            places.append(Place(name))
            index = index.with_place(number, [one[:, columns] for one in images])
        write_area(path, frame=area.frame, places=places, index=index)


def megabytes() -> float:
    """Return what this process has in memory."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> int:
    """Measure and write the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('area', type=Path)
    parser.add_argument('log', type=Path)
    parser.add_argument('--work', type=Path, required=True)
    parser.add_argument('--places', type=int, default=50)
    parser.add_argument('--frames', type=int, default=24)
    args = parser.parse_args()
    started = time.time()
    path = args.work / f'area-{args.places}'
    if not path.exists():
        fill(args.area, path, args.places)
    area = read_area(path)
    first = next(iter(area.places))
    step = max(1, len(open_source(args.log)) // args.frames)
    frames = list(open_source(args.log))[::step][: args.frames]
    single = Localizer.from_map(area.folder(first), device='cpu')
    at_first = megabytes()
    localizer = AreaLocalizer(area, single.extractor, config=LocalizerConfig())
    opened = megabytes() - at_first

    def tracking(frame_of: LocalizationResult) -> PosePrior | None:
        pose = frame_of.map_from_camera
        return None if pose is None else PosePrior(pose, 0.1, 2.0, first)

    ways: dict[str, Callable[..., LocalizationResult]] = {
        'one map': lambda frame, prior: single.localize(frame.image, frame.camera),
        'area, tracking': lambda frame, prior: localizer.localize(
            frame.image, frame.camera, prior=(lambda: prior) if prior else None
        ),
        'area, place unknown': lambda frame, prior: localizer.localize(frame.image, frame.camera),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    localized = dict.fromkeys(ways, 0)
    wrong = dict.fromkeys(ways, 0)
    for number, frame in enumerate([frames[0], *frames]):
        prior = tracking(single.localize(frame.image, frame.camera))
        for name, way in ways.items():
            before = time.process_time()
            found = way(frame, prior)
            if number:  # The first call of each makes what later ones use.
                spent[name].append(1e3 * (time.process_time() - before))
                localized[name] += found.localized
                wrong[name] += found.place not in ('', first)
    one = float(np.median(spent['one map']))
    table = [
        f'| asked | CPU ms a frame, median | over one map | localized of {len(frames)} '
        '| wrong place |',
        '|---|---|---|---|---|',
    ]
    for name, values in spent.items():
        middle = float(np.median(values))
        table.append(
            f'| {name} | {middle:.0f} | {middle / one:.2f} | {localized[name]} | {wrong[name]} |'
        )
    figures = {
        'places': len(area.places),
        'features': localizer.facts.features.name,
        'landmarks': single.scene_map.manifest.metrics['num_landmarks'],
        'open_places': len(localizer.places),
        'opened_mb': round(opened, 1),
        'index_mb': round((path / area.index_file).stat().st_size / 1e6, 2),
        'ms': {name: [round(value, 1) for value in values] for name, values in spent.items()},
    }
    print('\n'.join(table))
    print(write_record('area_cost', figures, started, tables={'cost': table}))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
