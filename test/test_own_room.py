"""The tutorial of one's own room, command by command, on a walk through a real office.

Without calibration and poses, as a folder and as a video of the same pictures.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import cv2
import pytest
from data.video_writing import write_video
from evaluation.test_view_page import CHROMIUM

from d2s_ros.cli.main import main
from d2s_ros.maps.scene_map import SceneMap

ROOT = Path(__file__).resolve().parent.parent
#: Of the walk's 237 pictures; of five one is asked, as in benchmarks/own_room.py.
PICTURES, EVERY, LEFT_OUT = 100, 5, 2


def commands():
    """Return the command lines of the tutorial's first block."""
    text = (ROOT / 'docs' / 'tutorials' / 'own_room.md').read_text()
    block = re.search(r'^```\n(d2s build-map room\.mp4.*?)^```', text, re.DOTALL | re.MULTILINE)
    lines = block.group(1).splitlines()
    assert len(lines) == 5
    return lines


def write_pictures(paths, target):
    """Write pictures as what the name says: a video, or a folder."""
    if target.suffix == '.mp4':
        write_video(target, [cv2.imread(str(path)) for path in paths])
        return
    target.mkdir()
    for path in paths:
        (target / path.name).symlink_to(path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('ending', ['', '.mp4'])
def test_the_commands_of_the_tutorial(ending, shared_data, tmp_path, monkeypatch, capsys):
    pictures = sorted((shared_data / 'walk_loop' / 'images').iterdir())[:PICTURES]
    asked = pictures[LEFT_OUT::EVERY]
    write_pictures([path for path in pictures if path not in asked], tmp_path / f'room_in{ending}')
    write_pictures(asked, tmp_path / f'second{ending}')
    monkeypatch.chdir(tmp_path)
    for line in commands():
        words = shlex.split(line.replace('room.mp4', f'room_in{ending}'))
        words = [word.replace('second.mp4', f'second{ending}') for word in words]
        assert words[0] == 'd2s'
        if words[1] == 'build-map':
            words += ['--budget', 'quick']
        assert main(words[1:]) == 0, line
    said = capsys.readouterr().out
    assert 'nothing told the scale of this map' in said
    report = json.loads((tmp_path / 'report.json').read_text())
    localized = sum(frame['status'] == 'localized' for frame in report['frames'])
    assert len(report['frames']) == len(asked)
    camera = SceneMap.open(tmp_path / 'room').manifest.cameras[0]
    record = json.loads((ROOT / 'benchmarks' / 'results' / 'own_room.json').read_text())
    of_all = record['figures']['focal_of_all_px']
    with capsys.disabled():
        print(f'\n{ending or "folder"}: {localized} of {len(asked)}, {camera.fx:.1f} px')
    assert localized >= 0.95 * len(asked)
    assert camera.fx == pytest.approx(of_all, rel=0.03)
    assert cv2.imread('plan.png').shape[0] > 400
    if CHROMIUM is None:
        pytest.skip('chromium is not installed: the page was not opened')
    profile, page = tmp_path / 'profile', tmp_path / 'room.html'
    browser = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom']
    document = subprocess.run(
        [*browser, f'--user-data-dir={profile}', f'file://{page}'],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    count = len(SceneMap.open('room').model.points_in_map)
    assert f'data-ready="{count} landmarks' in document
    assert f'{localized} frames localized' in document
