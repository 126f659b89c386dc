"""`d2s build-map` of several places: an area is written, and places that fail are named."""

from __future__ import annotations

import json

import pytest

from d2s_ros.cli.main import main
from d2s_ros.maps.area import read_area, verify_area


def test_places_that_can_be_built_become_an_area(building_logs, tmp_path, capsys):
    root = tmp_path / 'tower'
    walks = tmp_path / 'walks'
    (walks / 'attic').mkdir(parents=True)
    (walks / 'ground').symlink_to(building_logs / 'map')
    options = ['--map', str(root), '--budget', 'quick', '--steps', '25', '--max-keypoints', '1024']
    options += ['--quiet', '--device', 'cpu', '--common-frame']
    # An empty folder is no log: the other place is built all the same.
    assert main(['build-map', str(walks), '--each-folder', *options]) == 3
    printed = capsys.readouterr()
    assert 'area of 1 places, frames map' in printed.out
    assert '1 of 2 places could not be built: attic:' in printed.err
    area = read_area(root)
    assert list(area.places) == ['ground']
    assert area.frame_of('ground') == 'map'
    assert verify_area(root) == []
    # Built again, the place has a second version; nothing of the area is lost.
    place = f'ground={building_logs / "map"}'
    assert main(['build-map', '--place', place, *options]) == 0
    assert read_area(root).versions() == {'ground': '0002'}
    assert len(read_area(root).read_index().place_idx) == len(area.read_index().place_idx)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ([], 'give INPUT'),
        (['log', '--common-frame'], 'several places'),
        (['log', '--place', 'a=b'], 'every INPUT'),
        (['--each-folder'], 'needs INPUT'),
        (['--place', 'ground'], 'NAME=INPUT'),
        (['--place', 'a=x', '--place', 'a=y'], 'given twice'),
        (['--place', '../a=x'], 'cannot be named'),
        (['--place', 'a=x', '--each-folder'], 'either'),
        (['--place', 'a=x', '--poses', 'p.txt'], 'one by one'),
        (['--place', 'a=x', '--common-frame', '--ignore-poses'], 'needs the poses'),
        (['--place', 'a=x', '--images-per-place', '9'], 'splits one INPUT'),
        (['log', '--next-images', '0'], 'at least 1'),
        (['log', '--processes', '2'], 'builds with --images-per-place'),
        (['log', '--cluster', 'auto'], 'builds with --images-per-place'),
        (['log', '--images-per-place', '9', '--processes', '0'], 'at least 1'),
        (['log', '--images-per-place', '9', '--processes', '2', '--cluster', 'auto'], 'either'),
        (['log', '--images-per-place', '9', '--head', 'regression'], 'maps of landmarks'),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(tmp_path, capsys, arguments, words):
    assert main(['build-map', *arguments, '--map', str(tmp_path / 'area')]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / 'area').exists()


def test_nothing_that_can_be_built_is_no_area(tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    target = tmp_path / 'area'
    code = main(['build-map', '--place', f'a={tmp_path / "empty"}', '--map', str(target)])
    assert code == 3
    assert 'no place could be built' in capsys.readouterr().err
    assert main(['build-map', str(tmp_path), '--each-folder', '--map', str(target / 'x')]) == 3


@pytest.mark.slow
def test_a_log_is_split_by_processes_of_this_machine(building_logs, tmp_path, capsys):
    root = tmp_path / 'parts'
    options = ['--budget', 'quick', '--steps', '25', '--max-keypoints', '1024', '--quiet']
    options += ['--images-per-place', '8', '--processes', '2', '--device', 'cpu']
    assert main(['build-map', str(building_logs / 'map'), '--map', str(root), *options]) == 0
    printed = capsys.readouterr().out
    assert 'area of 2 places in the frame map' in printed
    assert verify_area(root) == []
    report = tmp_path / 'report.json'
    asked = ['localize', str(root), str(building_logs / 'map'), '--report', str(report)]
    assert main([*asked, '--device', 'cpu', '--quiet']) == 0
    frames = json.loads(report.read_text())['frames']
    assert {frame['place'] for frame in frames} - {None} == {'p000', 'p001'}
