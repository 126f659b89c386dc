"""Long walks without poses and calibration: what is placed, whether the loop closes, what it finds.

    python benchmarks/walks.py [DATA] [--work DIR] [--scenes walk_loop walk_university]

Every fifth picture of a walk is left out. A map is built of the others, as `d2s build-map FOLDER`
does, and asked about those left out; the poses that it finds are compared with a reconstruction of
all pictures, after the similarity that brings their common pictures onto each other. The drift is
what a reconstruction of the same mapping pictures has that pairs each with the next eight alone:
its first fifth is brought onto the closed one, and the error at its last picture is told. What is
in the folder is used again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

import numpy as np
from own_room import split
from records import ROOT, write_record

from d2s_ros.cli.localize import write_json
from d2s_ros.data.array_log import StageLog
from d2s_ros.data.sources import open_source
from d2s_ros.features.extractor import create_extractor
from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.images import collect_images
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.update_data import MappingData
from d2s_ros.reconstruction.pipeline import reconstruct
from d2s_ros.reconstruction.pose_refinement import align_poses
from d2s_ros.reconstruction.reconstruction import ImageInput, MappedImage
from d2s_ros.reconstruction.unposed import place_images

#: Pictures that an open reconstruction pairs with each.
_NEXT = 8
#: Pictures that see the same after so many others close a loop.
_LOOP = 50

Poses = dict[str, RigidTransform]


def poses_of(images: Sequence[MappedImage] | Sequence[ImageInput]) -> Poses:
    """Return the pose of each picture."""
    return {one.name: one.map_from_camera for one in images if one.map_from_camera is not None}


def loops(images: Sequence[MappedImage], order: Sequence[str]) -> int:
    """Return how many pairs of pictures far apart in the walk share at least 15 points."""
    place = {name: row for row, name in enumerate(order)}
    seen: dict[int, list[int]] = {}
    for image in images:
        for point in np.unique(image.point_idx[image.point_idx >= 0]).tolist():
            seen.setdefault(point, []).append(place[image.name])
    shared: dict[tuple[int, int], int] = {}
    for rows in seen.values():
        rows.sort()
        for first in rows:
            for last in reversed(rows):
                if last - first < _LOOP:
                    break
                shared[first, last] = shared.get((first, last), 0) + 1
    return sum(count >= 15 for count in shared.values())


def drift(images: Sequence[ImageInput], closed: Poses) -> dict[str, Any]:
    """Return how far a reconstruction of successive pictures alone is off at its end."""
    config = budget('standard').reconstruction
    count = len(images)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, min(i + _NEXT + 1, count))]
    placed = place_images(images, pairs, config, StageLog(None), calibrated=False)
    opened = poses_of(placed)
    common = sorted(set(opened) & set(closed))
    first = common[: max(5, len(common) // 5)]
    bring = align_poses([opened[name] for name in first], [closed[name] for name in first])
    distance, degrees = pose_error(bring(opened[common[-1]]), closed[common[-1]])
    centres = np.array([closed[name].translation for name in common])
    length = float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum())
    return {
        'open_images': len(opened),
        'drift_of_length': round(distance / length, 4),
        'drift_deg': round(degrees, 2),
    }


def measure(folder: Path, work: Path, training: str) -> dict[str, Any]:
    """Build, ask and compare one walk."""
    work.mkdir(parents=True, exist_ok=True)
    to_map, to_ask = split(folder, work)
    config = replace(budget(training), max_images=2000)
    place = work / 'map'
    if not place.exists():
        source = open_source(folder, image_list=to_map, for_mapping=True)
        build_map(source, place, config, device='cpu', progress=False)
    scene_map = SceneMap.open(place)
    metrics = scene_map.manifest.metrics
    camera = scene_map.manifest.cameras[0]
    mapped = {one.name: one.map_from_camera for one in MappingData.from_map(scene_map).images}
    localizer = Localizer.from_map(scene_map, device='cpu')
    asked = list(open_source(folder, image_list=to_ask, want_poses=False, fallback=camera))
    found = {one.name: localizer.localize(one.image, one.camera).map_from_camera for one in asked}
    localized = {name: pose for name, pose in found.items() if pose is not None}
    print(folder.parent.name, f'{len(localized)} of {len(asked)} localized', flush=True)
    extractor = create_extractor(config.features, device='cpu')
    images, _ = collect_images(open_source(folder, for_mapping=True), extractor, config)
    names = [image.name for image in images]
    of_all = reconstruct(images, config.reconstruction, calibrated=False).images
    reference = poses_of(of_all)
    print(f'{len(reference)} of {len(images)} pictures in the reference', flush=True)
    common = sorted(set(mapped) & set(reference))
    bring = align_poses([mapped[name] for name in common], [reference[name] for name in common])
    errors = np.array(
        [
            pose_error(bring(pose), reference[name])
            for name, pose in localized.items()
            if name in reference
        ]
    )
    centres = np.array([reference[name].translation for name in sorted(reference)])
    length = float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum())
    mapping = [image for image in images if image.name not in found]
    return {
        'budget': training,
        'pictures': len(mapping),
        'placed': len(mapped),
        'not_placed': sorted({image.name for image in mapping} - set(mapped)),
        'asked': len(asked),
        'localized': len(localized),
        'not_localized': sorted(set(found) - set(localized)),
        'median_deg': round(float(np.median(errors[:, 1])), 4),
        'median_of_length': round(float(np.median(errors[:, 0])) / length, 6),
        'reference_images': len(reference),
        'loop_pairs': loops(of_all, names),
        'build_seconds': metrics['seconds'],
        **drift(mapping, mapped),
    }


def main() -> int:
    """Measure and write the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get('D2S_SHARED_DATA', ROOT.parent / 'shared' / 'data')
    parser.add_argument('data', nargs='?', type=Path, default=Path(default))
    parser.add_argument('--work', type=Path, default=Path('walks'))
    parser.add_argument('--scenes', nargs='+', default=['walk_loop', 'walk_university'])
    parser.add_argument('--budget', default='standard', help='of the training')
    args = parser.parse_args()
    started = time.time()
    figures: dict[str, Any] = {}
    table = [
        '| walk | pictures placed | left out, localized | median rotation error '
        '| pairs that close a loop | without them: placed, off at the end | build, budget |',
        '|---|---|---|---|---|---|---|',
    ]
    for scene in args.scenes:
        known = args.work / scene / 'figures.json'
        if not known.exists():
            write_json(known, measure(args.data / scene / 'images', args.work / scene, args.budget))
        one = figures[scene] = json.loads(known.read_text())
        table.append(
            f'| {scene} | {one["placed"]} of {one["pictures"]} '
            f'| {one["localized"]} of {one["asked"]} ({one["localized"] / one["asked"]:.0%}) '
            f'| {one["median_deg"]:.3f}° | {one["loop_pairs"]} '
            f'| {one["open_images"]}, {one["drift_of_length"]:.1%} of its length and '
            f'{one["drift_deg"]:.1f}° | {one["build_seconds"]["total"]:.0f} s, {one["budget"]} |'
        )
        print('\n'.join(table), flush=True)
    print(write_record('walks', figures, started, tables={'walks': table}))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
