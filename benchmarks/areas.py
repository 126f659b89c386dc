"""Floors that look alike in one area: how many frames are published, and on which floor.

    python benchmarks/areas.py FLOORS --work WORK --chosen-on floor23 --places floor11 floor21

FLOORS has a folder of images for each floor, in folders of walks, without poses. A map of each
floor of --chosen-on and --places is made of its longest walk (what is in WORK is used again), of
which every fifth frame is left out as a query. Frames of floors without a map are negatives. The
limit `max_rival_share` is chosen on the floors of --chosen-on, and reported on those of --places.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

from records import write_record
from tqdm import tqdm

from d2s_ros.cli.localize import write_json
from d2s_ros.data.camera_guess import guess_camera
from d2s_ros.data.image_folder import ImageFolderSource, list_images
from d2s_ros.errors import InputError
from d2s_ros.features.types import FeatureConfig
from d2s_ros.localization.area_localizer import AreaLocalizer
from d2s_ros.localization.compute_budget import FULL
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.extraction import TakenImage, take_image
from d2s_ros.localization.limits import Limits
from d2s_ros.localization.place_choice import Attempt, choose
from d2s_ros.map_building.area_building import build_area
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import BuildResult, build_map
from d2s_ros.maps.area import is_area, read_area

#: One frame in this many is a query.
_STRIDE = 5
_SIZE = (640, 360)
_LIMITS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)


@dataclass(frozen=True, eq=False)
class Asked:
    """What the maps of all floors say of one image.

    Attributes:
        floor, name: Where it was taken.
        attempts: Of each floor with a map, the likeliest first.
        query: Whether it was left out of mapping.
    """

    floor: str
    name: str
    attempts: list[Attempt]
    query: bool

    def published_on(self, floors: Iterable[str], limit: float) -> str:
        """Return the floor that an area of these floors publishes it on; empty if it refuses."""
        wanted = set(floors)
        asked = [one for one in self.attempts if one.place in wanted]
        asked = asked[: LocalizerConfig().max_candidates]
        return choose(asked, Limits(max_rival_share=limit)).place if asked else ''

    def to_json(self) -> dict[str, Any]:
        """Return the inliers of each place, for a closer look."""
        inliers = {
            one.place: [one.result.num_inliers, one.result.status.value] for one in self.attempts
        }
        return {'floor': self.floor, 'name': self.name, 'query': self.query, 'inliers': inliers}

    def published_alone(self) -> bool:
        """Return whether the map of its own floor alone publishes it."""
        return any(one.place == self.floor and one.result.localized for one in self.attempts)


def split(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of mapping images and of queries: of the longest walk of a floor."""
    walks: dict[str, list[str]] = {}
    for name in list_images(folder):
        walks.setdefault(name.split('/')[0], []).append(name)
    longest = max(walks.values(), key=len)
    queries = longest[_STRIDE - 1 :: _STRIDE]
    return [name for name in longest if name not in queries], queries


def build(path: Path, source: ImageFolderSource, features: str) -> BuildResult:
    """Build the map of a floor."""
    config = budget('quick', features=FeatureConfig(name=features))
    return build_map(source, path, config, device='cpu', progress=False)


def ask(
    localizer: AreaLocalizer, frames: ImageFolderSource, floor: str, query: bool
) -> list[Asked]:
    """Return what the maps say of images of a floor; none of those that show too little."""
    found = []
    for frame in tqdm(frames, desc=floor):
        taken = take_image(
            frame.image, frame.camera, localizer.extractor, FULL, localizer.config.limits
        )
        if not isinstance(taken, TakenImage) or len(taken.view.features) < 2:
            found.append(Asked(floor, frame.name, [], query))
            continue
        attempts = [
            replace(one, result=replace(one.result, details=None))
            for one in localizer.attempts(taken)
        ]
        found.append(Asked(floor, frame.name, attempts, query))
    return found


def share(part: int, whole: int) -> str:
    """Return counts for a table."""
    return f'{part}/{whole}'


def floors_table(asked: Sequence[Asked], mapped: Sequence[str], limit: float) -> list[str]:
    """Return a row for each floor: its queries, and all its frames with the floor left out."""
    lines = [
        '| floor | queries | published by its own map alone | by the area, right floor '
        '| wrong floor '
        '| frames, area without the floor | published |',
        '|---|---|---|---|---|---|---|',
    ]
    for floor in dict.fromkeys(one.floor for one in asked):
        of_floor = [one for one in asked if one.floor == floor]
        queries = [one for one in of_floor if one.query and floor in mapped]
        alone = sum(one.published_alone() for one in queries)
        places = [one.published_on(mapped, limit) for one in queries]
        right = places.count(floor)
        wrong = len([place for place in places if place and place != floor])
        others = [name for name in mapped if name != floor]
        passed = sum(bool(one.published_on(others, limit)) for one in of_floor)
        cells = [str(len(queries)), str(alone), str(right), str(wrong)] if queries else 4 * ['-']
        lines.append('| ' + ' | '.join([floor, *cells, str(len(of_floor)), str(passed)]) + ' |')
    return lines


def limits_table(asked: Sequence[Asked], mapped: Sequence[str], floors: Sequence[str]) -> list[str]:
    """Return a row for each limit, of the given floors."""
    lines = ['| max_rival_share | right floor | wrong floor | floor left out, published |']
    lines.append('|---|---|---|---|')
    for limit in _LIMITS:
        right = wrong = passed = queries = frames = 0
        for one in (one for one in asked if one.floor in floors):
            frames += 1
            passed += bool(one.published_on([n for n in mapped if n != one.floor], limit))
            if one.query and one.floor in mapped:
                queries += 1
                place = one.published_on(mapped, limit)
                right += place == one.floor
                wrong += bool(place) and place != one.floor
        lines.append(
            f'| {limit} | {share(right, queries)} | {share(wrong, queries)} '
            f'| {share(passed, frames)} |'
        )
    return lines


def main() -> int:
    """Build, ask, print and keep; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('data', type=Path, help='folder of floors')
    parser.add_argument('--work', type=Path, required=True, help='folder of the area')
    parser.add_argument('--chosen-on', nargs='+', default=[], metavar='FLOOR')
    parser.add_argument('--places', nargs='+', required=True, metavar='FLOOR')
    parser.add_argument('--negatives', nargs='*', default=[], metavar='FLOOR')
    parser.add_argument('--every', type=int, default=1, help='of the negatives, one in so many')
    parser.add_argument('--focal', type=float, default=600.0, help='of the camera, px')
    parser.add_argument('--features', default='rootsift')
    parser.add_argument('--record', default='areas')
    args = parser.parse_args()
    started = time.time()
    camera = guess_camera(*_SIZE, args.focal)
    root = args.work / 'area'
    known = set(read_area(root).places) if is_area(root) else set()
    chosen = [*args.chosen_on, *args.places]
    builds = {}
    for floor in chosen:
        if floor not in known:
            mapping, _ = split(args.data / floor)
            source = ImageFolderSource(args.data / floor, camera, names=mapping)
            builds[floor] = partial(build, source=source, features=args.features)
    failed: dict[str, str] = {}
    if builds:
        _, failed = build_area(root, builds)
    area = read_area(root)
    mapped = [name for name in area.places if name in chosen]
    if len(mapped) < 2:
        raise InputError(f'{len(mapped)} floors could be mapped, at least two are needed: {failed}')
    localizer = AreaLocalizer(area, config=LocalizerConfig(max_candidates=len(area.places)))
    asked: list[Asked] = []
    for floor in mapped:
        mapping, queries = split(args.data / floor)
        for names, is_query in ((queries, True), (mapping[:: args.every], False)):
            source = ImageFolderSource(args.data / floor, camera, names=names)
            asked += ask(localizer, source, floor, is_query)
    for floor in args.negatives:
        names = list_images(args.data / floor)[:: args.every]
        source = ImageFolderSource(args.data / floor, camera, names=names)
        asked += ask(localizer, source, floor, False)
    write_json(args.work / 'asked.json', [one.to_json() for one in asked])
    limit = Limits().max_rival_share
    # Negatives belong to the part that is reported.
    reported = [*args.places, *args.negatives]
    maps = ['| floor | images | in the map | landmarks | MB |', '|---|---|---|---|---|']
    size = (root / area.index_file).stat().st_size / 1e6
    for name in mapped:
        manifest = localizer.places.manifests[name]
        bytes_of = localizer.places.get(name).scene_map.localization_size_bytes() / 1e6
        size += bytes_of
        maps.append(
            f'| {name} | {len(split(args.data / name)[0])} | {manifest.metrics["num_images"]} '
            f'| {manifest.metrics["num_landmarks"]} | {bytes_of:.2f} |'
        )
    tables = {
        'maps': maps,
        'floors': floors_table(asked, mapped, limit),
        'chosen': limits_table(asked, mapped, args.chosen_on),
        'reported': limits_table(asked, mapped, reported),
    }
    for name, lines in tables.items():
        print('\n'.join([name, '', *lines, '']))
    figures: dict[str, Any] = {
        'limit': limit,
        'chosen_on': args.chosen_on,
        'reported_on': reported,
        'not_mapped': failed,
        'area_mb': round(size, 2),
        'published_elsewhere': [
            [one.floor, one.name, place]
            for one in asked
            if (place := one.published_on([n for n in mapped if n != one.floor], limit))
        ],
    }
    write_record(args.record, figures, started, tables=tables)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
