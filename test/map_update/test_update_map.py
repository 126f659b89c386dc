"""Whole updates of a small simulated building: promoted, refused, nothing usable, interrupted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from d2s_ros.cli.main import main
from d2s_ros.errors import InputError, MapFormatError
from d2s_ros.map_update.config import (
    LABEL_LIMITS,
    GateConfig,
    KeyframeConfig,
    LabelConfig,
    UpdateConfig,
)
from d2s_ros.map_update.ledger import UpdateLedger, UpdateRunningError
from d2s_ros.map_update.pipeline import update_map
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.verification import verify
from d2s_ros.scene_models.landmark.model import LandmarkModel

CONFIG = UpdateConfig(
    keyframes=KeyframeConfig(min_keypoints=100),
    labels=LabelConfig(limits=replace(LABEL_LIMITS, min_inliers=20)),
    gate=GateConfig(min_new_frames=1),
    steps=15,
    min_free_megabytes=1,
)

UTM = (500_123.0, 4_600_321.0, 112.0)


def everything(path):
    """Return the bytes of what localization reads."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob('*'))
        if file.is_file() and '.updates' not in file.parts and file.name != '.lock'
    }


def test_a_log_at_dusk_makes_a_candidate_that_the_gate_judges(logs, map_path):
    # The map lies far from zero: nothing but what the update returns knows of it.
    scene_map = SceneMap.open(map_path)
    manifest = replace(scene_map.manifest, origin=UTM)
    MapStore(map_path).write(replace(scene_map, manifest=manifest), scene_map.load_update_data())
    statuses = []
    result = update_map(map_path, [logs / 'dusk'], CONFIG, device='cpu', progress=statuses.append)
    assert result.verdict in ('promoted', 'refused')
    assert result.figures['used'] >= 2
    assert result.decision.metrics['new']['with_reference'] >= 1
    assert result.decision.metrics['old']['frames'] == 14
    store = MapStore(map_path)
    assert store.versions() == ['0001', '0002', '0003']
    assert store.current() == ('0003' if result.verdict == 'promoted' else '0002')
    assert verify(map_path) == []
    candidate = SceneMap.open(map_path / 'versions' / '0003')
    assert candidate.manifest.origin == UTM
    assert np.median(np.abs(candidate.model.points_in_map)) < 100
    assert np.abs(result.old_poses[:, :3] - UTM).max() < 100
    assert candidate.manifest.metrics['update']['reasons'] == list(result.reasons)
    assert len(json.loads(bytes(candidate.load_update_data()['names']))) > 14
    # What changed in the place, in coordinates of the map, and a picture of it beside the version.
    assert result.picture == map_path / 'versions' / '0003' / 'changes.png'
    assert result.picture.read_bytes().startswith(b'\x89PNG')
    changed = candidate.manifest.metrics['update']['changes']
    assert changed == result.changes.to_report()
    assert changed['known'] == len(result.changes.known) > 100
    assert np.abs(np.median(result.changes.known, axis=0) - UTM).max() < 100
    assert [status['percent'] for status in statuses] == sorted(s['percent'] for s in statuses)
    assert statuses[-1]['verdict'] == result.verdict
    ledger = UpdateLedger(map_path)
    assert ledger.unused([logs / 'dusk', logs / 'other']) == [logs / 'other']
    assert not (map_path / '.updates' / 'work').exists() or not any(
        (map_path / '.updates' / 'work').iterdir()
    )
    # Poses of the verified frames are near the truth, which the updater never saw.
    truth = np.loadtxt(logs / 'dusk' / 'groundtruth_tum.txt')
    errors = [
        np.linalg.norm(
            frame.map_from_camera.translation
            - truth[np.argmin(abs(truth[:, 0] - frame.keyframe.stamp_ns / 1e9)), 1:4]
            - UTM
        )
        for frame in result.frames
        if frame.map_from_camera is not None
    ]
    assert np.median(errors) < 0.05
    assert max(errors) < 0.15


def test_where_training_would_lose_frames_a_candidate_only_adds(logs, map_path):
    ruinous = replace(CONFIG, learning_rate=3.0)
    result = update_map(map_path, [logs / 'dusk'], ruinous, suggest=True, device='cpu')
    # What is only suggested waits for somebody to make it live.
    assert result.verdict == 'suggested'
    store = MapStore(map_path)
    assert (store.current(), store.suggested()) == ('0001', '0002')
    store.promote(store.suggested())
    assert store.current() == '0002'
    with pytest.raises(MapFormatError, match='waits to be promoted'):
        store.suggested()
    assert 'only adds; with training: recall on the old map falls' in result.reasons[-1]
    before, after = (SceneMap.open(map_path / 'versions' / name).model for name in ('0001', '0002'))
    assert isinstance(before, LandmarkModel)
    assert isinstance(after, LandmarkModel)
    kept = {point.tobytes() for point in before.table.points_in_map}
    added = {point.tobytes() for point in after.table.points_in_map}
    assert kept < added
    states = (model.network.state_dict() for model in (before, after))
    assert all((a == b).all() for a, b in zip(*(state.values() for state in states), strict=True))


def test_another_building_leaves_the_map_as_it_is(logs, map_path, tmp_path, capsys):
    before = everything(map_path)
    report = tmp_path / 'report.html'
    status = tmp_path / 'status.json'
    command = ['update-map', str(map_path), str(logs / 'other'), '--quiet', '--device', 'cpu']
    code = main([*command, '--report', str(report), '--status-file', str(status)])
    assert code == 4
    assert everything(map_path) == before
    assert 'dropped' in capsys.readouterr().out
    assert 'labels' in report.read_text()
    assert json.loads(status.read_text())['verdict'] == 'nothing_usable'


def test_a_log_cut_in_half_gives_what_is_left_of_it(logs, map_path, tmp_path):
    cut = shutil.copytree(logs / 'dusk', tmp_path / 'cut')
    (file,) = cut.glob('*.db3')
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    (cut / 'metadata.yaml').unlink()
    before = everything(map_path)
    result = update_map(map_path, [cut, logs / 'dusk'], CONFIG, dry_run=True, device='cpu')
    assert result.verdict == 'dry_run'
    of_cut = [record for record in result.records if record.log == 'cut']
    assert 1 <= len(of_cut) < 8
    assert all(record.reason for record in of_cut if record.outcome == 'dropped')
    assert everything(map_path) == before


def test_an_interrupted_update_goes_on_and_gives_the_same(logs, map_path, tmp_path):
    class PulledPlugError(Exception):
        pass

    def interrupt(status):
        if status['step'] == 'training':
            raise PulledPlugError

    before = everything(map_path)
    with pytest.raises(PulledPlugError):
        update_map(map_path, [logs / 'dusk'], CONFIG, device='cpu', progress=interrupt)
    assert everything(map_path) == before
    assert list((map_path / '.updates' / 'work').glob('run-*/log-000.log'))
    other = shutil.copytree(map_path, tmp_path / 'fresh', ignore=shutil.ignore_patterns('work'))
    resumed = update_map(map_path, [logs / 'dusk'], CONFIG, device='cpu')
    straight = update_map(other, [logs / 'dusk'], CONFIG, device='cpu')
    assert resumed.verdict == straight.verdict
    assert resumed.decision.metrics == straight.decision.metrics


def test_updates_are_refused_with_a_reason(logs, map_path, tmp_path):
    with pytest.raises(MapFormatError, match='no map'):
        update_map(tmp_path / 'nothing', [logs / 'dusk'], CONFIG)
    with pytest.raises(InputError, match='no log'):
        update_map(map_path, [], CONFIG)
    with pytest.raises(InputError, match='MB'):
        update_map(map_path, [logs / 'dusk'], replace(CONFIG, min_free_megabytes=10**9))
    with UpdateLedger(map_path).locked(), pytest.raises(UpdateRunningError, match='running'):
        update_map(map_path, [logs / 'dusk'], CONFIG)
    MapStore(map_path).strip()
    with pytest.raises(MapFormatError, match='update data'):
        update_map(map_path, [logs / 'dusk'], CONFIG)


def test_what_a_log_grows_by_during_an_update_is_new(logs, map_path, tmp_path):
    growing = shutil.copytree(logs / 'dusk', tmp_path / 'growing')

    def grow(status):
        if status['step'] == 'labels':
            (growing / 'more.txt').write_text('written after the frames were read')

    update_map(map_path, [growing], CONFIG, device='cpu', progress=grow)
    assert UpdateLedger(map_path).unused([growing]) == [growing]
    (growing / 'more.txt').unlink()
    assert UpdateLedger(map_path).unused([growing]) == []


def test_pruning_spares_the_live_version_and_its_parent(map_path):
    store = MapStore(map_path)
    scene_map = SceneMap.open(map_path)
    for promote in (False, False, True, False):
        store.write(scene_map, promote=promote)
    assert store.versions() == ['0001', '0002', '0003', '0004', '0005']
    assert store.prune(keep=1, max_bytes=10**12) == ['0002', '0003']
    assert store.prune(keep=5, max_bytes=0) == ['0005']
    assert store.versions() == ['0001', '0004']
    assert store.rollback() == '0001'
    assert verify(map_path) == []
