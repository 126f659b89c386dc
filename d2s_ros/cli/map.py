"""`d2s map`: show, check, list, scale, crop, roll back, strip, join; where maps localize."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from d2s_ros.cli.options import check_outputs, user_path
from d2s_ros.errors import MapFormatError, UsageError

if TYPE_CHECKING:
    from d2s_ros.maps.store import MapStore

#: Action to what it does.
_ACTIONS = {
    'info': 'what the live version says of itself',
    'verify': 'check every byte',
    'list': 'all versions',
    'rollback': 'make the parent of the live version live',
    'strip': 'delete update data',
    'scale': 'write a version in metres, from a known distance or a factor',
    'crop': 'write a version without what is outside of a region, or inside',
    'coverage': 'predict where and in which directions the map localizes',
    'merge': 'join two maps that overlap into an area of one frame',
}
#: Options that one action alone takes.
_OPTIONS = {
    'scale': ('points', 'metres', 'factor'),
    'crop': ('keep', 'drop'),
    'coverage': ('cell', 'picture'),
    'merge': ('other', 'area'),
}
#: The option as people write it.
_WRITTEN = {'other': 'a second map', 'area': '--map'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        'action',
        choices=tuple(_ACTIONS),
        help='; '.join(f'{name}: {text}' for name, text in _ACTIONS.items()),
    )
    parser.add_argument('map', type=user_path, metavar='MAP', help='folder of a map or an area')
    parser.add_argument(
        'other', type=user_path, nargs='?', metavar='OTHER', help='merge: the second map'
    )
    parser.add_argument(
        '--map',
        dest='area',
        type=user_path,
        metavar='AREA',
        help='merge: folder of the area to write',
    )
    parser.add_argument(
        '--place', metavar='NAME', help='of an area, the place; without it all, but for rollback'
    )
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.add_argument(
        '--points',
        nargs=2,
        metavar=('A', 'B'),
        help='scale: two places whose distance is known: numbers of landmarks, coordinates '
        '[x,y,z], or image:NAME for where the camera of a mapping image was',
    )
    parser.add_argument(
        '--metres', type=float, metavar='D', help='scale: distance between the two places'
    )
    parser.add_argument(
        '--factor', type=float, metavar='F', help='scale: metres that one unit of the map is'
    )
    parser.add_argument(
        '--keep',
        type=float,
        nargs='+',
        metavar='X',
        help='crop: the region that stays, x0 y0 x1 y1 or x0 y0 z0 x1 y1 z1, map frame',
    )
    parser.add_argument(
        '--drop',
        type=float,
        nargs='+',
        metavar='X',
        help='crop: the region that goes; what is around it stays',
    )
    parser.add_argument(
        '--cell',
        type=float,
        metavar='W',
        help='coverage: width of a cell, unit of the map (default: a fifth of the depth of the '
        'scene)',
    )
    parser.add_argument(
        '--picture', type=user_path, metavar='PNG', help='coverage: floor plan to write'
    )


def run(args: argparse.Namespace) -> int:
    """Do the action; returns the exit code."""
    from d2s_ros.cli.map_of_area import run_on_area
    from d2s_ros.maps.area import is_area, read_area

    for action, names in _OPTIONS.items():
        given = [name for name in names if getattr(args, name) is not None]
        if given and args.action != action:
            written = _WRITTEN.get(given[0], f'--{given[0]}')
            raise UsageError(f'{written} is for d2s map {action}')
    check_outputs(args.picture)
    if args.action == 'merge':
        _merge(args)
        return 0
    if is_area(args.map):
        run_on_area(args, read_area(args.map), _run_on_map)
        return 0
    if args.place is not None:
        raise UsageError(f'{args.map} is one map and has no places: leave out --place')
    _run_on_map(args, args.map)
    return 0


def _run_on_map(args: argparse.Namespace, path: str) -> None:
    from d2s_ros.maps.store import MapStore

    actions = {
        'info': _info,
        'verify': _verify,
        'list': _list,
        'rollback': _rollback,
        'strip': _strip,
        'scale': _scale,
        'crop': _crop,
        'coverage': _coverage,
    }
    actions[args.action](args, MapStore(path))


def _verify(args: argparse.Namespace, store: MapStore) -> None:
    from d2s_ros.maps.verification import verify

    problems = verify(store.root)
    if problems:
        raise MapFormatError('; '.join(problems))
    print(f'{store.root}: {len(store.versions()) or 1} versions, all bytes as written')


def _info(args: argparse.Namespace, store: MapStore) -> None:
    from d2s_ros.maps.files import LOCALIZATION_FILE
    from d2s_ros.maps.manifest import manifest_document
    from d2s_ros.maps.scene_map import SceneMap

    scene_map = SceneMap.open(store.root)
    manifest = scene_map.manifest
    if args.json:
        print(json.dumps(manifest_document(manifest), indent=1))
        return
    metrics = manifest.metrics
    unit = 'm' if manifest.metric else 'units'
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
        ('update data', 'yes' if scene_map.has_update_data else 'no'),
        ('held-out error', f'{metrics.get("holdout_median_m")} {unit}'),
        ('build time', f'{metrics.get("seconds", {}).get("total", "-")} s'),
    ]
    if any(manifest.origin):
        rows.insert(4, ('origin', ' '.join(f'{value:.0f}' for value in manifest.origin)))
    print('\n'.join(f'{name:15s}{value}' for name, value in rows))


def _list(args: argparse.Namespace, store: MapStore) -> None:
    from d2s_ros.cli.map_of_area import print_versions, versions_of
    from d2s_ros.maps.scene_map import SceneMap

    SceneMap.open(store.root)
    listed = versions_of(store)
    if args.json:
        print(json.dumps(listed, indent=1))
    else:
        print_versions(listed)


def _rollback(args: argparse.Namespace, store: MapStore) -> None:
    from d2s_ros.maps.scene_map import SceneMap

    SceneMap.open(store.root)
    print(f'{store.root}: live version is now {store.rollback()}')


def _strip(args: argparse.Namespace, store: MapStore) -> None:
    from d2s_ros.maps.scene_map import SceneMap

    SceneMap.open(store.root)
    left = store.strip()
    print(f'{store.root}: update data deleted; localization works, updates need a new map')
    print('left in the map: ' + '; '.join(left))


def _scale(args: argparse.Namespace, store: MapStore) -> None:
    from d2s_ros.cli.map_of_area import factor_of
    from d2s_ros.maps.rescaling import find_place, scale_live_version
    from d2s_ros.maps.scene_map import SceneMap

    factor = factor_of(args, lambda text: find_place(SceneMap.open(store.root), text))
    written = scale_live_version(store, factor)
    print(
        f'{store.root}: version {written.manifest.version} is live, {factor:.6g} times as large as '
        f'version {written.manifest.parent}, in metres; d2s map rollback goes back'
    )


def _crop(args: argparse.Namespace, store: MapStore) -> None:
    from d2s_ros.cli.map_of_area import region_of
    from d2s_ros.maps.cropping import crop_live_version

    written = crop_live_version(store, region_of(args))
    manifest = written.manifest
    print(
        f'{store.root}: version {manifest.version} is live, with '
        f'{manifest.metrics["num_landmarks"]} landmarks of version {manifest.parent}; '
        'd2s map rollback goes back, and older versions keep what was left out'
    )


def _merge(args: argparse.Namespace) -> None:
    from d2s_ros.map_building.joining import merge_maps

    if args.other is None or args.area is None:
        raise UsageError('give two maps and --map AREA: d2s map merge MAP OTHER --map AREA')
    if args.place is not None:
        raise UsageError('merge joins two maps: leave out --place')
    area, junction = merge_maps(args.map, args.other, args.area)
    (first, second), unit = area.places, 'm' if junction.metric else 'units of the map'
    if args.json:
        print(json.dumps(junction.to_json(), indent=1))
        return
    print(
        f'{junction.localized} of {junction.asked} mapping images are localized in the other map, '
        f'{junction.agreeing} of them agree: {junction.distance:.3g} {unit} and '
        f'{junction.degrees:.2g} degrees off in the median'
    )
    if junction.scale != 1.0:
        print(f'{second} is {junction.scale:.6g} times as large as it was, to fit {first}')
    print(f'{area.root}: area of {first} and {second}, in the frame of {first}')


def _coverage(args: argparse.Namespace, store: MapStore) -> None:
    from pathlib import Path

    from d2s_ros.evaluation.coverage import measure_coverage
    from d2s_ros.evaluation.coverage_picture import draw_coverage
    from d2s_ros.evaluation.coverage_summary import shares_in_words, write_coverage
    from d2s_ros.maps.scene_map import SceneMap

    if args.cell is not None and not 1e-6 < args.cell < 1e6:
        raise UsageError(f'--cell is {args.cell:g}, expected the width of a cell')
    scene_map = SceneMap.open(store.root)
    coverage = measure_coverage(scene_map, cell=args.cell)
    document = write_coverage(scene_map, coverage)
    if args.picture:
        points = scene_map.model.points_in_map + scene_map.origin
        Path(args.picture).write_bytes(draw_coverage(coverage, points))
    if args.json:
        print(json.dumps(document, indent=1))
        return
    print(
        f'{coverage.localized} of {coverage.held_out} mapping images are localized without '
        f'themselves, with {coverage.found_share:.2f} inliers for each point in view that looks as '
        'other images saw it'
    )
    print(
        f'{len(coverage.cells)} cells of {coverage.cell:.2f} {coverage.unit}, of their views '
        + shares_in_words(coverage)
    )
    for text in document['advice']:
        print(text)
