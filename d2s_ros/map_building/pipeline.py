"""The stages from a log to a map: features, reconstruction, scene model, calibration."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from d2s_ros import __version__, distributed
from d2s_ros.config import to_dict
from d2s_ros.data.frames import FrameSource
from d2s_ros.device import resolve_device
from d2s_ros.errors import InputError
from d2s_ros.features.types import FeatureExtractor
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.map_building.calibration import (
    rounded_median,
)
from d2s_ros.map_building.colours import point_colours
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.feature_choice import FeatureChoice, choose_features, extractors_of
from d2s_ros.map_building.preparation import Clock, InputOptions, Prepared
from d2s_ros.map_building.scene_model import train_map
from d2s_ros.map_building.stages import BuildStages
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.update_data import collect_update_data
from d2s_ros.reconstruction.origin import moved
from d2s_ros.reconstruction.pose_check import find_doubtful_poses
from d2s_ros.reconstruction.reconstruction import (
    ImageInput,
    Reconstruction,
)
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
    options = InputOptions(use_poses, require_poses, calibrated, progress)
    with distributed.group(resolve_device(device)) as device:
        extractors = extractors_of(config, device=device, weights=weights)
        hashes = [extractor.weights_hash for extractor in extractors]
        description = {
            'software': __version__,
            'config': to_dict(config),
            'features_hash': ' '.join(hashes),
            'device': torch.device(device).type,
            'processes': distributed.world(),
            'use_poses': use_poses,
            'calibrated': calibrated,
        }
        path = Path(map_path) if keep_stages else None
        with BuildStages(path, description, fresh=fresh) as stages:
            clock = Clock()
            features = choose_features(source, extractors, config, options, stages, clock)
            run = _Build(source, features, stages, device, progress, clock)
            return run.execute(store)


@dataclass(frozen=True, eq=False)
class _Build:
    """One build, from what was prepared to the map that is written.

    Attributes:
        source: The log.
        features: What was prepared, with which features and why.
        stages: What is done of the build, of all kinds of features.
        device, progress: As for `build_map`.
        clock: Times of the stages.
    """

    source: FrameSource
    features: FeatureChoice
    stages: BuildStages
    device: str
    progress: bool
    clock: Clock

    @property
    def config(self) -> BuildConfig:
        """Options, with the features that were chosen."""
        return self.features.config

    def execute(self, store: MapStore) -> BuildResult:
        """Build the map and write it."""
        prepared = self.features.prepared
        more: dict[str, Any] = {'resumed': self.stages.resumed}
        if self.features.report:
            more['feature_choice'] = self.features.report
        scene_map, update_data = make_map(
            prepared,
            self.features.extractor,
            self.config,
            self.clock,
            source=self.source,
            device=self.device,
            progress=self.progress,
            stages=self.features.stages,
            more=more,
        )
        # A build that was killed after its map was written goes on as if it was not.
        written = store.write(
            scene_map,
            update_data,
            # Such a map must not take the place of one that works.
            promote=not _is_useless(scene_map.manifest.metrics) or store.current() is None,
            unless_live=self.stages.resumed,
        )
        return BuildResult(
            written, moved(prepared.reconstruction, prepared.origin), prepared.dropped
        )


def make_map(
    prepared: Prepared,
    extractor: FeatureExtractor,
    config: BuildConfig,
    clock: Clock,
    *,
    source: FrameSource | None,
    device: str,
    progress: bool,
    stages: BuildStages | None,
    more: Mapping[str, Any],
) -> tuple[SceneMap, dict[str, NDArray[Any]] | None]:
    """Turn what was prepared into a map that can be written, with what updates of it need.

    Args:
        prepared: Images with poses, and points.
        extractor: Of the map's features.
        config: Options, with these features.
        clock: Times of the stages so far.
        source: The log, for models that look at its pixels.
        device: Where networks are trained.
        progress: Show progress bars.
        stages: What is done of the build.
        more: Further figures of the manifest.
    """
    images, reconstruction, placement = (
        prepared.images,
        prepared.reconstruction,
        prepared.placement,
    )
    with clock.timed('training'):
        scene_map, metrics = train_map(
            reconstruction,
            extractor,
            config,
            source=source,
            device=device,
            progress=progress,
            stages=stages,
        )
    clock.end()
    if config.reconstruction.refine_poses and placement['scale_from'] == 'poses':
        metrics['refined_poses'] = _pose_changes(images, reconstruction)
    metrics = {
        **metrics,
        'placement': placement,
        'num_images': len(reconstruction.images),
        'num_points': len(reconstruction.points_in_map),
        'dropped_images': prepared.dropped,
        # The times of a build that was interrupted are those of its last run.
        'seconds': clock.seconds,
        **more,
    }
    placed = {image.name for image in reconstruction.images}
    not_placed = [image.name for image in images if image.name not in placed]
    if not_placed:
        metrics['not_placed'] = not_placed
    if reconstruction.focal_sigma_px is not None:
        metrics['self_calibration'] = {
            'focal_px': round(reconstruction.images[0].camera.fx, 3),
            'focal_sigma_px': round(reconstruction.focal_sigma_px, 3),
            'guess_px': round(images[0].camera.fx, 3),
            'images': len(reconstruction.images),
        }
    if placement['frame_from'] == 'poses':
        metrics['doubtful_poses'] = _doubtful_poses(reconstruction)
    if _is_useless(metrics):
        _logger.warning(
            'none of the %d held-out images is localized in the map that was built: are the '
            'poses those of the optical frame of the camera (z forward, x right), do they fit '
            'the images, and is the calibration right?',
            metrics['holdout_images'],
        )
    x, y, z = prepared.origin.tolist()
    manifest = replace(scene_map.manifest, metrics=metrics, origin=(x, y, z))
    update_data = None
    if config.keep_update_data and model_class(config.head).keeps_update_data:
        update_data = collect_update_data(
            reconstruction,
            max_keypoints=config.update_keypoints,
            max_megabytes=config.max_update_mb,
            colours=point_colours(reconstruction, source)
            if config.keep_colours and source is not None
            else None,
        )
    return replace(scene_map, manifest=manifest), update_data


def _is_useless(metrics: Mapping[str, Any]) -> bool:
    """Return whether a map localizes none of the images that were held out of it."""
    return bool(metrics['holdout_images'] > 0 and metrics['holdout_localized'] == 0)


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
