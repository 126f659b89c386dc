"""The fast paths on a CPU against the reference: errors, their ratio, refusals.

    python benchmarks/fast_paths.py MAP LOG [LOG ...] [--json OUT.json]
    python benchmarks/fast_paths.py MAP --scene FOLDER    # queries of images/, split.json

A LOG is a folder with groundtruth_tum.txt, as `d2s simulate` writes it. The reference computes all
in float32: SuperPoint, the search among the landmarks, the network. The others are SuperPoint in
float32 with the fast search and network, and all of it in bfloat16 and in 8-bit integers as far as
the CPU has them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

import numpy as np
from records import write_record

from d2s_ros.data.colmap_model import ColmapSource
from d2s_ros.data.frames import Frame
from d2s_ros.data.sources import open_source
from d2s_ros.data.tum import read_tum
from d2s_ros.features.extractor import create_extractor
from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.maps.scene_map import SceneMap

#: Precision of the features, then of all else; the first is the reference.
PATHS = (('fp32', 'fp32'), ('fp32', 'auto'), ('int8', 'auto'))

Query = tuple[Frame, RigidTransform]


def log_queries(folder: Path) -> Iterator[Query]:
    """Yield frames with their true poses."""
    truth = read_tum(folder / 'groundtruth_tum.txt')
    for frame in open_source(folder):
        pose = truth.at(frame.stamp_ns)
        if pose is not None:
            yield frame, pose


def scene_queries(folder: Path) -> Iterator[Query]:
    """Yield the queries of a scene with a COLMAP model."""
    for frame in ColmapSource(folder, json.loads((folder / 'split.json').read_text())['query']):
        if frame.map_from_camera is not None:
            yield frame, frame.map_from_camera


def copied(queries: list[Query], copies: int) -> list[Query]:
    """Return the queries, and each again with other exposures (one stop) and noise."""
    result = list(queries)
    rng = np.random.default_rng(0)
    for _ in range(copies - 1):
        for frame, truth in queries:
            assert frame.image is not None
            light = frame.image * 2.0 ** rng.uniform(-1, 1) + rng.normal(0, 1.5, frame.image.shape)
            image = np.clip(np.rint(light), 0, 255).astype(np.uint8)
            result.append((replace(frame, image=image), truth))
    return result


def errors(localizers: list[Localizer], queries: list[Query]) -> np.ndarray:
    """Return the errors (L, N, 2) in metres and degrees; NaN where refused.

    Localizers that differ in what follows the features share these.
    """
    result = np.full((len(localizers), len(queries), 2), np.nan)
    for column, (frame, truth) in enumerate(queries):
        assert frame.image is not None
        assert frame.camera is not None
        features = localizers[0].extractor.extract(frame.image)
        for row, localizer in zip(result, localizers, strict=True):
            found = localizer.localize_features(features, frame.camera)
            if found.map_from_camera is not None:
                row[column] = pose_error(found.map_from_camera, truth)
    return result


def compare(found: np.ndarray, reference: np.ndarray) -> dict:
    """Return medians, their ratio to the reference's, and where one of both refused."""
    localized, before = (np.isfinite(e[:, 0]) for e in (found, reference))
    row: dict[str, Any] = {
        'queries': len(found),
        'localized': int(localized.sum()),
        'refused here only': int((before & ~localized).sum()),
        'refused by the reference only': int((localized & ~before).sum()),
    }
    both = localized & before
    if both.any():
        # Of the frames that both localized: the medians are then of the same frames.
        medians, others = (np.median(e[both], axis=0) for e in (found, reference))
        row |= {
            'median_m': float(medians[0]),
            'median_deg': float(medians[1]),
            'ratio_m': float(medians[0] / others[0]),
            'ratio_deg': float(medians[1] / others[1]),
            'mean_ratio_m': float(np.exp(np.mean(np.log(found[both, 0] / reference[both, 0])))),
            'ratio_m_90': chance_of_medians(found[both, 0], reference[both, 0]),
            'ratio_deg_90': chance_of_medians(found[both, 1], reference[both, 1]),
        }
    return row


def chance_of_medians(found: np.ndarray, reference: np.ndarray) -> list[float]:
    """Return the 90 % interval of the ratio of the medians over frames drawn again."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(found), size=(2000, len(found)))
    ratios = np.median(found[drawn], axis=1) / np.median(reference[drawn], axis=1)
    return [round(float(value), 3) for value in np.percentile(ratios, [5, 95])]


def table(rows: dict[str, dict[str, dict]]) -> list[str]:
    """Return a line for each log or scene and path."""
    lines = [
        '| queries | path | localized | refused here only | by the reference only | '
        'ratio of medians, position (90 %) | rotation (90 %) |',
        '|---' * 7 + '|',
    ]
    for name, paths in rows.items():
        for path, row in paths.items():
            ratios = [
                f'{row[f"ratio_{unit}"]:.3f} ({", ".join(map(str, row[f"ratio_{unit}_90"]))})'
                if f'ratio_{unit}' in row
                else ''
                for unit in ('m', 'deg')
            ]
            lines.append(
                f'| {name} | {path} | {row["localized"]}/{row["queries"]} | '
                f'{row["refused here only"]} | {row["refused by the reference only"]} | '
                f'{ratios[0]} | {ratios[1]} |'
            )
    return lines


def main() -> int:
    """Print a table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('map', type=Path)
    parser.add_argument('logs', type=Path, nargs='*')
    parser.add_argument('--scene', type=Path)
    parser.add_argument('--features', nargs='*', default=['int8'], help='fast paths')
    parser.add_argument('--copies', type=int, default=8, help='of each query of the scene')
    parser.add_argument('--every', type=int, default=1, help='use every n-th frame')
    parser.add_argument('--json', type=Path)
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    args = parser.parse_args()
    started = time.time()
    sources = {log.name: list(log_queries(log))[:: args.every] for log in args.logs}
    if args.scene is not None:
        sources[args.scene.name] = copied(list(scene_queries(args.scene)), args.copies)
    scene_map = SceneMap.open(args.map)
    rows: dict[str, dict[str, dict]] = {}
    references: dict[str, np.ndarray] = {}
    for precision in ('fp32', *args.features):
        extractor = create_extractor(scene_map.manifest.features, precision=precision)
        rests = [rest for features, rest in PATHS if features == precision]
        localizers = [Localizer(scene_map, extractor, precision=rest) for rest in rests]
        for name, queries in sources.items():
            for rest, found in zip(rests, errors(localizers, queries), strict=True):
                reference = references.setdefault(name, found)
                path = f'features {precision}, all else {rest}'
                row = rows.setdefault(name, {})[path] = compare(found, reference)
                print(name, path, json.dumps(row), flush=True)
        if args.json is not None:
            args.json.write_text(json.dumps(rows, indent=1) + '\n')
    if args.record:
        write_record(args.record, rows, started, tables={'paths': table(rows)})
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
