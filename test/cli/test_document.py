"""docs/reference/command_line.md and the commands in the documents are those that there are."""

from __future__ import annotations

import re
import shlex

import pytest

from d2s_ros.cli import document
from d2s_ros.cli.main import make_parser


def test_the_page_of_the_command_line_is_current(repo_root):
    page = (repo_root / 'docs' / 'reference' / 'command_line.md').read_text()
    assert document.page() == page, 'write it again: python -m d2s_ros.cli.document --write .'


def commands(path):
    """Return the calls of d2s in the code blocks of a document."""
    calls = []
    for block in re.findall(r'^```\w*\n(.*?)^```', path.read_text(), re.MULTILINE | re.DOTALL):
        for line in re.sub(r'\\\n\s*', ' ', block).splitlines():
            line = re.sub(r'^ros2 run d2s_ros ', '', re.sub(r'^\.venv/bin/', '', line.strip()))
            if line.startswith('d2s ') and '[' not in line:
                calls.append(line.partition(' >')[0])
    return calls


def test_commands_in_the_documents_parse(repo_root):
    parser = make_parser()
    paths = [repo_root / 'README.md', *sorted((repo_root / 'docs').rglob('*.md'))]
    found = [(path.name, call) for path in paths for call in commands(path)]
    assert len(found) >= 15
    for name, call in found:
        try:
            parser.parse_args(shlex.split(call, comments=True)[1:])
        except SystemExit:
            pytest.fail(f'{name}: {call}')
