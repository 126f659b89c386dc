"""The recipe of SegLoc, piece by piece: losses, labels, what points and queries keep, fewer points.

    python benchmarks/label_ablation.py DATA [--scene castle-P30] [--steps 80]

DATA is that of benchmarks/accuracy.py. Poses are those found by labels alone, without keypoints'
finish: from retrieval where labels are learned anew, from a start that is 3 % of the depth and 3
degrees off where only what points or queries keep differs. A pose is right within 1 % of the depth
and 1 degree. Steps are few, so that all rows take a quarter of an hour of one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

# First: it decides how threads wait, before any is started.
from accuracy import finite, photographed_scenes
from numpy.typing import NDArray
from records import write_record
from scipy.ndimage import gaussian_filter

from d2s_ros.features.dense import DenseExtractor, create_dense
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.transforms import RigidTransform, pose_error, rotation_from_vector
from d2s_ros.map_building.config import BuildConfig, budget
from d2s_ros.map_building.preparation import Clock, InputOptions, Prepared, prepare
from d2s_ros.map_building.stages import BuildStages
from d2s_ros.scene_models.base import View
from d2s_ros.scene_models.labels.build import PAPER_LABELS, learn, make_table, pooled_vectors
from d2s_ros.scene_models.labels.field import LabelField, LevelField
from d2s_ros.scene_models.labels.images import Undistorter
from d2s_ros.scene_models.labels.network import LabelNetwork
from d2s_ros.scene_models.labels.observer import (
    LEAST_EVIDENCE,
    LabelObserver,
    MappingImages,
    nearest_images,
)
from d2s_ros.scene_models.labels.paper_trainer import LOSSES, point_distributions
from d2s_ros.scene_models.labels.question import BLUR_CELLS
from d2s_ros.scene_models.labels.refinement import LabelledPoints, refine
from d2s_ros.scene_models.labels.samples import LabelSample, collect_samples
from d2s_ros.scene_models.labels.standard import Standard
from d2s_ros.scene_models.labels.table import LabelTable
from d2s_ros.scene_models.points import choose_points, point_covariances

#: Error of a start, share of the depth and degrees, and how many of each query.
START_SHARE, START_DEG, STARTS = 0.03, 3.0, 2
#: A pose is right within these.
RIGHT_SHARE, RIGHT_DEG = 0.01, 1.0
#: Points that a pose is refined on.
REFINED_ON = 1500
#: Most labels of a distribution that are kept; 0 keeps all.
KEPT = (1, 3, 10, 0)
#: Of the cloud, observations of each mapping image that are kept, those of the longest tracks.
OBSERVATIONS = (100, 300, 600)


@dataclass(frozen=True, eq=False)
class Query:
    """A query with its keypoints and true camera_from_map."""

    view: View
    truth: RigidTransform


@dataclass(frozen=True, eq=False)
class Scene:
    """What all rows share.

    Attributes:
        depth: Median of what mapping images see.
        held_out, trained: Mapping images.
    """

    config: BuildConfig
    prepared: Prepared
    samples: dict[int, LabelSample]
    kept: NDArray[np.int64]
    dense: DenseExtractor
    queries: list[Query]
    depth: float
    held_out: frozenset[int]
    trained: list[int]


@dataclass(frozen=True, eq=False)
class Learned:
    """Labels that were learned, and what they say of the queries."""

    network: LabelNetwork
    table: LabelTable
    observer: LabelObserver
    fields: list[LabelField]
    figures: dict[str, Any]


@dataclass(frozen=True, eq=False)
class DistributionLevel(LevelField):
    """A level whose points have a distribution (P, K) each: their labels are their rows."""

    distributions: NDArray[np.float32]

    def interpolated(
        self, pixels: NDArray[np.float64], labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return how likely points' labels are expected at pixels (P, 2), and its gradient."""
        own = self.distributions[labels]
        count = own.shape[1]
        values = np.zeros(len(pixels))
        gradient = np.zeros((len(pixels), 2))
        # Of one label after the other; most of those that are kept of a point are few.
        order = np.argsort(-own, axis=1)[:, : int((own > 0).sum(axis=1).max())]
        for column in range(min(order.shape[1], count)):
            label = order[:, column]
            weight = own[np.arange(len(own)), label]
            value, slope = LevelField(self.stride, self.probability).interpolated(pixels, label)
            values += weight * value
            gradient += weight[:, None] * slope
        return values, gradient


def prepared_scene(data: Path, name: str) -> Scene:
    """Reconstruct a scene and read its dense features."""
    scene = next(iter(photographed_scenes(data, [name])))
    config = budget('standard', features=FeatureConfig(), head='labels', recipe='paper')
    extractor = create_extractor(config.features, device='cpu')
    stages = BuildStages(None, {})
    prepared = prepare(scene.mapping, extractor, config, InputOptions(), stages, Clock())
    reconstruction = prepared.reconstruction
    kept = np.sort(
        choose_points(reconstruction, point_covariances(reconstruction), config.max_label_points)
    )
    row_of_point = np.full(len(reconstruction.points_in_map), -1, np.int64)
    row_of_point[kept] = np.arange(len(kept))
    dense = create_dense(config.labels.backbone)
    count = len(reconstruction.images)
    held_out = frozenset(range(config.holdout_every // 2, count, config.holdout_every))
    trained = [index for index in range(count) if index not in held_out]
    samples = collect_samples(
        scene.mapping,
        reconstruction,
        row_of_point,
        dense,
        Undistorter(config.labels.max_size),
        trained=range(count),
    )
    depths = [
        image.map_from_camera.inverse().apply(
            reconstruction.points_in_map[image.point_idx[image.point_idx >= 0]]
        )[:, 2]
        for image in reconstruction.images
    ]
    queries = []
    for frame in scene.queries:
        pose = frame.map_from_camera
        assert pose is not None
        assert frame.image is not None
        assert frame.camera is not None
        truth = RigidTransform(pose.rotation, pose.translation - prepared.origin).inverse()
        view = View(extractor.extract(frame.image), frame.camera, frame.image)
        queries.append(Query(view, truth))
    return Scene(
        config,
        prepared,
        samples,
        kept,
        dense,
        queries,
        float(np.median(np.concatenate(depths))),
        held_out,
        trained,
    )


def learned(scene: Scene, config: BuildConfig) -> Learned:
    """Learn labels and ask the queries for theirs."""
    started = time.process_time()
    reconstruction = scene.prepared.reconstruction
    network, labels, figures = learn(
        config,
        reconstruction,
        scene.samples,
        scene.kept,
        scene.trained,
        scene.held_out,
        scene.dense.channels,
    )
    figures['cpu_seconds'] = round(time.process_time() - started, 1)
    covariances = point_covariances(reconstruction)
    table = make_table(
        reconstruction,
        scene.kept,
        covariances,
        labels.numpy().astype(np.uint8),
        scene.samples,
    )
    mapping = MappingImages(reconstruction, {})
    table = replace(
        table,
        image_vectors=pooled_vectors(table, network, scene.dense, scene.samples, mapping, 'cpu'),
    )
    observer = LabelObserver(table, network, scene.dense, (0.0, 1.0), 1.0, 'cpu', None)
    fields = [observer.field(query.view) for query in scene.queries]
    return Learned(network, table, observer, fields, figures)


def errors_of(scene: Scene, poses: Sequence[tuple[Query, RigidTransform]]) -> dict[str, Any]:
    """Return how many poses are right, and the medians of all errors."""
    errors = np.array(
        [pose_error(found.inverse(), query.truth.inverse()) for query, found in poses]
    )
    share = errors[:, 0] / scene.depth
    right = (share <= RIGHT_SHARE) & (errors[:, 1] <= RIGHT_DEG)
    return {
        'right': int(right.sum()),
        'poses': len(poses),
        'median_percent': 100 * float(np.median(share)),
        'median_deg': float(np.median(errors[:, 1])),
    }


def from_retrieval(scene: Scene, found: Learned, table: LabelTable) -> dict[str, Any]:
    """Return the errors of poses by labels alone, without any start."""
    poses, enough = [], 0
    for query, field in zip(scene.queries, found.fields, strict=True):
        pose = found.observer.find_pose(field, query.view, table)
        poses.append((query, pose.camera_from_map))
        enough += pose.evidence >= LEAST_EVIDENCE
    return {**errors_of(scene, poses), 'with_evidence': int(enough)}


def most_likely(values: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return distributions (..., K) of which the `count` likeliest labels are left; 0: all."""
    if not count:
        return values
    least = np.sort(values, axis=-1)[..., -count][..., None]
    kept = np.where(values >= least, values, 0.0)
    if count == 1:
        kept = (kept > 0).astype(np.float32)
    result: NDArray[np.float32] = (kept / kept.sum(axis=-1, keepdims=True)).astype(np.float32)
    return result


def refined(scene: Scene, found: Learned, of_point: int, of_query: int) -> dict[str, Any]:
    """Return the errors where points and queries keep some labels of their distributions."""
    network = found.network
    voters = [(scene.samples[index], 1.0) for index in sorted(scene.samples)]
    mean = point_distributions(
        network, voters, Standard.none(scene.dense.channels), len(scene.kept)
    )
    told = most_likely(mean.numpy().astype(np.float32), of_point)
    rng = np.random.default_rng(0)
    poses = []
    for query, field in zip(scene.queries, found.fields, strict=True):
        levels: list[LevelField] = []
        for number, level in enumerate(field.levels):
            values = level.probability
            if of_query:
                values = most_likely(values, of_query)
                if of_query == 1:
                    values = gaussian_filter(values, (BLUR_CELLS, BLUR_CELLS, 0), mode='nearest')
                values = 0.9 * values + np.float32(0.1 / values.shape[2])
            levels.append(
                DistributionLevel(level.stride, values.astype(np.float32), told[:, number])
            )
        asked = LabelField(field.camera, levels)
        for _ in range(STARTS):
            start = _start(query.truth, scene.depth, rng)
            visible = found.table.seen_by_any(nearest_images(found.table, start, 6))
            rows = np.repeat(visible[:, None], len(levels), axis=1)
            points = LabelledPoints(found.table.points.points_in_map[visible], rows)
            pose, _ = refine(asked, points.some(REFINED_ON), start, range(len(levels)))
            poses.append((query, pose))
    return errors_of(scene, poses)


def _start(truth: RigidTransform, depth: float, rng: np.random.Generator) -> RigidTransform:
    axes = rng.standard_normal((2, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    off = RigidTransform(
        rotation_from_vector(np.radians(START_DEG) * axes[0]), START_SHARE * depth * axes[1]
    )
    return off @ truth


def downsampled(scene: Scene, table: LabelTable, count: int) -> LabelTable:
    """Return a table of the `count` observations of each image whose tracks are longest."""
    lengths = scene.prepared.reconstruction.track_lengths[scene.kept]
    chosen = []
    for image in range(len(table.image_poses)):
        seen = table.seen_by(image)
        chosen.append(seen[np.argsort(-lengths[seen], kind='stable')[:count]])
    rows = np.unique(np.concatenate(chosen))
    number = np.full(len(table), -1, np.int64)
    number[rows] = np.arange(len(rows))
    visible = [number[table.seen_by(image)] for image in range(len(table.image_poses))]
    visible = [seen[seen >= 0] for seen in visible]
    return replace(
        table,
        points_in_map=table.points_in_map[rows],
        covariances=table.covariances[rows],
        labels=table.labels[rows],
        visible_offsets=np.concatenate([[0], np.cumsum([len(seen) for seen in visible])]),
        visible_points=np.concatenate(visible).astype(np.uint16),
    )


def variants(config: BuildConfig) -> dict[str, BuildConfig]:
    """Return the configurations of the rows in which labels are learned anew."""
    found = {f'as published, K = {PAPER_LABELS}': config}
    for count in (20, 50, 256):
        found[f'K = {count}'] = replace(config, labels=replace(config.labels, num_labels=count))
    for name in LOSSES[1:]:
        left = tuple(loss for loss in LOSSES if loss != name)
        found[f'without L_{name}'] = replace(
            config, label_paper=replace(config.label_paper, losses=left)
        )
    found['L_CE alone'] = replace(config, label_paper=replace(config.label_paper, losses=('CE',)))
    found['one level (stride 4)'] = replace(config, labels=replace(config.labels, levels=(4,)))
    found['position-contrastive codes, K = 64'] = replace(
        budget('standard', features=FeatureConfig(), head='labels'),
        label_training=replace(config.label_training, steps=config.label_paper.steps),
    )
    return found


def tables_of(rows: dict[str, dict[str, dict[str, Any]]]) -> dict[str, list[str]]:
    """Return the tables of the record."""
    learning = [
        '| variant | bits of a point | label told at observations, finest | right | with enough '
        'evidence | median [% of depth] | median [deg] | training, one core [s] |',
        '|---' * 8 + '|',
    ]
    for name, row in rows['learning'].items():
        learning.append(
            f'| {name} | {sum(row["label_bits"]):.1f} | {row["label_seen"][-1]:.2f} | '
            f'{row["right"]}/{row["poses"]} | {row["with_evidence"]}/{row["poses"]} | '
            f'{row["median_percent"]:.2f} | {row["median_deg"]:.3f} | {row["cpu_seconds"]:.0f} |'
        )
    kept = [
        '| labels of a point | labels of a query | right | median [% of depth] | median [deg] |'
    ]
    kept.append('|---' * 5 + '|')
    for row in rows['kept'].values():
        names = ['all' if not row[side] else str(row[side]) for side in ('of_point', 'of_query')]
        kept.append(
            f'| {names[0]} | {names[1]} | {row["right"]}/{row["poses"]} | '
            f'{row["median_percent"]:.2f} | {row["median_deg"]:.3f} |'
        )
    cloud = [
        '| observations of an image | points [%] | right | with enough evidence | median [% of '
        'depth] | median [deg] |',
        '|---' * 6 + '|',
    ]
    for name, row in rows['cloud'].items():
        cloud.append(
            f'| {name} | {row["points_percent"]:.0f} | {row["right"]}/{row["poses"]} | '
            f'{row["with_evidence"]}/{row["poses"]} | {row["median_percent"]:.2f} | '
            f'{row["median_deg"]:.3f} |'
        )
    return {'learning': learning, 'kept': kept, 'cloud': cloud}


def main() -> int:
    """Print a row for each variant; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('--scene', default='castle-P30')
    parser.add_argument('--steps', type=int, default=80)
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    args = parser.parse_args()
    started = time.time()
    scene = prepared_scene(args.data, args.scene)
    config = replace(scene.config, label_paper=replace(scene.config.label_paper, steps=args.steps))
    rows: dict[str, dict[str, dict[str, Any]]] = {'learning': {}, 'kept': {}, 'cloud': {}}

    def keep(group: str, name: str, row: dict[str, Any]) -> None:
        rows[group][name] = row
        print(group, name, row, flush=True)
        if args.record:
            write_record(args.record, finite(rows), started, tables=tables_of(rows))

    for number, (name, variant) in enumerate(variants(config).items()):
        found = learned(scene, variant)
        keep('learning', name, {**found.figures, **from_retrieval(scene, found, found.table)})
        if number:
            continue
        whole = from_retrieval(scene, found, found.table)
        keep('cloud', 'all', {**whole, 'points_percent': 100.0})
        for count in OBSERVATIONS:
            table = downsampled(scene, found.table, count)
            percent = 100 * len(table) / len(found.table)
            row = from_retrieval(scene, found, table)
            keep('cloud', str(count), {**row, 'points_percent': percent})
        sides = [(count, 0) for count in KEPT] + [(1, count) for count in KEPT[:-1]]
        for of_point, of_query in sides:
            row = refined(scene, found, of_point, of_query)
            row |= {'of_point': of_point, 'of_query': of_query}
            keep('kept', f'{of_point} {of_query}', row)
    return 0


if __name__ == '__main__':
    sys.exit(main())
