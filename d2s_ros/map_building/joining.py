"""Two maps that overlap as one area: each is asked what the mapping images of the other show.

Each image that is localized says how the frames of the maps lie to each other. The similarity that
most of them agree on joins the maps, if they are enough and hardly any contradicts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError, UsageError
from d2s_ros.geometry.statistics import subsample
from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.maps.area import Area, Place, is_area, locked, write_area
from d2s_ros.maps.area_index import AreaIndex
from d2s_ros.maps.files import PLACES_FOLDER
from d2s_ros.maps.rescaling import rescaled
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.update_data import MappingData
from d2s_ros.reconstruction.pose_refinement import align_poses, spread_of

#: Most mapping images of a map that the other one is asked about.
_MAX_ASKED = 200
#: An image agrees within this share of the depth of the scene, and this turn.
_CLOSE_SHARE, _CLOSE_DEG = 0.05, 2.0
#: So many images must agree, and so large a share of those that were localized.
_MIN_AGREEING, _MIN_AGREEING_SHARE = 5, 0.8
#: Two maps in metres measure the same within this.
_MAX_SCALE_ERROR = 0.05
#: A scale is known from images that lie apart by so many times what they are off by.
_MIN_SPREAD = 10.0


@dataclass(frozen=True, eq=False)
class Junction:
    """How two maps lie to each other, and what says so.

    Attributes:
        first_from_second: Takes points of the second map, multiplied by `scale`, to the first.
        scale: Units of the first map that one unit of the second is; 1 where both are in metres.
        asked, localized, agreeing: Mapping images of both maps that the other one was asked about,
            of them localized, and of these in agreement.
        distance, degrees: Medians of what the agreeing images are off by, in units of the first.
        metric: These units are metres.
    """

    first_from_second: RigidTransform
    scale: float
    asked: int
    localized: int
    agreeing: int
    distance: float
    degrees: float
    metric: bool

    def to_json(self) -> dict[str, Any]:
        """Return the figures; the transform as tx ty tz qx qy qz qw."""
        values = {name: value for name, value in vars(self).items() if name != 'first_from_second'}
        return {'first_from_second': self.first_from_second.to_tum(), **values}


def merge_maps(
    first: str | Path, second: str | Path, path: str | Path, *, device: str = 'cpu'
) -> tuple[Area, Junction]:
    """Join the live versions of two maps that overlap into an area of one frame.

    The frame is that of the first map, or of the second where that alone is in metres. Both maps
    stay as they are; the area has copies.

    Args:
        first, second: Maps of the same features, with update data.
        path: Folder of the area, new.
        device: Where networks run.

    Raises:
        InputError: the maps do not overlap, too little to tell, or contradict each other.
        UsageError: they have different features, or the area is there already.
        MapFormatError: a map is missing, damaged or without update data.
    """
    for one in (first, second):
        if is_area(one):
            raise UsageError(f'{one} is an area: name two of its maps, such as {one}/places/NAME')
    if Path(path).expanduser().exists():
        raise UsageError(f'{path} is there already; give a new folder')
    maps = [SceneMap.open(one) for one in (first, second)]
    names = [_place_name(one) for one in (first, second)]
    if names[0] == names[1]:
        names[1] += '-2'
    if not maps[0].manifest.metric and maps[1].manifest.metric:
        maps.reverse()
        names.reverse()
    manifests = [one.manifest for one in maps]
    if (manifests[0].features, manifests[0].features_hash) != (
        manifests[1].features,
        manifests[1].features_hash,
    ):
        raise UsageError(f'{first} and {second} have different features; build both with the same')
    data = [MappingData.from_map(one) for one in maps]
    junction = find_junction(maps, data, device=device)
    tensors = [one.load_update_data() for one in maps]
    if junction.scale != 1.0:
        scaled, other = rescaled(maps[1], tensors[1], junction.scale)
        assert other is not None
        # In the unit of the first, whatever that is.
        manifest = replace(scaled.manifest, metric=manifests[0].metric)
        maps[1], tensors[1] = replace(scaled, manifest=manifest), other
    places = [
        Place(names[0], RigidTransform.identity()),
        Place(names[1], junction.first_from_second),
    ]
    with locked(path) as root:
        for name, scene_map, kept in zip(names, maps, tensors, strict=True):
            MapStore(root / PLACES_FOLDER / name).write(replace(scene_map, path=None), kept)
        index = AreaIndex.fit(
            [[image.features.descriptors for image in one.images] for one in data]
        )
        area = write_area(root, frame=manifests[0].map_frame, places=places, index=index)
    return area, junction


def find_junction(
    maps: Sequence[SceneMap], data: Sequence[MappingData], *, device: str = 'cpu'
) -> Junction:
    """Find how the second of two maps lies in the first.

    Args:
        maps: Two maps of the same features; the first is in metres if one is.
        data: Their mapping images.
        device: Where networks run.

    Raises:
        InputError: too few mapping images are localized in the other map, or they contradict each
            other; the message has the figures.
    """
    localizers = [
        Localizer(one, known.extractor(one.manifest), device=device)
        for one, known in zip(maps, data, strict=True)
    ]
    pairs: list[tuple[RigidTransform, RigidTransform]] = []
    asked = 0
    for own, other in ((1, 0), (0, 1)):
        origin = np.array(maps[own].manifest.origin)
        for image in subsample(data[own].images, _MAX_ASKED):
            asked += 1
            found = localizers[other].localize_features(image.features, image.camera)
            if found.map_from_camera is not None:
                known = image.map_from_camera.moved(origin)
                pair = (known, found.map_from_camera)
                pairs.append(pair if own == 0 else pair[::-1])
    in_first, in_second = [one for one, _ in pairs], [one for _, one in pairs]
    figures = f'{len(in_first)} of {asked} mapping images are localized in the other map'
    if len(in_first) < _MIN_AGREEING:
        raise InputError(
            f'the maps do not overlap enough to be joined: {figures}, {_MIN_AGREEING} are needed; '
            'record a log that leads from one to the other'
        )
    both_metric = maps[0].manifest.metric and maps[1].manifest.metric
    alignment = align_poses(in_second, in_first)
    scale = 1.0 if both_metric else alignment.scale
    depth = maps[0].manifest.calibration.scene_depth
    turned = RigidTransform(alignment.rotation, np.zeros(3))
    centres = np.stack([pose.translation for pose in in_first])
    offsets = centres - scale * turned.apply(np.stack([pose.translation for pose in in_second]))
    # The median first: whoever contradicts does not pull at it.
    placed = RigidTransform(alignment.rotation, np.median(offsets, axis=0))
    agrees = _agreeing(placed, scale, in_first, in_second, _CLOSE_SHARE * depth)
    if agrees.any():
        placed = RigidTransform(alignment.rotation, offsets[agrees].mean(axis=0))
        agrees = _agreeing(placed, scale, in_first, in_second, _CLOSE_SHARE * depth)
    count = int(agrees.sum())
    if count < max(_MIN_AGREEING, _MIN_AGREEING_SHARE * len(in_first)):
        measured = f'; lengths differ by {abs(alignment.scale - 1):.0%}' if both_metric else ''
        raise InputError(
            f'the maps contradict each other: {figures}, and {count} of these agree on how the '
            f'maps lie to each other ({_MIN_AGREEING_SHARE:.0%} are needed){measured}; places that '
            'look alike, or a map that is bent, do this'
        )
    errors = np.array(
        [
            pose_error(_moved(placed, scale, moving), fixed)
            for moving, fixed, ok in zip(in_second, in_first, agrees, strict=True)
            if ok
        ]
    )
    distance, degrees = (float(value) for value in np.median(errors, axis=0))
    if both_metric:
        _check_lengths(alignment.scale, centres[agrees], distance)
    elif 2.0 * spread_of(centres[agrees]) < _MIN_SPREAD * distance:
        raise InputError(
            f'the scale of a map without metres cannot be found: the {count} images that both maps '
            f'know lie within {2.0 * spread_of(centres[agrees]):.3g}, and are off by {distance:.3g}'
        )
    return Junction(
        placed, scale, asked, len(in_first), count, distance, degrees, maps[0].manifest.metric
    )


def _check_lengths(scale: float, centres: NDArray[np.float64], distance: float) -> None:
    """Refuse two maps in metres of which one is longer than the other."""
    certain = 2.0 * spread_of(centres) >= _MIN_SPREAD * distance
    if certain and abs(scale - 1.0) > _MAX_SCALE_ERROR:
        raise InputError(
            f'lengths in the second map are {scale:.3f} of those in the first, though both say '
            'that they are in metres; bring the wrong one into metres with d2s map scale'
        )


def _agreeing(
    placed: RigidTransform,
    scale: float,
    in_first: Sequence[RigidTransform],
    in_second: Sequence[RigidTransform],
    close: float,
) -> NDArray[np.bool_]:
    """Return which poses (N,) a transform brings close to each other."""
    found = []
    for fixed, moving in zip(in_first, in_second, strict=True):
        distance, degrees = pose_error(_moved(placed, scale, moving), fixed)
        found.append(distance <= close and degrees <= _CLOSE_DEG)
    return np.array(found, bool)


def _moved(placed: RigidTransform, scale: float, pose: RigidTransform) -> RigidTransform:
    return placed @ RigidTransform(pose.rotation, scale * pose.translation)


def _place_name(path: str | Path) -> str:
    """Return a name of a place after the folder of a map."""
    name = re.sub(r'[^A-Za-z0-9_.-]+', '_', Path(path).expanduser().resolve().name).strip('._-')
    return name[:60] or 'place'
