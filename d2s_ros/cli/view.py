"""`d2s view`: a map in 3D, in a web browser."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2s_ros.cli.options import check_outputs, user_path
from d2s_ros.errors import InputError, UsageError

if TYPE_CHECKING:
    from d2s_ros.maps.scene_map import SceneMap
    from d2s_ros.ros.live_view import LiveFrames


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('map', type=user_path, metavar='MAP', help='map folder')
    parser.add_argument(
        'report',
        nargs='*',
        type=user_path,
        metavar='REPORT',
        help='what d2s localize --report wrote: its frames are shown too, each report as a session',
    )
    parser.add_argument(
        '--before',
        metavar='VERSION',
        help='an earlier version of the map: what an update added and took away is coloured',
    )
    parser.add_argument(
        '--live',
        action='store_true',
        help='show the frames of the running localizer node, as they come (ROS 2)',
    )
    parser.add_argument(
        '--namespace', default='', metavar='NS', help='with --live: of the node, such as /robot1'
    )
    parser.add_argument(
        '--html', type=user_path, metavar='FILE', help='write the page and end, serve nothing'
    )
    parser.add_argument(
        '--port', type=int, default=8642, metavar='N', help='port of this computer (default: 8642)'
    )


def run(args: argparse.Namespace) -> int:
    """Write the page, or serve it to this computer until Ctrl-C; returns the exit code."""
    from d2s_ros.evaluation.view_page import view_page
    from d2s_ros.maps.scene_map import SceneMap

    check_outputs(args.html)
    if args.live and args.html:
        raise UsageError('--live serves a page that changes: leave --html out')
    if args.namespace and not args.live:
        raise UsageError('--namespace is for --live')
    reports = _read_reports(args.report)
    scene_map = SceneMap.open(args.map)
    before = None if args.before is None else _version(args.map, args.before)
    page = view_page(scene_map, reports, before=before, live=args.live)
    if args.html:
        Path(args.html).write_text(page, encoding='utf-8')
        print(f'{args.html}: open it with a web browser, also without a network')
        return 0
    if not args.live:
        _serve(page.encode(), args.port)
        return 0
    if importlib.util.find_spec('rclpy') is None:
        raise UsageError('--live needs ROS 2 (rclpy): source your ROS distribution')
    from d2s_ros.ros.live_view import LiveFrames

    with LiveFrames(args.namespace, scene_map.origin) as live:
        _serve(page.encode(), args.port, live)
    return 0


def _read_reports(paths: list[str]) -> dict[str, dict[str, Any]]:
    """Return the reports by the names of their files."""
    reports = {}
    for path in paths:
        try:
            reports[Path(path).stem if len(paths) > 1 else 'report'] = json.loads(
                Path(path).read_text()
            )
        except (OSError, ValueError) as error:
            raise InputError(f'{path} cannot be read as a report: {error}') from error
    if len(reports) < len(paths):
        raise UsageError('two reports have the same name: rename one, so that they can be told')
    return reports


def _version(path: str, version: str) -> SceneMap:
    """Return an earlier version of a map."""
    from d2s_ros.maps.scene_map import SceneMap
    from d2s_ros.maps.store import MapStore

    versions = MapStore(path).versions()
    name = version.zfill(4)
    if name not in versions:
        raise UsageError(f'{path} has no version {version}; it has {", ".join(versions)}')
    return SceneMap.open(Path(path) / 'versions' / name)


def _serve(page: bytes, port: int, live: LiveFrames | None = None) -> None:
    """Serve a page at 127.0.0.1, to this computer alone, with the frames of a running node."""
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from urllib.parse import parse_qs, urlsplit

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            code, kind, body = 200, 'text/html; charset=utf-8', page
            if live is not None and asked.path == '/frames':
                first = parse_qs(asked.query).get('since', ['0'])[0]
                kind = 'application/json'
                body = json.dumps(live.since(int(first) if first.isdigit() else 0)).encode()
            elif live is not None and asked.path == '/picture':
                picture = live.picture(parse_qs(asked.query).get('name', [''])[0])
                code, kind, body = 200 if picture else 404, 'image/jpeg', picture or b''
            self.send_response(code)
            self.send_header('Content-Type', kind)
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing of requests."""

    with HTTPServer(('127.0.0.1', port), Handler) as server:
        print(f'http://127.0.0.1:{server.server_address[1]} shows the map; Ctrl-C ends', flush=True)
        server.serve_forever()
