"""One word for one thing: the words that docs/glossary.md retires stay out of the package."""

from __future__ import annotations

import ast
import re

import pytest

#: What ROS calls its own.
FOREIGN = frozenset({'BEST_EFFORT'})


def retired(repo_root) -> dict[str, bool]:
    """Return the retired words of the glossary, with whether docstrings must not have them."""
    text = (repo_root / 'docs' / 'glossary.md').read_text()
    rows = re.findall(
        r'^\| ([a-z, ]+) \| (names|names and docstrings) \|', text.partition('## Retired')[2], re.M
    )
    return {word: 'docstrings' in where for words, where in rows for word in words.split(', ')}


def words_of(name: str) -> set[str]:
    """Return the words of an identifier, in lower case; none of those that ROS gives."""
    if name in FOREIGN:
        return set()
    return {word.lower() for word in re.findall(r'[A-Z]?[a-z]+|[A-Z]+(?![a-z])', name)}


def found_in(source: str, path: str, words: dict[str, bool]) -> set[str]:
    """Return the retired words in the names and docstrings of a module, and in its own name."""
    used = words_of(path.rpartition('/')[2].removesuffix('.py'))
    documented: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            used |= words_of(node.name)
        elif isinstance(node, ast.Name):
            used |= words_of(node.id)
        elif isinstance(node, ast.arg):
            used |= words_of(node.arg)
        elif isinstance(node, ast.Attribute):
            used |= words_of(node.attr)
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            documented |= set(re.findall(r'[a-z]+', (ast.get_docstring(node) or '').lower()))
    return {word for word, both in words.items() if word in used or (both and word in documented)}


def test_retired_words_stay_out_of_the_package(repo_root):
    words = retired(repo_root)
    assert len(words) > 10
    found = {}
    for path in sorted((repo_root / 'd2s_ros').rglob('*.py')):
        name = path.relative_to(repo_root / 'd2s_ros').as_posix()
        hits = found_in(path.read_text(encoding='utf-8'), name, words)
        if hits:
            found[name] = sorted(hits)
    assert not found, 'docs/glossary.md says what to write instead'


@pytest.mark.parametrize(
    ('source', 'expected'),
    [
        ('def judge_pose():\n    pass', {'judge'}),
        ('class LandmarkJudge:\n    pass', {'judge'}),
        ('def f(doubt):\n    pass', {'doubt'}),
        ('x.things = 1', {'things'}),
        ('"""All places that are known."""', set()),
        ('"""What is thinned."""', {'thinned'}),
        ("message = 'judged'  # judged", set()),
        ('threshold = household = 1', set()),
        ('x = ReliabilityPolicy.BEST_EFFORT', set()),
        ('x = LEAST_EFFORT', {'effort'}),
    ],
)
def test_words_are_found_in_names_and_docstrings(repo_root, source, expected):
    assert found_in(source, 'a/module.py', retired(repo_root)) == expected
    assert found_in('', 'localization/gates.py', retired(repo_root)) == {'gates'}


def test_the_glossary_has_each_word_once(repo_root):
    text = (repo_root / 'docs' / 'glossary.md').read_text().partition('## Retired')[0]
    rows = re.findall(r'^\| ([a-z].*?) \|', text, re.M)[1:]
    assert rows == sorted(rows, key=str.lower)
    assert len(rows) == len(set(rows))
