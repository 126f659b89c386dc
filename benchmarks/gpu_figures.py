"""What a GPU gives: frames in two sizes, several cameras at once, training steps a second.

    python benchmarks/gpu_figures.py --out FILE [--device cuda] [--record]

A simulated building is mapped in each size with SuperPoint. Each figure is written as soon as it
is there, so that a run that is cut off leaves what it measured. `benchmarks/gpu.sh` calls it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from records import write_record

from d2s_ros.data.frames import Frame
from d2s_ros.evaluation.benchmark import benchmark
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.superpoint.extractor import SuperPoint
from d2s_ros.features.network_images import pad_to_cells
from d2s_ros.features.types import FeatureConfig, to_grey
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import BuildConfig, budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.map_building.scene_model import train_map
from d2s_ros.reconstruction.reconstruction import Reconstruction
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import frames

#: Width, height and keypoints.
SIZES = ('640x480:1024', '1024x768:2048')
BATCHES = (1, 4, 8)
#: Name, scene model and recipe.
TRAININGS = {
    'landmark': ('landmark', 'default'),
    'regression': ('regression', 'default'),
    'regression, as published': ('regression', 'paper'),
    'regression, from random weights': ('regression', 'learned'),
    'labels': ('labels', 'default'),
}
#: Where the steps of each scene model stand.
PARTS = {
    'landmark': 'training',
    'regression': 'regression_training',
    'labels': 'label_training',
}


class Frames(list[Frame]):
    """Frames in memory, as a source."""


def card(device: str) -> str:
    """Return the name of what computes."""
    return torch.cuda.get_device_name() if torch.device(device).type == 'cuda' else 'CPU'


def place_of(size: str, count: int) -> tuple[FeatureConfig, Frames, Frames]:
    """Return features, mapping images and queries of a size."""
    shape, _, keypoints = size.partition(':')
    width, height = map(int, shape.split('x'))
    config = SimulationConfig(seed=3, frames=count, width=width, height=height)
    walk = replace(config, trajectory='random', trajectory_seed=1)
    features = FeatureConfig(
        name='superpoint', max_keypoints=int(keypoints), max_size=max(width, height)
    )
    return features, Frames(frames(config)), Frames(frames(walk))


def throughput(extractor: SuperPoint, queries: Frames, batch: int, seconds: float) -> float:
    """Return images a second of `batch` cameras: all are given to the device before one is read."""
    greys = [to_grey(frame.image) for frame in queries if frame.image is not None]
    given = [torch.from_numpy(pad_to_cells(grey)) for grey in greys]
    size, done, started = greys[0].shape, 0, 0.0
    for number in itertools.count():
        if number == 2:
            done, started = 0, time.perf_counter()
        if number > 2 and time.perf_counter() - started > seconds:
            break
        tables = [
            extractor.on_device(
                given[(number * batch + index) % len(given)].to(extractor.device), size
            )
            for index in range(batch)
        ]
        done += sum(len(table.cpu()) > 0 for table in tables)
    return round(done / (time.perf_counter() - started), 1)


def training_rates(
    reconstruction: Reconstruction,
    features: FeatureConfig,
    source: Frames,
    device: str,
    steps: int,
) -> dict[str, Any]:
    """Return steps a second of each way to train."""
    extractor = create_extractor(features, device=device)
    rates: dict[str, Any] = {}
    for name, (head, recipe) in TRAININGS.items():
        config: BuildConfig = budget('quick', features=features, head=head, recipe=recipe)
        part = PARTS[head]
        options = replace(getattr(config, part), steps=steps)
        config = replace(config, **{part: options})
        try:
            _, figures = train_map(reconstruction, extractor, config, source=source, device=device)
        except Exception as error:
            rates[name] = {'failed': f'{type(error).__name__}: {error}'}
            continue
        trained = figures.get('training', figures)
        rates[name] = {
            'steps': trained['steps'],
            'seconds': trained['seconds'],
            'a second': round(trained['steps'] / max(trained['seconds'], 1e-6), 2),
        }
    return rates


def frame_row(size: str, report: dict[str, Any]) -> str:
    """Return a row of the table of frames."""
    stages = report['stages_ms']
    cells = [f'{stages[name]["median"]:.2f}' for name in ('features', 'network', 'pose')]
    total = stages['total']['median']
    graph = report.get('cuda_graph', {}).get('features', '-')
    return (
        f'| {size} | {" | ".join(cells)} | {total:.2f} | {stages["total"]["p99"]:.2f} | '
        f'{report["localized"]} of {report["frames"]} | {graph} |'
    )


def main() -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--sizes', nargs='+', default=list(SIZES), metavar='WxH:KEYPOINTS')
    parser.add_argument('--images', type=int, default=24)
    parser.add_argument('--batches', type=int, nargs='+', default=list(BATCHES))
    parser.add_argument('--seconds', type=float, default=5.0, help='of each batch size')
    parser.add_argument('--steps', type=int, default=100, help='of each training')
    parser.add_argument('--record', action='store_true', help='also write results/gpu.json')
    args = parser.parse_args()
    started = time.time()
    found: dict[str, Any] = {
        'card': card(args.device),
        'torch': torch.__version__,
        'frames': {},
        'cameras': {},
        'training': {},
    }

    def keep() -> None:
        args.out.write_text(json.dumps(found, indent=1))

    reconstruction, mapped = None, None
    for size in args.sizes:
        features, mapping, queries = place_of(size, args.images)
        with tempfile.TemporaryDirectory() as folder:
            built = build_map(
                mapping, Path(folder) / 'map', budget('quick', features=features),
                device=args.device, progress=False,
            )  # fmt: skip
            localizer = Localizer.from_map(built.scene_map, device=args.device)
        if reconstruction is None:
            reconstruction, mapped = built.reconstruction, (features, mapping)
        found['frames'][size] = benchmark(localizer, queries, limit=len(queries))
        keep()
        # On a CPU the localizer may have the compiled network, which takes one image at a time.
        extractor = create_extractor(localizer.extractor.config, device=args.device)
        if isinstance(extractor, SuperPoint):
            found['cameras'][size] = {
                str(batch): throughput(extractor, queries, batch, args.seconds)
                for batch in args.batches
            }
            keep()
        print(frame_row(size, found['frames'][size]), found['cameras'].get(size), flush=True)
    assert reconstruction is not None
    assert mapped is not None
    found['training'] = training_rates(reconstruction, *mapped, args.device, args.steps)
    keep()
    print(json.dumps(found['training'], indent=1))
    if args.record:
        lines = [
            '| size:keypoints | features | network | pose | all | p99 | localized | graph |',
            '|---|---|---|---|---|---|---|---|',
            *(frame_row(size, report) for size, report in found['frames'].items()),
        ]
        cameras = [
            f'| size | {" | ".join(f"{batch} cameras" for batch in args.batches)} |',
            f'|---|{"---|" * len(args.batches)}',
            *(
                f'| {size} | {" | ".join(str(rates[str(batch)]) for batch in args.batches)} |'
                for size, rates in found['cameras'].items()
            ),
        ]
        training = [
            '| training | steps a second |',
            '|---|---|',
            *(
                f'| {name} | {rates.get("a second", rates.get("failed"))} |'
                for name, rates in found['training'].items()
            ),
        ]
        write_record(
            'gpu',
            found,
            started,
            tables={'frames': lines, 'cameras': cameras, 'training': training},
        )
    return int(any('failed' in rates for rates in found['training'].values()))


if __name__ == '__main__':
    sys.exit(main())
