"""What `d2s map strip` deletes, what it says is left, and what it must not touch."""

from __future__ import annotations

import fcntl
import os
import stat
from dataclasses import replace

import pytest
from maps.test_scene_map import UPDATE, make_map

from d2s_ros.cli.main import main
from d2s_ros.errors import MapFormatError, UsageError
from d2s_ros.map_building.stages import BuildStages
from d2s_ros.map_update.ledger import UpdateLedger
from d2s_ros.maps.files import LOCALIZATION_FILE, UPDATE_FILE
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.verification import verify

ESSENTIAL = {
    '.lock',
    'current',
    *(f'versions/0001/{n}' for n in ('manifest.json', LOCALIZATION_FILE)),
}


@pytest.fixture
def store(tmp_path):
    """Return a map with all that updates and an interrupted build leave."""
    store = MapStore(tmp_path / 'map')
    scene_map = make_map()
    metrics = {'update': {'logs': ['monday']}}
    store.write(replace(scene_map, manifest=replace(scene_map.manifest, metrics=metrics)), UPDATE)
    for name in ('jobs/update-1.html', 'work/run-1/log-000.log', 'ledger.json', 'lock'):
        path = store.root / '.updates' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('x')
    for name in ('.new-123', '.old-0007'):
        (store.root / 'versions' / name).mkdir()
        (store.root / 'versions' / name / UPDATE_FILE).write_text('x')
    building = tmp_path / 'map.building'
    building.mkdir()
    for name in ('features.log', '.lock'):
        (building / name).write_text('x')
    return store


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}


def test_only_what_localization_needs_is_left(store):
    left = store.strip()
    assert files_below(store.root) == ESSENTIAL
    assert not store.root.with_name('map.building').exists()
    assert any('descriptors of landmarks' in line for line in left)
    assert any('names of logs' in line and '0001' in line for line in left)
    assert verify(store.root) == []
    assert len(SceneMap.open(store.root).model.points_in_map)


def test_the_command_says_what_is_left(store, capsys):
    assert main(['map', 'strip', str(store.root)]) == 0
    printed = capsys.readouterr().out
    assert 'left in the map: points and descriptors of landmarks' in printed


def test_one_version_alone(store):
    store.write(make_map(2), UPDATE)
    left = store.strip(version='0001')
    assert not (store.root / 'versions' / '0001' / UPDATE_FILE).exists()
    assert (store.root / 'versions' / '0002' / UPDATE_FILE).exists()
    assert (store.root / '.updates' / 'ledger.json').exists()
    assert 'update data of versions 0002' in left
    assert any('paths of logs' in line for line in left)


def test_no_link_is_followed(store, tmp_path):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    for name in ('a', 'b'):
        (elsewhere / name).mkdir()
        (elsewhere / name / UPDATE_FILE).write_text('precious')
    # A version, and what would be deleted with its contents.
    (store.root / 'versions' / '0002').symlink_to(elsewhere / 'a')
    with pytest.raises(MapFormatError, match='is a link'):
        store.strip()
    (store.root / 'versions' / '0002').unlink()
    for path in (store.root / '.updates' / 'jobs', tmp_path / 'map.building'):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
        path.symlink_to(elsewhere / 'b')
    store.strip()
    assert files_below(elsewhere) == {f'a/{UPDATE_FILE}', f'b/{UPDATE_FILE}'}
    assert not os.path.lexists(tmp_path / 'map.building')
    assert not os.path.lexists(store.root / '.updates')


def test_links_in_place_of_the_folders(store, tmp_path):
    store.strip()
    elsewhere = tmp_path / 'elsewhere'
    (store.root / 'versions').rename(elsewhere)
    (store.root / 'versions').symlink_to(elsewhere)
    (elsewhere / '0001' / UPDATE_FILE).write_text('precious')
    with pytest.raises(MapFormatError, match='is a link'):
        store.strip()
    assert (elsewhere / '0001' / UPDATE_FILE).exists()


def test_nothing_is_stripped_while_others_are_at_work(store, tmp_path):
    before = files_below(tmp_path)
    with UpdateLedger(store.root).locked(), pytest.raises(UsageError, match='an update of'):
        store.strip()
    with BuildStages(store.root, {}), pytest.raises(UsageError, match='a build of'):
        store.strip()
    assert files_below(store.root) == {
        name.removeprefix('map/') for name in before if name.startswith('map/')
    }
    store.strip()
    assert files_below(store.root) == ESSENTIAL
    # The locks that were asked for are free again.
    with open(store.root / '.lock') as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(('mask', 'folder', 'file'), [(0o077, 0o700, 0o600), (0o027, 0o750, 0o640)])
def test_the_umask_is_kept(tmp_path, mask, folder, file):
    before = os.umask(mask)
    try:
        store = MapStore(tmp_path / 'map')
        store.write(make_map(1), UPDATE)
        store.write(make_map(2), UPDATE)
    finally:
        os.umask(before)
    for path in (store.root, *store.root.rglob('*')):
        expected = folder if path.is_dir() else file
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_home_folders(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    MapStore('~/maps/here').write(make_map())
    assert (tmp_path / 'maps' / 'here' / 'current').exists()
    assert SceneMap.open('~/maps/here').manifest.version == '0001'
    assert verify('~/maps/here') == []
    assert main(['map', 'info', '~/maps/here']) == 0
