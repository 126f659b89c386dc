"""Where a map of images alone lies: scale, which way is up, and the origin."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.config import option, validate
from d2s_ros.data.frames import FrameSource
from d2s_ros.data.tag_detection import FAMILIES, TagDetector
from d2s_ros.errors import ConfigError, InputError
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.reconstruction.metric_frame import (
    Scale,
    find_floor,
    level_frame,
    map_from_unscaled,
    scale_from_poses,
    scale_from_ratios,
    transformed,
    upward,
)
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction
from d2s_ros.reconstruction.tags import FittedTag, fit_tags, scale_from_tags

_logger = logging.getLogger(__name__)

#: Depth that varies by more than this share within a pixel's neighbours is of an edge.
_MAX_EDGE = 0.03
#: A tag whose normal is within this of up lies on a floor or table; others hang on a wall.
_FLAT_COSINE = np.cos(np.radians(45.0))


@dataclass(frozen=True)
class PlacementConfig:
    """How a map comes into metres and upright; what poses give is not touched without need."""

    align_poses: bool = option(
        False,
        'Find poses by the images alone, and take scale and frame from the poses that are given.',
    )
    use_depth: bool = option(True, 'Without poses, take the scale from registered depth images.')
    tag_size: float = option(
        0.0,
        'Edge of the black square of printed tags in the images; 0: there are none.',
        unit='m',
        minimum=0.0,
        maximum=100.0,
    )
    tag_family: str = option('36h11', 'Kind of the tags.', choices=FAMILIES)
    origin: str = option('', "'tag:ID' puts the origin into the middle of a tag.")

    def __post_init__(self) -> None:
        validate(self)
        if self.origin and self.origin_tag is None:
            raise ConfigError(f'origin is {self.origin!r}, expected tag:ID, as in tag:3')

    @property
    def origin_tag(self) -> int | None:
        """Number of the tag that is the origin; None without."""
        kind, _, number = self.origin.partition(':')
        return int(number) if kind == 'tag' and number.isdigit() else None


def place(
    reconstruction: Reconstruction,
    source: FrameSource,
    poses: Mapping[str, RigidTransform | None],
    config: PlacementConfig,
) -> tuple[Reconstruction, dict[str, Any]]:
    """Bring a reconstruction into metres, as far as something tells them, and upright.

    Args:
        reconstruction: With the poses that were given (`metric`), or found of images alone.
        source: The log, for depth and tags.
        poses: Given pose of each image by its name, for `align_poses`.
        config: Options.

    Returns:
        The reconstruction, and what told scale and frame, for the manifest.

    Raises:
        InputError: a tag or pose that was asked for cannot be used.
    """
    images = reconstruction.images
    tags: dict[int, FittedTag] = {}
    if config.tag_size or config.origin_tag is not None:
        tags = _find_tags(images, source, config.tag_family)
    given = [poses.get(image.name) for image in images]
    scale = _find_scale(reconstruction, source, given, tags, config)
    factor = 1.0 if scale is None else scale.factor
    metric = reconstruction.metric or scale is not None
    figures: dict[str, Any] = {'scale_from': 'poses' if reconstruction.metric else ''}
    if scale is not None:
        figures['scale_from'] = scale.source
        figures['scale_sigma'] = round(scale.sigma, 6)
        figures['scale_measurements'] = scale.count
    if reconstruction.metric and config.origin_tag is None:
        return transformed(reconstruction, factor, RigidTransform.identity(), metric=True), {
            **figures,
            'frame_from': 'poses',
        }
    if config.origin_tag is None and config.align_poses:
        motion, figures['frame_from'] = map_from_unscaled(images, given, factor), 'odometry'
        return transformed(reconstruction, factor, motion, metric=metric), figures
    up = np.array([0.0, 0.0, 1.0]) if reconstruction.metric else upward(images)
    floor = None if reconstruction.metric else find_floor(reconstruction, up)
    figures['frame_from'] = 'poses' if reconstruction.metric else 'floor'
    if floor is not None:
        up, height = floor
    elif reconstruction.metric:
        height = 0.0
    else:
        figures['frame_from'] = 'cameras'
        height = float(np.percentile(reconstruction.points_in_map @ up, 1))
    target = level_frame(up, factor * height, _scaled(images[0].map_from_camera, factor))
    if config.origin_tag is not None:
        exact = floor is not None or reconstruction.metric
        target = _at_tag(_tag(tags, config.origin_tag), up, factor, exact=exact)
        figures['frame_from'] = config.origin
    return transformed(reconstruction, factor, target, metric=metric), figures


def _scaled(pose: RigidTransform, factor: float) -> RigidTransform:
    return RigidTransform(pose.rotation, factor * pose.translation)


def _find_scale(
    reconstruction: Reconstruction,
    source: FrameSource,
    poses: list[RigidTransform | None],
    tags: Mapping[int, FittedTag],
    config: PlacementConfig,
) -> Scale | None:
    """Return the scale by the most exact of what is there; None where nothing tells it."""
    if config.tag_size:
        scale = scale_from_tags(tags, config.tag_size)
        if scale is None:
            raise InputError(
                f'no tag of {config.tag_family} is seen by three images from different places: '
                'check --tag-family, or take the map again with a tag in view'
            )
        return scale
    if reconstruction.metric:
        return None
    if config.align_poses:
        return scale_from_poses(reconstruction.images, poses)
    depth = getattr(source, 'depth', None) if config.use_depth else None
    if depth is None:
        return None
    try:
        return scale_from_ratios(_depth_ratios(reconstruction, depth), 'depth')
    except InputError as error:
        _logger.warning('%s: the scale of the map is arbitrary', error)
        return None


def _depth_ratios(reconstruction: Reconstruction, depth: Any) -> NDArray[np.float64]:
    """Return measured depth over that of triangulated points, for all that have both."""
    images = reconstruction.images
    found = [np.zeros(0)]
    for index, measured in depth.at(np.array([image.stamp_ns for image in images])):
        image = images[index]
        seen = np.flatnonzero(image.point_idx >= 0)
        points = reconstruction.points_in_map[image.point_idx[seen]]
        own = image.map_from_camera.inverse().apply(points)[:, 2]
        height, width = measured.shape
        ratio = np.array([width / image.camera.width, height / image.camera.height])
        pixel = np.rint((image.features.keypoints[seen] + 0.5) * ratio - 0.5).astype(int)
        inside = ((pixel >= 1) & (pixel < [width - 1, height - 1])).all(axis=1) & (own > 0)
        x, y = pixel[inside].T
        around = np.stack([measured[y + j, x + i] for i in (-1, 0, 1) for j in (-1, 0, 1)])
        low, high = around.min(axis=0), around.max(axis=0)
        flat = np.isfinite(low) & (high - low < _MAX_EDGE * low)
        found.append(measured[y, x][flat] / own[inside][flat])
    return np.concatenate(found).astype(np.float64)


def _find_tags(images: list[MappedImage], source: FrameSource, family: str) -> dict[int, FittedTag]:
    detector = TagDetector(family)
    names = {image.name for image in images}
    seen = {
        frame.name: detector.detect(frame.image)
        for frame in source
        if frame.name in names and frame.image is not None
    }
    return fit_tags(images, seen)


def _tag(tags: Mapping[int, FittedTag], number: int) -> FittedTag:
    if number not in tags:
        known = ', '.join(map(str, tags)) or 'none'
        raise InputError(
            f'tag {number} is not seen by three images from different places; tags that are: '
            f'{known}'
        )
    return tags[number]


def _at_tag(
    tag: FittedTag, up: NDArray[np.float64], factor: float, *, exact: bool
) -> RigidTransform:
    """Return tag_from_scaled: z up and the origin in the middle of the tag.

    x is that of a tag that lies flat, and points out of the wall that another hangs on. A small tag
    tells directions within a degree or two, so `up` counts where a floor or poses make it `exact`.
    """
    right, top, out = tag.map_from_tag.rotation.T
    flat = bool(out @ up > _FLAT_COSINE)
    z = up if exact else out if flat else top
    x = right if flat else out
    x = x - (x @ z) * z
    x = x / np.linalg.norm(x)
    rotation = np.stack([x, np.cross(z, x), z])
    return RigidTransform(rotation, -factor * rotation @ tag.map_from_tag.translation)
