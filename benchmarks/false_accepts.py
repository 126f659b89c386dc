"""How often a pose is published for an image of another place: real maps crossed with real images.

    python benchmarks/false_accepts.py DATA --work FOLDER [--sources fox tower] [--seconds 600]

Every map of `real_scenes` that `availability.py` left in FOLDER (the folds named by --folds) is
asked about every image of the other scenes and of the floors in DATA/tower. No image may get a
pose. Answers are kept in FOLDER: a run that --seconds ended goes on where it was. Images of walks
are given a guessed camera. Bounds are Clopper and Pearson's, one-sided, 95 %. FOLDER gets a page,
false_accepts.html, with each published image beside the mapping image nearest to its pose.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

from availability import described
from places import Observed
from real_scenes import SCENES, RealScenes
from records import write_record

from d2s_ros.data.frames import Frame
from d2s_ros.evaluation.metrics import rate_bound
from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.localizer import Localizer

#: Focal length over width that is taken for the phone of the tower, which nobody calibrated.
_TOWER_FOCAL = 0.75
#: Beside the scenes: a folder of floors, each with walks.
TOWER = 'tower'


def tower_frames(floor: Path) -> Iterator[Frame]:
    """Yield the images of all walks of a floor."""
    for path in sorted(floor.rglob('*.jpg')):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if image is None:
            continue
        height, width = image.shape
        focal = _TOWER_FOCAL * width
        camera = Camera('pinhole', width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)
        name = f'{path.parent.name}/{path.stem}'
        yield Frame(name, 0, np.asarray(image, np.uint8), camera, None)


def strangers(scenes: RealScenes, place: str, sources: list[str]) -> dict[str, list[Observed]]:
    """Return by source the images that do not show a place."""
    found = {name: scenes.seen(name) for name in SCENES if name != place and name in sources}
    if TOWER not in sources:
        return found
    for floor in sorted((scenes.data / TOWER).iterdir()):
        if floor.is_dir():
            found[f'{TOWER}/{floor.name}'] = scenes.places.extracted(
                f'{TOWER}_{floor.name}', tower_frames(floor), scenes.extractor
            )
    return found


def ask_all(
    scenes: RealScenes,
    variant: str,
    folds: list[int],
    sources: list[str],
    every: int,
    until: float,
) -> list[dict[str, Any]]:
    """Ask every map about every image of other places, or until the time is over."""
    rows: list[dict[str, Any]] = []
    for place in SCENES:
        for fold in folds:
            path = scenes.work / 'strangers' / variant / f'{place}_{fold}_{every}.jsonl'
            folder = scenes.work / 'maps' / variant / f'{place}_{fold}'
            if not (folder / 'current').exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_text().splitlines() if path.exists() else []
            done = [json.loads(line) for line in lines]
            rows += done
            known = {(row['source'], row['frame']) for row in done}
            localizer = Localizer(scenes.map(place, fold, variant), scenes.extractor)
            with path.open('a') as file:
                for source, frames in strangers(scenes, place, sources).items():
                    for frame in frames[::every]:
                        if (source, frame.name) in known:
                            continue
                        if time.time() > until:
                            return rows
                        result = localizer.localize_features(
                            frame.features, frame.camera, details=True
                        )
                        row = {'place': place, 'fold': fold, 'source': source, 'frame': frame.name}
                        row |= described(result, Observed(*_unposed(frame)), localizer)
                        if result.map_from_camera is not None:
                            row['camera'] = result.map_from_camera.translation.tolist()
                        rows.append(row)
                        file.write(json.dumps(row) + '\n')
    return rows


def _unposed(frame: Observed) -> tuple[Any, ...]:
    """Return the fields of a frame without the pose, which is of another place."""
    return frame.name, frame.features, frame.camera, None


def picture_of(scenes: RealScenes, source: str, name: str) -> str:
    """Return an image of a source as an HTML element, 480 px wide."""
    folder = scenes.data / source
    paths = [path for path in folder.rglob('*.*') if path.stem == Path(name).stem]
    image = next((read for path in paths if (read := cv2.imread(str(path))) is not None), None)
    if image is None:
        return f'<p>{html.escape(name)} cannot be read</p>'
    image = cv2.resize(image, (480, round(480 * image.shape[0] / image.shape[1])))
    data = base64.b64encode(cv2.imencode('.jpg', image)[1].tobytes()).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/jpeg;base64,{data}">'


def page(scenes: RealScenes, rows: list[dict[str, Any]]) -> str:
    """Return a page with each published image beside the mapping image nearest to its pose."""
    parts = ['<!doctype html><meta charset="utf-8"><title>False accepts</title>']
    published = [row for row in rows if row['published']]
    parts.append(f'<p>{len(published)} of {len(rows)} images of other places were published.</p>')
    for row in published:
        mapping = scenes.split(row['place'], row['fold'])[0]
        away = [
            np.linalg.norm(frame.truth.translation - row['camera'])
            for frame in mapping
            if frame.truth is not None
        ]
        nearest = mapping[int(np.argmin(away))].name
        title = f'{row["source"]} {row["frame"]} in {row["place"]} {row["fold"]}, at {nearest}'
        parts.append(f'<h2>{html.escape(title)}</h2>')
        parts += [picture_of(scenes, row['source'], row['frame'])]
        parts += [picture_of(scenes, row['place'], nearest)]
    return '\n'.join(parts)


def table(rows: list[dict[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    """Return a markdown table by source of the images, and its figures."""
    by_source: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_source[row['source'].partition('/')[0]].append(row)
    by_source['all'] = rows
    lines = [
        '| images of | asked | published | 95 % bound | most inliers | refused by |',
        '|---' * 6 + '|',
    ]
    figures = {}
    for source, group in by_source.items():
        published = [row for row in group if row['published']]
        bound = rate_bound(len(published), len(group))
        by = Counter(row.get('failed', 'none') for row in group if not row['published'])
        figures[source] = {
            'asked': len(group),
            'published': len(published),
            'bound': bound,
            'most_inliers': max(row['inliers'] for row in group),
            'refused_by': dict(by.most_common()),
            'wrong': [[row['place'], row['source'], row['frame']] for row in published],
        }
        names = ', '.join(f'{name} {count}' for name, count in by.most_common())
        lines.append(
            f'| {source} | {len(group)} | {len(published)} | {bound:.1e} | '
            f'{figures[source]["most_inliers"]} | {names} |'
        )
    return lines, figures


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', type=Path)
    parser.add_argument('--work', type=Path, required=True)
    parser.add_argument('--variant', default='now', help='maps of benchmarks/availability.py')
    parser.add_argument('--folds', nargs='+', type=int, default=[0])
    parser.add_argument('--sources', nargs='+', choices=[*SCENES, TOWER], default=[*SCENES, TOWER])
    parser.add_argument('--every', type=int, default=1, help='ask about each n-th image')
    parser.add_argument('--seconds', type=float, default=1e9, help='ask for so long')
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    args = parser.parse_args()
    started = time.time()
    scenes = RealScenes(args.data, args.work)
    rows = ask_all(
        scenes, args.variant, args.folds, args.sources, args.every, started + args.seconds
    )
    (args.work / 'false_accepts.html').write_text(page(scenes, rows))
    lines, figures = table(rows)
    print('\n'.join(lines))
    if args.record:
        write_record(args.record, figures, started, tables={'sources': lines})
    return 0


if __name__ == '__main__':
    sys.exit(main())
