"""From a reconstruction, and the pixels of its images, to a map of labels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from d2s_ros import distributed
from d2s_ros.config import option
from d2s_ros.errors import InputError
from d2s_ros.features.dense import DenseExtractor, create_dense
from d2s_ros.geometry.statistics import subsample
from d2s_ros.reconstruction.reconstruction import Reconstruction
from d2s_ros.scene_models.base import BuildContext
from d2s_ros.scene_models.labels.image_pairs import Neighbours
from d2s_ros.scene_models.labels.images import Undistorter
from d2s_ros.scene_models.labels.network import LabelConfig, LabelNetwork
from d2s_ros.scene_models.labels.observer import LabelObserver, MappingImages
from d2s_ros.scene_models.labels.paper_trainer import (
    LabelPaperConfig,
    scene_depth,
    train_as_published,
)
from d2s_ros.scene_models.labels.samples import LabelSample, collect_samples
from d2s_ros.scene_models.labels.table import (
    MAX_POINTS,
    POOLED_LEVELS,
    LabelTable,
    packed_vector,
)
from d2s_ros.scene_models.labels.trainer import LabelTrainingConfig, train_labels
from d2s_ros.scene_models.leave_out_points import PointsWithoutImages
from d2s_ros.scene_models.points import choose_points, point_covariances

#: Images that are asked what chance finds.
_CHANCE_IMAGES = 30
#: Observations of images that were held out decide on labels of points that no other image sees.
_HELD_OUT_WEIGHT = 1e-4
#: Labels of a level, and width of the features, as SegLoc has them.
PAPER_LABELS, PAPER_FEATURES = 100, 256
#: Smallest scale of the tail of chance.
_MIN_CHANCE_SCALE = 1.0


@dataclass(frozen=True)
class LabelOptions:
    """Options of a build that are of the labels head alone."""

    labels: LabelConfig = field(default_factory=LabelConfig)
    label_training: LabelTrainingConfig = field(default_factory=LabelTrainingConfig)
    label_recipe: str = option('default', 'How labels are learned.', choices=('default', 'paper'))
    label_paper: LabelPaperConfig = field(default_factory=LabelPaperConfig)
    max_label_points: int = option(
        12_288, 'Points with labels kept in the map.', minimum=64, maximum=MAX_POINTS
    )


@dataclass(frozen=True, eq=False)
class BuiltLabels:
    """What `build_labels` makes: table, heads, what chance finds, mapping images and figures."""

    table: LabelTable
    network: LabelNetwork
    chance: tuple[float, float]
    mapping: MappingImages
    figures: dict[str, Any]


def budget(name: str, recipe: str, seed: int) -> dict[str, Any]:
    """Return the fields of `BuildConfig` that differ from their defaults in a budget."""
    steps, max_images = {'quick': (120, 80), 'standard': (300, 400), 'full': (2000, 2000)}[name]
    values: dict[str, Any] = {
        'label_training': LabelTrainingConfig(steps=steps, seed=seed),
        'label_paper': LabelPaperConfig(steps=steps, seed=seed),
        'max_images': max_images,
    }
    if recipe == 'paper':
        values |= {
            'label_recipe': recipe,
            'labels': LabelConfig(num_labels=PAPER_LABELS, hidden=PAPER_FEATURES),
        }
    return values


def build_labels(context: BuildContext) -> BuiltLabels:
    """Learn labels of a reconstruction, and give each point those that tell it best."""
    if distributed.world() > 1:
        raise InputError('the labels head is trained by one process')
    options: LabelOptions = context.options
    config = options.labels
    reconstruction = context.reconstruction
    covariances = point_covariances(reconstruction)
    kept = np.sort(choose_points(reconstruction, covariances, options.max_label_points))
    row_of_point = np.full(len(reconstruction.points_in_map), -1, np.int64)
    row_of_point[kept] = np.arange(len(kept))
    dense = create_dense(config.backbone, device=context.device)
    held_out = frozenset(context.held_out)
    allowed = [index for index in range(len(reconstruction.images)) if index not in held_out]
    trained = subsample(allowed, options.label_training.max_images)
    samples = collect_samples(
        context.source,
        reconstruction,
        row_of_point,
        dense,
        Undistorter(config.max_size),
        trained=trained,
        progress=context.progress,
    )
    network, labels, figures = learn(
        options,
        reconstruction,
        samples,
        kept,
        [index for index in trained if len(samples[index].pixels)],
        held_out,
        dense.channels,
        checkpoint=context.checkpoint,
        progress=context.progress,
    )
    table = make_table(reconstruction, kept, covariances, labels.numpy().astype(np.uint8), samples)
    wanted = {*context.calibration_images, *_chance_images(len(reconstruction.images))}
    mapping = MappingImages(
        reconstruction,
        {index: samples[index].image for index in sorted(wanted)},
        PointsWithoutImages(reconstruction, table.points_in_map, row_of_point),
    )
    table = replace(
        table, image_vectors=pooled_vectors(table, network, dense, samples, mapping, context.device)
    )
    chance, figures['chance'] = _chance(table, network, dense, mapping, context.device)
    return BuiltLabels(table, network, chance, mapping, figures)


def learn(
    options: LabelOptions,
    reconstruction: Reconstruction,
    samples: dict[int, LabelSample],
    kept: NDArray[np.int64],
    trained: list[int],
    held_out: frozenset[int],
    channels: dict[int, int],
    *,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> tuple[LabelNetwork, torch.Tensor, dict[str, Any]]:
    """Learn labels by the recipe of the options.

    Args:
        options: Shape, recipe and its options.
        reconstruction: Images and points.
        samples: Of all images.
        kept: (M,) points of the map.
        trained: Images to train on.
        held_out: Images that decide on labels of points that no other image sees.
        channels: Of the dense features, by stride.
        checkpoint, progress: As in `BuildContext`.

    Returns:
        Heads, labels (M, L) and figures of the run.
    """
    chosen = [samples[index] for index in trained]
    voters = [
        (samples[index], _HELD_OUT_WEIGHT if index in held_out else 1.0)
        for index in sorted(samples)
    ]
    if options.label_recipe == 'default':
        return train_labels(
            chosen,
            len(kept),
            options.labels,
            channels,
            options.label_training,
            voters=voters,
            checkpoint=checkpoint,
            progress=progress,
        )
    poses = [reconstruction.images[index].map_from_camera for index in trained]
    depth = scene_depth(poses, chosen, reconstruction.points_in_map[kept])
    return train_as_published(
        chosen,
        len(kept),
        options.labels,
        channels,
        options.label_paper,
        Neighbours.of(poses, depth),
        voters=voters,
        checkpoint=checkpoint,
        progress=progress,
    )


def make_table(
    reconstruction: Reconstruction,
    kept: NDArray[np.int64],
    covariances: NDArray[np.float64],
    labels: NDArray[np.uint8],
    samples: dict[int, LabelSample],
) -> LabelTable:
    """Return the table, still without the vectors of images."""
    visible = [np.unique(samples[index].point_idx.numpy()) for index in sorted(samples)]
    poses = [
        np.concatenate([pose.translation, pose.quaternion])
        for pose in (image.map_from_camera for image in reconstruction.images)
    ]
    return LabelTable(
        reconstruction.points_in_map[kept].astype(np.float32),
        covariances[kept].astype(np.float32),
        labels,
        np.concatenate([[0], np.cumsum([len(seen) for seen in visible])]).astype(np.int64),
        np.concatenate(visible).astype(np.uint16),
        np.stack(poses).astype(np.float32),
        np.zeros((len(poses), 0), np.int8),
    )


def pooled_vectors(
    table: LabelTable,
    network: LabelNetwork,
    dense: DenseExtractor,
    samples: dict[int, LabelSample],
    mapping: MappingImages,
    device: str,
) -> NDArray[np.int8]:
    """Return the pooled labels of all images; what is told of those in `mapping` is kept there."""
    observer = LabelObserver(table, network, dense, (0.0, 1.0), 1.0, device, mapping)
    vectors = []
    for index in sorted(samples):
        sample = samples[index]
        known = sample.pyramid(device) if sample.cells else None
        found = observer.probabilities(sample.image, known)
        if index in mapping.images:
            mapping.keep(index, found)
        vectors.append(
            packed_vector(observer.field_from(found, sample.image).pooled(POOLED_LEVELS))
        )
    return np.stack(vectors)


def _chance_images(total: int) -> list[int]:
    chosen = np.linspace(0, total - 1, min(total, _CHANCE_IMAGES)).round().astype(int)
    return [int(index) for index in chosen]


def _chance(
    table: LabelTable,
    network: LabelNetwork,
    dense: DenseExtractor,
    mapping: MappingImages,
    device: str,
) -> tuple[tuple[float, float], list[float]]:
    """Return median and tail of the evidence that images find where labels have other names."""
    observer = LabelObserver(table, network, dense, (0.0, 1.0), 1.0, device, mapping)
    rng = np.random.default_rng(0)
    values = []
    for index in _chance_images(len(mapping.reconstruction.images)):
        view = observer.mapping_view(mapping.reconstruction.images[index])
        place = observer.observe_by_chance(view, rng).place
        assert place is not None
        values.append(place.found)
    median = float(np.median(values))
    tail = float(np.mean([value - median for value in values if value >= median]))
    return (median, max(tail, _MIN_CHANCE_SCALE)), [round(value, 2) for value in values]


def check_network(network: torch.nn.Module) -> None:
    """Raise ValueError if a weight is not a finite number."""
    for name, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f'network.{name} has numbers that are not finite')
