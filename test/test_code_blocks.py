"""Commands and programs in the documents: they parse, name what is there, and do what they say."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import d2s_ros

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]
#: Programs that others document; what they are given of ours is checked below.
OTHERS = {
    'colcon',
    'docker',
    'git',
    'pip',
    'ray',
    'ros2',
    'rosdep',
    'rviz2',
    'source',
    'tar',
    'python3',
}


def blocks(path, language):
    """Return the code blocks of a document in a language, '' for none."""
    found = re.findall(rf'^```{language}\n(.*?)^```', path.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(r'\\\n\s*', ' ', block) for block in found]


def lines(path):
    """Return the command lines of a document."""
    return [
        line.partition(' #')[0].strip()
        for language in ('', 'bash', 'sh')
        for block in blocks(path, language)
        for line in block.splitlines()
        if line.strip() and not line.startswith('#')
    ]


ALL_LINES = [line for path in DOCUMENTS for line in lines(path)]


def test_make_targets_are_there():
    targets = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    named = [shlex.split(line)[1:] for line in ALL_LINES if line.startswith('make ')]
    assert len(named) >= 8
    assert {word for words in named for word in words if '=' not in word} <= set(targets)


def test_scripts_and_modules_are_there():
    named = [shlex.split(line) for line in ALL_LINES if line.startswith('python ')]
    assert len(named) >= 5
    for words in named:
        if words[1] == '-m':
            assert importlib.util.find_spec(words[2]), words
        else:
            assert (ROOT / words[1]).is_file(), words


def test_launch_arguments_are_declared():
    declared = (ROOT / 'launch' / 'localize.launch.py').read_text()
    named = [
        argument
        for line in ALL_LINES
        for argument in re.findall(r' (\w+):=', line)
        if 'localize.launch.py' in line
    ]
    assert len(named) >= 3
    assert [name for name in named if f"'{name}'" not in declared] == []


def test_topics_and_services_of_ours_are_in_the_reference():
    reference = (ROOT / 'docs' / 'reference' / 'ros_interface.md').read_text()
    named = {name for line in ALL_LINES for name in re.findall(r'(?<=/)d2s/(\w+)', line)}
    assert 'pose' in named
    assert [name for name in named if f'd2s/{name}' not in reference] == []


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.stem)
def test_python_parses_and_its_imports_are_there(path):
    for block in blocks(path, 'python'):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert [a.name for a in node.names if not hasattr(module, a.name)] == []
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == 'd2s_ros':
                assert hasattr(d2s_ros, node.attr)


def test_tutorials_name_programs_that_are_known():
    known = OTHERS | {'d2s', 'make', 'python'}
    tutorials = [
        line for path in DOCUMENTS if path.parent.name == 'tutorials' for line in lines(path)
    ]
    assert len(tutorials) >= 12
    assert [line for line in tutorials if line.split()[0] not in known] == []


def run(program, *arguments, cwd):
    done = subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (arguments, done.stderr[-2000:])
    return done.stdout + done.stderr


D2S = ('-m', 'd2s_ros.cli.main')


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_does_what_it_says(tmp_path):
    """Its commands in order, on logs of one room that a simulated camera without odometry took."""
    for name, seed in (('mapping_log', 1), ('second_log', 2), ('evening_log', 3)):
        options = [
            '--seed',
            '4',
            '--trajectory-seed',
            str(seed),
            '--frames',
            '30',
            '--width',
            '320',
            '--height',
            '240',
            '--no-poses',
        ]
        if name == 'evening_log':
            options += ['--lighting', 'dusk']
        run(D2S, '--quiet', 'simulate', name, *options, cwd=tmp_path)
    commands = [
        shlex.split(line)[1:]
        for line in lines(ROOT / 'docs' / 'tutorials' / 'own_room.md')
        if line.startswith('d2s ')
    ]
    # What comes before needs a video or a board; test_own_room.py runs the former.
    commands = commands[[words[:2] for words in commands].index(['build-map', 'mapping_log']) :]
    assert [words[0] for words in commands] == [
        'build-map', 'map', 'map', 'localize', 'view', 'update-map', 'map', 'map',
    ]  # fmt: skip
    commands[4] += ['--html', 'room.html']
    rollback = commands.pop()
    outputs = [run(D2S, *words, cwd=tmp_path) for words in commands]
    # Of so short a log an update may be refused: then there is nothing to go back to.
    if (tmp_path / 'room' / 'current').read_text().startswith('0002'):
        run(D2S, *rollback, cwd=tmp_path)
    assert 'it is arbitrary' in outputs[0]
    found = re.search(r'(\d+) of (\d+) frames localized', outputs[3])
    assert found, outputs[3]
    # So small a camera in other light and from other views: some images, not most.
    assert int(found[1]) >= 1
    assert (tmp_path / 'poses.txt').is_file()
    assert (tmp_path / 'report.json').is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quick_start_in_python_runs(tmp_path):
    """That of README, on folders of its names; `my_map` is what page Python API opens too."""
    for name, seed in (('mapping', 0), ('queries', 21)):
        options = ['--frames', '24', '--trajectory-seed', str(seed), '--width', '320', '--quiet']
        run(D2S, 'simulate', name, *options, cwd=tmp_path)
    (block,) = blocks(ROOT / 'README.md', 'python')
    run(('-c', block), cwd=tmp_path)
    assert (tmp_path / 'my_map' / 'current').is_file()
