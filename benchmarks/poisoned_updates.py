"""Updates from logs that could spoil a map: what becomes of them, and of the map.

    python benchmarks/poisoned_updates.py [--work DIR] [--json OUT.json]

Logs of another building, of darkness, of a plain wall, with wrong calibrations, cut in half, and
being written while they are read. Each update is a process of its own, as on a robot. Queries of
the mapped building are localized before and after. Logs and the map in DIR are used again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from records import write_record

from d2s_ros.data.frames import Frame
from d2s_ros.data.sources import open_source
from d2s_ros.data.tum import read_tum
from d2s_ros.evaluation.metrics import metrics_from_errors
from d2s_ros.evaluation.run import localize_log
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.verification import verify
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.log_writer import LogWriter
from d2s_ros.simulation.simulate import simulate_log
from d2s_ros.threads import set_passive_omp_wait

ROOT = Path(__file__).resolve().parent.parent
RECALL = '0.05m/5deg'


@dataclass(frozen=True)
class Outcome:
    """What an update did; `frames` holds the counts used, held out, dropped."""

    code: int
    verdict: str
    reasons: tuple[str, ...]
    dropped: dict[str, int]
    frames: tuple[int, int, int]


def rewrite(log: Path, out: Path, change: Callable[[Frame], Frame]) -> Path:
    """Copy a log with every frame changed."""
    with LogWriter(out) as writer:
        for frame in open_source(log):
            frame = change(frame)
            assert frame.image is not None
            assert frame.camera is not None
            info = writer.camera_info(frame.stamp_ns, 'camera', frame.camera)
            writer.write('/camera/camera_info', frame.stamp_ns, info)
            image = writer.compressed_image(frame.stamp_ns, 'camera', frame.image)
            writer.write('/camera/image_raw/compressed', frame.stamp_ns, image)
    return out


def darkness(frame: Frame) -> Frame:
    """Show nothing but the noise of the sensor."""
    assert frame.image is not None
    rng = np.random.default_rng(frame.stamp_ns % 2**32)
    return replace(frame, image=rng.poisson(2.0, frame.image.shape).astype(np.uint8))


def plain_wall(frame: Frame) -> Frame:
    """Show a bright wall without texture."""
    assert frame.image is not None
    rng = np.random.default_rng(frame.stamp_ns % 2**32)
    height, width = frame.image.shape[:2]
    shade = 150 + 40 * np.linspace(-1, 1, width)[None] * np.ones((height, 1))
    return replace(frame, image=(shade + rng.normal(0, 2.0, shade.shape)).astype(np.uint8))


def wrong_focal_length(frame: Frame) -> Frame:
    """Claim a focal length that is a fifth too long."""
    assert frame.camera is not None
    camera = replace(frame.camera, fx=1.2 * frame.camera.fx, fy=1.2 * frame.camera.fy)
    return replace(frame, camera=camera)


def wrong_principal_point(frame: Frame) -> Frame:
    """Claim a principal point that is off by a tenth of the image's width."""
    assert frame.camera is not None
    camera = replace(frame.camera, cx=frame.camera.cx + 0.1 * frame.camera.width)
    return replace(frame, camera=camera)


def wrong_distortion(frame: Frame) -> Frame:
    """Claim a strong barrel distortion of a lens that has none."""
    assert frame.camera is not None
    coefficients = (-0.28, 0.09, 0.0, 0.0, 0.0)
    camera = replace(frame.camera, model='plumb_bob', distortion=coefficients)
    return replace(frame, camera=camera)


def cut_in_half(log: Path, out: Path) -> Path:
    """Copy the first half of the bytes of a log, without the index: a robot lost its power."""
    out.mkdir()
    (file,) = log.glob('*.db3')
    data = file.read_bytes()
    (out / file.name).write_bytes(data[: len(data) // 2])
    return out


@contextlib.contextmanager
def being_written(log: Path, out: Path, seconds: float) -> Iterator[Path]:
    """Record a log's messages into `out` over some time, in transactions, as rosbag2 does.

    The first fifth is there when the context is entered; leaving it stops the recorder.
    """
    out.mkdir()
    (file,) = log.glob('*.db3')
    source = sqlite3.connect(file)
    rows = source.execute('SELECT * FROM messages ORDER BY timestamp').fetchall()
    schema = [row[0] for row in source.execute('SELECT sql FROM sqlite_master WHERE sql NOT NULL')]
    others = {
        name: source.execute(f'SELECT * FROM {name}').fetchall()
        for (name,) in source.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        if name != 'messages'
    }
    source.close()
    ready, stop = threading.Event(), threading.Event()

    def record() -> None:
        target = sqlite3.connect(out / f'{out.name}_0.db3')
        for statement in schema:
            target.execute(statement)
        for name, content in others.items():
            for row in content:
                target.execute(f'INSERT INTO {name} VALUES ({",".join("?" * len(row))})', row)
        first = len(rows) // 5
        for number, row in enumerate(rows):
            target.execute(f'INSERT INTO messages VALUES ({",".join("?" * len(row))})', row)
            if number < first:
                continue
            target.commit()
            ready.set()
            # A recorder has more on its way than what it has written.
            if stop.wait(seconds / len(rows)):
                break
        target.close()

    thread = threading.Thread(target=record)
    thread.start()
    ready.wait()
    try:
        yield out
    finally:
        stop.set()
        thread.join()


def update(map_path: Path, logs: list[Path], folder: Path, *options: str) -> Outcome:
    """Run `d2s update-map` as a process of its own and read what it says."""
    status = folder / 'status.json'
    command = [sys.executable, '-m', 'd2s_ros.cli.main', 'update-map', str(map_path)]
    command += [*map(str, logs), '--quiet', '--device', 'cpu', '--status-file', str(status)]
    done = subprocess.run(
        [*command, *options],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    document = json.loads(status.read_text())
    dropped = {}
    for line in done.stdout.splitlines():
        if line.startswith('dropped: '):
            count, _, reason = line.removeprefix('dropped: ').partition(' x ')
            dropped[reason] = int(count)
    counts = document['counts']
    frames = tuple(int(counts.get(name, 0)) for name in ('used', 'held_out', 'dropped'))
    assert len(frames) == 3
    verdict, reasons = document['verdict'], tuple(document['reasons'])
    return Outcome(done.returncode, verdict, reasons, dropped, frames)


def recall(map_path: Path, queries: list[Path]) -> float:
    """Return the share of the queries within 5 cm and 5 degrees."""
    localizer = Localizer.from_map(map_path, device='cpu')
    errors, count = [], 0
    for folder in queries:
        truth = read_tum(folder / 'groundtruth_tum.txt')
        for frame, result in localize_log(localizer, open_source(folder)):
            count += 1
            pose = truth.at(frame.stamp_ns)
            if result.map_from_camera is not None and pose is not None:
                errors.append(pose_error(result.map_from_camera, pose))
    return float(metrics_from_errors(errors, count).recalls[RECALL])


def poisons(work: Path) -> Iterator[tuple[str, list[Path]]]:
    """Make the logs, one kind after the other; `work` holds log_dusk and other."""
    good = work / 'log_dusk'
    made = work / 'poisoned'
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    yield 'another building', [work / 'other']
    yield 'another building beside a good log', [work / 'other', good]
    for change in (
        darkness,
        plain_wall,
        wrong_focal_length,
        wrong_principal_point,
        wrong_distortion,
    ):
        name = change.__name__
        yield name.replace('_', ' '), [rewrite(good, made / name, change)]
    yield 'cut in half', [cut_in_half(good, made / 'cut_in_half')]
    with being_written(good, made / 'being_written', 120.0) as log:
        yield 'being written', [log]


def simulate(args: argparse.Namespace, work: Path) -> None:
    """Render what is not there yet and build the map."""
    base = SimulationConfig(
        seed=args.seed, width=args.width, height=args.width * 3 // 4, poses=False
    )
    for name, config in {
        'map': replace(base, frames=args.map_frames),
        'log_dusk': replace(base, frames=args.log_frames, trajectory_seed=12, lighting='dusk'),
        'other': replace(base, frames=args.log_frames, other_place=True),
        'query_day': replace(base, frames=args.query_frames, trajectory_seed=21),
        'query_dusk': replace(base, frames=args.query_frames, trajectory_seed=22, lighting='dusk'),
    }.items():
        if not (work / name / 'groundtruth_tum.txt').exists():
            simulate_log(config, work / name, progress=False)
    if not (work / 'map0').exists():
        source = open_source(work / 'map', poses=work / 'map' / 'groundtruth_tum.txt')
        build_map(source, work / 'map0', budget(args.budget), device='cpu', progress=False)


def run(args: argparse.Namespace, work: Path) -> dict[str, dict]:
    """Update a fresh copy of the map from each poisoned log."""
    simulate(args, work)
    queries = [work / 'query_day', work / 'query_dusk']
    before = recall(work / 'map0', queries)
    rows: dict[str, dict] = {}
    for name, logs in poisons(work):
        copy = work / 'poisoned' / 'map'
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(work / 'map0', copy)
        outcome = update(copy, logs, work / 'poisoned')
        promoted = outcome.verdict == 'promoted'
        rows[name] = {
            'used, held out, dropped': outcome.frames,
            'verdict': outcome.verdict,
            'reasons': list(outcome.reasons),
            'dropped': outcome.dropped,
            'recall_before': before,
            'recall_after': recall(copy, queries) if promoted else before,
            'live': MapStore(copy).current(),
            'problems': verify(copy),
        }
    return rows


def table(rows: dict[str, dict]) -> str:
    """Return the outcomes as Markdown."""
    lines = [
        '| log | used / held out / dropped | verdict | main reason | recall before | after |',
        '|---|---|---|---|---|---|',
    ]
    for name, row in rows.items():
        used, held_out, dropped = row['used, held out, dropped']
        reasons = row['dropped'] or {'': 0}
        reason = max(reasons, key=lambda text: reasons[text])
        if row['verdict'] == 'refused':
            reason = row['reasons'][0]
        verdict = row['verdict'].replace('_', ' ')
        lines.append(
            f'| {name} | {used} / {held_out} / {dropped} | {verdict} | {reason} '
            f'| {100 * row["recall_before"]:.1f} % | {100 * row["recall_after"]:.1f} % |'
        )
    return '\n'.join(lines)


def main() -> int:
    """Print the table; returns 1 if a map got worse or is damaged."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work', type=Path, help='folder to keep logs and maps in')
    parser.add_argument('--json', type=Path)
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--width', type=int, default=640)
    parser.add_argument('--map-frames', type=int, default=60)
    parser.add_argument('--log-frames', type=int, default=40)
    parser.add_argument('--query-frames', type=int, default=40)
    parser.add_argument('--budget', default='standard', choices=('quick', 'standard', 'full'))
    args = parser.parse_args()
    started = time.time()
    set_passive_omp_wait()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        rows = run(args, work)
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    if args.record:
        write_record(args.record, rows, started, tables={'logs': table(rows).splitlines()})
    worse = [
        name
        for name, row in rows.items()
        if row['problems'] or row['recall_after'] < row['recall_before'] - 0.01
    ]
    for name in worse:
        print(f'worse: {name}')
    return 1 if worse else 0


if __name__ == '__main__':
    sys.exit(main())
