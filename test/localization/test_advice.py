"""What to do about a refusal: the same in the program and in its document."""

from __future__ import annotations

import re

from d2s_ros.localization.advice import _WHAT_TO_DO, what_to_do
from d2s_ros.localization.result import LocalizationStatus


def test_it_says_what_the_document_says(repo_root):
    text = (repo_root / 'docs' / 'operate' / 'refusals.md').read_text()
    rows = dict(re.findall(r'^\| `(\w+)` \| .*? \| (.*?) \|$', text, re.MULTILINE))
    assert rows.pop('localized') == 'Nothing.'
    # Links are for the document.
    plain = {name: re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', row) for name, row in rows.items()}
    assert plain == _WHAT_TO_DO


def test_every_refusal_has_advice():
    for status in LocalizationStatus:
        assert bool(what_to_do(status.value)) == (status is not LocalizationStatus.LOCALIZED)
