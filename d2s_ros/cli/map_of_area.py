"""`d2s map` of areas: the same actions, for all places or for one of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from d2s_ros.errors import InputError, MapFormatError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from d2s_ros.maps.area import Area
    from d2s_ros.maps.cropping import Region
    from d2s_ros.maps.store import MapStore


def run_on_area(
    args: argparse.Namespace,
    area: Area,
    run_on_map: Callable[[argparse.Namespace, str], None],
) -> None:
    """Do an action of `d2s map` with an area, or with the place that is named.

    Args:
        args: Of the command.
        area: What it is done with.
        run_on_map: Does it with one map.

    Raises:
        UsageError: the action needs a place, or is not of an area.
        MapFormatError: the area is damaged.
    """
    from d2s_ros.maps.area import verify_area
    from d2s_ros.maps.area_scaling import check_rollback, find_in_area, scale_area
    from d2s_ros.maps.scene_map import SceneMap
    from d2s_ros.maps.store import MapStore

    if args.place is not None:
        folder = area.folder(args.place)
        shared = area.places[args.place].area_from_place is not None
        if args.action == 'scale' and shared:
            raise UsageError(
                f'place {args.place} shares its frame with others: leave --place out to scale all'
            )
        if args.action == 'rollback':
            check_rollback(area, args.place)
        run_on_map(args, str(folder))
        return
    if args.action == 'crop':
        _crop(args, area)
        return
    if args.action == 'scale':
        factor = factor_of(args, lambda text: find_in_area(area, text))
        scale_area(area, factor)
        print(f'{args.map}: {len(area.places)} places are {factor:.6g} times as large, in metres')
        return
    if args.action in ('rollback', 'coverage'):
        raise UsageError(
            f'{args.map} is an area: say which place with --place, one of {", ".join(area.places)}'
        )
    if args.action == 'verify':
        problems = verify_area(args.map)
        if problems:
            raise MapFormatError('; '.join(problems))
        print(f'{args.map}: area of {len(area.places)} places, all bytes as written')
        return
    if args.action == 'strip':
        for name in area.places:
            run_on_map(args, str(area.folder(name)))
        print('left in the area: a global descriptor of each mapping image, in its index')
        return
    if args.action == 'list':
        listed = {name: versions_of(MapStore(area.folder(name))) for name in area.places}
        if args.json:
            print(json.dumps(listed, indent=1))
            return
        for name, versions in listed.items():
            print(name)
            print_versions(versions, indent='  ')
        return
    described: list[dict[str, Any]] = []
    for name, place in area.places.items():
        scene_map = SceneMap.open(area.folder(name))
        metrics = scene_map.manifest.metrics
        described.append(
            {
                'place': name,
                'frame': area.frame_of(name),
                'area_from_place': place.area_from_place and place.area_from_place.to_tum(),
                'version': scene_map.manifest.version,
                'metric': scene_map.manifest.metric,
                'images': metrics.get('num_images'),
                'landmarks': metrics.get('num_landmarks'),
                'bytes': scene_map.localization_size_bytes(),
            }
        )
    index = area.read_index()
    index_bytes = (area.root / area.index_file).stat().st_size
    if args.json:
        document = {
            'area': area.version(),
            'frame': area.frame,
            'places': described,
            'index': {'images': len(index.place_idx), 'bytes': index_bytes},
        }
        print(json.dumps(document, indent=1))
        return
    total = index_bytes + sum(entry['bytes'] for entry in described)
    rows = [
        ('area', f'{area.version()}, {len(described)} places'),
        ('frame', area.frame),
        ('index', f'{len(index.place_idx)} images, {index_bytes / 1e6:.2f} MB'),
        ('size', f'{total / 1e6:.2f} MB'),
    ]
    print('\n'.join(f'{name:15s}{value}' for name, value in rows))
    for entry in described:
        unit = '' if entry['metric'] else ', arbitrary scale'
        print(
            f'{entry["place"]:15s}version {entry["version"]}, frame {entry["frame"]}{unit}, '
            f'{entry["images"] or "-"} images, {entry["landmarks"] or "-"} landmarks, '
            f'{entry["bytes"] / 1e6:.2f} MB'
        )
    return


def factor_of(args: argparse.Namespace, find: Callable[[str], NDArray[np.float64]]) -> float:
    """Return by what lengths are multiplied.

    Args:
        args: Of the command.
        find: Returns the point (3,) that a text names.

    Raises:
        UsageError: neither a factor is given nor a known distance, or both.
        InputError: the two places of the distance are the same, or not there.
    """
    import numpy as np

    by_points = args.points is not None and args.metres is not None
    if by_points == (args.factor is not None) or (args.points is None) != (args.metres is None):
        raise UsageError('give either --points A B with --metres D, or --factor F')
    if not by_points:
        return float(args.factor)
    first, second = (find(text) for text in args.points)
    before = float(np.linalg.norm(second - first))
    if before == 0:
        raise InputError('the two places are the same: give places that are far apart')
    print(f'the places are {before:.6g} apart in the map, {args.metres:g} m in the world')
    return float(args.metres) / before


def region_of(args: argparse.Namespace) -> Region:
    """Return the region that is kept.

    Raises:
        UsageError: none is given, or two.
    """
    from d2s_ros.maps.cropping import Region

    if (args.keep is None) == (args.drop is None):
        raise UsageError('give either --keep or --drop with the corners of a region')
    return Region.of(args.drop if args.keep is None else args.keep, inside=args.drop is None)


def _crop(args: argparse.Namespace, area: Area) -> None:
    from d2s_ros.maps.cropping import crop_area

    written, left_out = crop_area(area, region_of(args))
    for name, scene_map in written.items():
        manifest = scene_map.manifest
        print(
            f'{name}: version {manifest.version} is live, with '
            f'{manifest.metrics["num_landmarks"]} landmarks of version {manifest.parent}'
        )
    for name, reason in left_out.items():
        print(f'{name}: not in the area any more, its folder stays as it is ({reason})')
    print(f'd2s map rollback {args.map} --place NAME goes back, and keeps what was left out')


def versions_of(store: MapStore) -> list[dict[str, Any]]:
    """Return what is listed of the versions of a map."""
    from d2s_ros.maps.manifest import read_manifest

    listed = []
    for version in store.versions():
        entry = read_manifest(store.root / 'versions' / version)
        listed.append(
            {
                'version': version,
                'live': version == store.current(),
                'parent': entry.parent,
                'created': entry.created,
                'holdout_median_m': entry.metrics.get('holdout_median_m'),
            }
        )
    return listed


def print_versions(listed: list[dict[str, Any]], indent: str = '') -> None:
    """Print what `versions_of` returns."""
    for item in listed:
        mark = '*' if item['live'] else ' '
        print(
            f'{indent}{mark} {item["version"]}  parent {item["parent"] or "-":6s} '
            f'{item["created"]}  held-out {item["holdout_median_m"]} m'
        )
