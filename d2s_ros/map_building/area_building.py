"""From several logs to an area: a map of each, and the index of all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError, UsageError
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.map_building.pipeline import BuildResult
from d2s_ros.maps.area import (
    Area,
    Place,
    check_place_name,
    is_area,
    locked,
    read_area,
    write_area,
)
from d2s_ros.maps.area_index import AreaIndex
from d2s_ros.maps.files import PLACES_FOLDER

_logger = logging.getLogger(__name__)

#: Builds the map of a place, given the folder to write.
BuildPlace = Callable[[Path], BuildResult]


def build_area(
    path: str | Path,
    builds: Mapping[str, BuildPlace],
    *,
    common_frame: bool = False,
    frame: str = 'map',
    on_built: Callable[[str, BuildResult], None] | None = None,
) -> tuple[Area, dict[str, str]]:
    """Build maps as places of an area, new or existing; other places of it stay as they are.

    The area is written again after each place, so that what was built is of use whatever comes
    after. A place that cannot be built is left out.

    Args:
        path: Folder of the area.
        builds: By name of the place, what builds its map.
        common_frame: The poses of all logs are in one frame: so are poses in these places.
        frame: Name of the area's frame, of a new area.
        on_built: Called after each place.

    Returns:
        The area, and by name why places could not be built.

    Raises:
        InputError: no place could be built, and there is no area.
        UsageError: a name that no place can have, or another process writes the area.
        MapFormatError: the folder holds something else, or an area of other features.
    """
    if not builds:
        raise UsageError('an area needs at least one place')
    for name in builds:
        check_place_name(name)
    failed: dict[str, str] = {}
    with locked(path) as root:
        area = read_area(root) if is_area(root) else None
        index = None if area is None else area.read_index()
        for name, build in builds.items():
            try:
                result = build(root / PLACES_FOLDER / name)
            except InputError as error:
                _logger.warning('place %s could not be built: %s', name, error)
                failed[name] = str(error)
                continue
            if on_built is not None:
                on_built(name, result)
            area, index = _with_place(
                root, area, index, name, result, common_frame=common_frame, frame=frame
            )
    if area is None:
        reasons = '; '.join(f'{name}: {reason}' for name, reason in failed.items())
        raise InputError(f'no place could be built ({reasons})')
    return area, failed


def _with_place(
    root: Path,
    area: Area | None,
    index: AreaIndex | None,
    name: str,
    result: BuildResult,
    *,
    common_frame: bool,
    frame: str,
) -> tuple[Area, AreaIndex]:
    """Write an area with one more place, or with a new map of one."""
    known = common_frame and result.scene_map.manifest.metric
    place = Place(name, RigidTransform.identity() if known else None)
    images = _descriptors(result)
    if area is None or index is None:
        places, index = [place], AreaIndex.fit([images])
    else:
        names = list(area.places)
        number = names.index(name) if name in names else len(names)
        index = index.with_place(number, images)
        places = list(area.places.values())
        places[number : number + 1] = [place]
        frame = area.frame
    return write_area(root, frame=frame, places=places, index=index), index


def _descriptors(result: BuildResult) -> list[NDArray[np.float32]]:
    return [image.features.descriptors for image in result.reconstruction.images]
