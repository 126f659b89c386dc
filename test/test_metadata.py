"""package.xml, setup.py, CITATION.cff, the package and the changelog agree."""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ElementTree

import pytest
import yaml

import d2s_ros


@pytest.fixture(scope='module')
def package(repo_root):
    return ElementTree.parse(repo_root / 'package.xml').getroot()


@pytest.fixture(scope='module')
def setup(repo_root):
    """The arguments of setup() that are plain values."""
    tree = ast.parse((repo_root / 'setup.py').read_text())
    call = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'setup'
    )
    return {
        keyword.arg: keyword.value.value
        for keyword in call.keywords
        if isinstance(keyword.value, ast.Constant)
    }


@pytest.fixture(scope='module')
def citation(repo_root):
    return yaml.safe_load((repo_root / 'CITATION.cff').read_text())


def test_version(package, citation, repo_root):
    version = d2s_ros.__version__
    assert package.findtext('version') == version
    assert citation['version'] == version
    assert f'## {version}' in (repo_root / 'CHANGELOG.md').read_text()


def test_licence(package, setup, citation, repo_root):
    assert package.findtext('license') == setup['license'] == citation['license'] == 'Apache-2.0'
    assert 'Apache License' in (repo_root / 'LICENSE').read_text()
    assert 'Apache-2.0' in (repo_root / 'README.md').read_text()


def test_maintainer_and_authors(package, setup, citation):
    maintainer = package.find('maintainer')
    assert setup['maintainer'] == maintainer.text
    assert setup['maintainer_email'] == maintainer.get('email')
    assert setup['author'] == citation['authors'][0]['name']


def test_address(package, setup, citation):
    """The same address in all three, or in none."""
    assert package.findtext('url') == setup.get('url') == citation.get('repository-code')


def test_name_and_build_type(package):
    assert package.findtext('name') == 'd2s_ros'
    assert package.findtext('export/build_type') == 'ament_python'
