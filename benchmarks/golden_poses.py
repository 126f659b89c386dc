"""Poses to the last bit: record them, and compare the records of two states of the code.

    python benchmarks/golden_poses.py make FOLDER              # build the maps to localize in
    python benchmarks/golden_poses.py record FOLDER OUT.json   # localize rendered queries in them
    python benchmarks/golden_poses.py compare A.json B.json    # ends with 1 where they differ

Make once, by the code before a change; record by the code before and after, with
D2S_KERNELS=compiled and with reference; compare. Numbers are written as hexadecimal floats, so that
equal records are equal bits. Queries are rendered anew: day, night with moved furniture, dusk with
motion blur, another building; some with a prior, some with a smaller compute budget. Bits are the
same on the same processor model with the same libraries only; a record names both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

import cv2
import numpy as np
import torch

from d2s_ros import kernels
from d2s_ros.features.types import FeatureConfig
from d2s_ros.localization.compute_budget import ComputeBudget
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.pose_prior import PosePrior
from d2s_ros.localization.result import LocalizationResult
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import frames

#: The building of the maps, and how its mapping images are taken.
MAPPING = SimulationConfig(
    seed=11, frames=40, width=480, height=360, trajectory='lawnmower', rate_hz=1.0
)
_QUERY = replace(MAPPING, trajectory='random', frames=70)
#: What is localized in them: 200 images for each map, and some again with a prior or a budget.
QUERIES = {
    'day': replace(_QUERY, trajectory_seed=5),
    'night': replace(_QUERY, trajectory_seed=6, lighting='night', change='moved'),
    'dusk': replace(_QUERY, trajectory_seed=7, lighting='dusk', motion_blur=True, frames=30),
    'other': replace(_QUERY, trajectory_seed=8, other_place=True, frames=30),
}

#: What localizing one image gives: text, whole numbers and hexadecimal floats.
Row = dict[str, Any]


def conditions() -> dict[str, Any]:
    """Return what bits depend on beside the code: the same conditions must give the same bits."""
    processor = platform.processor()
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='ascii', errors='replace')
        first = dict(re.findall(r'^(.+?)[ \t]*: (.*)$', text.partition('\n\n')[0], re.M))
        processor = ', '.join(first[key] for key in ('model name', 'cpu family', 'model'))
    except (OSError, KeyError):
        # Not Linux, or a processor without a name: what Python knows must do.
        pass
    return {
        'processor': processor,
        'vectors': torch.backends.cpu.get_cpu_capability(),
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'numpy': np.__version__,
        'opencv': cv2.__version__,
    }


def hexadecimal(values: Iterable[Any]) -> list[str]:
    """Return numbers to the last bit."""
    return [float(value).hex() for value in np.asarray(list(values), np.float64).ravel()]


def row_of(result: LocalizationResult) -> Row:
    """Return all that a result says of its image; of its keypoints, a digest."""
    row: Row = {
        'status': result.status.value,
        'counts': [
            result.num_keypoints,
            result.num_reliable,
            result.num_inliers,
            result.num_used,
        ],
        'with_prior': result.with_prior,
        'error_px': float(result.reprojection_error_px).hex(),
        'focal_error': hexadecimal(result.focal_error),
    }
    if result.map_from_camera is not None:
        row['rotation'] = hexadecimal(result.map_from_camera.rotation)
        row['translation'] = hexadecimal(result.map_from_camera.translation)
    if result.covariance is not None:
        row['covariance'] = hexadecimal(result.covariance)
    if result.details is not None:
        details = result.details
        arrays = (details.keypoints, details.reliability, details.inlier, details.points_in_map)
        data = b''.join(np.ascontiguousarray(array).tobytes() for array in arrays)
        row['keypoints'] = hashlib.sha256(data).hexdigest()
    return row


def record_map(map_path: Path, queries: Mapping[str, SimulationConfig]) -> dict[str, Row]:
    """Localize rendered images in a map.

    Args:
        map_path: Map folder.
        queries: What to render, by its kind.

    Returns:
        A row for 'kind/number/variant'; the variants are '' (alone), 'prior' and 'budget'.
    """
    localizer = Localizer.from_map(map_path, device='cpu')
    rows = {}
    for kind, config in queries.items():
        for number, frame in enumerate(frames(config)):
            variants: dict[str, dict[str, Any]] = {'': {}}
            if number % 4 == 0 and frame.map_from_camera is not None:
                prior = PosePrior(frame.map_from_camera, sigma_m=0.05, sigma_deg=0.5)
                variants['prior'] = {'prior': lambda given=prior: given}
            if number % 6 == 0:
                variants['budget'] = {'budget': ComputeBudget(0.5, 0.8)}
            for variant, arguments in variants.items():
                result = localizer.localize(frame.image, frame.camera, details=True, **arguments)
                rows[f'{kind}/{number}/{variant}'] = row_of(result)
    return rows


def make(folder: Path) -> None:
    """Build a map with each kind of features, and one with a regression network."""
    mapping = list(frames(MAPPING))
    for name in ('rootsift', 'superpoint'):
        config = budget('quick', features=FeatureConfig(name=name, max_keypoints=1024))
        build_map(mapping, folder / name, config, device='cpu', progress=False)
    config = budget(
        'quick', features=FeatureConfig(name='rootsift', max_keypoints=512), head='regression'
    )
    short = replace(config.regression_training, steps=40)
    config = replace(config, regression_training=short)
    build_map(mapping, folder / 'regression', config, device='cpu', progress=False)


def record(folder: Path) -> dict[str, Any]:
    """Return the rows of all maps in a folder, and the conditions."""
    rows = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        for name, row in record_map(path, QUERIES).items():
            rows[f'{path.name}/{name}'] = row
        print(f'{path.name}: done', flush=True)
    counted = Counter(row['status'] for row in rows.values())
    print(', '.join(f'{count} {status}' for status, count in counted.most_common()))
    name = cast(ModuleType, kernels.active()).__name__.rpartition('.')[2]
    return {'conditions': {**conditions(), 'kernels': name}, 'rows': rows}


def compare(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the names of rows that differ or that one record alone has."""
    names = sorted({*one['rows'], *other['rows']})
    return [name for name in names if one['rows'].get(name) != other['rows'].get(name)]


def main() -> int:
    """Make, record or compare."""
    parser = argparse.ArgumentParser(description='Poses to the last bit.')
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser('make').add_argument('folder', type=Path)
    recording = commands.add_parser('record')
    recording.add_argument('folder', type=Path)
    recording.add_argument('output', type=Path)
    comparing = commands.add_parser('compare')
    comparing.add_argument('one', type=Path)
    comparing.add_argument('other', type=Path)
    args = parser.parse_args()
    if args.command == 'make':
        make(args.folder)
        return 0
    if args.command == 'record':
        args.output.write_text(json.dumps(record(args.folder), indent=0) + '\n')
        return 0
    one, other = (json.loads(path.read_text()) for path in (args.one, args.other))
    if one['conditions'] != other['conditions']:
        print(f'not the same conditions: {one["conditions"]} and {other["conditions"]}')
    different = compare(one, other)
    print(f'{len(one["rows"])} rows, {len(different)} differ', *different[:10], sep='\n  ')
    return bool(different)


if __name__ == '__main__':
    sys.exit(main())
