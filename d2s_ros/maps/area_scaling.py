"""An area in another unit of length: all its maps, and how they lie to each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError, UsageError
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.maps.area import Area, locked, write_area
from d2s_ros.maps.rescaling import find_place, rescaled
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore


def scale_area(area: Area, factor: float) -> Area:
    """Multiply all lengths of an area, which are in metres then; each place gets a new version.

    Args:
        area: All of whose places are in its frame.
        factor: Metres that one unit of the area is.

    Raises:
        UsageError: a place is in a frame of its own, or another process writes the area.
        InputError: the factor is no positive number, or absurd.
    """
    check_one_frame(area)
    with locked(area.root):
        written = {}
        for name in area.places:
            scene_map = SceneMap.open(area.folder(name))
            update_data = scene_map.load_update_data() if scene_map.has_update_data else None
            store = MapStore(area.folder(name))
            made = store.write(*rescaled(scene_map, update_data, factor), promote=False)
            written[name] = (store, made.manifest.version)
        # All or, but for a kill between these few renames, none.
        for store, version in written.values():
            store.promote(version)
        places = []
        for place in area.places.values():
            transform = place.area_from_place
            assert transform is not None
            scaled = RigidTransform(transform.rotation, factor * transform.translation)
            places.append(replace(place, area_from_place=scaled))
        return write_area(area.root, frame=area.frame, places=places, index=area.read_index())


def check_one_frame(area: Area) -> None:
    """Check that all places of an area are in its frame.

    Raises:
        UsageError: one has a frame of its own.
    """
    own = [name for name, place in area.places.items() if place.area_from_place is None]
    if own:
        raise UsageError(
            f'the place {own[0]} of {area.root} has a frame of its own: name it with --place'
        )


def check_rollback(area: Area, name: str) -> None:
    """Check that a place goes back to lengths that fit those of the others.

    Raises:
        UsageError: the version before has another unit of length, and the frame is shared.
    """
    folder = area.folder(name)
    if area.places[name].area_from_place is None:
        return
    live = SceneMap.open(folder).manifest
    parent = folder / 'versions' / live.parent
    if live.parent and parent.exists():
        before = SceneMap.open(parent).manifest.scaled_by
        if before != live.scaled_by:
            raise UsageError(
                f'version {live.parent} of {name} has another unit of length than the other '
                f'places: scale the area back with --factor {before / live.scaled_by:.9g}'
            )


def find_in_area(area: Area, text: str) -> NDArray[np.float64]:
    """Return the point (3,) of the area's frame that coordinates or `image:NAME` name.

    Raises:
        InputError: no place has such an image, or a landmark is named.
    """
    if text.strip().isdigit():
        raise InputError(f'landmark {text}: of which place? give coordinates x,y,z or image:NAME')
    problem: InputError | None = None
    for name, place in area.places.items():
        try:
            found = find_place(SceneMap.open(area.folder(name)), text)
        except InputError as error:
            problem = error
            continue
        if not text.startswith('image:') or place.area_from_place is None:
            return found
        return np.asarray(place.area_from_place.apply(found[None])[0])
    assert problem is not None
    raise problem
