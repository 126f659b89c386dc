"""How the cost of a frame grows: with keypoints, landmarks, image size and mapping images.

    python benchmarks/growth.py MAP INPUT [--json OUT.json] [--plot OUT.png]

CPU time on one thread, the median of some repetitions, so that other processes hardly matter. One
quantity is changed at a time; the others are those of the map. Landmarks beyond the map's are made
up (unit vectors), and so are the descriptors of further mapping images. The slope is that of the
logarithms between the two largest values: 1 is proportional.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from d2s_ros.memory import tune_malloc
from d2s_ros.threads import limit_threads, set_passive_omp_wait

set_passive_omp_wait()
tune_malloc()

import cv2
import torch
from records import write_record

from d2s_ros.data.sources import open_source
from d2s_ros.evaluation.baseline import MatchingBaseline
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureConfig, to_grey
from d2s_ros.features.superpoint.extractor import SuperPoint
from d2s_ros.features.types import LocalFeatures
from d2s_ros.localization.localizer import Localizer
from d2s_ros.scene_models.base import View
from d2s_ros.scene_models.landmark.model import LandmarkModel
from d2s_ros.scene_models.landmark.observer import LandmarkObserver
from d2s_ros.scene_models.landmark.table import LandmarkTable
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction
from d2s_ros.maps.scene_map import SceneMap

Row = dict[str, float]


def cpu_ms(call: Callable[[], Any], repetitions: int) -> float:
    """Return the median CPU time of a call, warmed up, ms."""
    call()
    times = []
    for _ in range(repetitions):
        started = time.process_time()
        call()
        times.append(1e3 * (time.process_time() - started))
    return float(np.median(times))


def stages(localizer: Localizer, features: LocalFeatures, camera: Any, repetitions: int) -> Row:
    """Return the cost of search, network and pose."""
    observer = localizer.observer
    assert isinstance(observer, LandmarkObserver)
    search = cpu_ms(lambda: observer.find_nearest(features.descriptors), repetitions)
    observed = cpu_ms(lambda: observer.observe(View(features, camera)), repetitions)
    whole = cpu_ms(lambda: localizer.localize_features(features, camera), repetitions)
    network, pose = max(0.0, observed - search), max(0.0, whole - observed)
    return {'search': search, 'network': network, 'pose': pose}


def by_keypoints(localizer: Localizer, frame: Any, counts: list[int], repetitions: int) -> dict:
    """Vary the number of keypoints."""
    config = replace(localizer.extractor.config, max_keypoints=max(counts))
    features = create_extractor(config, precision='auto').extract(frame.image)
    rows = {}
    for count in counts:
        if count > len(features):
            break
        few = features.strongest(count)
        rows[count] = stages(localizer, few, frame.camera, repetitions)
    return rows


def with_landmarks(localizer: Localizer, count: int) -> Localizer:
    """Return a localizer whose map has `count` landmarks: the map's, then made-up ones."""
    scene_map = localizer.scene_map
    model = scene_map.model
    assert isinstance(model, LandmarkModel)
    table = model.table
    rng = np.random.default_rng(0)
    source = rng.integers(0, len(table), max(0, count - len(table)))
    made_up = rng.normal(size=(len(source), table.keys.shape[1])).astype(np.float32)
    made_up /= np.linalg.norm(made_up, axis=1, keepdims=True)
    larger = LandmarkTable(
        np.concatenate([table.keys, made_up])[:count],
        np.concatenate([table.points_in_map, table.points_in_map[source]])[:count],
        np.concatenate([table.covariances, table.covariances[source]])[:count],
        table.center,
        table.extent,
    )
    changed = SceneMap(scene_map.manifest, replace(model, table=larger))
    return Localizer(changed, localizer.extractor, device='cpu')


def by_landmarks(localizer: Localizer, frame: Any, counts: list[int], repetitions: int) -> dict:
    """Vary the number of landmarks."""
    features = localizer.extractor.extract(frame.image)
    return {
        count: stages(with_landmarks(localizer, count), features, frame.camera, repetitions)
        for count in counts
    }


def by_image_size(localizer: Localizer, frame: Any, widths: list[int], repetitions: int) -> dict:
    """Vary the size of the image that features are computed on."""
    config: FeatureConfig = replace(localizer.extractor.config, max_size=0)
    extractor = create_extractor(config, precision='auto')
    grey = to_grey(frame.image)
    rows = {}
    for width in widths:
        height = round(grey.shape[0] * width / grey.shape[1] / 8) * 8
        resized = cv2.resize(grey, (width, height), interpolation=cv2.INTER_LINEAR)
        image = np.asarray(resized, np.uint8)
        rows[width * height] = {'features': cpu_ms(partial(extractor.extract, image), 3)}
        if isinstance(extractor, SuperPoint):
            with torch.inference_mode():
                rows[width * height]['bare forward pass'] = cpu_ms(
                    partial(extractor.forward, image), 3
                )
    return rows


def by_map_images(localizer: Localizer, frame: Any, counts: list[int], repetitions: int) -> dict:
    """Vary the number of mapping images: matching all of them, and our search, which has a budget.

    The database gets as many descriptors an image as the query has; of a map with a budget of
    landmarks the number of images changes nothing.
    """
    features = localizer.extractor.extract(frame.image)
    ours = stages(localizer, features, frame.camera, repetitions)
    rows = {}
    points = localizer.scene_map.model.points_in_map.astype(np.float64)
    image = MappedImage(
        'query',
        0,
        frame.camera,
        frame.map_from_camera,
        features,
        frame.camera.undistort(features.keypoints),
        np.arange(len(features)) % len(points),
    )
    seen = Reconstruction(
        [image], points, np.zeros(len(points)), np.ones(len(points), np.int64), True
    )
    for count in counts:
        baseline = MatchingBaseline(seen)
        baseline.fill_up_to(count * len(features))
        matching = cpu_ms(partial(baseline._search, features), 1)
        rows[count] = {'matching the whole database': matching, 'our search': ours['search']}
    return rows


def slope(rows: dict[int, Row], name: str) -> float:
    """Return the slope of the logarithms between the two largest values."""
    a, b = sorted(rows)[-2:]
    return float(np.log(rows[b][name] / max(rows[a][name], 1e-6)) / np.log(b / a))


def plot(result: dict[str, dict[int, Row]], path: Path) -> None:
    """Draw one picture with a panel for each quantity."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6.4), layout='constrained')
    for axis, (quantity, rows) in zip(axes.flat, result.items(), strict=False):
        values = sorted(rows)
        for name in rows[values[0]]:
            axis.plot(values, [rows[v][name] for v in values], 'o-', markersize=3, label=name)
        axis.set(xscale='log', yscale='log', xlabel=quantity, ylabel='CPU time [ms]')
        # Labels between the powers of ten would lie over each other.
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xticks(list(rows), [f'{value:,}' for value in rows], fontsize=8)
        axis.grid(alpha=0.3, which='both')
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> int:
    """Print a Markdown table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('map', type=Path)
    parser.add_argument('input')
    parser.add_argument('--repetitions', type=int, default=7)
    parser.add_argument('--json', type=Path)
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    parser.add_argument('--plot', type=Path)
    args = parser.parse_args()
    started = time.time()
    limit_threads(1)
    localizer = Localizer.from_map(args.map, device='cpu')
    frame = next(f for f in open_source(args.input) if f.image is not None and f.camera is not None)
    result = {
        'keypoints': by_keypoints(localizer, frame, [128, 256, 512, 1024, 2048], args.repetitions),
        'landmarks': by_landmarks(
            localizer, frame, [1000, 4000, 16000, 64000, 128000], args.repetitions
        ),
        'pixels': by_image_size(localizer, frame, [320, 480, 640, 960, 1280], 3),
        'mapping images': by_map_images(localizer, frame, [10, 30, 100, 300, 1000], 5),
    }
    lines = ['| quantity | stage | value: CPU time [ms] | slope at the end |', '|---|---|---|---|']
    for quantity, rows in result.items():
        for name in rows[min(rows)]:
            values = ', '.join(f'{v}: {rows[v][name]:.1f}' for v in sorted(rows))
            lines.append(f'| {quantity} | {name} | {values} | {slope(rows, name):.2f} |')
    print('\n'.join(lines))
    if args.record:
        write_record(args.record, result, started, tables={'stages': lines})
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n')
    if args.plot:
        plot(result, args.plot)
    return 0


if __name__ == '__main__':
    sys.exit(main())
