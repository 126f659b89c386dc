"""Draw the picture of the README: an image, what it shows of the map, and where the camera is.

python tools/readme_picture.py MAP QUERIES OUT.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from d2s_ros.data.sources import open_source
from d2s_ros.evaluation.report import draw_overview
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
    assert result.map_from_camera is not None
    points = localizer.scene_map.model.points_in_map + localizer.scene_map.origin
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_bytes(draw_overview(image, details, result.map_from_camera, poses, points))


if __name__ == '__main__':
    main(*sys.argv[1:])
