"""Build a map from a folder of images with a calibration and poses, and check it.

    python examples/build_from_folder.py IMAGES MAP [QUERIES]

IMAGES is a folder with a COLMAP model, or with `calibration.yaml` and poses; see the tutorial.
"""

from __future__ import annotations

import sys

import d2s_ros


def main(images: str, map_path: str, queries: str = '') -> None:
    """Build, print what the map says about itself, and evaluate it if there are queries."""
    result = d2s_ros.build_map(images, map_path, budget='quick')
    metrics = result.scene_map.manifest.metrics
    print(f'{metrics["num_images"]} images, {metrics["num_points"]} points')
    print(
        f'held-out images localized: {metrics["holdout_localized"]} of {metrics["holdout_images"]}'
    )
    for reason, count in result.dropped.items():
        print(f'{count} images left out: {reason}')
    if queries:
        figures = d2s_ros.evaluate(map_path, queries)
        print(f'queries: {figures["num_localized"]} localized')


if __name__ == '__main__':
    main(*sys.argv[1:])
