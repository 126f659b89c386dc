"""Killed, cancelled, rolled back, without disk, at moments over all steps: no map is ever lost."""

from __future__ import annotations

import shutil

import pytest
from map_update import moments

from d2s_ros.map_update.ledger import UpdateLedger
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.verification import verify

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

#: How many moments of each kind; those of updates, then those of builds.
UPDATES = {'kill': 10, 'cancel': 6, 'full disk': 6}
BUILDS = {'kill': 8, 'cancel': 5, 'full disk': 5}
STEPS = ('frames', 'labels', 'growth', 'training', 'gate', 'writing')


@pytest.fixture(scope='module')
def before(day_map, tmp_path_factory):
    """Return a map of two versions, so that it can be rolled back."""
    root = tmp_path_factory.mktemp('before') / 'map'
    shutil.copytree(day_map, root)
    scene_map = SceneMap.open(root)
    MapStore(root).write(scene_map, scene_map.load_update_data())
    return root


@pytest.fixture(scope='module')
def undisturbed(before, building_logs, tmp_path_factory):
    """Return what an update does that nothing happens to."""
    folder = tmp_path_factory.mktemp('undisturbed')
    shutil.copytree(before, folder / 'map')
    log = building_logs / 'dusk'
    outcome = moments.run(moments.update, folder, 0, 'kill', folder / 'map', log)
    assert outcome.exit_code == 0
    assert outcome.ended.startswith(('promoted', 'refused'))
    return outcome


def spread(count, total):
    """Return `count` moments of `total`, from the first to the last."""
    return sorted({1 + round(index * (total - 1) / (count - 1)) for index in range(count)})


def is_whole(map_path, contents):
    """Check that a map opens and is not damaged, and that its versions are as before."""
    assert verify(map_path) == []
    scene_map = SceneMap.open(map_path)
    scene_map.load_update_data()
    for name, data in contents.items():
        assert (map_path / name).read_bytes() == data
    return scene_map.manifest.version


def contents_of(map_path):
    return {
        file.relative_to(map_path): file.read_bytes()
        for file in map_path.glob('versions/*/*')
        if file.is_file()
    }


@pytest.mark.parametrize('event', UPDATES)
def test_updates(undisturbed, before, building_logs, tmp_path, event):
    log, contents = building_logs / 'dusk', contents_of(before)
    happened = []
    for at in spread(UPDATES[event], len(undisturbed.moments)):
        folder = tmp_path / str(at)
        map_path = shutil.copytree(before, folder / 'map')
        outcome = moments.run(moments.update, folder, at, event, map_path, log)
        happened.append(undisturbed.moments[at - 1])
        told = f'{event} at {at} ({happened[-1]}): {outcome}'
        live = is_whole(map_path, contents)
        assert live in ('0002', '0003'), told
        assert not UpdateLedger(map_path).running(), told
        if event == 'kill':
            assert outcome.exit_code == -9, told
        elif event == 'cancel':
            assert outcome.ended == 'cancelled', told
        else:
            # It ends with the reason, or does without what could not be kept and says so.
            assert outcome.exit_code == 0, told
            large = 'File too large' in outcome.ended or any('large' in s for s in outcome.said)
            assert large or outcome.ended == undisturbed.ended, told
        if live == '0002':
            # It goes on, and does what it would have done.
            after = moments.run(moments.update, folder, 0, event, map_path, log)
            assert after.ended == undisturbed.ended, told
            live = is_whole(map_path, contents)
        leftovers = [path.name for path in map_path.rglob('.*') if path.name.startswith('.new')]
        assert leftovers == [], told
        shutil.rmtree(folder)
    assert len(happened) == UPDATES[event]


def test_rollbacks_at_each_step(undisturbed, before, building_logs, tmp_path):
    """What somebody decided while the update ran stays so."""
    contents = contents_of(before)
    for at, step in enumerate(STEPS, start=1):
        folder = tmp_path / step
        map_path = shutil.copytree(before, folder / 'map')
        log = building_logs / 'dusk'
        outcome = moments.run(moments.update, folder, at, 'rollback', map_path, log)
        assert outcome.moments[at - 1] == f'step {step}'
        assert is_whole(map_path, contents) == '0001'
        assert outcome.ended.startswith('refused: version 0001 was made live while'), outcome


@pytest.mark.parametrize('event', BUILDS)
def test_builds(building_logs, tmp_path, event):
    log, folder = building_logs / 'map', tmp_path / 'straight'
    folder.mkdir()
    straight = moments.run(moments.build, folder, 0, event, folder / 'map', log)
    assert straight.ended == '0001', straight
    expected = contents_of(folder / 'map')
    data = {name: expected[name] for name in expected if name.suffix == '.safetensors'}
    for at in spread(BUILDS[event], len(straight.moments)):
        folder = tmp_path / str(at)
        folder.mkdir()
        outcome = moments.run(moments.build, folder, at, event, folder / 'map', log)
        told = f'{event} at {at} ({straight.moments[at - 1]}): {outcome}'
        if event == 'kill':
            assert outcome.exit_code == -9, told
        elif event == 'cancel':
            assert outcome.ended == 'cancelled', told
        else:
            assert outcome.exit_code == 0, told
            large = 'File too large' in outcome.ended or any('large' in s for s in outcome.said)
            assert large or outcome.ended == '0001', told
        if MapStore(folder / 'map').current() is not None:
            is_whole(folder / 'map', data)
        else:
            # The same command goes on, to the same bytes.
            after = moments.run(moments.build, folder, 0, event, folder / 'map', log)
            assert after.ended == '0001', f'{told}, then {after}'
            is_whole(folder / 'map', data)
            assert not (folder / 'map.building').exists(), told
        shutil.rmtree(folder)
