"""The `d2s` command: one line for what went wrong, exit codes that scripts can rely on.

Exit codes: 0 done, 2 bad usage, 3 bad input, 4 nothing localized; 1 a defect, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from d2s_ros import __version__
from d2s_ros.device import missing_torch
from d2s_ros.errors import D2SError, UsageError
from d2s_ros.memory import tune_malloc
from d2s_ros.threads import set_passive_omp_wait

#: Command to the module with `add_arguments` and `run`, and its one-line help.
_COMMANDS = {
    'build-map': ('d2s_ros.cli.build_map', 'build a map from a log of images'),
    'calibrate': ('d2s_ros.cli.calibrate', 'calibrate a camera from pictures of a board'),
    'localize': ('d2s_ros.cli.localize', 'localize the images of a log in a map'),
    'evaluate': ('d2s_ros.cli.evaluate', 'compare a trajectory with the truth'),
    'update-map': ('d2s_ros.cli.update_map', 'update a map from unlabelled logs'),
    'map': ('d2s_ros.cli.map', 'show, check, list and roll back maps'),
    'view': ('d2s_ros.cli.view', 'show a map in 3D, in a web browser'),
    'benchmark': ('d2s_ros.cli.benchmark', 'measure what localizing costs, stage by stage'),
    'export': ('d2s_ros.cli.export', 'write the networks of a map as ONNX files'),
    'privacy': ('d2s_ros.cli.privacy', 'measure what maps give away of their photographs'),
    'features': ('d2s_ros.cli.features', 'compare local features'),
    'simulate': ('d2s_ros.cli.simulate', 'render a camera log of a simulated building'),
    'demo': ('d2s_ros.cli.demo', 'simulate, map, localize through the ROS node, and report'),
}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog='d2s', description='Camera relocalization from one image with D2S maps.'
    )
    parser.add_argument('--version', action='version', version=f'd2s {__version__}')
    parser.add_argument(
        '--print-completion',
        choices=('bash', 'zsh', 'tcsh'),
        metavar='SHELL',
        help='print the completion script for bash, zsh or tcsh, and exit',
    )
    _add_shared(parser, default=False)
    shared = argparse.ArgumentParser(add_help=False)
    # A command that is not given them must not overwrite what stands before it.
    _add_shared(shared, default=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    for name, (module, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, parents=[shared])
        implementation = importlib.import_module(module)
        implementation.add_arguments(command)
        command.set_defaults(run=implementation.run)
    return parser


def _add_shared(parser: argparse.ArgumentParser, default: Any) -> None:
    """Add the options that may stand before and after the command."""
    parser.add_argument(
        '--debug', action='store_true', default=default, help='show tracebacks and debug messages'
    )
    parser.add_argument('--quiet', action='store_true', default=default, help='hide progress bars')


def _completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script that completes commands and options in a shell."""
    try:
        import shtab
    except ImportError as error:
        raise UsageError('completion needs shtab: pip install shtab') from error
    script: str = shtab.complete(parser, shell)
    return script


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    set_passive_omp_wait()
    tune_malloc()
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.command is None and args.print_completion is None:
        parser.print_help(sys.stderr)
        return UsageError.exit_code
    logging.basicConfig(
        level=logging.DEBUG if args.debug else logging.WARNING,
        format='%(levelname)s: %(message)s',
    )
    for noisy in ('matplotlib', 'PIL'):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        if args.print_completion is not None:
            print(_completion(parser, args.print_completion))
            return 0
        return int(args.run(args))
    except (Exception, KeyboardInterrupt) as error:
        if args.debug:
            traceback.print_exc()
        text, code = _explain(error)
        name = 'd2s' if args.command is None else f'd2s {args.command}'
        print(f'{name}: {text}', file=sys.stderr)
        return code


def _explain(error: BaseException) -> tuple[str, int]:
    """Return one line for people and the exit code."""
    if isinstance(error, D2SError):
        return ' '.join(str(error).split()), error.exit_code
    if isinstance(error, ModuleNotFoundError) and error.name == 'torch':
        return _explain(missing_torch('this command'))
    if isinstance(error, KeyboardInterrupt):
        return 'interrupted', 130
    if isinstance(error, OSError):
        where = f' ({error.filename})' if error.filename else ''
        return f'{error.strerror or error}{where}', 3
    if isinstance(error, MemoryError):
        return 'out of memory; use fewer images or keypoints', 3
    text = ' '.join(str(error).split())
    return f'unexpected {type(error).__name__}: {text} (--debug shows where)', 1


if __name__ == '__main__':
    sys.exit(main())
