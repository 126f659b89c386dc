"""Mapping images as a map of labels remembers them: its points and labels, where they project.

No image and no keypoint of a mapping image is kept. What the map holds of it, its pose and the
points that it sees, is enough to ask whether another version of the map still finds it.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.reconstruction.reconstruction import MappedImage
from d2s_ros.scene_models.labels.field import LabelField
from d2s_ros.scene_models.labels.network import LabelConfig
from d2s_ros.scene_models.labels.question import BLUR_CELLS, LabelView
from d2s_ros.scene_models.labels.table import LabelTable

#: Noise of the keypoints, px at 1000 px focal length.
_NOISE_PX = 0.7
#: Share of places whose label is not that of the point nearest to them.
_UNSURE = 0.4


def remembered_image(table: LabelTable, index: int, camera: Camera) -> MappedImage:
    """Return a mapping image: points that it sees are its keypoints, without descriptors."""
    pose = table.poses[index]
    seen = table.seen_by(index)
    pixels = camera.project(pose.apply(table.points.points_in_map[seen]))
    with np.errstate(invalid='ignore'):
        inside = ((pixels >= 0) & (pixels < [camera.width, camera.height])).all(axis=1)
    seen, pixels = seen[inside], pixels[inside]
    # Each image has its own noise, and always the same.
    noise = np.random.default_rng(index).normal(size=pixels.shape)
    pixels = pixels + _NOISE_PX * 0.5 * (camera.fx + camera.fy) / 1000.0 * noise
    keypoints = pixels.astype(np.float32)
    features = LocalFeatures(
        keypoints,
        np.ones(len(seen), np.float32),
        np.zeros((len(seen), 0), np.float32),
        (camera.width, camera.height),
        np.ones(len(seen), np.float32),
    )
    return MappedImage(
        f'remembered {index}',
        0,
        camera,
        pose.inverse(),
        features,
        camera.undistort(keypoints),
        seen,
    )


def remembered_view(table: LabelTable, config: LabelConfig, image: MappedImage) -> LabelView:
    """Return the view of a remembered image: a place has the label of the point nearest to it."""
    camera = image.camera
    ratio = min(1.0, config.max_size / max(camera.width, camera.height))
    small = camera.resized(round(camera.width * ratio), round(camera.height * ratio)).ideal
    known = np.isfinite(image.ideal_keypoints).all(axis=1)
    scale = [small.width / camera.width, small.height / camera.height]
    pixels = (image.ideal_keypoints[known] + 0.5) * scale - 0.5
    labels = table.labels[image.point_idx[known]]
    probabilities = []
    for number, stride in enumerate(config.levels):
        height, width = -(-small.height // stride), -(-small.width // stride)
        if len(pixels):
            rows, columns = np.mgrid[0:height, 0:width]
            centres = np.stack([columns, rows], axis=-1) * stride + (stride - 1) / 2
            nearest = cKDTree(pixels).query(centres.reshape(-1, 2))[1].reshape(height, width)
            likeliest = np.eye(config.num_labels, dtype=np.float32)[labels[nearest, number]]
            blurred = gaussian_filter(likeliest, (BLUR_CELLS, BLUR_CELLS, 0), mode='nearest')
        else:
            blurred = np.zeros((height, width, config.num_labels), np.float32)
        sure = 1.0 - _UNSURE if len(pixels) else 0.0
        probabilities.append((sure * blurred + (1.0 - sure) / config.num_labels).astype(np.float32))
    field = LabelField.of(probabilities, config.levels, small)
    return LabelView(image.features, camera, field=field)
