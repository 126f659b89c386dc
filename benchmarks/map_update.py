"""Recall before and after self-updates from unlabelled logs, in simulated buildings.

    python benchmarks/map_update.py [--work DIR] [--json OUT.json] [--plot OUT.png]
    python benchmarks/map_update.py --rounds 10 --seeds 2 [--work DIR] [--json OUT.json]

Each building is mapped by day with true poses. Logs at dusk, at night, and with a third of the
furniture moved come without poses. Query logs of each condition, and of moved furniture at night,
which no log shows, are localized with the first map, with the updated one, with one updated as
published if that is asked for, and with a map built from all logs with their true poses, which is
what an update can hope for at best. Every lap is driven in one of two directions; the mapping log
shows only one.

With --rounds, small logs of one changed condition after the other each make an update of their own,
and all conditions are measured after each. Logs, maps and finished results in DIR are used again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from records import write_record

from d2s_ros.data.frames import Frame, FrameSource
from d2s_ros.data.sources import open_source
from d2s_ros.data.tum import read_tum
from d2s_ros.evaluation.metrics import metrics_from_errors
from d2s_ros.evaluation.run import localize_log
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import BuildConfig, budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.map_update.config import UpdateConfig
from d2s_ros.map_update.pipeline import update_map
from d2s_ros.map_update.report import write_report
from d2s_ros.map_update.result import UpdateResult
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import simulate_log
from d2s_ros.threads import set_passive_omp_wait


@dataclass(frozen=True)
class Condition:
    """A state of the building: options of the simulation, seed and length of its query log."""

    change: dict[str, Any]
    seed: int
    frames: int


CONDITIONS = {
    'day': Condition({}, 21, 120),
    'dusk': Condition({'lighting': 'dusk'}, 22, 120),
    'night': Condition({'lighting': 'night'}, 23, 120),
    'moved': Condition({'change': 'moved'}, 24, 120),
    'moved_night': Condition({'change': 'moved', 'lighting': 'night'}, 26, 120),
}
CHANGED = tuple(name for name in CONDITIONS if name != 'day')
#: Conditions that logs show, and the seeds of these.
LOGS = {'dusk': 12, 'night': 13, 'moved': 14}
RECALL = '0.05m/5deg'
FINE_RECALL = '0.01m/1deg'


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


class Thinned:
    """Every n-th frame of a log."""

    def __init__(self, source: FrameSource, every: int) -> None:
        self._source, self._every = source, every

    def __len__(self) -> int:
        return len(range(0, len(self._source), self._every))

    def __iter__(self) -> Iterator[Frame]:
        return itertools.islice(self._source, 0, None, self._every)


def render(config: SimulationConfig, path: Path, args: argparse.Namespace) -> Path:
    """Render a log unless it is there."""
    if not (path / 'groundtruth_tum.txt').exists():
        simulate_log(config, path, progress=args.progress)
    return path


def simulate(args: argparse.Namespace, work: Path, logs: bool = True) -> dict[str, Path]:
    """Render mapping log, queries and logs that are not there yet."""
    base = base_config(args)
    wanted = {'map': replace(base, frames=args.map_frames)}
    for name, seed in LOGS.items() if logs else ():
        change = CONDITIONS[name].change
        wanted[f'log_{name}'] = replace(
            base, frames=args.log_frames, trajectory_seed=seed, **change
        )
    for name, condition in CONDITIONS.items():
        wanted[f'query_{name}'] = replace(
            base, frames=condition.frames, trajectory_seed=condition.seed, **condition.change
        )
    return {name: render(config, work / name, args) for name, config in wanted.items()}


def base_config(args: argparse.Namespace) -> SimulationConfig:
    """Return what all logs of a building have in common."""
    return SimulationConfig(
        seed=args.seed, width=args.width, height=args.width * 3 // 4, poses=False
    )


def recalls(map_path: Path, folders: dict[str, Path], args: argparse.Namespace) -> dict[str, dict]:
    """Localize the queries of every condition, at most `--most-queries` of each."""
    localizer = Localizer.from_map(map_path, device='cpu')
    rows = {}
    for name in CONDITIONS:
        folder = folders[f'query_{name}']
        truth = read_tum(folder / 'groundtruth_tum.txt')
        source = open_source(folder)
        thinned = Thinned(source, -(-len(source) // args.most_queries))
        errors, count = [], 0
        for frame, result in localize_log(localizer, thinned):
            count += 1
            pose = truth.at(frame.stamp_ns)
            if result.map_from_camera is not None and pose is not None:
                errors.append(pose_error(result.map_from_camera, pose))
        metrics = metrics_from_errors(errors, count)
        rows[name] = {
            'frames': count,
            'localized': metrics.num_localized,
            'recall': metrics.recalls[RECALL],
            'fine_recall': metrics.recalls.get(FINE_RECALL),
            'median_m': metrics.median_m if errors else None,
        }
    return rows


def build(folders: list[Path], path: Path, config: BuildConfig, args: argparse.Namespace) -> Path:
    """Build a map with true poses unless it is there."""
    if args.rebuild and path.exists():
        shutil.rmtree(path)
    if not (path / 'current').exists():
        build_map(Chained(folders), path, config, device='cpu', progress=args.progress)
    return path


def update(
    map_path: Path, logs: list[Path], recipe: str, args: argparse.Namespace
) -> tuple[UpdateResult, dict]:
    """Update a map; return the result and its figures, also against the truth."""
    started, cpu = time.monotonic(), time.process_time()
    result = update_map(
        map_path,
        logs,
        UpdateConfig(recipe=recipe, min_free_megabytes=1),
        device='cpu',
        show_progress=args.progress,
    )
    truths = {log.resolve().name: read_tum(log / 'groundtruth_tum.txt') for log in logs}
    errors = [
        pose_error(frame.map_from_camera, pose)[0]
        for frame in result.frames
        if frame.map_from_camera is not None
        for pose in [truths[frame.keyframe.log].at(frame.keyframe.stamp_ns)]
        if pose is not None
    ]
    return result, {
        'seconds': round(time.monotonic() - started, 1),
        'cpu_seconds': round(time.process_time() - cpu, 1),
        'verdict': result.verdict,
        'reasons': list(result.reasons),
        'gate': result.decision.metrics if result.decision else None,
        'figures': result.figures,
        'pseudo_poses': len(errors),
        'pseudo_pose_median_m': float(np.median(errors)) if errors else None,
        'pseudo_poses_beyond_10_cm': sum(error > 0.1 for error in errors),
    }


def run(args: argparse.Namespace, work: Path) -> dict:
    """Build, update, build with true poses, and localize with each map."""
    folders = simulate(args, work)
    config = build_config(args)
    logs = [folders[f'log_{name}'] for name in LOGS]
    result: dict = {'maps': {}, 'updates': {}}
    first = build([folders['map']], work / 'map0', config, args)
    result['maps']['before'] = recalls(first, folders, args)
    for recipe in args.recipes:
        path = work / f'map_{recipe}'
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(first, path)
        outcome, figures = update(path, logs, recipe, args)
        result['updates'][recipe] = figures
        write_report(work / f'{recipe}.html', outcome, f'Update, recipe {recipe}')
        # Of the published recipe the candidate is shown, whatever the gate says.
        shown = path
        if recipe == 'paper' and outcome.candidate_version:
            shown = path / 'versions' / outcome.candidate_version
        result['maps'][f'after, {recipe}'] = recalls(shown, folders, args)
    if not args.without_truth:
        truth = build([folders['map'], *logs], work / 'map_truth', config, args)
        result['maps']['with true poses'] = recalls(truth, folders, args)
    return result


def build_config(args: argparse.Namespace) -> BuildConfig:
    """Return the configuration of both maps."""
    config = budget(args.budget)
    if args.features:
        config = replace(config, features=replace(config.features, name=args.features))
    return config


def run_rounds(args: argparse.Namespace, work: Path) -> dict:
    """Update again and again, from logs of one changed condition after the other."""
    folders = simulate(args, work, logs=False)
    first = build([folders['map']], work / 'map0', build_config(args), args)
    path = work / 'map_rounds'
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(first, path)
    result: dict = {'maps': {'before': recalls(path, folders, args)}, 'updates': {}}
    for number in range(args.rounds):
        name = CHANGED[number % len(CHANGED)]
        config = replace(
            base_config(args),
            frames=args.log_frames,
            trajectory_seed=101 + number,
            **CONDITIONS[name].change,
        )
        log = render(config, work / f'round_{number + 1}_{name}', args)
        before = list(result['maps'].values())[-1]
        _, figures = update(path, [log], 'verified', args)
        title = f'{number + 1} {name}: {figures["verdict"]}'
        result['updates'][title] = figures
        promoted = figures['verdict'] == 'promoted'
        # Of the same map, queries get the same poses.
        result['maps'][title] = recalls(path, folders, args) if promoted else before
    losses = {}
    for name in CONDITIONS:
        values = [rows[name]['recall'] for rows in result['maps'].values()]
        losses[name] = max(max(values[: n + 1]) - value for n, value in enumerate(values))
    result['largest_loss_against_best'] = losses
    return result


def all_buildings(args: argparse.Namespace, work: Path) -> dict:
    """Run every building in a folder of its own; what one has given is kept there."""
    result: dict = {'buildings': {}, 'updates': {}, 'largest_loss_against_best': {}}
    for seed in args.seeds:
        args.seed = seed
        folder = work / f'building_{seed}'
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / ('rounds.json' if args.rounds else 'result.json')
        if kept.exists() and not args.rebuild:
            one = json.loads(kept.read_text())
        else:
            one = run_rounds(args, folder) if args.rounds else run(args, folder)
            kept.write_text(json.dumps(one, indent=1))
        title = f'building {seed}'
        result['buildings'][title] = one['maps']
        result['updates'] |= {f'{title}, {name}': one['updates'][name] for name in one['updates']}
        for name, loss in one.get('largest_loss_against_best', {}).items():
            result['largest_loss_against_best'][f'{title}, {name}'] = loss
    result['maps'] = summed(list(result['buildings'].values()))
    return result


def summed(buildings: list[dict[str, dict]]) -> dict[str, dict]:
    """Return the figures of the maps that all buildings have, over all of their queries."""
    maps: dict[str, dict] = {}
    for title in buildings[0]:
        if not all(title in maps_of_one for maps_of_one in buildings):
            continue
        maps[title] = {}
        for name in CONDITIONS:
            rows = [maps_of_one[title][name] for maps_of_one in buildings]
            frames = sum(row['frames'] for row in rows)
            maps[title][name] = {
                'frames': frames,
                **{
                    figure: sum((row[figure] or 0) * row['frames'] for row in rows) / frames
                    for figure in ('recall', 'fine_recall')
                },
            }
    return maps


def together(rows: dict[str, dict], names: tuple[str, ...], figure: str = 'recall') -> float:
    """Return the recall on several conditions taken together, in percent."""
    total = sum(rows[name]['frames'] for name in names)
    return 100 * sum((rows[name][figure] or 0) * rows[name]['frames'] for name in names) / total


def table(maps: dict[str, dict]) -> str:
    """Return recall by map and condition as Markdown."""
    lines = [
        '| map | ' + ' | '.join(name.replace('_', ' at ') for name in CONDITIONS) + ' | changed '
        'ones together | of these within 1 cm, 1 degree |',
        '|---|' + '---|' * (len(CONDITIONS) + 2),
    ]
    for title, rows in maps.items():
        cells = [f'{together(rows, (name,)):.1f} %' for name in CONDITIONS]
        cells.append(f'**{together(rows, CHANGED):.1f} %**')
        cells.append(f'{together(rows, CHANGED, "fine_recall"):.1f} %')
        lines.append(f'| {title} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def plot(result: dict, path: Path) -> None:
    """Draw the table."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout='constrained')
    axes = figure.add_subplot()
    maps = result['maps']
    for position, (name, figures) in enumerate(maps.items()):
        values = [100 * figures[condition]['recall'] for condition in CONDITIONS]
        places = [n + 0.8 * (position + 0.5) / len(maps) - 0.4 for n in range(len(values))]
        axes.bar(places, values, 0.75 / len(maps), label=name)
    axes.set_xticks(range(len(CONDITIONS)), [name.replace('_', ' at ') for name in CONDITIONS])
    axes.set_ylabel('recall at 5 cm, 5 degrees [%]')
    axes.set_ylim(0, 100)
    figure.legend(loc='outside upper center', ncols=len(maps))
    figure.savefig(path, dpi=130, bbox_inches='tight')


def main() -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work', type=Path, help='folder to keep logs and maps in')
    parser.add_argument('--json', type=Path)
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    parser.add_argument('--plot', type=Path)
    parser.add_argument('--seeds', nargs='+', type=int, default=[1, 2, 3], help='buildings')
    parser.add_argument('--width', type=int, default=640)
    parser.add_argument('--map-frames', type=int, default=60)
    parser.add_argument('--log-frames', type=int, default=67)
    parser.add_argument('--most-queries', type=int, default=40, help='of each condition')
    parser.add_argument('--features', choices=('rootsift', 'superpoint'))
    parser.add_argument('--budget', default='standard', choices=('quick', 'standard', 'full'))
    parser.add_argument('--recipes', nargs='+', default=['verified'], choices=('verified', 'paper'))
    parser.add_argument('--rounds', type=int, default=0, help='updates in a row')
    parser.add_argument('--without-truth', action='store_true')
    parser.add_argument('--rebuild', action='store_true', help='build the maps in DIR again')
    parser.add_argument('--progress', action='store_true')
    args = parser.parse_args()
    started = time.time()
    set_passive_omp_wait()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        result = all_buildings(args, work)
    for title, maps in result['buildings'].items():
        print(f'\n{title}\n\n{table(maps)}')
    if len(result['buildings']) > 1:
        print(f'\nall buildings\n\n{table(result["maps"])}')
    for name, figures in result['updates'].items():
        print(f'\n{name}: {figures["verdict"]} in {figures["seconds"]} s')
        for reason in figures['reasons']:
            print(f'  {reason}')
    for name, loss in result['largest_loss_against_best'].items():
        print(f'{name}: at most {100 * loss:.1f} points below its best')
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    if args.record:
        tables = {title: table(maps).splitlines() for title, maps in result['buildings'].items()}
        if len(result['buildings']) > 1:
            tables['all'] = table(result['maps']).splitlines()
        write_record(args.record, result, started, tables=tables)
    if args.plot:
        plot(result, args.plot)
    return 0


if __name__ == '__main__':
    sys.exit(main())
