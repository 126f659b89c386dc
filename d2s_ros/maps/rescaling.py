"""A map in another unit of length: what was of arbitrary scale comes into metres."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.update_data import MappingData

#: Outside of this a distance was mistyped: float32 would not hold the squares of coordinates.
_MIN_FACTOR, _MAX_FACTOR = 1e-6, 1e6


def rescaled(
    scene_map: SceneMap,
    update_data: dict[str, NDArray[Any]] | None,
    factor: float,
) -> tuple[SceneMap, dict[str, NDArray[Any]] | None]:
    """Return a map and its update data with all lengths multiplied by `factor`, in metres.

    Points, covariances, origin, mapping poses, the depth of the scene and the accuracy that the
    manifest tells are scaled alike, so that images are localized as before and positions grow by
    `factor`. What an update told of the version is left out: it speaks of another version.

    Args:
        scene_map: The map, as read.
        update_data: Its tensors (`SceneMap.load_update_data`), None where it has none.
        factor: Metres that one unit of the map is.

    Raises:
        InputError: the factor is no positive number, or absurd.
    """
    if not (math.isfinite(factor) and _MIN_FACTOR <= factor <= _MAX_FACTOR):
        raise InputError(
            f'a map cannot be scaled by {factor:g}: give a factor between {_MIN_FACTOR:g} and '
            f'{_MAX_FACTOR:g}'
        )
    manifest = scene_map.manifest
    calibration = replace(
        manifest.calibration, scene_depth=manifest.calibration.scene_depth * factor
    )
    metrics = _lengths_scaled(manifest.metrics, factor)
    metrics.pop('update', None)
    metrics['scaled_by'] = manifest.scaled_by * factor
    x, y, z = (value * factor for value in manifest.origin)
    scaled = replace(
        scene_map,
        manifest=replace(
            manifest, calibration=calibration, metrics=metrics, origin=(x, y, z), metric=True
        ),
        model=scene_map.model.scaled(factor),
        path=None,
    )
    return scaled, None if update_data is None else _update_data_scaled(update_data, factor)


def _update_data_scaled(tensors: dict[str, NDArray[Any]], factor: float) -> dict[str, NDArray[Any]]:
    poses = tensors['poses'].copy()
    poses[:, :3] *= factor
    points = (tensors['points'] * factor).astype(np.float32)
    return {**tensors, 'points': points, 'poses': poses}


def _lengths_scaled(values: Any, factor: float) -> Any:
    """Return figures of a manifest with those in metres (`..._m`) multiplied."""
    if isinstance(values, list):
        return [_lengths_scaled(value, factor) for value in values]
    if not isinstance(values, dict):
        return values
    return {
        name: value * factor
        if name.endswith('_m') and isinstance(value, (int, float))
        else _lengths_scaled(value, factor)
        for name, value in values.items()
    }


def scale_live_version(store: MapStore, factor: float) -> SceneMap:
    """Write the live version of a map in metres as a new version, and make that live.

    Returns:
        The map that was written.

    Raises:
        InputError: the factor is no positive number, or absurd.
        MapFormatError: there is no map, or it is damaged.
    """
    scene_map = SceneMap.open(store.root)
    update_data = scene_map.load_update_data() if scene_map.has_update_data else None
    return store.write(*rescaled(scene_map, update_data, factor))


def find_place(scene_map: SceneMap, text: str) -> NDArray[np.float64]:
    """Return the point (3,) of the map frame that a text names.

    Args:
        scene_map: The map.
        text: The number of a landmark, coordinates `x,y,z` (brackets may be around them), or
            `image:NAME`, the place of the camera of a mapping image.

    Raises:
        InputError: the map has no such landmark or image.
        MapFormatError: an image is named, and the map has no update data.
    """
    points = scene_map.model.points_in_map
    if text.strip().isdigit():
        if int(text) >= len(points):
            raise InputError(f'landmark {text} is not in the map, which has {len(points)}')
        return points[int(text)].astype(np.float64) + scene_map.origin
    parts = text.strip().strip('[]()').split(',')
    if len(parts) == 3:
        try:
            place = np.array([float(part) for part in parts])
        except ValueError:
            place = np.full(3, np.nan)
        if np.isfinite(place).all():
            return place
    kind, _, name = text.partition(':')
    if kind != 'image':
        raise InputError(
            f'{text!r} is no place: give the number of a landmark, coordinates x,y,z or image:NAME'
        )
    images = MappingData.from_map(scene_map).images
    for image in images:
        if image.name == name:
            return image.map_from_camera.translation + scene_map.origin
    raise InputError(f'{name} is no image of the map; the first is {images[0].name}')
