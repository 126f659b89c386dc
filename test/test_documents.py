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


def architecture_of_tests():
    return (ROOT / 'docs' / 'design' / 'architecture.md').read_text().partition('\n## Tests\n')[2]


def test_every_slow_test_is_named_with_its_limit():
    rows = re.findall(
        r'^\| `(test/[\w/.]+)` \| .+ \| .*\d+ min.* \|$', architecture_of_tests(), re.M
    )
    slow = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'test').rglob('test_*.py')
        if re.search(r'^(@pytest\.mark\.slow$|pytestmark = .*mark\.slow)', path.read_text(), re.M)
    ]
    assert len(slow) > 10
    assert [path for path in slow if not path.startswith(tuple(rows))] == []
    assert [row for row in rows if not any(path.startswith(row) for path in slow)] == []


def test_the_steps_of_ci_are_those_that_the_documents_name():
    steps = re.findall(r'^ *step (\w+) ', (ROOT / '.ci' / 'run').read_text(), re.M)
    named = architecture_of_tests().partition('`.ci/run` runs')[2].partition('.\n')[0]
    assert len(steps) > 8
    assert re.findall(r'\((\w+)\)', named) == steps
