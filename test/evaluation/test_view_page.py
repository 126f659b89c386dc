"""The page of `d2s view`: complete without a network, and right in a real browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import threading
import urllib.request
from dataclasses import replace

import cv2
import numpy as np
import pytest
from maps.test_scene_map import make_map

from d2s_ros.cli import view
from d2s_ros.cli.main import main
from d2s_ros.errors import InputError
from d2s_ros.evaluation.keypoint_marks import marks_of
from d2s_ros.evaluation.view_page import view_page
from d2s_ros.localization.result import FrameDetails
from d2s_ros.maps.rescaling import find_place
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.update_data import MappingData, collect_update_data
from d2s_ros.scene_models.landmark.model import LandmarkModel

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason='chromium is not installed')
REPORT = {
    'frames': [
        {
            'name': 'a</script>b',
            'status': 'localized',
            'map_from_camera': [2.0, 2.0, 2.0, 0, 0, 0, 1],
            'num_inliers': 80,
            'num_reliable': 120,
            'num_keypoints': 900,
        },
        {'name': 'second', 'status': 'too_few_inliers', 'reason': '3 inliers', 'num_inliers': 3},
    ]
}


@pytest.fixture
def cube():
    """Return a map whose landmarks fill a cube."""
    scene_map = make_map(count=3000)
    table = scene_map.model.table
    points = np.random.default_rng(0).uniform(0, 4, (3000, 3)).astype(np.float32)
    model = LandmarkModel(replace(table, points_in_map=points), scene_map.model.stored)
    return replace(scene_map, model=model)


def test_it_holds_everything(cube):
    page = view_page(cube, {'walk': REPORT})
    assert not re.search(r'(src|href)\s*=|https?://', page)
    data = json.loads(re.search(r'application/json">(.*?)</script>', page).group(1))
    assert [frame['kind'] for frame in data['frames']] == ['localized', 'refused']
    assert data['frames'][0]['position'] == [2.0, 2.0, 2.0]
    assert 'position' not in data['frames'][1]
    assert data['counts'] == '3000 landmarks, 0 mapping images, 1 frames localized, 1 refused'
    assert 'arbitrary' in data['unit']
    assert data['sessions'] == ['walk']
    # What to do comes with a refusal.
    assert data['frames'][1]['advice'].startswith('Record this view and update')
    assert 'advice' not in data['frames'][0]
    with pytest.raises(InputError, match='has no frames'):
        view_page(cube, {'walk': {'summary': {}}})


def test_sessions_and_what_an_update_changed(cube, tmp_path, capsys):
    """Each report is a session; landmarks that an update added or took away are told apart."""
    table = cube.model.table
    points = table.points_in_map.copy()
    points[:500, 0] += 9.0
    later = replace(cube, model=LandmarkModel(replace(table, points_in_map=points), None))
    page = view_page(later, {'morning': REPORT, 'evening': REPORT}, before=cube)
    data = json.loads(re.search(r'application/json">(.*?)</script>', page).group(1))
    assert data['sessions'] == ['morning', 'evening']
    assert [frame['session'] for frame in data['frames']] == [0, 0, 1, 1]
    new = np.frombuffer(base64.b64decode(data['new']), np.uint8)
    assert new[:500].all()
    assert not new[500:].any()
    gone = np.frombuffer(base64.b64decode(data['gone']), '<f4').reshape(-1, 3)
    assert 450 <= len(gone) <= 500
    store = MapStore(tmp_path / 'map')
    store.write(cube)
    arguments = ['view', str(tmp_path / 'map'), '--html', str(tmp_path / 'a.html')]
    assert main([*arguments, '--before', '7']) == 2
    assert 'has no version 7; it has 0001' in capsys.readouterr().err
    assert main([*arguments, '--before', '1']) == 0
    for name in ('morning', 'evening'):
        (tmp_path / f'{name}.json').write_text(json.dumps(REPORT))
    reports = [str(tmp_path / f'{name}.json') for name in ('morning', 'evening')]
    assert main([*arguments[:2], *reports, *arguments[2:]]) == 0
    assert '"sessions": ["morning", "evening"]' in (tmp_path / 'a.html').read_text()
    assert main([*arguments[:2], reports[0], reports[0], *arguments[2:]]) == 2
    assert main([*arguments, '--live']) == 2
    assert main([*arguments, '--namespace', '/a']) == 2


def test_mapping_images_have_their_keypoints(small_map):
    page = view_page(SceneMap.open(small_map.path))
    data = json.loads(re.search(r'application/json">(.*?)</script>', page).group(1))
    assert len(data['frames']) == len(data['path']) == len(small_map.frames)
    assert data['frames'][0]['keypoints']
    np.testing.assert_allclose(
        data['path'][0], small_map.frames[0].map_from_camera.translation, atol=1e-4
    )


def browser(tmp_path, *arguments):
    """Run a headless browser; return what it prints."""
    profile = f'--user-data-dir={tmp_path / "profile"}'
    options = ['--headless', '--no-sandbox', '--disable-gpu', '--window-size=1000,700', profile]
    return subprocess.run(
        [CHROMIUM, *options, *arguments], check=True, capture_output=True, text=True, timeout=120
    ).stdout


def colours_of(tmp_path, url):
    """Return how many pixels of the scene have which colour, in steps of 32: (r, g, b)."""
    picture = tmp_path / 'shot.png'
    browser(tmp_path, f'--screenshot={picture}', url)
    scene = cv2.imread(str(picture))[:, :620, ::-1] // 32
    kinds, counts = np.unique(scene.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(kind.tolist()): int(count) for kind, count in zip(kinds, counts, strict=True)}


@needs_browser
def test_a_browser_shows_keypoints_colours_and_what_an_update_changed(small_map, tmp_path):
    """Inliers apart from reliable keypoints, landmarks as the images saw them, new and gone."""
    scene_map = SceneMap.open(small_map.path)
    data = MappingData.from_map(scene_map)
    reconstruction = data.reconstruction()
    colours = np.tile(np.array([[250, 10, 250]], np.uint8), (len(data.points_in_map), 1))
    tensors = collect_update_data(
        reconstruction, max_keypoints=64, max_megabytes=1.0, colours=colours
    )
    store = MapStore(tmp_path / 'map')
    first = store.write(replace(scene_map, path=None), tensors)
    details = FrameDetails(
        keypoints=np.array([[5, 5], [20, 20], [30, 30], [40, 40]], np.float32),
        reliability=np.ones(4, np.float32),
        reliable=np.array([False, True, True, True]),
        inlier=np.array([False, False, True, True]),
        points_in_map=np.zeros((4, 3)),
    )
    entry = {**REPORT['frames'][1], **marks_of(details, 64, 48)}
    page = tmp_path / 'page.html'
    page.write_text(view_page(first, {'walk': {'frames': [entry]}}))
    number = len(data.images)
    document = browser(tmp_path, '--dump-dom', f'file://{page}#frame={number}')
    legend = re.search(r'id="legend">(.*?)</p>', document).group(1)
    assert re.findall(r'>([a-z ,]+: \d+) <', legend) == [
        'inliers: 2', 'reliable, not agreeing: 1',
    ]  # fmt: skip
    assert 'What to do: Record this view and update.' in document
    assert 'Points have the colours of the images.' in document
    document = browser(tmp_path, '--dump-dom', f'file://{page}#points=3,9')
    told = re.search(r"--points '(\[.*?\])' '(\[.*?\])' --metres METRES", document)
    for text, number in zip(told.groups(), (3, 9), strict=True):
        place = find_place(first, text)
        np.testing.assert_allclose(place, find_place(first, str(number)), atol=1e-3)
    document = browser(tmp_path, '--dump-dom', f'file://{page}#frame=0')
    assert re.search(r'with a point: [1-9]\d* <', document)
    pixels = colours_of(tmp_path, f'file://{page}')
    assert pixels.get((7, 0, 7), 0) > 200
    model = first.model
    assert isinstance(model, LandmarkModel)
    points = model.points_in_map.copy()
    points[:30, 2] += 9.0
    moved = LandmarkModel(replace(model.table, points_in_map=points), model.stored)
    later = store.write(replace(first, model=moved, path=None), None)
    page.write_text(view_page(later, before=first))
    document = browser(tmp_path, '--dump-dom', f'file://{page}')
    found = re.search(r'new are orange \((\d+)\), those that are gone magenta \((\d+)', document)
    assert 25 <= int(found.group(1)) <= 30
    assert 10 <= int(found.group(2)) <= 30
    pixels = colours_of(tmp_path, f'file://{page}')
    assert pixels.get((7, 0, 7), 0) < 20
    assert pixels.get((7, 3, 0), 0) > 10
    assert pixels.get((6, 1, 5), 0) > 10


@needs_browser
def test_a_browser_draws_it(cube, tmp_path):
    """Landmarks, a chosen frame and a scale bar are there: by colours, not by single pixels."""
    MapStore(tmp_path / 'map').write(cube)
    # More than the 100 that a slider has by itself: all are shown at first.
    more = [{'name': str(number), 'status': 'no_pose'} for number in range(120)]
    report = {'frames': REPORT['frames'] + more}
    (tmp_path / 'report.json').write_text(json.dumps(report))
    page = tmp_path / 'page.html'
    arguments = ['view', str(tmp_path / 'map'), str(tmp_path / 'report.json')]
    assert main([*arguments, '--html', str(page)]) == 0
    url = f'file://{page}#frame=0'
    picture = tmp_path / 'shot.png'
    browser(tmp_path, f'--screenshot={picture}', url)
    image = cv2.imread(str(picture)).astype(int)
    scene = image[:, :620]
    coloured = (scene.max(axis=2) - scene.min(axis=2) > 60).mean()
    assert 0.005 < coloured < 0.6
    green = (scene[..., 1] > scene[..., 2] + 80) & (scene[..., 1] > scene[..., 0] + 60)
    assert green.sum() > 30
    document = browser(tmp_path, '--dump-dom', url)
    assert 'data-ready="3000 landmarks, 122 frames"' in document
    assert 'a&lt;/script&gt;b: localized. 80 inliers of 120' in document
    refused = browser(tmp_path, '--dump-dom', url.replace('=0', '=1'))
    assert 'What to do: Record this view and update.' in refused


def test_it_is_served_to_this_computer(cube, tmp_path, monkeypatch, capsys):
    """The page comes from 127.0.0.1, and Ctrl-C ends the command."""
    from http.server import HTTPServer

    MapStore(tmp_path / 'map').write(cube)
    addresses, done = [], threading.Event()

    def serve(server):
        addresses.append(server.server_address)
        server.handle_request()
        done.set()

    monkeypatch.setattr(HTTPServer, 'serve_forever', serve)
    thread = threading.Thread(target=main, args=(['view', str(tmp_path / 'map'), '--port', '0'],))
    thread.start()
    while not addresses:
        assert thread.is_alive()
    host, port = addresses[0]
    assert host == '127.0.0.1'
    with urllib.request.urlopen(f'http://{host}:{port}', timeout=30) as answer:
        assert b'3000 landmarks' in answer.read()
    assert done.wait(30)
    thread.join(30)
    assert view.__doc__


def test_a_damaged_report_is_told(cube, tmp_path, capsys):
    MapStore(tmp_path / 'map').write(cube)
    (tmp_path / 'report.json').write_text('{')
    assert main(['view', str(tmp_path / 'map'), str(tmp_path / 'report.json')]) == 3
    assert 'cannot be read as a report' in capsys.readouterr().err
