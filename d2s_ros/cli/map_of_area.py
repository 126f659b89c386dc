"""`d2s map` of areas: the same actions, for all places or for one of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from d2s_ros.errors import MapFormatError, UsageError

if TYPE_CHECKING:
    from d2s_ros.maps.area import Area
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
    from d2s_ros.maps.scene_map import SceneMap
    from d2s_ros.maps.store import MapStore

    if args.place is not None:
        place = area.places.get(args.place)
        if args.action == 'scale' and place is not None and place.area_from_place is not None:
            raise UsageError(
                f'place {args.place} shares its frame with others: scale the maps before they are '
                'made one area'
            )
        run_on_map(args, str(area.folder(args.place)))
        return
    if args.action in ('rollback', 'scale', 'coverage'):
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
