"""Localize the images of a folder in a map, and print one line for each.

python examples/localize_folder.py MAP FOLDER
"""

from __future__ import annotations

import sys

import d2s_ros
from d2s_ros.data.sources import open_source


def main(map_path: str, folder: str) -> None:
    """Print the camera's position, or why there is none."""
    localizer = d2s_ros.Localizer.from_map(map_path)
    for frame in open_source(folder):
        result = localizer.localize(frame.image, frame.camera)
        if result.map_from_camera is None:
            print(f'{frame.name}: refused, {result.status.value}: {result.reason}')
            continue
        x, y, z = result.map_from_camera.translation
        print(f'{frame.name}: at {x:.3f} {y:.3f} {z:.3f}, {result.num_inliers} inliers')


if __name__ == '__main__':
    main(*sys.argv[1:])
