"""`d2s simulate`: render a camera log of a simulated building."""

from __future__ import annotations

import argparse
import dataclasses

from d2s_ros.cli.options import user_path
from d2s_ros.simulation.config import SimulationConfig

#: Switches that turn a default off: option -> (field, value).
_NEGATED = {'compressed': '--raw', 'poses': '--no-poses'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments; they are the fields of SimulationConfig."""
    parser.add_argument('out_dir', type=user_path, metavar='OUT_DIR', help='rosbag2 folder to make')
    for field in dataclasses.fields(SimulationConfig):
        text = str(field.metadata['description'])
        if field.name in _NEGATED:
            help_text = {
                'compressed': 'log raw mono8 Image instead of JPEG CompressedImage',
                'poses': 'do not log /ground_truth/pose; the truth is in groundtruth_tum.txt only',
            }[field.name]
            parser.add_argument(
                _NEGATED[field.name], dest=field.name, action='store_false', help=help_text
            )
            continue
        name = '--' + field.name.replace('_', '-')
        if isinstance(field.default, bool):
            parser.add_argument(name, dest=field.name, action='store_true', help=text)
            continue
        unit = f' [{field.metadata["unit"]}]' if field.metadata['unit'] else ''
        choices = field.metadata['choices'] or None
        parser.add_argument(
            name,
            dest=field.name,
            type=type(field.default),
            default=field.default,
            choices=choices,
            metavar=None if choices else 'N',
            help=f'{text}{unit} (default: {field.default})',
        )


def run(args: argparse.Namespace) -> int:
    """Simulate and say where the log is; returns the exit code.

    Raises:
        D2SError: on bad options or when the log cannot be written.
    """
    from d2s_ros.simulation.simulate import simulate_log

    names = [field.name for field in dataclasses.fields(SimulationConfig)]
    config = SimulationConfig(**{name: getattr(args, name) for name in names})
    path = simulate_log(config, args.out_dir, progress=not getattr(args, 'quiet', False))
    print(f'{path}: {config.frames} frames, truth in {path / "groundtruth_tum.txt"}')
    return 0
