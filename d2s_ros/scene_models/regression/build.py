"""From a reconstruction, and the pixels of its images, to the network of the paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from d2s_ros import distributed
from d2s_ros.geometry.noise import in_image_px, scaled_px
from d2s_ros.geometry.reprojection import reprojection_residuals
from d2s_ros.geometry.statistics import subsample
from d2s_ros.scene_models.base import MAX_VALIDATION_IMAGES, BuildContext, Observation, View
from d2s_ros.scene_models.regression.augmentation import AugmentationConfig
from d2s_ros.scene_models.regression.network import D2SNetwork, RegressionConfig
from d2s_ros.scene_models.regression.samples import (
    CoordinateFrame,
    samples_of_images,
    samples_of_views,
)
from d2s_ros.scene_models.regression.trainer import (
    RegressionTrainingConfig,
    train_regression_network,
)
from d2s_ros.scene_models.shared_samples import pack_sample, share_training

#: RANSAC threshold of the D2S authors, px at 1000 px focal length.
MIN_ERROR_PX = 12.0


@dataclass(frozen=True)
class RegressionOptions:
    """Options of a build that are of the regression head alone."""

    regression: RegressionConfig = field(default_factory=RegressionConfig)
    regression_training: RegressionTrainingConfig = field(default_factory=RegressionTrainingConfig)


def budget(name: str, recipe: str, seed: int) -> dict[str, Any]:
    """Return the fields of `BuildConfig` that differ from their defaults in a budget."""
    steps, copies, max_images = {
        'quick': (100, 1, 80),
        'standard': (600, 2, 400),
        'full': (50_000, 8, 2000),
    }[name]
    training = RegressionTrainingConfig(
        steps=steps,
        start='points',
        evaluate_every=max(5, steps // 20),
        patience=20,
        seed=seed,
        augmentation=AugmentationConfig(copies=copies),
    )
    if recipe == 'learned':
        training = learning(training)
    elif recipe != 'paper':
        training = replace(
            training,
            images_per_step=4,
            keypoints_per_image=512,
            learning_rate=1e-5,
            schedule='one_cycle',
            distance='pixels',
            descriptor_noise=0.3,
            alpha_u=3.0,
            alpha_r=0.0,
            center_targets=True,
        )
    return {'regression_training': training, 'max_images': max_images}


def shape_of(
    config: RegressionConfig, training: RegressionTrainingConfig, dim: int
) -> RegressionConfig:
    """Return the shape of a network for descriptors of length `dim` and a start of its weights."""
    if training.start == 'he':
        # Numbers of a unit vector are small; the weights expect them to be about one.
        return replace(config, descriptor_dim=dim, input_scale=dim**0.5)
    return replace(config, descriptor_dim=dim)


def learning(training: RegressionTrainingConfig) -> RegressionTrainingConfig:
    """Return what differs for a network that begins with random weights and has to learn."""
    return replace(
        training,
        start='he',
        images_per_step=4,
        keypoints_per_image=256,
        labelled_share=0.7,
        learning_rate=8e-4,
        schedule='one_cycle',
        distance='linear_pixels',
        scale_first_px=50.0,
        scale_px=1.0,
        track_mixing=0.5,
        descriptor_noise=0.15,
        average=0.98,
        alpha_u=10.0,
        alpha_r=0.0,
        center_targets=True,
        clip_norm=0.0,
    )


def train(context: BuildContext) -> tuple[D2SNetwork, dict[str, Any]]:
    """Train a network in map coordinates; also return figures of the training."""
    options: RegressionOptions = context.options
    training, reconstruction = options.regression_training, context.reconstruction
    frame = (
        CoordinateFrame.of_points(reconstruction.points_in_map)
        if training.center_targets
        else CoordinateFrame.identity()
    )
    originals = samples_of_images(reconstruction, frame)
    train_idx = _trained_on(context)
    views = {}
    if context.source is not None:
        views = samples_of_views(
            context.source,
            reconstruction,
            context.extractor,
            frame,
            training.augmentation,
            image_idx=train_idx,
            seed=training.seed,
            progress=context.progress,
        )
    config = shape_of(options.regression, training, context.extractor.dim)
    validation = subsample(context.held_out, MAX_VALIDATION_IMAGES)
    samples = [[originals[index], *views.get(index, [])] for index in train_idx]
    if distributed.world() > 1:
        validation_samples = [[originals[index]] for index in validation]
        keys = []
        for index, variants in zip(
            [*train_idx, *validation], [*samples, *validation_samples], strict=True
        ):
            keys.append([f'{index}/{number}' for number in range(len(variants))])
            for key, sample in zip(keys[-1], variants, strict=True):
                if key not in context.samples:
                    context.samples.keep(key, pack_sample(sample))
        validation_keys = [key for key, *_ in keys[len(train_idx) :]]
        share_training(
            'regression', config, training, keys[: len(train_idx)], validation_keys, context
        )
    network, figures = train_regression_network(
        samples,
        config,
        training,
        device=context.device,
        checkpoint=context.checkpoint,
        progress=context.progress,
        held_out=[originals[index] for index in validation],
    )
    with torch.no_grad():
        network.center.copy_(torch.from_numpy(frame.center))
        network.scale.fill_(frame.scale)
    return network, figures


def _trained_on(context: BuildContext) -> list[int]:
    images = context.reconstruction.images
    return [index for index in range(len(images)) if index not in context.held_out]


def noise_px(observe: Callable[[View], Observation], context: BuildContext) -> float:
    """Return the residual of regressed coordinates in px, one axis, for a keypoint of scale 1.

    Seen from the true poses of images that were not trained on; residuals that RANSAC would reject
    do not count.
    """
    normalized = []
    for index in context.held_out or _trained_on(context):
        image = context.reconstruction.images[index]
        if len(image.features) == 0:
            continue
        view = View.of(image)
        coordinates = observe(view).coordinates
        in_camera = image.map_from_camera.inverse().apply(coordinates.points_in_map)
        residual = reprojection_residuals(image.camera, in_camera, image.ideal_keypoints)
        with np.errstate(invalid='ignore'):
            keep = np.linalg.norm(residual, axis=1) <= scaled_px(MIN_ERROR_PX, image.camera, 3.0)
        keep &= coordinates.reliability >= context.reliability_threshold
        residual = in_image_px(residual[keep], image.ideal_keypoints[keep], image.camera)
        normalized.append(residual / view.detection_sigmas[keep][:, None])
    values = np.concatenate(normalized) if normalized else np.zeros((0, 2))
    if len(values) < 20:
        # Nothing to measure: as uncertain as RANSAC allows.
        return MIN_ERROR_PX
    return float(np.clip(1.4826 * np.median(np.abs(values)), 0.1, MIN_ERROR_PX))
