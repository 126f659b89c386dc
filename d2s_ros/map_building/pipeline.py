"""The stages from a log to a map: features, reconstruction, scene model, calibration."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from d2s_ros import __version__, distributed
from d2s_ros.config import to_dict
from d2s_ros.data.frames import FrameSource
from d2s_ros.device import resolve_device
from d2s_ros.errors import InputError
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureExtractor
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.map_building.calibration import (
    calibrate,
    calibration_images,
    keypoint_noise_px,
    rounded_median,
)
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.images import collect_images
from d2s_ros.map_building.placement import place
from d2s_ros.map_building.stages import BuildStages
from d2s_ros.maps.manifest import Calibration, MapManifest
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.update_data import collect_update_data
from d2s_ros.reconstruction.origin import choose_origin, moved, relative_to
from d2s_ros.reconstruction.pipeline import reconstruct
from d2s_ros.reconstruction.pose_check import find_doubtful_poses
from d2s_ros.reconstruction.reconstruction import (
    ImageInput,
    Reconstruction,
    pack_reconstruction,
    unpack_reconstruction,
)
from d2s_ros.scene_models.base import BuildContext
from d2s_ros.scene_models.registry import model_class

_logger = logging.getLogger(__name__)


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
    calibrated = not getattr(source, 'camera_is_guess', False)
    use_poses &= calibrated
    with distributed.group(resolve_device(device)) as device:
        extractor = create_extractor(config.features, device=device, weights=weights)
        description = {
            'software': __version__,
            'config': to_dict(config),
            'features_hash': extractor.weights_hash,
            'device': torch.device(device).type,
            'processes': distributed.world(),
            'use_poses': use_poses,
            'calibrated': calibrated,
        }
        path = Path(map_path) if keep_stages else None
        with BuildStages(path, description, fresh=fresh) as stages:
            run = _Build(source, extractor, config, stages, device, progress, calibrated)
            return run.execute(store, use_poses=use_poses, require_poses=require_poses)


@dataclass(frozen=True, eq=False)
class _Build:
    """One build.

    Attributes:
        source: The log.
        extractor, config: Features and options.
        stages: What is done of it.
        device, progress: As for `build_map`.
        calibrated: The cameras of the source are not first guesses.
        seconds: By stage.
    """

    source: FrameSource
    extractor: FeatureExtractor
    config: BuildConfig
    stages: BuildStages
    device: str
    progress: bool
    calibrated: bool
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 2)

    def execute(self, store: MapStore, *, use_poses: bool, require_poses: bool) -> BuildResult:
        """Build the map and write it."""
        with self._timed('total'):
            with self._timed('features'):
                images, dropped = collect_images(
                    self.source,
                    self.extractor,
                    self.config,
                    use_poses=use_poses,
                    require_poses=require_poses,
                    stages=self.stages,
                    progress=self.progress,
                )
            origin = choose_origin(images)
            images = relative_to(images, origin)
            with self._timed('reconstruction'):
                poses = {image.name: image.map_from_camera for image in images}
                if self.config.placement.align_poses:
                    images = _without_poses(images)
                reconstruction, placement = place(
                    self._reconstruct(images), self.source, poses, self.config.placement
                )
            with self._timed('training'):
                scene_map, metrics = train_map(
                    reconstruction,
                    self.extractor,
                    self.config,
                    source=self.source,
                    device=self.device,
                    progress=self.progress,
                    stages=self.stages,
                )
        if self.config.reconstruction.refine_poses and placement['scale_from'] == 'poses':
            metrics['refined_poses'] = _pose_changes(images, reconstruction)
        metrics = {
            **metrics,
            'placement': placement,
            'num_images': len(reconstruction.images),
            'num_points': len(reconstruction.points_in_map),
            'dropped_images': dropped,
            'seconds': self.seconds,
            # The times of a build that was interrupted are those of its last run.
            'resumed': self.stages.resumed,
        }
        if reconstruction.focal_sigma_px is not None:
            metrics['self_calibration'] = {
                'focal_px': round(reconstruction.images[0].camera.fx, 3),
                'focal_sigma_px': round(reconstruction.focal_sigma_px, 3),
                'guess_px': round(images[0].camera.fx, 3),
                'images': len(reconstruction.images),
            }
        if placement['frame_from'] == 'poses':
            metrics['doubtful_poses'] = _doubtful_poses(reconstruction)
        useless = metrics['holdout_images'] > 0 and metrics['holdout_localized'] == 0
        if useless:
            _logger.warning(
                'none of the %d held-out images is localized in the map that was built: are the '
                'poses those of the optical frame of the camera (z forward, x right), do they fit '
                'the images, and is the calibration right?',
                metrics['holdout_images'],
            )
        x, y, z = origin.tolist()
        manifest = replace(scene_map.manifest, metrics=metrics, origin=(x, y, z))
        update_data = None
        if self.config.keep_update_data and model_class(self.config.head).keeps_update_data:
            update_data = collect_update_data(
                reconstruction,
                max_keypoints=self.config.update_keypoints,
                max_megabytes=self.config.max_update_mb,
            )
        # A build that was killed after its map was written goes on as if it was not.
        written = store.write(
            replace(scene_map, manifest=manifest),
            update_data,
            # Such a map must not take the place of one that works.
            promote=not useless or store.current() is None,
            unless_live=self.stages.resumed,
        )
        return BuildResult(written, moved(reconstruction, origin), dropped)

    def _reconstruct(self, images: list[ImageInput]) -> Reconstruction:
        """Reconstruct, or read what an interrupted build has reconstructed."""
        log = self.stages.log('reconstruction')
        known = log.get('points')
        if known is not None:
            return unpack_reconstruction(known, images)
        reconstruction = reconstruct(
            images,
            self.config.reconstruction,
            calibrated=self.calibrated,
            stage=self.stages.log('matches'),
            progress=self.progress,
        )
        log.keep('points', pack_reconstruction(reconstruction, images))
        return reconstruction


def _without_poses(images: Sequence[ImageInput]) -> list[ImageInput]:
    """Return images to be placed by what they show; their poses are aligned to afterwards.

    Raises:
        InputError: there are no poses to align to.
    """
    if images[0].map_from_camera is None:
        raise InputError('the log has no poses to align the map to; leave --align-poses out')
    return [replace(image, map_from_camera=None) for image in images]


def _doubtful_poses(reconstruction: Reconstruction) -> list[dict[str, Any]]:
    """Return the images whose given poses contradict what they show, and name them in a warning."""
    doubtful = find_doubtful_poses(reconstruction)
    if doubtful:
        worst = max(doubtful, key=lambda wrong: wrong.distance)
        _logger.warning(
            'the poses of %d of %d images contradict what they show: %s; the worst is off by '
            '%.2f m and %.1f deg. Correct these poses or leave these images out',
            len(doubtful),
            len(reconstruction.images),
            ', '.join(wrong.name for wrong in doubtful),
            worst.distance,
            worst.angle_deg,
        )
    return [
        {
            'name': wrong.name,
            'distance_m': round(wrong.distance, 3),
            'angle_deg': round(wrong.angle_deg, 2),
        }
        for wrong in doubtful
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
        'median_m': rounded_median([metres for metres, _ in changes]),
        'median_deg': rounded_median([degrees for _, degrees in changes]),
    }


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
    """Turn a reconstruction into a map with the scene model that `config` asks for.

    Args:
        reconstruction: Images with poses, and points.
        extractor: Of the map's features.
        config: Options.
        source: The log, for models that look at the pixels of its images again.
        device: Where networks are trained.
        progress: Show progress bars.
        stages: Where samples and checkpoint are kept.

    Returns:
        The map (not written yet) and figures measured on the way.
    """
    stages = stages or BuildStages(None, {})
    count = len(reconstruction.images)
    # Every n-th from the middle of the stride: the ends of a log are rarely typical.
    held_out = list(range(config.holdout_every // 2, count, config.holdout_every))
    built = model_class(config.head).build(
        BuildContext(
            reconstruction,
            extractor,
            config,
            held_out=held_out,
            calibration_images=calibration_images(count, held_out).tolist(),
            source=source,
            device=device,
            progress=progress,
            samples=stages.log('samples'),
            checkpoint=stages.checkpoint,
            reliability_threshold=config.reliability_threshold,
        )
    )
    noise = keypoint_noise_px(reconstruction) if built.sigma_px is None else built.sigma_px
    manifest = MapManifest(
        features=config.features,
        features_hash=extractor.weights_hash,
        head=config.head,
        network=built.model.network_config,
        cameras=tuple(dict.fromkeys(image.camera for image in reconstruction.images)),
        calibration=Calibration(sigma_px=noise, reliability_threshold=config.reliability_threshold),
        metric=reconstruction.metric,
        build=to_dict(config),
    )
    scene_map = SceneMap(manifest, built.model)
    calibration, accuracy = calibrate(scene_map, extractor, reconstruction, held_out)
    scene_map = replace(scene_map, manifest=replace(manifest, calibration=calibration))
    return scene_map, {
        **built.figures,
        'mean_track_length': round(float(reconstruction.track_lengths.mean()), 2),
        **accuracy,
    }
