"""How often a pose is published for an image of another place: real maps crossed with real images.

    python benchmarks/false_accepts.py DATA --work FOLDER [--every 3] [--seconds 600] [--record]

Every map of `real_scenes` (the folds named by --folds) is asked about every image of the other
scenes and of the floors in DATA/tower. No image may get a pose. Answers are kept in FOLDER: a run
that --seconds ended goes on where it was. Bounds are Clopper and Pearson's, one-sided, 95 %.
"""

from __future__ import annotations

import argparse
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


def strangers(scenes: RealScenes, place: str) -> dict[str, list[Observed]]:
    """Return by source the images that do not show a place."""
    found = {name: scenes.observed(name) for name in SCENES if name != place}
    for floor in sorted((scenes.data / TOWER).iterdir()):
        if floor.is_dir():
            found[f'{TOWER}/{floor.name}'] = scenes.places.extracted(
                f'{TOWER}_{floor.name}', tower_frames(floor), scenes.extractor
            )
    return found


def ask_all(
    scenes: RealScenes, variant: str, folds: list[int], every: int, until: float
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
            rows += (done := [json.loads(line) for line in lines])
            known = {(row['source'], row['frame']) for row in done}
            localizer = Localizer(scenes.map(place, fold, variant), scenes.extractor)
            with path.open('a') as file:
                for source, frames in strangers(scenes, place).items():
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
                        rows.append(row)
                        file.write(json.dumps(row) + '\n')
    return rows


def _unposed(frame: Observed) -> tuple[Any, ...]:
    """Return the fields of a frame without the pose, which is of another place."""
    return frame.name, frame.features, frame.camera, None


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
    parser.add_argument('--every', type=int, default=1, help='ask about each n-th image')
    parser.add_argument('--seconds', type=float, default=1e9, help='ask for so long')
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    args = parser.parse_args()
    started = time.time()
    scenes = RealScenes(args.data, args.work)
    rows = ask_all(scenes, args.variant, args.folds, args.every, started + args.seconds)
    lines, figures = table(rows)
    print('\n'.join(lines))
    if args.record:
        write_record(args.record, figures, started, tables={'sources': lines})
    return 0


if __name__ == '__main__':
    sys.exit(main())
