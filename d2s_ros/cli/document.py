"""Writes docs/reference/command_line.md from the parsers of the commands.

python -m d2s_ros.cli.document --write ROOT
"""

from __future__ import annotations

import argparse
import pathlib
import sys

from d2s_ros.cli.main import make_parser


def page() -> str:
    """Return the page: every command with its arguments."""
    parser = make_parser()
    lines = [
        '# Command line',
        '',
        'Written by `python -m d2s_ros.cli.document --write .` from the parsers.',
        '',
        'Exit codes: 0 done, 2 wrong usage, 3 wrong input, 4 nothing localized; 1 a defect, 130',
        'interrupted. An error is one line that says what is wrong and what to do. `--quiet` and',
        '`--debug` stand before or after the command.',
        '',
        *_arguments(parser),
    ]
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        for name, command in action.choices.items():
            lines += ['', f'## d2s {name}', '', f'{_sentence(command.description)}', '']
            lines += _arguments(command)
            for nested in command._actions:
                if isinstance(nested, argparse._SubParsersAction):
                    for inner, parser_of in nested.choices.items():
                        lines += ['', f'### d2s {name} {inner}', '', *_arguments(parser_of)]
    return '\n'.join(lines) + '\n'


def _sentence(text: str | None) -> str:
    return f'{(text or "")[:1].upper()}{(text or "")[1:]}.'


def _arguments(parser: argparse.ArgumentParser) -> list[str]:
    """Return the table of a parser's arguments, without the options that every command has."""
    shared = ('-h', '--debug', '--quiet')
    lines = ['| argument | meaning |', '|---|---|']
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        if parser.prog != 'd2s' and set(shared) & set(action.option_strings):
            continue
        lines.append(f'| `{_invocation(action)}` | {_cell(action.help or "")} |')
    return lines


def _invocation(action: argparse.Action) -> str:
    choices = '' if action.choices is None else ','.join(map(str, action.choices))
    value = action.metavar or (f'{{{choices}}}' if choices else action.dest.upper())
    if action.nargs in ('+', '*'):
        value = f'{value}...'
    if not action.option_strings:
        return str(value)
    name = ', '.join(action.option_strings)
    text = name if action.nargs == 0 else f'{name} {value}'
    return f'{text} (required)' if action.required else text


def _cell(text: str) -> str:
    return text.replace('%%', '%').replace('|', '\\|')


def main(arguments: list[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog='document', description=__doc__)
    parser.add_argument('--write', metavar='ROOT', required=True, help='root of a checkout')
    root = pathlib.Path(parser.parse_args(arguments).write)
    (root / 'docs' / 'reference' / 'command_line.md').write_text(page())
    return 0


if __name__ == '__main__':
    sys.exit(main())
