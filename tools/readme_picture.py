"""Draw the picture of the README: an image, what it shows of the map, and where the camera is.

python tools/readme_picture.py MAP QUERIES OUT.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from d2s_ros.data.sources import open_source
from d2s_ros.features.types import to_grey
from d2s_ros.localization.localizer import Localizer


def main(map_path: str, queries: str, output: str) -> None:
    """Draw the query with the most inliers, and all poses from above."""
    localizer = Localizer.from_map(map_path, device='cpu')
    best, poses = None, []
    for frame in open_source(queries):
        result = localizer.localize(frame.image, frame.camera, details=True)
        if result.map_from_camera is None or result.details is None or frame.image is None:
            continue
        poses.append(result.map_from_camera)
        if best is None or result.num_inliers > best[1].num_inliers:
            best = frame.image, result, result.details
    if best is None:
        raise SystemExit('nothing was localized')
    image, result, details = best

    figure = Figure(figsize=(10.5, 4.2), layout='constrained')
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    left.imshow(to_grey(image), cmap='gray')
    keypoints = details.keypoints[details.inlier]
    left.plot(keypoints[:, 0], keypoints[:, 1], '.', color='#31c45c', ms=4)
    left.set_axis_off()
    left.set_title(f'one image: {result.num_inliers} inliers (green) give the pose', fontsize=10)

    points = localizer.scene_map.model.points_in_map + localizer.scene_map.origin
    right.plot(
        points[:, 0], points[:, 1], '.', color='#a0a0a0', ms=1.5, label='landmarks of the map'
    )
    for pose in poses:
        this = pose is result.map_from_camera
        color = '#d7191c' if this else '#2c7bb6'
        x, y = pose.translation[:2]
        ahead = pose.rotation[:2, 2] * (0.9 if this else 0.5)
        right.arrow(x, y, *ahead, head_width=0.2, color=color, zorder=3 + this)
    right.plot([], [], '-', color='#2c7bb6', label='cameras localized')
    right.plot([], [], '-', color='#d7191c', label='the image on the left')
    centres = np.stack([pose.translation[:2] for pose in poses])
    low, high = centres.min(axis=0) - 4.0, centres.max(axis=0) + 4.0
    right.set_xlim(low[0], high[0])
    right.set_ylim(low[1], high[1])
    right.set_aspect('equal')
    right.set_xlabel('map x [m]')
    right.set_ylabel('map y [m]')
    right.legend(loc='upper center', bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize=7)
    size = localizer.scene_map.localization_size_bytes() / 1e6
    right.set_title(f'the map from above ({size:.1f} MB)', fontsize=10)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=90)


if __name__ == '__main__':
    main(*sys.argv[1:])
