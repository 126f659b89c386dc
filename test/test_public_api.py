"""The public Python API: what `import d2s_ros` offers, and the examples that use it."""

from __future__ import annotations

import doctest
import inspect
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

import d2s_ros
from d2s_ros import api


@pytest.mark.parametrize('name', d2s_ros.__all__)
def test_public_names_are_there_and_documented(name):
    value = getattr(d2s_ros, name)
    assert value.__name__ == name
    assert inspect.getdoc(value)
    assert name in dir(d2s_ros)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match='no attribute'):
        d2s_ros.no_such_name  # noqa: B018


def test_the_package_is_typed(repo_root):
    assert (repo_root / 'd2s_ros' / 'py.typed').is_file()


@pytest.mark.parametrize('module', [d2s_ros, api])
def test_doctests(module):
    options = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.testmod(module, optionflags=options)
    assert result.failed == 0


@pytest.fixture(scope='module')
def colmap_folders(tmp_path_factory, small_map, query_frames):
    """Folders of mapping and query images, each with a COLMAP model."""
    folders = {}
    for name, frames in (('mapping', small_map.frames), ('queries', query_frames)):
        root = tmp_path_factory.mktemp(name)
        (root / 'images').mkdir()
        camera = frames[0].camera
        lines = [f'1 PINHOLE {camera.width} {camera.height} ']
        lines[0] += f'{camera.fx} {camera.fy} {camera.cx + 0.5} {camera.cy + 0.5}\n'
        (root / 'cameras.txt').write_text(''.join(lines))
        poses = []
        for index, frame in enumerate(frames):
            file = f'{index:03d}.png'
            cv2.imwrite(str(root / 'images' / file), frame.image)
            tx, ty, tz, qx, qy, qz, qw = frame.map_from_camera.inverse().to_tum()
            poses.append(f'{index + 1} {qw} {qx} {qy} {qz} {tx} {ty} {tz} 1 {file}\n\n')
        (root / 'images.txt').write_text(''.join(poses))
        folders[name] = root
    return folders


def test_evaluate_says_how_good_a_map_is(small_map, colmap_folders):
    figures = d2s_ros.evaluate(small_map.path, colmap_folders['queries'], device='cpu')
    assert figures['num_localized'] >= 5
    assert figures['median_m'] < 0.05


def test_load_map_opens_what_build_map_wrote(small_map, query_frames):
    localizer = d2s_ros.Localizer.from_map(d2s_ros.load_map(small_map.path), device='cpu')
    result = localizer.localize(query_frames[0].image, query_frames[0].camera)
    assert isinstance(result, d2s_ros.LocalizationResult)
    if result.map_from_camera is not None:
        error = result.map_from_camera.translation - query_frames[0].map_from_camera.translation
        assert np.linalg.norm(error) < 0.05


def run_example(repo_root, name, *arguments):
    done = subprocess.run(
        [sys.executable, str(repo_root / 'examples' / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=repo_root,
        env={**os.environ, 'PYTHONPATH': str(repo_root)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_that_localizes_a_folder(repo_root, small_map, colmap_folders):
    output = run_example(repo_root, 'localize_folder.py', small_map.path, colmap_folders['queries'])
    assert output.count(' inliers') >= 5


def test_the_example_that_builds_a_map(repo_root, colmap_folders, tmp_path):
    output = run_example(
        repo_root,
        'build_from_folder.py',
        colmap_folders['mapping'],
        tmp_path / 'map',
        colmap_folders['queries'],
    )
    assert '24 images' in output
    assert 'queries: ' in output
    assert d2s_ros.load_map(tmp_path / 'map').manifest.metrics['num_images'] == 24


@pytest.mark.slow
def test_the_example_that_compares_with_matching(repo_root, colmap_folders, tmp_path):
    output = run_example(
        repo_root,
        'evaluate_against_baseline.py',
        colmap_folders['mapping'],
        colmap_folders['queries'],
        tmp_path,
    )
    assert '|' in output


def test_the_example_that_compares_features(repo_root, colmap_folders):
    image = colmap_folders['queries'] / 'images' / '000.png'
    output = run_example(repo_root, 'custom_features.py', image)
    assert output.count('RootSIFT ') == output.count('\nSIFT ') + 1 == output.count('are right') / 2


def test_the_example_with_a_scene_model_of_its_own(repo_root, colmap_folders, tmp_path):
    output = run_example(
        repo_root,
        'custom_scene_model.py',
        colmap_folders['mapping'],
        tmp_path / 'map',
        colmap_folders['queries'],
    )
    assert 'mean descriptors' in output
    # Without training it refuses more than the packaged model does.
    assert output.count(': localized') >= 3
