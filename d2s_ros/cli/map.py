"""`d2s map`: show, check, list, roll back and strip maps."""

from __future__ import annotations

import argparse
import json

from d2s_ros.cli.options import user_path
from d2s_ros.errors import MapFormatError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        'action',
        choices=('info', 'verify', 'list', 'rollback', 'strip'),
        help='info: what the live version says of itself; verify: check every byte; list: all '
        'versions; rollback: make the parent of the live version live; strip: delete update data',
    )
    parser.add_argument('map', type=user_path, metavar='MAP', help='map folder')
    parser.add_argument('--json', action='store_true', help='print JSON')


def run(args: argparse.Namespace) -> int:
    """Do the action; returns the exit code."""
    from d2s_ros.maps.files import LOCALIZATION_FILE, UPDATE_FILE
    from d2s_ros.maps.manifest import manifest_document
    from d2s_ros.maps.scene_map import SceneMap, read_manifest
    from d2s_ros.maps.store import MapStore
    from d2s_ros.maps.verification import verify

    store = MapStore(args.map)
    if args.action == 'verify':
        problems = verify(args.map)
        if problems:
            raise MapFormatError('; '.join(problems))
        print(f'{args.map}: {len(store.versions()) or 1} versions, all bytes as written')
        return 0
    scene_map = SceneMap.open(args.map)
    manifest = scene_map.manifest
    if args.action == 'info':
        if args.json:
            print(json.dumps(manifest_document(manifest), indent=1))
            return 0
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
        return 0
    if args.action == 'list':
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
        if args.json:
            print(json.dumps(listed, indent=1))
        else:
            for item in listed:
                mark = '*' if item['live'] else ' '
                print(
                    f'{mark} {item["version"]}  parent {item["parent"] or "-":6s} '
                    f'{item["created"]}  held-out {item["holdout_median_m"]} m'
                )
        return 0
    if args.action == 'rollback':
        print(f'{args.map}: live version is now {store.rollback()}')
        return 0
    left = store.strip()
    print(f'{args.map}: update data deleted; localization works, updates need a new map')
    print('left in the map: ' + '; '.join(left))
    return 0
