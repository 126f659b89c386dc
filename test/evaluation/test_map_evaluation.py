"""`d2s evaluate` of a map: the table's numbers, the pictures, the baseline in the same run."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from conftest import FrameList

from d2s_ros.cli.main import main
from d2s_ros.data.frames import Frame
from d2s_ros.errors import InputError
from d2s_ros.evaluation.baseline import MatchingBaseline
from d2s_ros.evaluation.map_evaluation import (
    BASELINE,
    OURS,
    evaluate_map,
    markdown_table,
    write_report,
)
from d2s_ros.evaluation.report import draw_cumulative_errors
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer


@pytest.fixture(scope='module')
def queries(query_frames):
    """Six queries, one broken image, one without a true pose."""
    first = query_frames[0]
    broken = Frame('broken', 5, None, error='cut off', map_from_camera=first.map_from_camera)
    unknown = replace(first, name='unknown', map_from_camera=None)
    return FrameList([*query_frames, broken, unknown])


@pytest.fixture(scope='module')
def evaluation(small_map, queries):
    localizer = Localizer.from_map(small_map.path, device='cpu')
    baseline = MatchingBaseline(small_map.result.reconstruction)
    return evaluate_map(localizer, queries, baseline=baseline, baseline_seconds=12.0, pictures=8)


def test_the_table_says_what_was_measured(evaluation, small_map, queries, tmp_path):
    methods = write_report(evaluation, tmp_path / 'out', title='a map')
    localizer = Localizer.from_map(small_map.path, device='cpu')
    errors = []
    for frame in queries.frames[:6]:
        result = localizer.localize(frame.image, frame.camera)
        if result.localized:
            errors.append(pose_error(result.map_from_camera, frame.map_from_camera))
    ours, baseline = methods[OURS], methods[BASELINE]
    assert ours['num_frames'] == baseline['num_frames'] == 7
    assert ours['num_localized'] == len(errors) >= 3
    assert ours['median_m'] == pytest.approx(np.median([metres for metres, _ in errors]))
    assert ours['median_m'] < 0.02
    assert baseline['median_m'] < 0.02
    within = sum(metres <= 0.05 and degrees <= 5 for metres, degrees in errors)
    assert ours['recalls']['0.05m/5deg'] == pytest.approx(within / 7)
    assert ours['size_mb'] < baseline['size_mb']
    assert ours['build_seconds'] == small_map.result.scene_map.manifest.metrics['seconds']['total']
    assert baseline['build_seconds'] == 12.0
    assert ours['latency_ms']['features']['median'] > 0
    assert evaluation.without_truth == 1
    document = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert document['methods'] == json.loads(json.dumps(methods))
    assert len(document['queries']) == 7
    assert document['queries'][6] == {'name': 'broken', 'map': {'status': 'bad_image'}}
    table = (tmp_path / 'out' / 'table.md').read_text()
    assert table == markdown_table(methods, 'm')
    assert f'| localized | {ours["num_localized"]}/7 | {baseline["num_localized"]}/7 |' in table
    assert '| within 0.05m/5deg |' in table
    page = (tmp_path / 'out' / 'report.html').read_text()
    assert 'median error [m]' in page


def test_the_pictures(evaluation, tmp_path):
    write_report(evaluation, tmp_path, title='a map')
    names = sorted(path.name for path in tmp_path.glob('*.png'))
    # Of the eight queries one is broken and one has no truth.
    assert names == ['errors.png', *(f'reliability_{i}.png' for i in range(1, 7)), 'trajectory.png']
    for name in names:
        picture = cv2.imread(str(tmp_path / name))
        assert picture.shape[1] > 600
        assert picture.std() > 10
    green = (0x41, 0x96, 0x1A)
    curves = cv2.imread(str(tmp_path / 'errors.png'))
    assert (np.abs(curves.astype(int) - green).max(axis=2) < 30).sum() > 300


def test_curves_of_nothing_and_of_one():
    for errors in ([], [(0.01, 0.1)], [(5.0, 90.0), (1e-9, 1e-9)]):
        png = draw_cumulative_errors({'a': (errors, 4)})
        assert cv2.imdecode(np.frombuffer(png, np.uint8), 1) is not None


def test_no_truth_is_an_error(small_map, query_frames):
    localizer = Localizer.from_map(small_map.path, device='cpu')
    frames = FrameList([replace(frame, map_from_camera=None) for frame in query_frames[:2]])
    with pytest.raises(InputError, match='--truth'):
        evaluate_map(localizer, frames)


def test_the_command(small_map, tmp_path, capsys):
    folder, truth = tmp_path / 'queries', tmp_path / 'truth.txt'
    # Seen by the mapping images below, or the baseline would rightly find nothing.
    write_folder(folder, small_map.frames[1:7:2], truth)
    mapping, mapping_poses = tmp_path / 'mapping', tmp_path / 'mapping.txt'
    write_folder(mapping, small_map.frames[:8], mapping_poses)
    command = ['evaluate', str(small_map.path), str(folder), '--quiet', '--truth', str(truth)]
    assert main(command) == 2
    assert '--output' in capsys.readouterr().err
    output = tmp_path / 'out'
    compare = ['--compare', str(mapping), '--mapping-poses', str(mapping_poses)]
    assert main([*command, '--output', str(output), *compare]) == 0
    printed = capsys.readouterr().out
    assert (output / 'table.md').read_text() in printed
    document = json.loads((output / 'report.json').read_text())
    assert document['methods'][OURS]['num_frames'] == 3
    # The baseline is made of the eight images alone, in the same frame.
    assert 0 < document['methods'][BASELINE]['size_mb'] < 6
    assert document['methods'][BASELINE]['build_seconds'] > 0
    errors = [query[BASELINE]['error_m'] for query in document['queries']]
    assert len(errors) == 3
    assert max(errors) < 0.02
    assert (output / 'errors.png').exists()
    assert main(['evaluate', str(truth), str(truth), '--output', str(output)]) == 3


def write_folder(folder, frames, poses):
    """Write images named after their stamps, a calibration, and a TUM file."""
    folder.mkdir()
    (folder / 'calibration.json').write_text(json.dumps(frames[0].camera.to_dict()))
    lines = []
    for frame in frames:
        cv2.imwrite(str(folder / f'{frame.stamp_ns}.png'), frame.image)
        values = ' '.join(f'{value:.9f}' for value in frame.map_from_camera.to_tum())
        stamp = f'{frame.stamp_ns // 10**9}.{frame.stamp_ns % 10**9:09d}'
        lines.append(f'{stamp} {values}\n')
    poses.write_text(''.join(lines))
