"""`d2s map`: show, check, list, roll back and strip maps and areas."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from d2s_ros.cli.options import user_path
from d2s_ros.errors import MapFormatError, UsageError

if TYPE_CHECKING:
    from d2s_ros.maps.area import Area
    from d2s_ros.maps.scene_map import SceneMap
    from d2s_ros.maps.store import MapStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        'action',
        choices=('info', 'verify', 'list', 'rollback', 'strip'),
        help='info: what the live version says of itself; verify: check every byte; list: all '
        'versions; rollback: make the parent of the live version live; strip: delete update data',
    )
    parser.add_argument('map', type=user_path, metavar='MAP', help='folder of a map or an area')
    parser.add_argument(
        '--place', metavar='NAME', help='of an area, the place; without it all, but for rollback'
    )
    parser.add_argument('--json', action='store_true', help='print JSON')


def run(args: argparse.Namespace) -> int:
    """Do the action; returns the exit code."""
    from d2s_ros.maps.area import is_area, read_area

    if is_area(args.map):
        return _run_on_area(args, read_area(args.map))
    if args.place is not None:
        raise UsageError(f'{args.map} is one map and has no places: leave out --place')
    return _run_on_map(args, args.map)


def _run_on_area(args: argparse.Namespace, area: Area) -> int:
    from d2s_ros.maps.area import verify_area
    from d2s_ros.maps.scene_map import SceneMap
    from d2s_ros.maps.store import MapStore

    if args.place is not None:
        return _run_on_map(args, str(area.folder(args.place)))
    if args.action == 'rollback':
        raise UsageError(
            f'{args.map} is an area: say which place with --place, one of {", ".join(area.places)}'
        )
    if args.action == 'verify':
        problems = verify_area(args.map)
        if problems:
            raise MapFormatError('; '.join(problems))
        print(f'{args.map}: area of {len(area.places)} places, all bytes as written')
        return 0
    if args.action == 'strip':
        for name in area.places:
            _run_on_map(args, str(area.folder(name)))
        print('left in the area: a global descriptor of each mapping image, in its index')
        return 0
    if args.action == 'list':
        listed = {name: _versions(MapStore(area.folder(name))) for name in area.places}
        if args.json:
            print(json.dumps(listed, indent=1))
            return 0
        for name, versions in listed.items():
            print(name)
            _print_versions(versions, indent='  ')
        return 0
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
        return 0
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
    return 0


def _run_on_map(args: argparse.Namespace, path: str) -> int:
    from d2s_ros.maps.scene_map import SceneMap
    from d2s_ros.maps.store import MapStore
    from d2s_ros.maps.verification import verify

    store = MapStore(path)
    if args.action == 'verify':
        problems = verify(path)
        if problems:
            raise MapFormatError('; '.join(problems))
        print(f'{path}: {len(store.versions()) or 1} versions, all bytes as written')
        return 0
    if args.action == 'strip':
        SceneMap.open(path)
        left = store.strip()
        print(f'{path}: update data deleted; localization works, updates need a new map')
        print('left in the map: ' + '; '.join(left))
        return 0
    scene_map = SceneMap.open(path)
    if args.action == 'info':
        _print_info(scene_map, as_json=args.json)
    elif args.action == 'list':
        listed = _versions(store)
        if args.json:
            print(json.dumps(listed, indent=1))
        else:
            _print_versions(listed)
    else:
        print(f'{path}: live version is now {store.rollback()}')
    return 0


def _print_info(scene_map: SceneMap, *, as_json: bool) -> None:
    from d2s_ros.maps.files import LOCALIZATION_FILE, UPDATE_FILE
    from d2s_ros.maps.manifest import manifest_document

    manifest = scene_map.manifest
    if as_json:
        print(json.dumps(manifest_document(manifest), indent=1))
        return
    metrics = manifest.metrics
    update = UPDATE_FILE in manifest.files and (
        scene_map.path is not None and (scene_map.path / UPDATE_FILE).exists()
    )
    rows = [
        ('version', manifest.version),
        ('parent', manifest.parent or '-'),
        ('created', manifest.created),
        ('frame', manifest.map_frame + ('' if manifest.metric else ' (arbitrary scale)')),
        ('features', f'{manifest.features.name} {manifest.features_hash[:16]}'),
        ('head', manifest.head),
        ('landmarks', metrics.get('num_landmarks', '-')),
        ('images', metrics.get('num_images', '-')),
        ('size', f'{manifest.files[LOCALIZATION_FILE]["size"] / 1e6:.2f} MB'),
        ('update data', 'yes' if update else 'no'),
        ('held-out error', f'{metrics.get("holdout_median_m")} m'),
        ('build time', f'{metrics.get("seconds", {}).get("total", "-")} s'),
    ]
    if any(manifest.origin):
        rows.insert(4, ('origin', ' '.join(f'{value:.0f}' for value in manifest.origin)))
    print('\n'.join(f'{name:15s}{value}' for name, value in rows))


def _versions(store: MapStore) -> list[dict[str, Any]]:
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


def _print_versions(listed: list[dict[str, Any]], indent: str = '') -> None:
    for item in listed:
        mark = '*' if item['live'] else ' '
        print(
            f'{indent}{mark} {item["version"]}  parent {item["parent"] or "-":6s} '
            f'{item["created"]}  held-out {item["holdout_median_m"]} m'
        )
