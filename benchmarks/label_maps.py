"""Maps of labels against maps of landmarks: the same images, points and queries.

    python benchmarks/label_maps.py DATA [--scenes fox castle-P30 ...] [--photos DIR]
    python benchmarks/label_maps.py --simulated FOLDER [--buildings 1 2 3]

DATA and FOLDER are those of benchmarks/accuracy.py. Queries have no pose. Photographs of other
places (--photos) and the queries of the other scenes must be refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# First: it decides how threads wait, before any is started.
from accuracy import Scene, finite, photographed_scenes, simulated_scenes
from records import write_record

from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.result import LocalizationResult
from d2s_ros.map_building.calibration import pose_difference
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import build_map

HEADS = ('landmark', 'labels')
#: A published pose is wrong if it is further off than both, share of the scene's depth and degrees.
WRONG_SHARE, WRONG_DEG = 0.1, 5.0


@dataclass(frozen=True, eq=False)
class Asked:
    """What a map said of one query."""

    result: LocalizationResult
    error: tuple[float, float] | None
    nees: float | None
    seconds: float


def ask(localizer: Localizer, scene: Scene) -> list[Asked]:
    """Localize the queries of a scene from their images alone."""
    found = []
    for frame in scene.queries:
        started = time.monotonic()
        result = localizer.localize(frame.image, frame.camera)
        seconds = time.monotonic() - started
        error = nees = None
        if result.map_from_camera is not None and frame.map_from_camera is not None:
            assert result.covariance is not None
            error = pose_error(result.map_from_camera, frame.map_from_camera)
            difference = pose_difference(result.map_from_camera, frame.map_from_camera)
            nees = float(difference @ np.linalg.solve(result.covariance, difference))
        found.append(Asked(result, error, nees, seconds))
    return found


def photographs(folder: Path, count: int) -> list[np.ndarray]:
    """Return photographs of other places, evenly among those of a folder."""
    paths = sorted(folder.glob('*.jpg'))
    chosen = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    images = [cv2.imread(str(paths[index])) for index in chosen]
    return [image for image in images if image is not None]


def published(localizer: Localizer, images: list[np.ndarray]) -> int:
    """Return how many images of other places get a pose: all of them are wrong."""
    count = 0
    for image in images:
        height, width = image.shape[:2]
        camera = Camera('pinhole', width, height, width, width, width / 2, height / 2)
        count += localizer.localize(image, camera).localized
    return count


def row_of(scene: Scene, head: str, steps: int | None, foreign: list[np.ndarray]) -> dict[str, Any]:
    """Build a map of a scene and return its figures."""
    config = budget('standard', features=FeatureConfig(), head=head)
    if steps is not None:
        config = replace(config, label_training=replace(config.label_training, steps=steps))
    with tempfile.TemporaryDirectory() as temporary:
        built = build_map(scene.mapping, Path(temporary) / 'map', config, progress=False)
        localizer = Localizer.from_map(built.scene_map)
        asked = ask(localizer, scene)
        wrong_places = published(localizer, foreign)
    manifest = built.scene_map.manifest
    errors = np.array([entry.error for entry in asked if entry.error is not None]).reshape(-1, 2)
    depth = manifest.calibration.scene_depth
    wrong = (errors[:, 0] > WRONG_SHARE * depth) | (errors[:, 1] > WRONG_DEG)
    nees = [entry.nees for entry in asked if entry.nees is not None]
    return {
        'scene': scene.name,
        'head': head,
        'map_mb': round(built.scene_map.localization_size_bytes() / 1e6, 3),
        'seconds': manifest.metrics['seconds'],
        'localized': len(errors),
        'queries': len(asked),
        'wrong': int(wrong.sum()),
        'median': float(np.median(errors[:, 0])) if len(errors) else None,
        'median_deg': float(np.median(errors[:, 1])) if len(errors) else None,
        'median_nees': float(np.median(nees)) if nees else None,
        'query_ms': 1e3 * float(np.median([entry.seconds for entry in asked])),
        'foreign': len(foreign),
        'foreign_published': wrong_places,
        'reasons': [entry.result.reason for entry in asked if not entry.result.localized],
    }


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a table of scenes and heads."""
    lines = [
        '| scene | head | map [MB] | build [s] | localized | wrong | median | median [deg] | '
        'NEES, median | query [ms] | foreign photographs published |',
        '|---' * 11 + '|',
    ]
    for row in rows:
        figures = [
            'none' if row[name] is None else f'{row[name]:.{digits}f}'
            for name, digits in (('median', 5), ('median_deg', 4), ('median_nees', 1))
        ]
        lines.append(
            f'| {row["scene"]} | {row["head"]} | {row["map_mb"]:.2f} | '
            f'{row["seconds"]["total"]:.0f} | {row["localized"]}/{row["queries"]} | '
            f'{row["wrong"]} | {" | ".join(figures)} | '
            f'{row["query_ms"]:.0f} | {row["foreign_published"]}/{row["foreign"]} |'
        )
    return lines


def main() -> int:
    """Print a row for each scene and head; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, nargs='?')
    parser.add_argument('--simulated', type=Path, metavar='FOLDER')
    parser.add_argument('--buildings', type=int, nargs='+', default=[1], metavar='SEED')
    parser.add_argument('--scenes', nargs='*')
    parser.add_argument('--heads', nargs='+', default=HEADS, choices=HEADS)
    parser.add_argument('--steps', type=int, help='training steps of label maps')
    parser.add_argument('--photos', type=Path, help='photographs of other places')
    parser.add_argument('--max-photos', type=int, default=20)
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    args = parser.parse_args()
    started = time.time()
    foreign = photographs(args.photos, args.max_photos) if args.photos else []
    scenes = list(photographed_scenes(args.data, args.scenes)) if args.data else []
    if args.simulated:
        scenes += simulated_scenes(args.simulated, args.buildings)
    if not scenes:
        print('no scene: give DATA with images and splits, or --simulated', file=sys.stderr)
        return 1
    rows = []
    for scene in scenes:
        for head in args.heads:
            rows.append(row_of(scene, head, args.steps, foreign))
            print(rows[-1], flush=True)
            if args.record:
                write_record(args.record, finite(rows), started, tables={'scenes': table(rows)})
    return 0


if __name__ == '__main__':
    sys.exit(main())
