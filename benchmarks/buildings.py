"""Buildings side by side as one area in one frame, over their maps asked with the right one known.

    python benchmarks/buildings.py --work WORK [--logs LOGS] [--buildings b1 b2 ...] [--every N]

Simulated buildings of one family: the same photographs, another layout. Images of all of them are
asked, by day, at dusk, at night and with moved furniture. What is in WORK is used again.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

import numpy as np
from places import Observed, Places
from records import write_record

from d2s_ros.data.frames import Frame
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureExtractor
from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.localization.area_localizer import AreaLocalizer
from d2s_ros.localization.extraction import TakenImage
from d2s_ros.localization.localizer import Localizer
from d2s_ros.maps.area import Place, locked, write_area
from d2s_ros.maps.area_index import AreaIndex
from d2s_ros.maps.files import PLACES_FOLDER
from d2s_ros.maps.update_data import MappingData
from d2s_ros.scene_models.base import View

#: From one building to the next, m.
_STEP = 40.0
#: A pose is right within this.
_RIGHT_M, _RIGHT_DEG = 0.25, 2.0


def make_area(path: Path, places: Places, buildings: list[str]) -> dict[str, RigidTransform]:
    """Write the area; returns where the buildings stand in its frame."""
    stands = {
        name: RigidTransform(np.eye(3), np.array([_STEP * number, 0.0, 0.0]))
        for number, name in enumerate(buildings)
    }
    images = []
    for name in buildings:
        scene_map = places.map(name)
        images.append([one.features.descriptors for one in MappingData.from_map(scene_map).images])
        if not (path / PLACES_FOLDER / name).exists():
            shutil.copytree(places.work / 'maps' / name, path / PLACES_FOLDER / name)
    with locked(path):
        write_area(
            path,
            frame='site',
            places=[Place(name, stands[name]) for name in buildings],
            index=AreaIndex.fit(images),
        )
    return stands


def observed(
    places: Places, building: str, part: str, extractor: FeatureExtractor
) -> list[Observed]:
    """Return images of a building with their features; rendered only if nobody has them."""

    def rendered() -> Iterator[Frame]:
        yield from places.source(building, part)

    return places.extracted(f'{building}_{part}', rendered(), extractor)


def main() -> int:
    """Measure and write the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work', type=Path, required=True)
    parser.add_argument('--logs', type=Path)
    parser.add_argument('--buildings', nargs='+', default=['b1', 'b2', 'b3', 'b4', 'b5', 'b6'])
    parser.add_argument('--parts', nargs='+', default=['query_day', 'query_dusk'])
    parser.add_argument('--every', type=int, default=1, help='ask one image in so many')
    parser.add_argument('--seconds', type=float, default=1e9, help='ask for so long')
    args = parser.parse_args()
    started = time.time()
    places = Places(args.work, args.logs)
    stands = make_area(args.work / 'area', places, args.buildings)
    area = AreaLocalizer.from_area(args.work / 'area', device='cpu')
    first = places.map(args.buildings[0])
    extractor = create_extractor(first.manifest.features, device='cpu')
    alone = {name: Localizer(places.map(name), extractor) for name in args.buildings}
    asked = [
        (name, part, image)
        for part in args.parts
        for name in args.buildings
        for image in observed(places, name, part, extractor)[:: args.every]
        if image.truth is not None
    ]
    # In an order that is of all buildings whenever it ends.
    asked = [asked[row] for row in np.random.default_rng(0).permutation(len(asked))]
    counts = {
        name: dict.fromkeys(('asked', 'alone', 'area', 'wrong place', 'wrong pose'), 0)
        for name in args.buildings
    }
    for name, part, image in asked:
        if time.time() - started > args.seconds:
            break
        row = counts[name]
        row['asked'] += 1
        truth = image.truth
        assert truth is not None
        single = alone[name].localize_features(image.features, image.camera)
        row['alone'] += single.localized
        size = (image.camera.height, image.camera.width)
        # Maps of landmarks look at no pixels.
        view = View(image.features, image.camera, np.zeros(size, np.uint8))
        found = area.localize_image(TakenImage(view, size, 0.0))
        if found.map_from_camera is None:
            continue
        row['area'] += 1
        row['wrong place'] += found.place != name
        metres, degrees = pose_error(found.map_from_camera, stands[name] @ truth)
        if metres > _RIGHT_M or degrees > _RIGHT_DEG:
            row['wrong pose'] += 1
            print(f'{name} {part} {image.name}: {found.place}, {metres:.2f} m, {degrees:.1f} deg')
    total = {key: sum(row[key] for row in counts.values()) for key in next(iter(counts.values()))}
    table = [
        '| building | asked | published by its own map | by the area | in a wrong building '
        '| further off than 0.25 m or 2° |',
        '|---|---|---|---|---|---|',
    ]
    for name, row in {**counts, 'all': total}.items():
        table.append(f'| {name} | ' + ' | '.join(str(value) for value in row.values()) + ' |')
    print('\n'.join(table))
    figures = {'buildings': counts, 'parts': args.parts, 'every': args.every}
    print(write_record('buildings', figures, started, tables={'buildings': table}))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
