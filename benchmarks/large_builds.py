"""What a build of a million images takes, reckoned from the tasks of a small one.

    python benchmarks/large_builds.py LOG [--images 60] [--budget quick] [--price 0.04]

Features, matches and the map of one part are computed by the tasks of a split build, with one
thread, and their CPU time and bytes are taken. Features and matches grow with the images, maps with
their number: of all the images of a part, the map keeps a fixed number of landmarks and trains a
fixed number of steps, so that the time of a map of 60 images is short for one of 400 by what
triangulation and calibration grow; these are taken in proportion to the images.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

import numpy as np
from records import write_record

from d2s_ros.data.sources import open_source
from d2s_ros.features.types import FeatureConfig
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.part_tasks import (
    ExtractorOf,
    PlaceTask,
    build_place,
    extract_features,
    match_images,
)
from d2s_ros.map_building.splitting import SplitConfig
from d2s_ros.map_building.stages import features_of_arrays
from d2s_ros.map_building.tasks import Records
from d2s_ros.reconstruction.pair_matching import select_pairs
from d2s_ros.reconstruction.reconstruction import ImageInput
from d2s_ros.threads import limit_threads

_IMAGES = 1_000_000


def size_of(records: Records) -> int:
    """Return the bytes of what tasks gave."""
    return sum(value.nbytes for record in records.values() for value in record.values())


def main() -> int:
    """Measure, reckon and write the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('log', type=Path)
    parser.add_argument('--images', type=int, default=60)
    parser.add_argument('--budget', default='quick', help='of the training')
    parser.add_argument('--price', type=float, default=0.04, help='of a core for an hour')
    args = parser.parse_args()
    started = time.time()
    limit_threads(1)
    config = replace(budget(args.budget, features=FeatureConfig(name='rootsift')))
    split = SplitConfig()
    poses = args.log / 'groundtruth_tum.txt'
    frames = list(open_source(args.log, poses=poses if poses.exists() else None))[: args.images]
    extractor = ExtractorOf(config.features, 'cpu', None)
    taken = [(frame.name, frame.image) for frame in frames if frame.image is not None]
    extract_features(extractor, taken[:1])
    clock = [time.process_time()]
    features = extract_features(extractor, taken)
    clock.append(time.process_time())
    images = []
    for frame in frames:
        assert frame.camera is not None
        found = features_of_arrays(features[frame.name])
        images.append(ImageInput(frame.name, 0, frame.camera, frame.map_from_camera, found))
    # As many pairs as an image of a large log has.
    pairs = select_pairs(images, replace(config.reconstruction, all_pairs_up_to=2))
    numbered = dict(enumerate(images))
    clock.append(time.process_time())
    matches = match_images(numbered, pairs, config.reconstruction, True, 'all')
    clock.append(time.process_time())
    ends = np.cumsum(matches['all']['counts'])[:-1]
    by_pair = {
        (i, j): found.astype(np.int64)
        for (i, j), found in zip(
            matches['all']['pairs'].tolist(),
            np.split(matches['all']['matches'], ends),
            strict=True,
        )
        if len(found) >= config.reconstruction.min_pair_matches
    }
    given = {'scale_from': 'poses', 'frame_from': 'poses'}
    task = PlaceTask(images, None, by_pair, given, np.zeros(3), {})
    made = build_place(task, config, extractor, 'map')
    clock.append(time.process_time())
    count = len(images)
    # Every image of the border is in two maps.
    members = split.images_per_place * (1.0 + split.overlap)
    maps = _IMAGES / split.images_per_place
    seconds = {
        'features': (clock[1] - clock[0]) / count * _IMAGES,
        'matches': (clock[3] - clock[2]) / count * _IMAGES,
        'maps': (clock[4] - clock[3]) / count * members * maps,
    }
    sizes = {
        'features': size_of(features) / count * _IMAGES,
        'matches': size_of(matches) / count * _IMAGES,
        'maps': size_of(made) / count * members * maps,
    }
    table = [
        f'| stage | measured, of {count} images | core hours | hours on 256 cores | kept, TB '
        f'| at {args.price:g} a core hour |',
        '|---|---|---|---|---|---|',
    ]
    measured: dict[str, Any] = {
        'features': f'{1e3 * (clock[1] - clock[0]) / count:.0f} ms an image',
        'matches': f'{1e3 * (clock[3] - clock[2]) / len(pairs):.0f} ms a pair, '
        f'{len(pairs) / count:.1f} pairs an image',
        'maps': f'{clock[4] - clock[3]:.0f} s a map',
    }
    for name, spent in seconds.items():
        hours = spent / 3600
        table.append(
            f'| {name} | {measured[name]} | {hours:.0f} | {hours / 256:.1f} '
            f'| {sizes[name] / 1e12:.2f} | {hours * args.price:.0f} |'
        )
    hours = sum(seconds.values()) / 3600
    table.append(
        f'| all | | {hours:.0f} | {hours / 256:.1f} | {sum(sizes.values()) / 1e12:.2f} '
        f'| {hours * args.price:.0f} |'
    )
    print('\n'.join(table))
    figures = {'measured': measured, 'seconds': seconds, 'bytes': sizes, 'maps': maps}
    print(write_record('large_builds', figures, started, tables={'million': table}))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
