"""Recall before and after self-updates from unlabelled logs, in a simulated building.

    python benchmarks/map_update.py [--work DIR] [--json OUT.json] [--plot OUT.png]

The building is mapped by day with true poses. Logs at dusk, at night and with a third of the
furniture moved come without poses. Query logs of each condition, which no map has seen, are
localized with the first map, with the updated one, and with a map built from all logs with their
true poses, which is what an update can hope for at best. Rendered logs in DIR are used again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from d2s_ros.data.frames import Frame
from d2s_ros.data.sources import open_source
from d2s_ros.data.tum import read_tum
from d2s_ros.evaluation.metrics import metrics_from_errors
from d2s_ros.evaluation.run import localize_log
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.pipeline import budget, build_map
from d2s_ros.map_update.config import UpdateConfig
from d2s_ros.map_update.pipeline import update_map
from d2s_ros.map_update.report import write_report
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import simulate_log

CONDITIONS = {
    'day': {},
    'dusk': {'lighting': 'dusk'},
    'night': {'lighting': 'night'},
    'moved': {'change': 'moved'},
}
RECALL = '0.05m/5deg'


class Chained:
    """Several logs one after the other, each with its true poses."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self._sources = [
            open_source(folder, poses=folder / 'groundtruth_tum.txt') for folder in folders
        ]

    def __len__(self) -> int:
        return sum(len(source) for source in self._sources)

    def __iter__(self) -> Iterator[Frame]:
        for folder, source in zip(self._folders, self._sources, strict=True):
            for frame in source:
                yield replace(frame, name=f'{folder.name}/{frame.name}')


def simulate(args: argparse.Namespace, work: Path) -> dict[str, Path]:
    """Render the logs that are not there yet."""
    base = SimulationConfig(
        seed=args.seed, width=args.width, height=args.width * 3 // 4, poses=False
    )
    wanted = {'map': replace(base, frames=args.map_frames)}
    for number, (name, change) in enumerate(CONDITIONS.items()):
        if name != 'day':
            wanted[f'log_{name}'] = replace(
                base, frames=args.log_frames, trajectory_seed=11 + number, **change
            )
        wanted[f'query_{name}'] = replace(
            base, frames=args.query_frames, trajectory_seed=21 + number, **change
        )
    folders = {}
    for name, config in wanted.items():
        folders[name] = work / name
        if not (work / name / 'groundtruth_tum.txt').exists():
            simulate_log(config, work / name, progress=args.progress)
    return folders


def recalls(map_path: Path, folders: dict[str, Path]) -> dict[str, dict]:
    """Localize the queries of every condition."""
    localizer = Localizer.from_map(map_path, device='cpu')
    rows = {}
    for name in CONDITIONS:
        folder = folders[f'query_{name}']
        truth = read_tum(folder / 'groundtruth_tum.txt')
        errors, count = [], 0
        for frame, result in localize_log(localizer, open_source(folder)):
            count += 1
            pose = truth.at(frame.stamp_ns)
            if result.map_from_camera is not None and pose is not None:
                errors.append(pose_error(result.map_from_camera, pose))
        metrics = metrics_from_errors(errors, count)
        rows[name] = {
            'frames': count,
            'localized': metrics.num_localized,
            'recall': metrics.recalls[RECALL],
            'median_m': metrics.median_m if errors else None,
        }
    return rows


def run(args: argparse.Namespace, work: Path) -> dict:
    """Build, update, build with true poses, and localize with each map."""
    folders = simulate(args, work)
    config = budget(args.budget)
    if args.features:
        config = replace(config, features=replace(config.features, name=args.features))
    names = [f'log_{name}' for name in CONDITIONS if name != 'day']
    result: dict = {'maps': {}}
    for name in ('map0', 'map_truth'):
        if args.rebuild and (work / name).exists():
            shutil.rmtree(work / name)
    if not (work / 'map0').exists():
        build_map(
            Chained([folders['map']]), work / 'map0', config, device='cpu', progress=args.progress
        )
    shutil.rmtree(work / 'map1', ignore_errors=True)
    shutil.copytree(work / 'map0', work / 'map1')
    result['maps']['before'] = recalls(work / 'map1', folders)
    started = time.monotonic()
    update = update_map(
        work / 'map1',
        [folders[name] for name in names],
        UpdateConfig(recipe=args.recipe, min_free_megabytes=1),
        device='cpu',
        show_progress=args.progress,
    )
    result['update_seconds'] = round(time.monotonic() - started, 1)
    write_report(work / 'report.html', update, 'Update of the simulated building')
    result['verdict'], result['reasons'] = update.verdict, list(update.reasons)
    result['gate'] = update.decision.metrics if update.decision else None
    result['figures'] = update.figures
    poses = [
        pose_error(frame.map_from_camera, pose)
        for frame in update.frames
        if frame.map_from_camera is not None
        for pose in [
            read_tum(work / frame.keyframe.log / 'groundtruth_tum.txt').at(frame.keyframe.stamp_ns)
        ]
        if pose is not None
    ]
    result['worst_pseudo_pose_m'] = max((metres for metres, _ in poses), default=None)
    result['maps']['after'] = recalls(work / 'map1', folders)
    if not args.without_truth:
        if not (work / 'map_truth').exists():
            build_map(
                Chained([folders['map'], *(folders[name] for name in names)]),
                work / 'map_truth',
                config,
                device='cpu',
                progress=args.progress,
            )
        result['maps']['with true poses'] = recalls(work / 'map_truth', folders)
    return result


def table(result: dict) -> str:
    """Return recall by condition and map as Markdown."""
    maps = result['maps']
    lines = ['| queries | ' + ' | '.join(maps) + ' |', '|---|' + '---|' * len(maps)]
    changed = [name for name in CONDITIONS if name != 'day']

    def cells(names: list[str]) -> list[str]:
        row = []
        for figures in maps.values():
            total = sum(figures[name]['frames'] for name in names)
            good = sum(figures[name]['recall'] * figures[name]['frames'] for name in names)
            row.append(f'{100 * good / total:.1f} %')
        return row

    for name in CONDITIONS:
        lines.append(f'| {name} | ' + ' | '.join(cells([name])) + ' |')
    lines.append('| changed, together | ' + ' | '.join(cells(changed)) + ' |')
    return '\n'.join(lines)


def plot(result: dict, path: Path) -> None:
    """Draw the table."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3))
    axes = figure.add_subplot()
    maps = result['maps']
    for position, (name, figures) in enumerate(maps.items()):
        values = [100 * figures[condition]['recall'] for condition in CONDITIONS]
        places = [n + 0.8 * (position + 0.5) / len(maps) - 0.4 for n in range(len(values))]
        axes.bar(places, values, 0.75 / len(maps), label=name)
    axes.set_xticks(range(len(CONDITIONS)), list(CONDITIONS))
    axes.set_ylabel('recall at 5 cm, 5 degrees [%]')
    axes.legend(loc='lower left')
    figure.savefig(path, dpi=130, bbox_inches='tight')


def main() -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work', type=Path, help='folder to keep logs and maps in')
    parser.add_argument('--json', type=Path)
    parser.add_argument('--plot', type=Path)
    parser.add_argument('--seed', type=int, default=3)
    parser.add_argument('--width', type=int, default=640)
    parser.add_argument('--map-frames', type=int, default=80)
    parser.add_argument('--log-frames', type=int, default=67)
    parser.add_argument('--query-frames', type=int, default=40)
    parser.add_argument('--features', choices=('rootsift', 'superpoint'))
    parser.add_argument('--budget', default='standard', choices=('quick', 'standard', 'full'))
    parser.add_argument('--recipe', default='verified', choices=('verified', 'paper'))
    parser.add_argument('--without-truth', action='store_true')
    parser.add_argument('--rebuild', action='store_true', help='build the maps in DIR again')
    parser.add_argument('--progress', action='store_true')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        result = run(args, work)
    print(table(result))
    print(f'\nupdate: {result["verdict"]} in {result["update_seconds"]} s')
    for reason in result['reasons']:
        print(f'  {reason}')
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    if args.plot:
        plot(result, args.plot)
    return 0


if __name__ == '__main__':
    sys.exit(main())
