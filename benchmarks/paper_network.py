"""The network of the D2S paper: error against training time, and two tables of the paper.

    python benchmarks/paper_network.py DATA --work FOLDER [--scenes fountain-P11 castle-P30 fox]
        [--steps N] [--rows ...] [--piece-minutes M] [--record NAME]

DATA is as of accuracy.py. Features and points of each scene are made once and kept in FOLDER. Every
row trains a network of its own and asks all queries of the scene: at the start and whenever another
part of the steps is done. Rows are what the recipe of the paper gives, the same with other numbers
of attention layers (Table V) or without the loss of the reliability (Table IV; all keypoints are
used then), from random weights, and, `learned` and what begins with it, from random weights with
what makes them learn (`regression.build.learning`). A query counts as placed within 2 % of the
depth of its scene and 1 degree, whatever the acceptance of poses says of it.

With --piece-minutes the command ends with code 3 after that much training; the same command goes on
from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# First: it decides how threads wait, before any is started.
from accuracy import Scene, finite, photographed_scenes
from records import write_record

import numpy as np
import torch

from d2s_ros.data.frames import Frame
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureConfig, FeatureExtractor, LocalFeatures
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.pose_solver import PoseSolverConfig, reprojection_errors, solve_pose
from d2s_ros.map_building.config import BuildConfig, budget
from d2s_ros.map_building.images import collect_images
from d2s_ros.map_building.stages import BuildStages
from d2s_ros.reconstruction.pipeline import reconstruct
from d2s_ros.reconstruction.reconstruction import (
    Reconstruction,
    pack_reconstruction,
    unpack_reconstruction,
)
from d2s_ros.scene_models.regression.build import MIN_ERROR_PX, learning, shape_of
from d2s_ros.scene_models.regression.network import D2SNetwork
from d2s_ros.scene_models.regression.samples import CoordinateFrame, samples_of_images
from d2s_ros.scene_models.regression.trainer import train_regression_network
from d2s_ros.scene_models.training_loop import read_checkpoint


def points_of(
    scene: Scene, extractor: FeatureExtractor, config: BuildConfig, work: Path
) -> Reconstruction:
    """Return the points of a scene's mapping images; what is done is kept in `work`."""
    stages = BuildStages(work / f'{scene.name}_{config.features.name}', {})
    images, _ = collect_images(scene.mapping, extractor, config, stages=stages, progress=True)
    log = stages.log('reconstruction')
    known = log.get('points')
    if known is not None:
        return unpack_reconstruction(known, images)
    found = reconstruct(images, config.reconstruction, stage=stages.log('matches'), progress=True)
    log.keep('points', pack_reconstruction(found, images))
    return found


#: Row -> attention layers and what differs from the training of the recipe.
ROWS: dict[str, tuple[int, dict[str, Any]]] = {
    'paper': (5, {}),
    'layers-2': (2, {}),
    'layers-0': (0, {}),
    'without-reliability': (5, {'alpha_u': 0.0}),
    'random-start': (5, {'start': 'random'}),
    'learned': (5, {}),
    'learned-layers-2': (2, {}),
    'learned-layers-0': (0, {}),
    'learned-without-reliability': (5, {'alpha_u': 0.0}),
}
#: Placed: within this share of the scene's depth, and this angle.
DEPTH_SHARE, ANGLE_DEG = 0.02, 1.0


@dataclass(frozen=True, eq=False)
class Query:
    """A query image with its features."""

    frame: Frame
    features: LocalFeatures


class PieceEndError(Exception):
    """The time of a piece of the training is over; what is done was saved."""


@torch.inference_mode()
def ask(
    network: D2SNetwork, queries: Sequence[Query], frame: CoordinateFrame, *, reliable: bool
) -> dict[str, Any]:
    """Return the errors of all queries, without the acceptance of poses.

    Args:
        network: Of the paper.
        queries: To be placed.
        frame: Where the network's coordinates lie in the map.
        reliable: Only keypoints above the threshold of the reliability are used.
    """
    solver = PoseSolverConfig(max_reprojection_error_px=MIN_ERROR_PX)
    shares, degrees, pixels, counts, times = [], [], [], [], []
    for query in queries:
        camera, truth = query.frame.camera, query.frame.map_from_camera
        assert camera is not None
        assert truth is not None
        points, p = network(torch.from_numpy(query.features.descriptors)[None])
        z = network.reliability(p)[0].numpy()
        used = np.argsort(-z, kind='stable')
        if reliable:
            used = used[z[used] >= 0.6]
        counts.append(len(used))
        coordinates = frame.center + frame.scale * points[0].numpy()[used].astype(np.float64)
        ideal = camera.undistort(query.features.keypoints[used])
        errors, _ = reprojection_errors(truth.inverse(), ideal, coordinates, camera.ideal)
        pixels.append(float(np.median(errors)) if len(used) else np.nan)
        started = time.process_time()
        found = solve_pose(
            ideal, coordinates, camera.ideal, sigmas_px=np.ones(len(used)), config=solver
        )
        times.append(1e3 * (time.process_time() - started))
        if found is None:
            shares.append(np.inf)
            degrees.append(np.inf)
            continue
        metres, angle = pose_error(found.camera_from_map.inverse(), truth)
        shares.append(metres / found.median_depth)
        degrees.append(angle)
    placed = (np.array(shares) <= DEPTH_SHARE) & (np.array(degrees) <= ANGLE_DEG)
    return {
        'placed': int(placed.sum()),
        'queries': len(queries),
        'median_share_of_depth': float(np.median(shares)),
        'max_share_of_depth': float(np.max(shares)),
        'median_deg': float(np.median(degrees)),
        'max_deg': float(np.max(degrees)),
        'coordinates_px': float(np.median(pixels)),
        'keypoints_used': float(np.median(counts)),
        'pose_ms': float(np.median(times)),
    }


def train_row(
    row: str,
    scene: str,
    reconstruction: Reconstruction,
    queries: Sequence[Query],
    config: BuildConfig,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Train the network of a row, asking the queries on the way."""
    layers, changes = ROWS[row]
    training = config.regression_training
    if row.startswith('learned'):
        training = learning(training)
    training = replace(
        training,
        steps=args.steps,
        evaluate_every=max(1, args.steps // args.evaluations),
        patience=args.evaluations,
        **changes,
    )
    if args.keypoints is not None:
        training = replace(training, keypoints_per_image=args.keypoints)
    every = config.holdout_every
    frame = CoordinateFrame.identity()
    if training.center_targets:
        frame = CoordinateFrame.of_points(reconstruction.points_in_map)
    samples = samples_of_images(reconstruction, frame)
    held_out = list(range(every // 2, len(samples), every))
    dim = samples[0].descriptors.shape[1]
    shape = shape_of(replace(config.regression, num_layers=layers), training, dim)
    reliable = not row.endswith('without-reliability')
    stem = args.work / f'{scene}_{config.features.name}_{row}_{args.steps}'
    checkpoint, progress = stem.with_suffix('.checkpoint'), stem.with_suffix('.curve.json')
    # Of a run that ended between its checkpoints, the part that will be done again is left out.
    saved = read_checkpoint(checkpoint)
    step_done = 0 if saved is None else saved['step']
    known = json.loads(progress.read_text()) if saved and progress.is_file() else {}
    curve: list[dict[str, Any]] = [
        point for point in known.get('curve', []) if point['step'] <= step_done
    ]
    cpu_before = known.get('cpu_seconds', 0.0)
    asking = 0.0
    began, began_wall = time.process_time(), time.monotonic()

    def cpu_seconds() -> float:
        return round(cpu_before + time.process_time() - began - asking, 2)

    def write_progress() -> None:
        progress.write_text(json.dumps(finite({'cpu_seconds': cpu_seconds(), 'curve': curve})))

    def look(network: D2SNetwork) -> None:
        nonlocal asking
        now = time.process_time()
        figures = ask(network, queries, frame, reliable=reliable)
        step = min(len(curve) * training.evaluate_every, training.steps)
        curve.append({'step': step, 'cpu_seconds': cpu_seconds(), **figures})
        asking += time.process_time() - now
        curve[-1]['cpu_seconds'] = cpu_seconds()
        print(f'{scene} {row}: {json.dumps(finite(curve[-1]))}', flush=True)
        write_progress()

    def on_step(step: int, loss: float) -> None:
        minutes = (time.monotonic() - began_wall) / 60
        if args.piece_minutes and minutes > args.piece_minutes and step < training.steps:
            write_progress()
            raise PieceEndError(f'{scene} {row}: step {step} of {training.steps}, loss {loss:.1f}')

    network, figures = train_regression_network(
        [[sample] for index, sample in enumerate(samples) if index not in held_out],
        shape,
        training,
        checkpoint=checkpoint,
        held_out=[samples[index] for index in held_out],
        on_step=on_step,
        on_evaluation=look,
    )
    for path in (checkpoint, progress):
        path.unlink(missing_ok=True)
    return {
        'scene': scene,
        'row': row,
        'parameters': sum(parameter.numel() for parameter in network.parameters()),
        'training': figures,
        'curve': curve,
        'kept': ask(network, queries, frame, reliable=reliable),
    }


def tables_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Return what was kept of each row, and the error against training time."""
    kept_rows = [
        '| scene | row | placed | median, worst of depth | median, worst [deg] | '
        'coordinates [px] | keypoints used | pose [ms] | kept of step | training [CPU s] |',
        '|' + 10 * '---|',
    ]
    for row in rows:
        kept = row['kept']
        kept_rows.append(
            f'| {row["scene"]} | {row["row"]} | {errors_of(kept)} | '
            f'{number(kept["coordinates_px"], 2)} | {number(kept["keypoints_used"], 0)} | '
            f'{number(kept["pose_ms"], 1)} | {row["training"]["best_step"]} of {row["steps"]} | '
            f'{row["curve"][-1]["cpu_seconds"]:.0f} |'
        )
    curves = [
        '| scene | row | step | CPU s | placed | median, worst of depth | median, worst [deg] |',
        '|' + 7 * '---|',
    ]
    for row in rows:
        for point in row['curve']:
            curves.append(
                f'| {row["scene"]} | {row["row"]} | {point["step"]} | '
                f'{point["cpu_seconds"]:.1f} | {errors_of(point)} |'
            )
    return {'rows': kept_rows, 'curves': curves}


def number(value: float | None, digits: int) -> str:
    """Return a number, "none" where there is none."""
    return 'none' if value is None or not np.isfinite(value) else f'{value:.{digits}f}'


def errors_of(figures: dict[str, Any]) -> str:
    """Return the columns of how many are placed and how well."""

    def percent(value: float | None) -> str:
        return 'none' if value is None or not np.isfinite(value) else f'{100 * value:.2f} %'

    return (
        f'{figures["placed"]}/{figures["queries"]} | '
        f'{percent(figures["median_share_of_depth"])}, {percent(figures["max_share_of_depth"])} | '
        f'{number(figures["median_deg"], 2)}, {number(figures["max_deg"], 2)}'
    )


def main() -> int:
    """Train, print markdown tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('--work', type=Path, required=True, help='keeps features and points')
    parser.add_argument('--scenes', nargs='*', default=['fountain-P11', 'castle-P30', 'fox'])
    parser.add_argument('--rows', nargs='*', default=list(ROWS), choices=tuple(ROWS))
    parser.add_argument('--steps', type=int, default=600)
    parser.add_argument(
        '--keypoints', type=int, help="random ones of each image a step; the recipe's by default"
    )
    parser.add_argument('--piece-minutes', type=float, default=0.0, help='end, to be gone on from')
    parser.add_argument('--evaluations', type=int, default=4, help='after so many parts of a run')
    parser.add_argument('--features', choices=('rootsift', 'superpoint'), default='superpoint')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    args = parser.parse_args()
    started = time.time()
    torch.set_num_threads(args.threads)
    features = FeatureConfig(name=args.features)
    extractor = create_extractor(features)
    config = budget('standard', features=features, recipe='paper')
    rows: list[dict[str, Any]] = []
    for scene in photographed_scenes(args.data, args.scenes):
        if scene.name not in args.scenes:
            continue
        reconstruction = points_of(scene, extractor, config, args.work)
        queries = [
            Query(frame, extractor.extract(frame.image))
            for frame in scene.queries
            if frame.image is not None
        ]
        for name in args.rows:
            try:
                row = train_row(name, scene.name, reconstruction, queries, config, args)
            except PieceEndError as piece:
                print(piece)
                return 3
            rows.append(finite({**row, 'steps': args.steps, 'threads': args.threads}))
            print(f'{scene.name} {name}: {json.dumps(finite(row["kept"]))}', flush=True)
            if args.record:
                # After each row: a run takes hours.
                write_record(args.record, rows, started, tables=tables_of(rows))
    for lines in tables_of(rows).values():
        print('\n' + '\n'.join(lines))
    return 0


if __name__ == '__main__':
    sys.exit(main())
