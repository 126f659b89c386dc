"""The stages from a log to a map: features, reconstruction, landmarks, training, calibration."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from d2s_ros import __version__, distributed
from d2s_ros.config import option, to_dict, validate
from d2s_ros.data.frames import Frame, FrameSource
from d2s_ros.device import resolve_device
from d2s_ros.errors import InputError
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureConfig, FeatureExtractor, LocalFeatures
from d2s_ros.geometry.noise import detection_sigma_px
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import REGRESSION_ERROR_PX, Localizer
from d2s_ros.map_building.calibration import calibrate, images_to_judge, thinned
from d2s_ros.map_building.shared_training import share_training
from d2s_ros.map_building.stages import (
    BuildStages,
    frame_digest,
    keep_features,
    load_features,
)
from d2s_ros.maps.manifest import Calibration, MapManifest
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.update_data import collect_update_data
from d2s_ros.reconstruction.origin import choose_origin, moved, relative_to
from d2s_ros.reconstruction.pipeline import reconstruct
from d2s_ros.reconstruction.pose_check import find_doubtful_poses
from d2s_ros.reconstruction.reconstruction import (
    ImageInput,
    MappedImage,
    Reconstruction,
    ReconstructionConfig,
    pack_reconstruction,
    unpack_reconstruction,
)
from d2s_ros.scene_models.landmark.network import LandmarkConfig
from d2s_ros.scene_models.landmark.samples import (
    CORRECT_PX,
    LandmarkSample,
    make_sample,
    pack_sample,
    unpack_sample,
)
from d2s_ros.scene_models.landmark.table import (
    Candidates,
    LandmarkStatistics,
    build_landmarks,
)
from d2s_ros.scene_models.landmark.trainer import LandmarkTrainingConfig, train_landmark_network
from d2s_ros.scene_models.regression.augmentation import AugmentationConfig
from d2s_ros.scene_models.regression.network import RegressionConfig
from d2s_ros.scene_models.regression.samples import (
    CoordinateFrame,
    samples_of_images,
    samples_of_views,
)
from d2s_ros.scene_models.regression.trainer import (
    RegressionTrainingConfig,
    train_regression_network,
)

_logger = logging.getLogger(__name__)

#: Of the held-out images, the most that the early stop looks at.
_MAX_WATCHED = 16
#: Keypoints below are not given to the pose solver; the second is the D2S authors' choice.
_RELIABILITY_THRESHOLDS = {'landmark': 0.6, 'regression': 0.6}
#: Budget to steps, augmented views per image and the most images, of the regression head.
_REGRESSION_BUDGETS = {
    'quick': (100, 1, 80),
    'standard': (600, 2, 400),
    'full': (50_000, 8, 2000),
}


@dataclass(frozen=True)
class BuildConfig:
    """Everything a map build depends on besides its input; stored in the manifest."""

    features: FeatureConfig = field(default_factory=FeatureConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    head: str = option(
        'landmark',
        'Scene model: landmarks chosen by a network, or the regression of the D2S paper.',
        choices=('landmark', 'regression'),
    )
    training: LandmarkTrainingConfig = field(default_factory=LandmarkTrainingConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    regression_training: RegressionTrainingConfig = field(default_factory=RegressionTrainingConfig)
    max_images: int = option(400, 'Longer logs are thinned evenly to this many.', minimum=2)
    steps_per_image: int = option(
        10, 'Small logs get 100 steps and this many for each image, if that is less.', minimum=1
    )
    max_landmarks: int = option(24_576, 'Landmarks kept in the map.', minimum=64)
    num_layers: int = option(0, 'Attention layers.', minimum=0)
    num_candidates: int = option(6, 'Candidate landmarks per keypoint.', minimum=1)
    hidden_inputs: tuple[str, ...] = option((), 'See LandmarkConfig; for ablations.')
    correct_px: float = option(
        CORRECT_PX,
        'Candidates that project this close are right, at 1000 px focal length.',
        unit='px',
    )
    holdout_every: int = option(8, 'Every n-th image is held out of training.', minimum=2)
    reliability_threshold: float = option(
        _RELIABILITY_THRESHOLDS['landmark'], 'Stored in the map.', minimum=0.0, maximum=1.0
    )
    keep_update_data: bool = option(True, 'Store what self-supervised updates need.')
    update_keypoints: int = option(1024, 'Keypoints of an image kept for updates.', minimum=64)
    max_update_mb: float = option(
        500.0,
        'Size of what is kept for updates; of long logs fewer keypoints an image.',
        unit='MB',
        minimum=1.0,
    )

    def __post_init__(self) -> None:
        validate(self)


def budget(
    name: str,
    *,
    features: FeatureConfig | None = None,
    head: str = 'landmark',
    recipe: str = 'default',
    seed: int = 0,
) -> BuildConfig:
    """Return the configuration of a budget: 'quick', 'standard' or 'full'.

    Args:
        name: The budget.
        features: Features of the map.
        head: 'landmark' or 'regression'.
        recipe: 'default', or 'paper': the regression head trained as published, with the steps of
            the budget.
        seed: Seed of the training.
    """
    features = features or FeatureConfig()
    if head == 'regression' or recipe == 'paper':
        steps, copies, max_images = _REGRESSION_BUDGETS[name]
        training = RegressionTrainingConfig(
            steps=steps,
            seed=seed,
            augmentation=AugmentationConfig(copies=copies),
        )
        if recipe != 'paper':
            training = replace(
                training,
                images_per_step=4,
                keypoints_per_image=512,
                learning_rate=5e-4,
                schedule='one_cycle',
                distance='plain',
                center_targets=True,
                clip_norm=100.0,
            )
        return BuildConfig(
            features=features,
            head='regression',
            regression_training=training,
            max_images=max_images,
            reliability_threshold=_RELIABILITY_THRESHOLDS['regression'],
        )
    steps, images, max_images = {
        'quick': (150, 3, 80),
        'standard': (500, 4, 400),
        'full': (3000, 8, 2000),
    }[name]
    return BuildConfig(
        features=features,
        training=LandmarkTrainingConfig(
            steps=steps,
            images_per_step=images,
            seed=seed,
            # Short runs improve on held-out images up to their last step.
            patience=12 if name == 'full' else 0,
        ),
        max_images=max_images,
    )


@dataclass(frozen=True, eq=False)
class BuildResult:
    """A finished build.

    Attributes:
        scene_map: The map that was written.
        reconstruction: Tracks and points it was made from, in the map frame.
        dropped: Why images of the log were not used, with counts.
    """

    scene_map: SceneMap
    reconstruction: Reconstruction
    dropped: dict[str, int]


def build_map(
    source: FrameSource,
    map_path: str | Path,
    config: BuildConfig | None = None,
    *,
    device: str = 'auto',
    weights: str | None = None,
    use_poses: bool = True,
    require_poses: bool = False,
    keep_stages: bool = True,
    fresh: bool = False,
    progress: bool = True,
) -> BuildResult:
    """Build a map from a log and write it as a new, live version of `map_path`.

    What is done is kept in `MAP.building` beside the map until the map is written. A build that was
    interrupted goes on from there when it is called again with the same images and options, and
    gives the same map. Of several processes that torchrun started, the first calls this function
    and the others `join_build`.

    Args:
        source: The log.
        map_path: Map folder, new or existing.
        config: Options.
        device: 'auto', 'cpu' or 'cuda'.
        weights: Weight file of network features.
        use_poses: Use the poses of the log; without any, or with False, the scale is arbitrary.
        require_poses: Having none is an error. So it is where a log has a topic of poses.
        keep_stages: Keep what is done until the map is written.
        fresh: Forget what an interrupted build has left.
        progress: Show progress bars.

    Raises:
        InputError: unusable images, poses that cannot be used, no structure.
        MapFormatError: `map_path` holds something else.
        UsageError: another process builds this map.
    """
    config = config or BuildConfig()
    store = MapStore(map_path)
    store.check_writable()
    pose_problem: object = getattr(source, 'pose_problem', None)
    if use_poses and pose_problem:
        raise InputError(f'the poses of the log cannot be used: {pose_problem}')
    if use_poses and getattr(source, 'pose_topic', None) is not None:
        require_poses = True
    with distributed.group(resolve_device(device)) as device:
        extractor = create_extractor(config.features, device=device, weights=weights)
        description = {
            'software': __version__,
            'config': to_dict(config),
            'features_hash': extractor.weights_hash,
            'device': torch.device(device).type,
            'processes': distributed.world(),
            'use_poses': use_poses,
        }
        path = Path(map_path) if keep_stages else None
        with BuildStages(path, description, fresh=fresh) as stages:
            return _build(
                source, store, extractor, config, stages, device, use_poses, require_poses, progress
            )


def _build(
    source: FrameSource,
    store: MapStore,
    extractor: FeatureExtractor,
    config: BuildConfig,
    stages: BuildStages,
    device: str,
    use_poses: bool,
    require_poses: bool,
    progress: bool,
) -> BuildResult:
    times: dict[str, float] = {}

    def timed(name: str, since: float) -> float:
        now = time.monotonic()
        times[name] = round(now - since, 2)
        return now

    clock = started = time.monotonic()
    images, dropped = collect_images(
        source,
        extractor,
        config,
        use_poses=use_poses,
        require_poses=require_poses,
        stages=stages,
        progress=progress,
    )
    origin = choose_origin(images)
    images = relative_to(images, origin)
    clock = timed('features', clock)
    log = stages.log('reconstruction')
    known = log.get('points')
    if known is None:
        reconstruction = reconstruct(
            images, config.reconstruction, stage=stages.log('matches'), progress=progress
        )
        log.keep('points', pack_reconstruction(reconstruction, images))
    else:
        reconstruction = unpack_reconstruction(known, images)
    clock = timed('reconstruction', clock)
    scene_map, metrics = train_map(
        reconstruction,
        extractor,
        config,
        source=source,
        device=device,
        progress=progress,
        stages=stages,
    )
    clock = timed('training', clock)
    times['total'] = round(clock - started, 2)
    if config.reconstruction.refine_poses and reconstruction.metric:
        metrics['refined_poses'] = _pose_changes(images, reconstruction)
    metrics = {
        **metrics,
        'num_images': len(reconstruction.images),
        'num_points': len(reconstruction.points_in_map),
        'dropped_images': dropped,
        'seconds': times,
        # The times of a build that was interrupted are those of its last run.
        'resumed': stages.resumed,
    }
    if reconstruction.metric:
        metrics['doubtful_poses'] = _doubtful_poses(reconstruction)
    useless = metrics['holdout_images'] > 0 and metrics['holdout_localized'] == 0
    if useless:
        _logger.warning(
            'none of the %d held-out images is localized in the map that was built: are the poses '
            'those of the optical frame of the camera (z forward, x right), do they fit the '
            'images, and is the calibration right?',
            metrics['holdout_images'],
        )
    x, y, z = origin.tolist()
    manifest = replace(scene_map.manifest, metrics=metrics, origin=(x, y, z))
    update_data = None
    if config.keep_update_data:
        update_data = collect_update_data(
            reconstruction,
            max_keypoints=config.update_keypoints,
            max_megabytes=config.max_update_mb,
        )
    # A build that was killed after its map was written goes on as if it was not.
    written = store.write(
        replace(scene_map, manifest=manifest),
        update_data,
        # Such a map must not take the place of one that works.
        promote=not useless or store.current() is None,
        unless_live=stages.resumed,
    )
    return BuildResult(written, moved(reconstruction, origin), dropped)


def _doubtful_poses(reconstruction: Reconstruction) -> list[dict[str, Any]]:
    """Return the images whose given poses contradict what they show, and name them in a warning."""
    doubtful = find_doubtful_poses(reconstruction)
    if doubtful:
        worst = max(doubtful, key=lambda doubt: doubt.distance)
        _logger.warning(
            'the poses of %d of %d images contradict what they show: %s; the worst is off by '
            '%.2f m and %.1f deg. Correct these poses or leave these images out',
            len(doubtful),
            len(reconstruction.images),
            ', '.join(doubt.name for doubt in doubtful),
            worst.distance,
            worst.angle_deg,
        )
    return [
        {
            'name': doubt.name,
            'distance_m': round(doubt.distance, 3),
            'angle_deg': round(doubt.angle_deg, 2),
        }
        for doubt in doubtful
    ]


def _pose_changes(
    images: Sequence[ImageInput], reconstruction: Reconstruction
) -> dict[str, float | None]:
    """Return how far poses were moved from those of the log, in the median."""
    given = {image.name: image.map_from_camera for image in images}
    changes = []
    for image in reconstruction.images:
        before = given[image.name]
        if before is not None:
            changes.append(pose_error(image.map_from_camera, before))
    return {
        'median_m': _median([metres for metres, _ in changes]),
        'median_deg': _median([degrees for _, degrees in changes]),
    }


def collect_images(
    source: FrameSource,
    extractor: FeatureExtractor,
    config: BuildConfig,
    *,
    use_poses: bool = True,
    require_poses: bool = False,
    stages: BuildStages | None = None,
    progress: bool = False,
) -> tuple[list[ImageInput], dict[str, int]]:
    """Extract features of the log's usable images, thinned evenly to `max_images`.

    Images without a pose are dropped where others have one.

    Returns:
        The images and, by reason, how many were dropped.

    Raises:
        InputError: fewer than two usable images, or too few with a pose.
    """
    total = len(source)
    if total == 0:
        raise InputError('the log has no images')
    keep = set(np.linspace(0, total - 1, min(total, config.max_images)).round().astype(int))
    dropped: Counter[str] = Counter()
    waiting: list[tuple[str, Frame]] = []
    stages = stages or BuildStages(None, {})
    log = stages.log('features')
    digests: list[str] = []
    in_memory: dict[str, LocalFeatures] = {}
    bar = tqdm(source, total=total, desc='features', unit='image', disable=not progress)
    for index, frame in enumerate(bar):
        if index not in keep:
            continue
        if frame.image is None or frame.camera is None:
            dropped[frame.error or 'no camera calibration'] += 1
            continue
        digest = frame_digest(frame)
        digests.append(digest)
        if digest not in log:
            features = extractor.extract(frame.image)
            if not keep_features(log, digest, features):
                in_memory[digest] = features
        waiting.append((digest, replace(frame, image=None)))
    stages.set_images(digests)
    images: list[ImageInput] = []
    for digest, frame in waiting:
        kept = load_features(log, digest)
        features = in_memory[digest] if kept is None else kept
        if len(features) < 50:
            dropped['fewer than 50 keypoints (dark, blurred or empty)'] += 1
            continue
        assert frame.camera is not None
        pose = frame.map_from_camera if use_poses else None
        images.append(ImageInput(frame.name, frame.stamp_ns, frame.camera, pose, features))
    posed = [image for image in images if image.map_from_camera is not None]
    if len(posed) >= 2 and len(posed) < len(images):
        dropped['no pose'] += len(images) - len(posed)
        images = posed
    elif len(posed) < 2 <= len(images) and (posed or require_poses):
        raise InputError(
            f'{len(posed)} of {len(images)} images have a pose; do the stamps (or names) of poses '
            'and images fit?'
        )
    for reason, count in dropped.items():
        _logger.warning('%d images not used: %s', count, reason)
    if len(images) < 2:
        reasons = '; '.join(f'{count} x {reason}' for reason, count in dropped.items())
        raise InputError(
            f'{len(images)} usable images in the log, mapping needs at least two ({reasons})'
        )
    return images, dict(dropped)


def train_map(
    reconstruction: Reconstruction,
    extractor: FeatureExtractor,
    config: BuildConfig,
    *,
    source: FrameSource | None = None,
    device: str = 'cpu',
    progress: bool = False,
    stages: BuildStages | None = None,
) -> tuple[SceneMap, dict[str, Any]]:
    """Turn a reconstruction into a map with the head that `config` asks for.

    Args:
        reconstruction: Images with poses, and points.
        extractor: Of the map's features.
        config: Options.
        source: The log, for augmented views of its images; without it there are none.
        device: Where the network is trained.
        progress: Show progress bars.
        stages: Where samples and checkpoint are kept.

    Returns:
        The map (not written yet) and figures measured on the way.
    """
    # Every n-th from the middle of the stride: the ends of a log are rarely typical.
    every = config.holdout_every
    held_out = list(range(every // 2, len(reconstruction.images), every))
    manifest = MapManifest(
        features=config.features,
        features_hash=extractor.weights_hash,
        head=config.head,
        network={},
        cameras=tuple(dict.fromkeys(image.camera for image in reconstruction.images)),
        calibration=Calibration(
            sigma_px=keypoint_noise_px(reconstruction),
            reliability_threshold=config.reliability_threshold,
        ),
        metric=reconstruction.metric,
        build=to_dict(config),
    )
    stages = stages or BuildStages(None, {})
    candidates: dict[int, Candidates] | None = None
    statistics: LandmarkStatistics | None = None
    if config.head == 'landmark':
        scene_map, figures, candidates, statistics = _train_landmarks(
            manifest, reconstruction, extractor, config, held_out, device, progress, stages
        )
    else:
        scene_map, figures = _train_regression(
            manifest,
            reconstruction,
            extractor,
            config,
            held_out,
            source,
            device,
            progress,
            stages,
        )
    calibration, accuracy = calibrate(
        scene_map, extractor, reconstruction, candidates, held_out, statistics
    )
    scene_map = replace(scene_map, manifest=replace(scene_map.manifest, calibration=calibration))
    return scene_map, {
        **figures,
        'mean_track_length': round(float(reconstruction.track_lengths.mean()), 2),
        **accuracy,
    }


def _train_landmarks(
    manifest: MapManifest,
    reconstruction: Reconstruction,
    extractor: FeatureExtractor,
    config: BuildConfig,
    held_out: Sequence[int],
    device: str,
    progress: bool,
    stages: BuildStages,
) -> tuple[SceneMap, dict[str, Any], dict[int, Candidates], LandmarkStatistics]:
    table, statistics = build_landmarks(
        reconstruction,
        max_landmarks=config.max_landmarks,
    )
    table = table.coded()
    network_config = LandmarkConfig(
        descriptor_dim=extractor.dim,
        num_landmarks=len(table),
        num_candidates=config.num_candidates,
        num_layers=config.num_layers,
        hidden_inputs=config.hidden_inputs,
    )
    log = stages.log('samples')
    # Descriptors are in the log of the features already, but other processes see only this one.
    shared = () if distributed.world() > 1 else ('descriptors',)
    judged = set(images_to_judge(len(reconstruction.images), held_out).tolist())
    watched = thinned(held_out, _MAX_WATCHED)
    train_idx = sorted(set(range(len(reconstruction.images))) - set(held_out))
    steps = min(config.training.steps, 100 + config.steps_per_image * len(train_idx))
    # Of a long log, not more images than the training could look at once.
    train_idx = thinned(train_idx, max(1, steps * config.training.images_per_step))
    sampled = {*train_idx, *watched}
    in_memory: dict[int, LandmarkSample] = {}
    candidates: dict[int, Candidates] = {}
    bar = tqdm(reconstruction.images, desc='samples', unit='image', disable=not progress)
    for index, image in enumerate(bar):
        wanted = index in sampled and str(index) not in log
        if not wanted and index not in judged:
            continue
        sample, found = make_sample(
            image,
            table,
            statistics,
            num_candidates=config.num_candidates,
            correct_px=config.correct_px,
        )
        if index in judged:
            candidates[index] = found
        if wanted and not log.keep(str(index), pack_sample(sample, shared)):
            in_memory[index] = sample
    samples = {}
    for index in sampled:
        arrays = log.get(str(index))
        if arrays is None:
            samples[index] = in_memory[index]
        else:
            arrays.setdefault('descriptors', reconstruction.images[index].features.descriptors)
            samples[index] = unpack_sample(LandmarkSample, arrays)
    training = replace(config.training, steps=steps)
    share_training(
        'landmark',
        network_config,
        training,
        log,
        [[str(index)] for index in train_idx],
        [str(index) for index in watched],
        stages,
    )
    network, figures = train_landmark_network(
        [samples[index] for index in train_idx],
        network_config,
        training,
        device=device,
        checkpoint=stages.checkpoint,
        progress=progress,
        held_out=[samples[index] for index in watched],
    )
    scene_map = SceneMap(
        replace(manifest, network=to_dict(network_config)),
        landmark_table=table,
        landmark_network=network,
    )
    figures = {'training': figures, 'num_landmarks': len(table)}
    return scene_map, figures, candidates, statistics


def _train_regression(
    manifest: MapManifest,
    reconstruction: Reconstruction,
    extractor: FeatureExtractor,
    config: BuildConfig,
    held_out: Sequence[int],
    source: FrameSource | None,
    device: str,
    progress: bool,
    stages: BuildStages,
) -> tuple[SceneMap, dict[str, Any]]:
    training = config.regression_training
    frame = (
        CoordinateFrame.of_points(reconstruction.points_in_map)
        if training.center_targets
        else CoordinateFrame.identity()
    )
    originals = samples_of_images(reconstruction, frame)
    train_idx = [index for index in range(len(originals)) if index not in held_out]
    views = {}
    if source is not None:
        views = samples_of_views(
            source,
            reconstruction,
            extractor,
            frame,
            training.augmentation,
            image_idx=train_idx,
            seed=training.seed,
            progress=progress,
        )
    network_config = replace(config.regression, descriptor_dim=extractor.dim)
    watched = thinned(held_out, _MAX_WATCHED)
    samples = [[originals[index], *views.get(index, [])] for index in train_idx]
    if distributed.world() > 1:
        log = stages.log('samples')
        watched_samples = [[originals[index]] for index in watched]
        keys = []
        for index, variants in zip(
            [*train_idx, *watched], [*samples, *watched_samples], strict=True
        ):
            keys.append([f'{index}/{number}' for number in range(len(variants))])
            for key, sample in zip(keys[-1], variants, strict=True):
                if key not in log:
                    log.keep(key, pack_sample(sample))
        share_training(
            'regression',
            network_config,
            training,
            log,
            keys[: len(train_idx)],
            [key for key, *_ in keys[len(train_idx) :]],
            stages,
        )
    network, figures = train_regression_network(
        samples,
        network_config,
        training,
        device=device,
        checkpoint=stages.checkpoint,
        progress=progress,
        held_out=[originals[index] for index in watched],
    )
    with torch.no_grad():
        network.center.copy_(torch.from_numpy(frame.center))
        network.scale.fill_(frame.scale)
    scene_map = SceneMap(replace(manifest, network=to_dict(network_config)), regression=network)
    noise = regression_noise_px(
        Localizer(scene_map, extractor),
        [reconstruction.images[index] for index in held_out or train_idx],
    )
    calibration = replace(manifest.calibration, sigma_px=noise)
    scene_map = replace(scene_map, manifest=replace(scene_map.manifest, calibration=calibration))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return scene_map, {'training': figures, 'num_parameters': parameters}


def regression_noise_px(localizer: Localizer, images: Iterable[MappedImage]) -> float:
    """Return the residual of regressed coordinates in px, one axis, for a keypoint of scale 1.

    Seen from the true poses; residuals that RANSAC would reject do not count.
    """
    threshold = localizer.scene_map.manifest.calibration.reliability_threshold
    normalized = []
    for image in images:
        if len(image.features) == 0:
            continue
        coordinates = localizer.predict(image.features, image.camera)
        projected = image.camera.ideal.project(
            image.map_from_camera.inverse().apply(coordinates.points_in_map)
        )
        residual = projected - image.ideal_keypoints
        limit = localizer.error_threshold_px(image.camera)
        with np.errstate(invalid='ignore'):
            keep = np.linalg.norm(residual, axis=1) <= limit
        keep &= coordinates.reliability >= threshold
        sigma = detection_sigma_px(image.features.scales[keep])
        normalized.append(residual[keep] / sigma[:, None])
    values = np.concatenate(normalized) if normalized else np.zeros((0, 2))
    if len(values) < 20:
        # Nothing to measure: as uncertain as RANSAC allows.
        return REGRESSION_ERROR_PX
    return float(np.clip(1.4826 * np.median(np.abs(values)), 0.1, REGRESSION_ERROR_PX))


def keypoint_noise_px(reconstruction: Reconstruction) -> float:
    """Return the noise of a keypoint of scale 1 in px, one axis, from the residuals of tracks."""
    normalized = []
    for image in reconstruction.images:
        seen = np.flatnonzero(image.point_idx >= 0)
        point_idx = image.point_idx[seen]
        projected = image.camera.ideal.project(
            image.map_from_camera.inverse().apply(reconstruction.points_in_map[point_idx])
        )
        residual = projected - image.ideal_keypoints[seen]
        # A point fitted to n observations leaves residuals smaller by sqrt((2n - 3) / 2n).
        length = np.maximum(reconstruction.track_lengths[point_idx], 2)
        shrink = np.sqrt((2 * length - 3) / (2 * length))
        sigma = detection_sigma_px(image.features.scales[seen])
        normalized.append(residual / (shrink * sigma)[:, None])
    values = np.concatenate(normalized)
    return float(np.clip(1.4826 * np.median(np.abs(values)), 0.1, 3.0))


def _median(values: list[float]) -> float | None:
    return round(float(np.median(values)), 6) if values else None
