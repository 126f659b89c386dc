"""Writes what is derived from the node's options: config/localizer.yaml and the parameter table.

python -m d2s_ros.ros.describe --yaml > config/localizer.yaml
python -m d2s_ros.ros.describe --table
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import textwrap
from typing import Any

from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.map_updater_config import MapUpdaterConfig
from d2s_ros.ros.parameters import parameter_fields

_WIDTH = 98


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, (tuple, list)):
        return '[' + ', '.join(_scalar(item) for item in value) + ']'
    return repr(value)


def _limits(metadata: Any) -> str:
    if metadata.get('choices'):
        return ', '.join(metadata['choices'])
    low, high = metadata.get('minimum'), metadata.get('maximum')
    if low is not None and high is not None:
        return f'{low:g} to {high:g}'
    if low is not None:
        return f'at least {low:g}'
    return '' if high is None else f'at most {high:g}'


def yaml_text(config: type[Any] = LocalizerNodeConfig, node: str = 'localizer') -> str:
    """Return config/<node>.yaml: every parameter with its default and a comment."""
    lines = [
        f'# Every parameter of the {node} node with its default; written by',
        '# python -m d2s_ros.ros.describe --write. Copy it and change what you need.',
        '/**:',
        '  ros__parameters:',
    ]
    groups: list[str] = []
    for name, field, _, default in parameter_fields(config):
        *path, leaf = name.split('.')
        for depth, group in enumerate(path):
            if groups[: depth + 1] != path[: depth + 1]:
                lines.append(f'{"  " * (depth + 2)}{group}:')
        groups = path
        indent = '  ' * (len(path) + 2)
        text = field.metadata['description']
        if field.metadata['unit']:
            text += f' Unit: {field.metadata["unit"]}.'
        if limits := _limits(field.metadata):
            text += f' Allowed: {limits}.'
        lines += [f'{indent}# {line}' for line in textwrap.wrap(text, _WIDTH - len(indent))]
        lines.append(f'{indent}{leaf}: {_scalar(default)}')
    return '\n'.join(lines) + '\n'


def parameter_table() -> str:
    """Return the Markdown table of parameters."""
    lines = [
        '| Parameter | Default | Unit | Allowed | While configured | Meaning |',
        '|---|---|---|---|---|---|',
    ]
    for name, field, _, default in parameter_fields(LocalizerNodeConfig):
        metadata = field.metadata
        lines.append(
            f'| `{name}` | `{_scalar(default)}` | {metadata["unit"]} | {_limits(metadata)} | '
            f'{"fixed" if metadata["read_only"] else "changeable"} | {metadata["description"]} |'
        )
    return '\n'.join(lines) + '\n'


def write(root: pathlib.Path) -> None:
    """Write the YAML files of config/ and the parameter table of docs/ros_interface.md."""
    (root / 'config' / 'localizer.yaml').write_text(yaml_text())
    updater = yaml_text(MapUpdaterConfig, 'map_updater')
    (root / 'config' / 'map_updater.yaml').write_text(updater)
    document = root / 'docs' / 'ros_interface.md'
    before, start, rest = document.read_text().partition('<!-- parameters -->\n')
    _, end, after = rest.partition('<!-- end of parameters -->\n')
    document.write_text(f'{before}{start}{parameter_table()}{end}{after}')


def main(arguments: list[str] | None = None) -> int:
    """Write the asked text to standard output."""
    parser = argparse.ArgumentParser(prog='describe', description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--yaml', action='store_true')
    what.add_argument('--table', action='store_true')
    what.add_argument('--write', metavar='ROOT', help='root of a checkout')
    options = parser.parse_args(arguments)
    if options.write:
        write(pathlib.Path(options.write))
        return 0
    sys.stdout.write(yaml_text() if options.yaml else parameter_table())
    return 0


if __name__ == '__main__':
    sys.exit(main())
