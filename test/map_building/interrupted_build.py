"""Build a map as a program that a test can kill: LOG MAP [SEED]."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

from d2s_ros.data.sources import open_source  # noqa: E402
from d2s_ros.features.types import FeatureConfig  # noqa: E402
from d2s_ros.map_building.config import BuildConfig  # noqa: E402
from d2s_ros.map_building.pipeline import build_map  # noqa: E402

logging.basicConfig(level=logging.INFO)
CONFIG = BuildConfig(features=FeatureConfig(max_keypoints=1500), num_layers=1)
CONFIG = replace(
    CONFIG,
    training=replace(
        CONFIG.training,
        steps=150,
        images_per_step=2,
        keypoints_per_image=128,
        checkpoint_seconds=0.2,
        seed=int(sys.argv[3]) if len(sys.argv) > 3 else 0,
    ),
)

if __name__ == '__main__':
    result = build_map(open_source(sys.argv[1]), sys.argv[2], CONFIG, device='cpu', progress=False)
    print(result.scene_map.manifest.files, result.scene_map.manifest.metrics['training']['steps'])
