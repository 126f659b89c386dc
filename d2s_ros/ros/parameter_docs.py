"""Writes what is derived from the nodes' options: config/ and docs/reference/parameters.md.

python -m d2s_ros.ros.parameter_docs --write ROOT
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import textwrap
from typing import Any

from d2s_ros.localization.limits import Limits
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.localizer_parameters import SHOWN_LIMITS
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


def _allowed(metadata: Any) -> str:
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
        '# python -m d2s_ros.ros.parameter_docs --write. Copy it and change what you need.',
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
        lines += _entry(leaf, field.metadata, default, '  ' * (len(path) + 2))
    return '\n'.join(lines) + '\n'


def _entry(
    name: str, metadata: Any, default: Any, indent: str = '', *, sources: bool = False
) -> list[str]:
    """Return the lines of one option: its meaning as a comment, its name and its default."""
    text = metadata['description']
    if metadata['unit']:
        text += f' Unit: {metadata["unit"]}.'
    if allowed := _allowed(metadata):
        text += f' Allowed: {allowed}.'
    if sources and metadata['experiment']:
        text += f' Source: {metadata["experiment"]}.'
    lines = [f'{indent}# {line}' for line in textwrap.wrap(text, _WIDTH - len(indent))]
    return [*lines, f'{indent}{name}: {_scalar(default)}']


def limits_text() -> str:
    """Return config/limits.yaml: every limit that is no parameter, with its default."""
    head = (
        'Limits of acceptance with their defaults; written by python -m d2s_ros.ros.parameter_docs '
        '--write. Name a file with those that you change in the parameter localizer.limits_file. '
        f'{", ".join(SHOWN_LIMITS)} are parameters of the node. A source such as E001 is a row of '
        'docs/design/experiments.md.'
    )
    lines = [f'# {line}' for line in textwrap.wrap(head, _WIDTH)]
    for name, field, _, default in parameter_fields(Limits):
        if name not in SHOWN_LIMITS:
            lines += ['', *_entry(name, field.metadata, default, sources=True)]
    return '\n'.join(lines) + '\n'


def parameter_table(
    config: type[Any] = LocalizerNodeConfig, state_of: str = 'While configured'
) -> str:
    """Return the Markdown table of a node's parameters."""
    fields = list(parameter_fields(config))
    # Where all can be changed there is nothing to say about it.
    states = any(field.metadata['read_only'] for _, field, *_ in fields)
    lines = [
        f'| Parameter | Default | Unit | Allowed |{f" {state_of} |" * states} Meaning |',
        '|---' * (5 + states) + '|',
    ]
    for name, field, _, default in fields:
        metadata = field.metadata
        state = ' fixed |' if metadata['read_only'] else ' changeable |'
        lines.append(
            f'| `{name}` | `{_scalar(default)}` | {metadata["unit"]} | {_allowed(metadata)} |'
            f'{state * states} {metadata["description"]} |'
        )
    return '\n'.join(lines) + '\n'


def parameters_page() -> str:
    """Return docs/reference/parameters.md: the parameters of both nodes."""
    return f"""# Parameters

Written by `python -m d2s_ros.ros.parameter_docs --write .` from the options that the nodes declare.
[Tuning](../integrate/tuning.md) says which ones a robot needs.

## localizer

Fixed ones can be set while the node is unconfigured, the others at any time. All are in
config/localizer.yaml, with their defaults.

{parameter_table()}
## map_updater

All are in config/map_updater.yaml. Those that name files and topics are fixed when the node starts,
so that no peer can have it write elsewhere; the others can be changed for the next update.

{parameter_table(MapUpdaterConfig, 'While running')}"""


def write(root: pathlib.Path) -> None:
    """Write the YAML files of config/ and docs/reference/parameters.md."""
    (root / 'config' / 'localizer.yaml').write_text(yaml_text())
    (root / 'config' / 'limits.yaml').write_text(limits_text())
    updater = yaml_text(MapUpdaterConfig, 'map_updater')
    (root / 'config' / 'map_updater.yaml').write_text(updater)
    (root / 'docs' / 'reference' / 'parameters.md').write_text(parameters_page())


def main(arguments: list[str] | None = None) -> int:
    """Write the files."""
    parser = argparse.ArgumentParser(prog='parameter_docs', description=__doc__)
    parser.add_argument('--write', metavar='ROOT', required=True, help='root of a checkout')
    write(pathlib.Path(parser.parse_args(arguments).write))
    return 0


if __name__ == '__main__':
    sys.exit(main())
