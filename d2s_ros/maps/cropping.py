"""A map of a part of what it was: landmarks and mapping images outside of a region are left out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError, UsageError
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.maps.area import Area, locked, write_area
from d2s_ros.maps.area_scaling import check_one_frame
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.update_data import MappingData

#: A map of fewer landmarks localizes nothing.
_MIN_LANDMARKS = 100
#: A mapping image that shows fewer points of a map than this says nothing of it.
_MIN_SEEN = 20


@dataclass(frozen=True, eq=False)
class Region:
    """A box along the axes of a frame: what is inside is kept, or what is outside.

    Attributes:
        low, high: (3,) corners; infinite where the box has no end.
        inside: Keep what is inside.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    inside: bool

    @classmethod
    def of(cls, values: Sequence[float], *, inside: bool) -> Region:
        """Return the region of x0 y0 x1 y1, of any height, or of x0 y0 z0 x1 y1 z1.

        Raises:
            UsageError: these are no corners of a box.
        """
        if len(values) not in (4, 6) or not all(map(math.isfinite, values)):
            raise UsageError('a region is x0 y0 x1 y1, or x0 y0 z0 x1 y1 z1')
        half = len(values) // 2
        low, high = np.full(3, -np.inf), np.full(3, np.inf)
        low[:half], high[:half] = values[:half], values[half:]
        if not (low < high).all():
            raise UsageError(f'the region {" ".join(map(str, values))} is empty: low corner first')
        return cls(low, high, inside)

    def keeps(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which points (N, 3) are kept, (N,)."""
        inside = ((points >= self.low) & (points <= self.high)).all(axis=1)
        return np.asarray(inside if self.inside else ~inside)

    def to_json(self) -> dict[str, Any]:
        """Return the region as a manifest tells it; ends that it lacks are null."""
        ends = [
            [float(value) if math.isfinite(value) else None for value in corner]
            for corner in (self.low, self.high)
        ]
        return {'low': ends[0], 'high': ends[1], 'kept': 'inside' if self.inside else 'outside'}


def cropped(
    scene_map: SceneMap,
    update_data: dict[str, NDArray[Any]] | None,
    region: Region,
    frame_from_map: RigidTransform | None = None,
) -> tuple[SceneMap, dict[str, NDArray[Any]] | None]:
    """Return a map and its update data without what a region leaves out.

    Landmarks stay as they are. Of mapping images, those stay that still show points of the map;
    keypoints of points that are left out go, and so do keypoints without a point in images that
    showed any of these. Figures of the manifest that were measured are of the map before.

    Args:
        scene_map: The map, as read.
        update_data: Its tensors, None where it has none.
        region: What is kept.
        frame_from_map: Takes points of the map to the frame of the region, if that is another.

    Raises:
        InputError: too little would be left, or the kind of map cannot be cropped.
    """
    transform = frame_from_map or RigidTransform.identity()

    def keeps(points: NDArray[Any]) -> NDArray[np.bool_]:
        return region.keeps(transform.apply(points.astype(np.float64) + scene_map.origin))

    kept = keeps(scene_map.model.points_in_map)
    model = scene_map.model.cropped(kept)
    if kept.sum() < _MIN_LANDMARKS:
        raise InputError(
            f'{int(kept.sum())} of {len(kept)} landmarks would be left, at least {_MIN_LANDMARKS} '
            'are needed: check the region, which is in the frame of the map'
        )
    metrics = {**scene_map.manifest.metrics, 'num_landmarks': int(kept.sum())}
    metrics['cropped'] = [*metrics.get('cropped', ()), region.to_json()]
    metrics.pop('update', None)
    tensors = None
    if update_data is not None:
        tensors = _update_data_cropped(update_data, keeps(update_data['points']))
        metrics['num_images'] = len(tensors['poses'])
    manifest = replace(scene_map.manifest, metrics=metrics)
    return replace(scene_map, manifest=manifest, model=model, path=None), tensors


def _update_data_cropped(
    tensors: dict[str, NDArray[Any]], kept: NDArray[np.bool_]
) -> dict[str, NDArray[Any]]:
    """Return update data with the kept points (P,) and what shows them."""
    point_idx, offsets = tensors['point_idx'].astype(np.int64), tensors['offsets'].astype(np.int64)
    counts = np.diff(offsets)
    image_of = np.repeat(np.arange(len(counts)), counts)
    has_point = point_idx >= 0
    on_kept = has_point & np.append(kept, False)[point_idx]
    showed_others = np.bincount(image_of[has_point & ~on_kept], minlength=len(counts)) > 0
    images = np.bincount(image_of[on_kept], minlength=len(counts)) >= _MIN_SEEN
    if images.sum() < 2:
        raise InputError(
            f'{int(images.sum())} mapping images would be left, at least two are needed: check the '
            'region, or delete the update data first with d2s map strip'
        )
    rows = images[image_of] & (on_kept | (~has_point & ~showed_others[image_of]))
    renumber = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)
    names = np.flatnonzero(images)
    by_row = ('descriptors', 'descriptor_scales', 'keypoints', 'scales')
    by_image = ('poses', 'camera_idx', 'stamps_ns', 'global_descriptors')
    left = np.bincount(image_of[rows], minlength=len(counts))[images]
    return {
        **tensors,
        **{name: tensors[name][rows] for name in by_row},
        **{name: tensors[name][images] for name in by_image},
        **{name: _texts_of(tensors[name], names) for name in ('names', 'logs') if name in tensors},
        'point_idx': renumber[point_idx[rows]].astype(tensors['point_idx'].dtype),
        **{name: tensors[name][kept] for name in ('points', 'point_colours') if name in tensors},
        'offsets': np.r_[0, np.cumsum(left)].astype(tensors['offsets'].dtype),
    }


def _texts_of(encoded: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return some texts of a JSON list in bytes."""
    texts = json.loads(encoded.tobytes())
    return np.frombuffer(json.dumps([texts[row] for row in rows]).encode(), np.uint8)


def crop_live_version(
    store: MapStore, region: Region, frame_from_map: RigidTransform | None = None
) -> SceneMap:
    """Write the live version of a map without what a region leaves out, and make that live.

    Raises:
        InputError: too little would be left, or the kind of map cannot be cropped.
        MapFormatError: there is no map, or it is damaged.
    """
    scene_map = SceneMap.open(store.root)
    update_data = scene_map.load_update_data() if scene_map.has_update_data else None
    return store.write(*cropped(scene_map, update_data, region, frame_from_map))


def crop_area(area: Area, region: Region) -> tuple[dict[str, SceneMap], dict[str, str]]:
    """Crop all places of an area that are in its frame.

    A place of which too little is left is taken off the area; its folder stays as it is.

    Returns:
        The maps that were written, and why other places are not in the area any more.

    Raises:
        UsageError: a place is in a frame of its own, or another process writes the area.
        InputError: nothing would be left.
    """
    check_one_frame(area)
    written: dict[str, SceneMap] = {}
    left_out: dict[str, str] = {}
    with locked(area.root):
        made = {}
        for name, place in area.places.items():
            scene_map = SceneMap.open(area.folder(name))
            update_data = scene_map.load_update_data() if scene_map.has_update_data else None
            try:
                made[name] = cropped(scene_map, update_data, region, place.area_from_place)
            except InputError as error:
                left_out[name] = str(error)
        if not made:
            raise InputError(f'nothing would be left of {area.root}: check the region')
        index = area.read_index()
        for name, (scene_map, tensors) in made.items():
            written[name] = MapStore(area.folder(name)).write(scene_map, tensors)
            if tensors is not None:
                images = MappingData.from_map(written[name]).images
                number = list(area.places).index(name)
                index = index.with_place(number, [one.features.descriptors for one in images])
        index = index.of_places([list(area.places).index(name) for name in made])
        write_area(
            area.root, frame=area.frame, places=[area.places[name] for name in made], index=index
        )
    return written, left_out
