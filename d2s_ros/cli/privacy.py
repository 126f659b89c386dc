"""`d2s privacy`: what maps give away of the photographs that they were made from."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields

from d2s_ros.cli.options import (
    add_device,
    add_source_options,
    add_weights,
    open_input,
    user_path,
)
from d2s_ros.privacy.config import AttackConfig

#: Options of the attack that the command has.
_OPTIONS = (
    'minutes',
    'steps',
    'size',
    'width',
    'pictures_per_step',
    'photographs',
    'own_photographs',
    'seed',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        'Train networks that make pictures of what maps hold, one for each kind of content, on '
        "the attacker's photographs of other places; compare what they make of the maps with "
        'photographs of the place, and write a table, pictures and a page.'
    )
    parser.add_argument(
        'maps',
        nargs='+',
        type=user_path,
        metavar='MAP',
        help='map folder; several of one place are compared',
    )
    parser.add_argument(
        '--images',
        type=user_path,
        required=True,
        metavar='FOLDER',
        help='photographs of the mapped place with poses in the frame of the maps (folder or log): '
        'what pictures are compared with; the attacker never sees them',
    )
    parser.add_argument(
        '--poses', type=user_path, metavar='TUM', help='poses of --images; else those it has'
    )
    parser.add_argument(
        '--attack-images',
        type=user_path,
        action='append',
        required=True,
        metavar='FOLDER',
        help="the attacker's photographs of another place (folder or log); may be repeated",
    )
    parser.add_argument(
        '--output', type=user_path, required=True, metavar='DIR', help='folder of the report'
    )
    parser.add_argument(
        '--kinds',
        type=lambda text: [part.strip() for part in text.split(',') if part.strip()],
        default=[],
        metavar='A,B',
        help='kinds of content, for example depth,keys (default: all that the maps have)',
    )
    parser.add_argument(
        '--fresh', action='store_true', help='forget what an interrupted attack has left'
    )
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    for field in fields(AttackConfig):
        if field.name in _OPTIONS:
            unit = f' [{field.metadata["unit"]}]' if field.metadata['unit'] else ''
            parser.add_argument(
                '--' + field.name.replace('_', '-'),
                type=type(field.default),
                default=field.default,
                metavar='N',
                help=f'{field.metadata["description"]}{unit} (default: {field.default})',
            )
    add_source_options(parser)
    add_device(parser)
    add_weights(parser)


def run(args: argparse.Namespace) -> int:
    """Attack, print the table, write the report; returns the exit code.

    Raises:
        D2SError: on bad options or input.
    """
    from pathlib import Path

    from d2s_ros.data.sources import open_source
    from d2s_ros.device import resolve_device
    from d2s_ros.errors import UsageError
    from d2s_ros.privacy.metrics import to_table
    from d2s_ros.privacy.pipeline import attack

    config = AttackConfig(**{name: getattr(args, name) for name in _OPTIONS})
    place = Path(args.images).resolve()
    if place in {Path(path).resolve() for path in args.attack_images}:
        raise UsageError(
            f'{args.images} is among --attack-images: an attacker who has the photographs of the '
            'place needs no map; give photographs of other places'
        )
    args.input = args.images
    photographs = open_input(args, poses=args.poses)
    own = [open_source(path) for path in args.attack_images]
    report = attack(
        [Path(path) for path in args.maps],
        photographs,
        own,
        Path(args.output),
        config,
        inputs=[str(Path(path).resolve()) for path in (args.images, *args.attack_images)]
        + [str(args.poses), str(args.image_list)],
        wanted=args.kinds,
        device=resolve_device(args.device),
        weights=args.weights,
        fresh=args.fresh,
        progress=not args.quiet,
    )
    if args.json:
        print(json.dumps(report, indent=1))
        return 0
    print(to_table(report['kinds']), end='')
    blank = report['blank']
    print(f'an even grey picture: {blank["psnr_db"]:.2f} dB, SSIM {blank["ssim"]:.3f}')
    print(f'pictures and page: {args.output}')
    return 0
