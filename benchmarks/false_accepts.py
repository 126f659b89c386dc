"""How often a pose is published for an image of another place: maps crossed with real images.

    python benchmarks/false_accepts.py DATA --work FOLDER [--sources fox tower] [--seconds 600]

Maps of real scenes (one fold of each), of simulated buildings and of floors of a tower are asked
about every image of the other scenes, floors and photographs in DATA, as taken and, a part of them,
three stops darker or blurred. No image may get a pose. A floor asked about in the map of another
floor, which may look alike, counts as a source of its own. Images of walks and photographs are
given a guessed camera. Bounds are Clopper and Pearson's, one-sided, 95 %.

What is missing in FOLDER is made there: features, maps, answers. A run that --seconds ended goes on
where it was. FOLDER gets a page, false_accepts.html, with each published image beside the mapping
image nearest to its pose, and its checks.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

from areas import build as build_floor
from areas import split as split_floor
from availability import described
from false_accepts_page import Mapped, page
from places import Observed, is_building, photographs
from real_scenes import SCENES, RealScenes
from real_scenes import frames as walk_frames
from records import write_record

from d2s_ros.data.colmap_model import ColmapSource
from d2s_ros.data.frames import Frame
from d2s_ros.data.image_folder import ImageFolderSource
from d2s_ros.evaluation.metrics import rate_bound
from d2s_ros.features.degradations import Degradation, blurred, exposed
from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.localizer import Localizer
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.update_data import MappingData

#: Focal length over width that is taken for the phone of the tower, which nobody calibrated.
_TOWER_FOCAL = 600 / 640
#: Beside the scenes: a folder of floors, each with walks, and one of photographs.
TOWER, PHOTOGRAPHS = 'tower', 'natural_images'
#: Floors of which a map can be made. Only parts of them join, with few landmarks.
FLOORS = ('floor11', 'floor23')
#: Maps: a fold of each scene, buildings, floors.
MAPS = (
    *('redkitchen:0', 'walk_loop:1', 'fox:0', 'castle-P30:0', 'lund_door:0', 'fountain-P11:0'),
    *('b1', 'b2'),
    *FLOORS,
)
AS_TAKEN = 'as taken'
#: Changes of an image; those of the training of features go as far.
DEGRADED: dict[str, Degradation] = {
    'three stops darker': exposed(-3.0),
    'blurred': blurred(0.016),
}


class Crossing:
    """Maps and sources of images, kept in a folder.

    Args:
        scenes: Real scenes, with the folders of data and of what is kept.
        every: One image in this many is asked, of photographs, and of those degraded.
    """

    def __init__(self, scenes: RealScenes, every: tuple[int, int]) -> None:
        self.scenes = scenes
        self.every_photograph, self.every_degraded = every

    def map(self, name: str) -> SceneMap:
        """Return a map, built if it is not there."""
        if is_building(name):
            return self.scenes.places.map(name)
        if name in FLOORS:
            folder = self.scenes.work / 'maps' / 'floors' / name
            if not (folder / 'current').exists():
                images = self.scenes.data / TOWER / name
                names = split_floor(images)[0]
                source = ImageFolderSource(images, _tower_camera(640, 360), names=names)
                build_floor(folder, source, 'rootsift')
            return SceneMap.open(folder)
        scene, _, fold = name.partition(':')
        return self.scenes.map(scene, int(fold), 'now')

    def mapped(self, name: str) -> list[Mapped]:
        """Return the mapping images of a map with their positions."""
        if is_building(name):
            frames: Any = self.scenes.places.source(name, 'map')
            return [
                (frame.name, frame.map_from_camera.translation, frame.image) for frame in frames
            ]
        if name in FLOORS:
            images = MappingData.from_map(self.map(name)).images
            folder = self.scenes.data / TOWER / name
            return [
                (image.name, image.map_from_camera.translation, folder / image.name)
                for image in images
            ]
        scene, _, fold = name.partition(':')
        images_of = paths_by_stem(self.scenes.data / scene)
        return [
            (frame.name, frame.truth.translation, images_of[Path(frame.name).stem])
            for frame in self.scenes.split(scene, int(fold))[0]
            if frame.truth is not None
        ]

    def frames(self, source: str) -> Iterator[Frame]:
        """Yield the images of a source."""
        if source.startswith(TOWER):
            yield from tower_frames(self.scenes.data / source)
        elif source == PHOTOGRAPHS:
            frames = photographs(self.scenes.data / PHOTOGRAPHS)
            yield from islice(frames, 0, None, self.every_photograph)
        elif SCENES[source].posed:
            yield from ColmapSource(self.scenes.data / source)
        else:
            yield from walk_frames(self.scenes.data / source)

    def observed(self, source: str, condition: str) -> list[Observed]:
        """Return the images of a source with their features, which are kept."""
        places, extractor = self.scenes.places, self.scenes.extractor
        name = source.replace('/', '_')
        if source == PHOTOGRAPHS:
            name += f'_{self.every_photograph}'
        if condition == AS_TAKEN:
            return places.extracted(name, self.frames(source), extractor)
        name += f'_{condition.replace(" ", "_")}_{self.every_degraded}'
        # Not the same images in each condition: more views are asked about.
        first = list(DEGRADED).index(condition)
        frames = islice(self.frames(source), first, None, self.every_degraded)
        return places.extracted(name, changed(frames, DEGRADED[condition]), extractor)

    def picture(self, row: dict[str, Any]) -> np.ndarray | None:
        """Return the image of a row as it was asked about."""
        if row['condition'] == AS_TAKEN:
            wanted = self.frames(row['source'])
        else:
            first = list(DEGRADED).index(row['condition'])
            part = islice(self.frames(row['source']), first, None, self.every_degraded)
            wanted = changed(part, DEGRADED[row['condition']])
        return next((frame.image for frame in wanted if frame.name == row['frame']), None)


def _tower_camera(width: int, height: int) -> Camera:
    focal = _TOWER_FOCAL * width
    return Camera('pinhole', width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)


def tower_frames(floor: Path) -> Iterator[Frame]:
    """Yield the images of all walks of a floor."""
    for path in sorted(floor.rglob('*.jpg')):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if image is None:
            continue
        camera = _tower_camera(image.shape[1], image.shape[0])
        name = f'{path.parent.name}/{path.stem}'
        yield Frame(name, 0, np.asarray(image, np.uint8), camera, None)


def changed(frames: Iterator[Frame], change: Degradation) -> Iterator[Frame]:
    """Yield images changed."""
    rng = np.random.default_rng(7)
    for frame in frames:
        assert frame.image is not None
        yield replace(frame, image=change(frame.image, rng), map_from_camera=None)


def paths_by_stem(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by their names without endings."""
    return {path.stem: path for path in folder.rglob('*.*') if path.suffix in ('.jpg', '.png')}


def shows(source: str, name: str) -> bool:
    """Return whether images of a source may show the place of a map."""
    return name.partition(':')[0] == source.removeprefix(f'{TOWER}/')


def ask_all(
    crossing: Crossing, names: list[str], sources: list[str], every: int, until: float
) -> list[dict[str, Any]]:
    """Ask every map about every image of other places, or until the time is over."""
    folder = crossing.scenes.work / 'strangers'
    folder.mkdir(parents=True, exist_ok=True)
    localizers = {name: Localizer(crossing.map(name), crossing.scenes.extractor) for name in names}
    rows: list[dict[str, Any]] = []
    for source in sources:
        for condition in (AS_TAKEN, *DEGRADED):
            title = f'{source}_{condition}'.replace('/', '_').replace(' ', '_')
            path = folder / f'{title}.jsonl'
            done = [json.loads(line) for line in path.open()] if path.exists() else []
            known = {(row['map'], row['frame']) for row in done}
            asked = {name: one for name, one in localizers.items() if not shows(source, name)}
            rows += [row for row in done if row['map'] in asked]
            if time.time() > until:
                continue
            frames = crossing.observed(source, condition)
            with path.open('a', buffering=1) as file:
                for frame in tqdm(frames[::every], title, mininterval=10.0):
                    for name, localizer in asked.items():
                        if (name, frame.name) in known:
                            continue
                        row = {'map': name, 'source': source, 'condition': condition}
                        rows.append(row | answer(localizer, frame))
                        file.write(json.dumps(rows[-1]) + '\n')
                    if time.time() > until:
                        break
    return rows


def answer(localizer: Localizer, frame: Observed) -> dict[str, Any]:
    """Return what a map says of an image of another place."""
    result = localizer.localize_features(frame.features, frame.camera, details=True)
    row = {'frame': frame.name, **described(result, replace(frame, truth=None), localizer)}
    if result.map_from_camera is not None:
        row['camera'] = result.map_from_camera.translation.tolist()
    return row


def kind_of(row: dict[str, Any]) -> str:
    """Return the name under which a row is counted by source."""
    if not row['source'].startswith(TOWER):
        return str(row['source'])
    return 'tower, in the map of another floor' if row['map'] in FLOORS else TOWER


def tables(rows: list[dict[str, Any]]) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Return Markdown tables by source, by condition and by map, and their figures."""
    by: dict[str, Callable[[dict[str, Any]], str]] = {
        'sources': kind_of,
        'conditions': lambda row: str(row['condition']),
        'maps': lambda row: str(row['map']),
    }
    titles = {'sources': 'images of', 'conditions': 'images', 'maps': 'map'}
    lines: dict[str, list[str]] = {}
    figures: dict[str, Any] = {}
    for table, key in by.items():
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            groups.setdefault(key(row), []).append(row)
        figures[table] = {name: counted(group) for name, group in (*groups.items(), ('all', rows))}
        lines[table] = [
            f'| {titles[table]} | asked | published | 95 % bound | most inliers | refused by |',
            '|---' * 6 + '|',
        ]
        for name, found in figures[table].items():
            refused = ', '.join(f'{check} {count}' for check, count in found['refused_by'].items())
            lines[table].append(
                f'| {name} | {found["asked"]} | {found["published"]} | '
                f'{100 * found["bound"]:.3f} % | {found["most_inliers"]} | {refused} |'
            )
    return lines, figures


def counted(group: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of some rows."""
    published = [row for row in group if row['published']]
    by = Counter(row.get('failed', 'none') for row in group if not row['published'])
    return {
        'asked': len(group),
        'published': len(published),
        'bound': rate_bound(len(published), len(group)),
        'most_inliers': max((row['inliers'] for row in group), default=0),
        'refused_by': dict(by.most_common()),
        'wrong': [[row['map'], row['source'], row['frame']] for row in published],
    }


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', type=Path)
    parser.add_argument('--work', type=Path, required=True)
    parser.add_argument('--maps', nargs='+', default=list(MAPS), help='SCENE:FOLD, bSEED or floor')
    parser.add_argument(
        '--sources',
        nargs='+',
        choices=[*SCENES, TOWER, PHOTOGRAPHS],
        default=[TOWER, *SCENES, PHOTOGRAPHS],
    )
    parser.add_argument('--every', type=int, default=1, help='ask about each n-th image')
    parser.add_argument('--photographs-every', type=int, default=4, help='ask about each n-th')
    parser.add_argument('--degraded-every', type=int, default=10, help='of each kind, each n-th')
    parser.add_argument('--seconds', type=float, default=1e9, help='ask for so long')
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    args = parser.parse_args()
    started = time.time()
    crossing = Crossing(
        RealScenes(args.data, args.work), (args.photographs_every, args.degraded_every)
    )
    sources = []
    for source in args.sources:
        floors = sorted(path for path in (args.data / source).iterdir() if path.is_dir())
        sources += [f'{TOWER}/{path.name}' for path in floors] if source == TOWER else [source]
    rows = ask_all(crossing, args.maps, sources, args.every, started + args.seconds)
    (args.work / 'false_accepts.html').write_text(page(rows, crossing.mapped, crossing.picture))
    found, figures = tables(rows)
    for lines in found.values():
        print('\n'.join(lines), end='\n\n')
    if args.record:
        write_record(args.record, figures, started, tables=found)
    return 0


if __name__ == '__main__':
    sys.exit(main())
