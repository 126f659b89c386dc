"""`d2s view`: a map in 3D, in a web browser."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from d2s_ros.cli.options import check_outputs, user_path
from d2s_ros.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('map', type=user_path, metavar='MAP', help='map folder')
    parser.add_argument(
        'report',
        nargs='?',
        type=user_path,
        metavar='REPORT',
        help='what d2s localize --report wrote: its frames are shown too',
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
    report = None
    if args.report:
        try:
            report = json.loads(Path(args.report).read_text())
        except (OSError, ValueError) as error:
            raise InputError(f'{args.report} cannot be read as a report: {error}') from error
    page = view_page(SceneMap.open(args.map), report)
    if args.html:
        Path(args.html).write_text(page, encoding='utf-8')
        print(f'{args.html}: open it with a web browser, also without a network')
        return 0
    _serve(page.encode(), args.port)
    return 0


def _serve(page: bytes, port: int) -> None:
    """Serve a page at 127.0.0.1, to this computer alone."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header('Content-Type', 'text/html; charset=utf-8')
            self.send_header('Content-Length', str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing of requests."""

    with HTTPServer(('127.0.0.1', port), Handler) as server:
        print(f'http://127.0.0.1:{server.server_address[1]} shows the map; Ctrl-C ends', flush=True)
        server.serve_forever()
