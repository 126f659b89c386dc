"""The colours of points, for the eye: of the pixels at the keypoints that see them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.frames import FrameSource
from d2s_ros.maps.update_data import NO_COLOUR
from d2s_ros.reconstruction.reconstruction import Reconstruction


def point_colours(reconstruction: Reconstruction, source: FrameSource) -> NDArray[np.uint8]:
    """Return the mean colour (P, 3) RGB of each point over the images that see it.

    Points that no image of the source sees are NO_COLOUR.

    Args:
        reconstruction: The points.
        source: The log, which is read once more.
    """
    sums = np.zeros((len(reconstruction.points_in_map), 3))
    counts = np.zeros(len(sums))
    by_name = {image.name: image for image in reconstruction.images}
    for frame in source:
        image = by_name.get(frame.name)
        if image is None or frame.image is None:
            continue
        rows = np.flatnonzero(image.point_idx >= 0)
        pixels = np.rint(image.features.keypoints[rows]).astype(int)
        height, width = frame.image.shape[:2]
        x, y = pixels[:, 0].clip(0, width - 1), pixels[:, 1].clip(0, height - 1)
        colours = frame.image.reshape(height, width, -1)[y, x, :3]
        # Grey images have one channel; others are BGR.
        np.add.at(sums, image.point_idx[rows], np.broadcast_to(colours[:, ::-1], (len(rows), 3)))
        np.add.at(counts, image.point_idx[rows], 1)
    colours = np.rint(sums / np.maximum(counts, 1)[:, None]).astype(np.uint8)
    colours[counts == 0] = NO_COLOUR
    return colours
