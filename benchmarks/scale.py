"""Memory and time of map building as the scene grows, with simulated features.

    python benchmarks/scale.py [--images 500 2000 10000] [--keypoints 1024] [--work FOLDER]

A camera goes along a wall and sees half of its keypoints on points of the wall, in tracks of five
images on average; descriptors are made up. Features come from a memory-mapped file, as in a build.
Measured are the stages whose cost depends on the whole scene: choice of pairs, triangulation of the
true matches by pycolmap, landmarks, samples, training with few steps, calibration, and the data
kept for updates. Matching costs the same for each pair. FOLDER must have room for 1.1 kB per
keypoint.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from d2s_ros.memory import tune_malloc
from d2s_ros.threads import set_passive_omp_wait

# As the command line does.
set_passive_omp_wait()
tune_malloc()

from d2s_ros.features.types import FeatureConfig
from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.scene_model import train_map
from d2s_ros.maps.update_data import collect_update_data
from d2s_ros.map_building.stages import BuildStages, keep_features, load_features
from d2s_ros.reconstruction.pair_matching import select_pairs
from d2s_ros.reconstruction.reconstruction import (
    ImageInput,
    MappedImage,
    Reconstruction,
    ReconstructionConfig,
)
from d2s_ros.reconstruction.triangulation import triangulate

CAMERA = Camera('pinhole', 640, 480, 500.0, 500.0, 319.5, 239.5)
DIM = 128
POINTS_PER_IMAGE = 100
STEP_M = 0.1


class MadeUpFeatures:
    """Says what features a map has; nothing is extracted here."""

    config = FeatureConfig()
    dim = DIM
    weights_hash = 'made-up'

    def extract(self, image: np.ndarray, mask: np.ndarray | None = None) -> LocalFeatures:
        """Refuse: features are made up."""
        raise NotImplementedError('these features are made up')


class Watch:
    """Time, and the peak of the process's memory that cannot be given back (RssAnon)."""

    def __init__(self) -> None:
        self.peak = 0

    def __enter__(self) -> Watch:
        self.peak = anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.monotonic() - self._began
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, anonymous_bytes())

    def figures(self) -> dict[str, float]:
        """Return seconds and peak in MB."""
        return {'seconds': round(self.seconds, 1), 'peak_mb': round(self.peak / 1e6)}


def anonymous_bytes() -> int:
    """Return the process's anonymous memory."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('RssAnon:'):
            return 1024 * int(line.split()[1])
    raise OSError('no RssAnon in /proc/self/status')


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return rows of length 1 as float32."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def simulate(count: int, keypoints: int, stages: BuildStages) -> tuple[list, Reconstruction]:
    """Return inputs and reconstruction of `count` images, features mapped from the stages' log."""
    rng = np.random.default_rng(0)
    length = STEP_M * count
    points = rng.uniform([-3, -1.5, 3], [length + 3, 1.5, 6], size=(POINTS_PER_IMAGE * count, 3))
    points = points[np.argsort(points[:, 0])]
    # A point's descriptor is a mean of two: as good as one of its own, without a table of them all.
    first, second = (rng.normal(size=(size, DIM)).astype(np.float32) for size in (50021, 49999))
    noise = rng.normal(size=(100_000, DIM)).astype(np.float32)
    log = stages.log('features')
    seen_of, lengths = [], np.zeros(len(points), np.int64)
    poses = [RigidTransform(np.eye(3), np.array([STEP_M * i, 0.0, 0.0])) for i in range(count)]
    for index, pose in enumerate(poses):
        near = slice(
            *np.searchsorted(points[:, 0], [pose.translation[0] - 4, pose.translation[0] + 4])
        )
        pixels = CAMERA.project(pose.inverse().apply(points[near]))
        visible = np.flatnonzero(((pixels >= 0) & (pixels < [640, 480])).all(axis=1))
        visible = rng.permutation(visible)[: keypoints // 2]
        seen = visible + near.start
        clutter = keypoints - len(seen)
        where = rng.integers(0, len(noise) - keypoints)
        own = unit(first[seen % len(first)] + second[seen % len(second)])
        descriptors = np.concatenate([0.95 * own, np.zeros((clutter, DIM), np.float32)])
        descriptors = unit(descriptors + 0.04 * noise[where : where + keypoints])
        positions = np.concatenate(
            [
                pixels[visible] + rng.normal(0, 0.4, (len(seen), 2)),
                rng.uniform([0, 0], [639, 479], (clutter, 2)),
            ]
        )
        features = LocalFeatures(
            positions.astype(np.float32),
            np.ones(keypoints, np.float32),
            descriptors,
            (640, 480),
            np.ones(keypoints, np.float32),
        )
        if not keep_features(log, str(index), features):
            raise OSError('the features could not be written')
        point_idx = np.full(keypoints, -1, np.int64)
        point_idx[: len(seen)] = seen
        seen_of.append(point_idx)
        lengths[seen] += 1
    good = lengths >= 2
    renumber = np.where(good, np.cumsum(good) - 1, -1)
    inputs, mapped = [], []
    for index, (pose, point_idx) in enumerate(zip(poses, seen_of, strict=True)):
        stored = load_features(log, str(index))
        assert stored is not None
        name = f'{index:06d}'
        inputs.append(ImageInput(name, index, CAMERA, pose, stored))
        mapped.append(
            MappedImage(
                name,
                index,
                CAMERA,
                pose,
                stored,
                stored.keypoints.astype(np.float64),
                np.where(point_idx >= 0, renumber[point_idx], -1),
            )
        )
    points, lengths = points[good], lengths[good]
    return inputs, Reconstruction(mapped, points, np.full(len(points), 0.4), lengths, True)


def true_matches(
    reconstruction: Reconstruction, pairs: list[tuple[int, int]]
) -> dict[tuple[int, int], np.ndarray]:
    """Return (M, 2) keypoints of the same points, for each pair with at least 15 of them."""
    seen = [np.flatnonzero(image.point_idx >= 0) for image in reconstruction.images]
    point_idx = [
        image.point_idx[rows] for image, rows in zip(reconstruction.images, seen, strict=True)
    ]
    matches = {}
    for i, j in pairs:
        _, first, second = np.intersect1d(
            point_idx[i], point_idx[j], assume_unique=True, return_indices=True
        )
        if len(first) >= 15:
            matches[i, j] = np.stack([seen[i][first], seen[j][second]], axis=1)
    return matches


def measure(count: int, keypoints: int, work: Path, landmarks: int) -> dict:
    """Return the figures of a scene of `count` images."""
    config = BuildConfig(max_landmarks=landmarks, max_images=count)
    # Enough steps to see their cost: the samples are those of the images they look at.
    config = replace(config, training=replace(config.training, steps=50, images_per_step=4))
    folder = Path(tempfile.mkdtemp(prefix='d2s_scale_', dir=work))
    try:
        with BuildStages(folder / 'map', {'images': count}) as stages:
            with Watch() as simulation:
                inputs, reconstruction = simulate(count, keypoints, stages)
            row = {
                'images': count,
                'keypoints': keypoints,
                'points': len(reconstruction.points_in_map),
                'mean_track_length': round(float(reconstruction.track_lengths.mean()), 1),
                'held': simulation.figures(),
            }
            with Watch() as watch:
                pairs = select_pairs(inputs, ReconstructionConfig())
            row['pairs'] = {'count': len(pairs), **watch.figures()}
            with Watch() as watch:
                triangulated = triangulate(inputs, true_matches(reconstruction, pairs))
            row['triangulation'] = {**watch.figures(), 'points': len(triangulated.points_in_map)}
            del triangulated
            with Watch() as watch:
                _, figures = train_map(reconstruction, MadeUpFeatures(), config, stages=stages)
            row['train_map'] = watch.figures()
            row['num_landmarks'] = figures['num_landmarks']
            row['holdout_localized'] = figures['holdout_localized']
            row['holdout_images'] = figures['holdout_images']
            with Watch() as watch:
                data = collect_update_data(
                    reconstruction,
                    max_keypoints=config.update_keypoints,
                    max_megabytes=config.max_update_mb,
                )
            size = sum(value.nbytes for value in data.values()) / 1e6
            row['update_data'] = {**watch.figures(), 'mb': round(size)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return row


def main() -> int:
    """Print a markdown table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, nargs='*', default=[500, 2000, 10_000])
    parser.add_argument('--keypoints', type=int, default=1024)
    parser.add_argument('--landmarks', type=int, default=20_000)
    parser.add_argument('--work', type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    print(
        '| images | points | landmarks | read [MB] | pairs | [s] | [MB] | '
        'triangulation [s] | [MB] | training [s] | [MB] | update data [MB] | [s] | [MB] |\n|'
        + '---|'
        * 14
    )
    rows = []
    for count in args.images:
        # Freed memory stays with a process: each scene gets one of its own.
        with multiprocessing.get_context('spawn').Pool(1) as process:
            row = process.apply(measure, (count, args.keypoints, args.work, args.landmarks))
            process.close()
            process.join()
        rows.append(row)
        pairs, points = row['pairs'], row['triangulation']
        train, update = row['train_map'], row['update_data']
        print(
            f'| {count} | {row["points"]} | {row["num_landmarks"]} | '
            f'{row["held"]["peak_mb"]} | {pairs["count"]} | '
            f'{pairs["seconds"]} | {pairs["peak_mb"]} | '
            f'{points["seconds"]} | {points["peak_mb"]} | '
            f'{train["seconds"]} | {train["peak_mb"]} | '
            f'{update["mb"]} | {update["seconds"]} | {update["peak_mb"]} |',
            flush=True,
        )
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
