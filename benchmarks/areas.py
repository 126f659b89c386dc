"""Floors that look alike in one area: how many frames are published, and on which floor.

    python benchmarks/areas.py FLOORS --work WORK [--floors floor9 floor11 ...] [--seconds 1200]

FLOORS has a folder of images for each floor, in folders of walks, without poses. A map of each
floor is made of all its walks, of which every fifth frame is left out as a query, and a second one
of the images that do not join it. All maps are asked about every query, and about every --every-th
mapping image, which is a query of the area without its floor. What an area of some of the floors
publishes is computed from these answers by the rules of the localizer.

What is in WORK is used again, so a run that --seconds ended goes on where it was. WORK gets a page,
areas.html, with each image that the area without its floor published, beside the mapping image
nearest to its pose.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

from false_accepts_page import Mapped, page
from records import write_record

from d2s_ros.cli.localize import write_json
from d2s_ros.data.frames import Frame, FrameSource
from d2s_ros.data.image_folder import ImageFolderSource, list_images
from d2s_ros.errors import InputError
from d2s_ros.evaluation.metrics import rate_bound
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.area_localizer import AreaLocalizer
from d2s_ros.localization.compute_budget import FULL
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.extraction import TakenImage, take_image
from d2s_ros.localization.limits import Limits
from d2s_ros.localization.place_choice import Attempt, choose
from d2s_ros.localization.result import LocalizationResult, LocalizationStatus
from d2s_ros.map_building.area_building import build_area
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import BuildResult, build_map
from d2s_ros.maps.area import Area, is_area, read_area
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.update_data import MappingData

#: One frame in this many is a query.
_STRIDE = 5
#: Fewer images are no map.
_FEWEST_IMAGES = 8
#: Mapping images that each is matched with.
_NEXT_IMAGES = 6
#: Ends the names of maps of what the first map of a floor lacks.
_SECOND = '-2'
#: Focal length (px) and radial distortion of the phone of the tower, which nobody calibrated: what
#: `d2s build-map` finds in three walks of basement2 (standard deviation 0.3 px).
_LENS = (475.0, 0.11, -0.16)
_SIZE = (640, 360)
_LIMITS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)

#: What the maps say of one image, JSON types: `floor`, `frame`, whether it is a `query`, the
#: `places` that there were, and the `attempts` of each, the likeliest first.
Row = dict[str, Any]


def split(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of mapping images and of queries of a floor: every fifth of each walk."""
    walks: dict[str, list[str]] = {}
    for name in list_images(folder):
        walks.setdefault(name.split('/')[0], []).append(name)
    queries = [name for walk in walks.values() for name in walk[_STRIDE - 1 :: _STRIDE]]
    left_out = set(queries)
    return [name for walk in walks.values() for name in walk if name not in left_out], queries


def build(path: Path, source: ImageFolderSource, features: str, fewest: int = 0) -> BuildResult:
    """Build the map of a floor.

    Raises:
        InputError: fewer than `fewest` images join.
    """
    config = budget('quick', features=FeatureConfig(name=features))
    # The quick budget would thin the walks out. What looks alike may be elsewhere.
    walks = replace(config.reconstruction, next_images=_NEXT_IMAGES, global_mapping=True)
    config = replace(config, max_images=400, reconstruction=walks)
    result = build_map(source, path, config, device='cpu', progress=False)
    joined = len(result.reconstruction.images)
    if joined < fewest:
        shutil.rmtree(path)
        raise InputError(f'{joined} of {len(source)} images join')
    return result


def build_floors(
    root: Path,
    data: Path,
    names: Mapping[str, Sequence[str]],
    camera: Camera,
    features: str,
    until: float,
) -> tuple[Area, dict[str, str]]:
    """Build the maps that are missing in an area, and return why places have none.

    What does not join the map of a floor is tried again by itself: stairs and a hallway behind a
    closed door show nothing in common.
    """
    kept = root.parent / 'not_mapped.json'
    failed: dict[str, str] = json.loads(kept.read_text()) if kept.exists() else {}
    for floor, mapping in names.items():
        rest = list(mapping)
        for place in (floor, f'{floor}{_SECOND}'):
            known = read_area(root).places if is_area(root) else {}
            if place not in known and place not in failed and time.time() < until:
                started = time.time()
                source = ImageFolderSource(data / floor, camera, names=rest)
                try:
                    builder = partial(
                        build, source=source, features=features, fewest=_FEWEST_IMAGES
                    )
                    _, reasons = build_area(root, {place: builder})
                except InputError as error:
                    # The first map of an area.
                    reasons = {place: str(error)}
                failed |= reasons
                write_json(kept, failed)
                print(f'{place}: {time.time() - started:.0f} s {reasons}', flush=True)
            if not is_area(root) or place not in read_area(root).places:
                break
            scene_map = SceneMap.open(read_area(root).folder(place))
            joined = {image.name for image in MappingData.from_map(scene_map).images}
            rest = [name for name in rest if name not in joined]
    return read_area(root), failed


def floor_of(place: str) -> str:
    """Return the floor that a place is of."""
    return place.removesuffix(_SECOND)


def ask(localizer: AreaLocalizer, frame: Frame) -> list[dict[str, Any]]:
    """Return what the maps of all places say of an image; nothing if it shows too little."""
    taken = take_image(
        frame.image, frame.camera, localizer.extractor, FULL, localizer.config.limits
    )
    if not isinstance(taken, TakenImage) or len(taken.view.features) < 2:
        return []
    return [
        {
            'place': one.place,
            'status': one.result.status.value,
            'inliers': one.result.num_inliers,
            'camera': None if one.pose is None else one.pose.translation.tolist(),
            'checks': {check.name: [check.value, check.limit] for check in one.result.checks},
            'reliable': one.result.num_reliable,
            'used': one.result.num_used,
            'keypoints': one.result.num_keypoints,
        }
        for one in localizer.attempts(taken)
    ]


def ask_all(
    localizer: AreaLocalizer, sources: Mapping[str, FrameSource], work: Path, until: float
) -> list[Row]:
    """Ask about the frames of all floors, or until the time is over; answers are kept."""
    work.mkdir(exist_ok=True)
    rows: list[Row] = []
    for title, frames in sources.items():
        path = work / f'{title}.jsonl'
        kept = [json.loads(line) for line in path.open()] if path.exists() else []
        # Places that came later were not asked.
        done = [row for row in kept if row['places'] == list(localizer.area.places)]
        known = {row['frame'] for row in done}
        with path.open('w', buffering=1) as file:
            file.writelines(json.dumps(row) + '\n' for row in done)
            for frame in tqdm(frames, title, mininterval=30.0):
                if frame.name in known or time.time() > until:
                    continue
                floor, _, kind = title.partition('-')
                row = {'floor': floor, 'frame': frame.name, 'query': kind == 'query'}
                about = {'places': list(localizer.area.places), 'attempts': ask(localizer, frame)}
                done.append(row | about)
                file.write(json.dumps(done[-1]) + '\n')
        rows += done
    return rows


def published_on(row: Row, places: Iterable[str], limit: float = Limits().max_rival_share) -> str:
    """Return the place that an area of these places publishes an image on; empty if none."""
    wanted = set(places)
    attempts = [
        Attempt(
            one['place'],
            one['place'],
            LocalizationResult(
                LocalizationStatus(one['status']), '', num_inliers=int(one['inliers'])
            ),
        )
        for one in row['attempts']
        if one['place'] in wanted
    ][: LocalizerConfig().max_candidates]
    return choose(attempts, Limits(max_rival_share=limit)).place if attempts else ''


def elsewhere(row: Row, places: Iterable[str], limit: float = Limits().max_rival_share) -> str:
    """Return the place that an area without the floor publishes an image on; empty if none."""
    return published_on(row, [name for name in places if floor_of(name) != row['floor']], limit)


def counts(rows: Sequence[Row], places: Sequence[str], limit: float) -> dict[str, int]:
    """Return how often areas of all places and of those of other floors publish images."""
    floors = set(map(floor_of, places))
    queries = [row for row in rows if row['query'] and row['floor'] in floors]
    alone = [
        published_on(row, [name for name in places if floor_of(name) == row['floor']], limit)
        for row in queries
    ]
    found = [published_on(row, places, limit) for row in queries]
    right = sum(floor_of(place) == row['floor'] for place, row in zip(found, queries, strict=True))
    return {
        'queries': len(queries),
        'alone': sum(map(bool, alone)),
        'right': right,
        'wrong': sum(map(bool, found)) - right,
        'frames': len(rows),
        'elsewhere': sum(bool(elsewhere(row, places, limit)) for row in rows),
    }


def floors_table(rows: Sequence[Row], mapped: Sequence[str]) -> list[str]:
    """Return a row for each floor: its queries, and all its frames with the floor left out."""
    limit = Limits().max_rival_share
    lines = [
        '| floor | queries | published by its own maps alone | by the area, right floor '
        '| wrong floor | frames asked in the area without the floor | published |',
        '|---' * 7 + '|',
    ]
    names = list(dict.fromkeys(row['floor'] for row in rows))
    for name in (*names, 'all'):
        found = counts([row for row in rows if name in (row['floor'], 'all')], mapped, limit)
        cells = [str(value) for value in found.values()]
        if not found['queries']:
            cells[:4] = 4 * ['-']
        lines.append('| ' + ' | '.join([name, *cells]) + ' |')
    return lines


def limits_table(rows: Sequence[Row], mapped: Sequence[str]) -> list[str]:
    """Return a row for each limit of what another place may explain."""
    lines = [
        '| max_rival_share | right floor | wrong floor | published in the area without the floor |',
        '|---|---|---|---|',
    ]
    for limit in _LIMITS:
        found = counts(rows, mapped, limit)
        lines.append(
            f'| {limit} | {found["right"]}/{found["queries"]} '
            f'| {found["wrong"]}/{found["queries"]} | {found["elsewhere"]}/{found["frames"]} |'
        )
    return lines


def maps_table(
    localizer: AreaLocalizer, sizes: Mapping[str, int], failed: Mapping[str, str]
) -> tuple[list[str], float]:
    """Return a row for each floor, and the size of the area, MB."""
    area = localizer.area
    total = (area.root / area.index_file).stat().st_size / 1e6
    lines = ['| floor | images | in the map | landmarks | MB |', '|---|---|---|---|---|']
    for name in [place for floor in sizes for place in (floor, f'{floor}{_SECOND}')]:
        count = sizes[floor_of(name)] if name in sizes else ''
        if name not in area.places:
            if name in failed:
                lines.append(f'| {name} | {count} | {failed[name]} | - | - |')
            continue
        metrics = localizer.places.manifests[name].metrics
        own = localizer.places.get(name).scene_map.localization_size_bytes() / 1e6
        total += own
        lines.append(
            f'| {name} | {count} | {metrics["num_images"]} | {metrics["num_landmarks"]} '
            f'| {own:.2f} |'
        )
    lines.append(f'| all, with the index | {sum(sizes.values())} | | | {total:.2f} |')
    return lines, total


def write_page(rows: Sequence[Row], data: Path, localizer: AreaLocalizer, path: Path) -> None:
    """Write a page of the images that areas without their floors published."""

    def mapped(name: str) -> list[Mapped]:
        images = MappingData.from_map(localizer.places.get(name).scene_map).images
        return [
            (image.name, image.map_from_camera.translation, data / floor_of(name) / image.name)
            for image in images
        ]

    def picture(row: dict[str, Any]) -> np.ndarray | None:
        return cv2.imread(str(data / row['source'] / row['frame']))

    shown: list[dict[str, Any]] = []
    for row in rows:
        place = elsewhere(row, localizer.area.places)
        attempt: dict[str, Any] = next(
            (one for one in row['attempts'] if one['place'] == place), {}
        )
        about = {'map': place, 'source': row['floor'], 'frame': row['frame']}
        shown.append({**about, **attempt, 'condition': 'as taken', 'published': bool(place)})
    path.write_text(page(shown, mapped, picture))


def main() -> int:
    """Build, ask, print and keep; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('data', type=Path, help='folder of floors')
    parser.add_argument('--work', type=Path, required=True, help='folder of the area')
    parser.add_argument('--floors', nargs='+', metavar='FLOOR', help='all by default')
    parser.add_argument(
        '--every', type=int, default=1, help='of the mapping images, one in so many'
    )
    parser.add_argument(
        '--lens',
        type=float,
        nargs=3,
        default=_LENS,
        metavar=('FOCAL', 'K1', 'K2'),
        help='of the camera, px at 640 x 360',
    )
    parser.add_argument('--features', default='rootsift')
    parser.add_argument('--seconds', type=float, default=1e9, help='build and ask for so long')
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    args = parser.parse_args()
    started = time.time()
    until = started + args.seconds
    args.work.mkdir(parents=True, exist_ok=True)
    focal, *radial = args.lens
    centre = [0.5 * side for side in _SIZE]
    camera = Camera.from_colmap('RADIAL', *_SIZE, [focal, *centre, *radial])
    floors = args.floors or sorted(path.name for path in args.data.iterdir() if path.is_dir())
    names = {floor: split(args.data / floor) for floor in floors}

    def source(floor: str, wanted: Sequence[str]) -> ImageFolderSource:
        return ImageFolderSource(args.data / floor, camera, names=wanted)

    mapping = {floor: names[floor][0] for floor in floors}
    area, failed = build_floors(
        args.work / 'area', args.data, mapping, camera, args.features, until
    )
    mapped = [name for name in area.places if floor_of(name) in floors]
    if len(mapped) < 2:
        raise InputError(f'{len(mapped)} maps could be made, at least two are needed: {failed}')
    localizer = AreaLocalizer(area, config=LocalizerConfig(max_candidates=len(area.places)))
    wanted = {f'{floor}-query': source(floor, names[floor][1]) for floor in floors}
    for floor in floors:
        wanted[f'{floor}-mapping'] = source(floor, names[floor][0][:: args.every])
    rows = ask_all(localizer, wanted, args.work / 'asked', until)
    maps, size = maps_table(localizer, {name: len(names[name][0]) for name in floors}, failed)
    tables = {
        'maps': maps,
        'floors': floors_table(rows, mapped),
        'limits': limits_table(rows, mapped),
    }
    for name, lines in tables.items():
        print('\n'.join([name, '', *lines, '']))
    found = counts(rows, mapped, Limits().max_rival_share)
    figures: dict[str, Any] = {
        **found,
        'wrong_of_published_bound': rate_bound(found['wrong'], found['right'] + found['wrong']),
        'elsewhere_bound': rate_bound(found['elsewhere'], found['frames']),
        'not_mapped': failed,
        'area_mb': round(size, 2),
        'published_elsewhere': [
            [row['floor'], row['frame'], place] for row in rows if (place := elsewhere(row, mapped))
        ],
    }
    write_page(rows, args.data, localizer, args.work / 'areas.html')
    if args.record:
        write_record(args.record, figures, started, tables=tables)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
