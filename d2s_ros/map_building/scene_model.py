"""From a reconstruction to a calibrated map with the scene model that was asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from d2s_ros.config import to_dict
from d2s_ros.data.frames import FrameSource
from d2s_ros.features.types import FeatureExtractor
from d2s_ros.map_building.calibration import calibrate, calibration_images, keypoint_noise_px
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.stages import BuildStages
from d2s_ros.maps.manifest import Calibration, MapManifest
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.reconstruction.reconstruction import Reconstruction
from d2s_ros.scene_models.base import BuildContext
from d2s_ros.scene_models.registry import model_class


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
