"""What the documents name exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_tests_that_documents_name_are_there():
    there = set()
    for path in (ROOT / 'test').rglob('test_*.py'):
        there |= set(re.findall(r'^ *def (test_\w+)\(', path.read_text(), re.MULTILINE))
    text = (ROOT / 'docs' / 'integrate' / 'topics_and_frames.md').read_text()
    named = set(re.findall(r'`(test_\w+)`', text))
    assert len(named) >= 20
    assert named <= there


def test_the_files_that_documents_link_to_are_there():
    missing = []
    for path in [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *(ROOT / 'docs').rglob('*.md')]:
        for target in re.findall(r'\]\(([^)#]+?)(?:#[^)]*)?\)', path.read_text()):
            if '://' not in target and not (path.parent / target).exists():
                missing.append(f'{path.name}: {target}')
    assert missing == []


def test_every_refusal_says_what_to_do():
    def statuses(path):
        text = (ROOT / 'docs' / path).read_text().partition('| Status |')[2]
        rows = text.partition('\n\n')[0]
        return re.findall(r'^\| `(\w+)` \|', rows, re.MULTILINE)

    # test/ros/test_interface_docs.py compares the reference with the code.
    assert statuses('operate/refusals.md') == statuses('reference/ros_interface.md')
