"""Map folders: what is written comes back, damage is refused, nothing is left half done."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d2s_ros.config import to_dict
from d2s_ros.errors import MapFormatError
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.localizer import Localizer
from d2s_ros.maps import manifest as manifest_module
from d2s_ros.maps import store as store_module
from d2s_ros.maps.files import LOCALIZATION_FILE, UPDATE_FILE
from d2s_ros.maps.manifest import Calibration, MapManifest, manifest_document
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.update_data import dequantise, quantise
from d2s_ros.maps.verification import verify
from d2s_ros.scene_models.landmark.config import LandmarkConfig
from d2s_ros.scene_models.landmark.model import LandmarkModel
from d2s_ros.scene_models.landmark.network import LandmarkNetwork
from d2s_ros.scene_models.landmark.stored_network import StoredNetwork
from d2s_ros.scene_models.landmark.table import LandmarkTable

ROOT = Path(__file__).resolve().parents[2]


def make_map(seed=0, count=40):
    rng = np.random.default_rng(seed)
    keys = rng.normal(size=(count, 16)).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    covariances = np.eye(3, dtype=np.float32) * rng.uniform(0.1, 1, (count, 1, 1))
    table = LandmarkTable(
        keys,
        rng.normal(size=(count, 3)).astype(np.float32),
        covariances.astype(np.float32),
        np.array([1, 2, 3], np.float32),
        2.5,
    )
    config = LandmarkConfig(descriptor_dim=16, num_landmarks=count, width=16, num_layers=1)
    torch.manual_seed(seed)
    manifest = MapManifest(
        FeatureConfig(max_keypoints=500),
        'some-hash',
        'landmark',
        to_dict(config),
        (Camera('plumb_bob', 640, 480, 500.0, 501.0, 320.0, 240.0, (0.1, 0.0, 0.0, 0.0, 0.0)),),
        calibration=Calibration(0.4, 1.5, 0.3),
        metric=False,
        metrics={'holdout_median_m': 0.01, 'nested': {'a': [1, 2]}},
        build={'seed': seed},
    )
    return SceneMap(
        manifest, LandmarkModel(table, StoredNetwork.of(LandmarkNetwork(config).eval()))
    )


UPDATE: dict[str, np.ndarray[Any, Any]] = {
    'descriptors': np.arange(60, dtype=np.int8).reshape(6, 10),
    'poses': np.eye(4),
}


@pytest.fixture
def store(tmp_path):
    """Return a store with two versions; the second is live."""
    store = MapStore(tmp_path / 'map')
    store.write(make_map(1), UPDATE)
    store.write(make_map(2), UPDATE)
    return store


def names_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def test_round_trip(tmp_path):
    original = make_map()
    written = MapStore(tmp_path / 'map').write(original, UPDATE)
    found = SceneMap.open(tmp_path / 'map')
    assert manifest_document(found.manifest) == manifest_document(written.manifest)
    assert found.path == written.path == tmp_path / 'map' / 'versions' / '0001'
    for name in ('features', 'features_hash', 'network', 'cameras', 'calibration', 'metrics'):
        assert getattr(found.manifest, name) == getattr(original.manifest, name)
    assert (found.manifest.metric, found.manifest.build) == (False, {'seed': 0})
    assert (found.manifest.version, found.manifest.parent) == ('0001', '')
    assert isinstance(found.model, LandmarkModel)
    table = found.model.table
    np.testing.assert_array_equal(table.points_in_map, original.model.table.points_in_map)
    np.testing.assert_array_equal(table.covariances, original.model.table.covariances)
    np.testing.assert_array_equal(table.center, original.model.table.center)
    assert table.extent == 2.5
    np.testing.assert_allclose(table.keys, original.model.table.keys, atol=0.01)
    for name, value in original.model.network.state_dict().items():
        half = value.half().float() if value.ndim > 1 else value
        assert torch.equal(found.model.network.state_dict()[name], half)
    update = found.load_update_data()
    assert update.keys() == UPDATE.keys()
    for name, value in UPDATE.items():
        np.testing.assert_array_equal(update[name], value)
        assert update[name].dtype == value.dtype
    assert verify(tmp_path / 'map') == []
    assert found.localization_size_bytes() == (found.path / LOCALIZATION_FILE).stat().st_size


def test_quantisation(rng):
    vectors = rng.normal(size=(100, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    restored = dequantise(*quantise(vectors))
    assert (vectors * restored).sum(1).min() > 0.9998
    np.testing.assert_allclose(np.linalg.norm(restored, axis=1), 1, atol=1e-5)
    assert np.isfinite(dequantise(*quantise(np.zeros((2, 8), np.float32)))).all()


@pytest.mark.parametrize('name', ['manifest.json', LOCALIZATION_FILE])
def test_every_changed_byte_of_the_live_version_is_found(store, name):
    path = store.root / 'versions' / '0002' / name
    original = path.read_bytes()
    random_ = random.Random(3)
    positions = {0, 1, len(original) - 1} | set(random_.sample(range(len(original)), 100))
    for position in sorted(positions):
        damaged = bytearray(original)
        damaged[position] ^= 1 << random_.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(MapFormatError):
            SceneMap.open(store.root)
    path.write_bytes(original)
    assert verify(store.root) == []


def test_every_changed_byte_of_other_files_is_found(store):
    """verify also checks update data, versions that are not live, and white space."""
    random_ = random.Random(4)
    for file in ('0001/manifest.json', f'0001/{LOCALIZATION_FILE}', f'0002/{UPDATE_FILE}'):
        path = store.root / 'versions' / file
        original = path.read_bytes()
        for position in sorted(random_.sample(range(len(original)), 25)):
            damaged = bytearray(original)
            damaged[position] ^= 1 << random_.randrange(8)
            path.write_bytes(damaged)
            assert len(verify(store.root)) == 1
        path.write_bytes(original)
    manifest = store.root / 'versions' / '0001' / 'manifest.json'
    manifest.write_bytes(manifest.read_bytes().replace(b'\n', b'\r', 1))
    assert 'damaged' in verify(store.root)[0]


def test_every_changed_byte_of_current_is_found(store):
    path = store.root / 'current'
    original = path.read_bytes()
    for position in range(len(original)):
        # Bit 1 makes one version's name of another's.
        for bit in (1, position % 8):
            damaged = bytearray(original)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(MapFormatError):
                SceneMap.open(store.root)
    assert verify(store.root)
    path.write_bytes(original)
    assert SceneMap.open(store.root).manifest.version == '0002'


def test_current_may_be_written_by_hand(store):
    (store.root / 'current').write_text('0001\n')
    assert SceneMap.open(store.root).manifest.version == '0001'
    for text in ('', '\n', '../0001', '0007', 'a b c'):
        (store.root / 'current').write_text(text)
        with pytest.raises(MapFormatError) as caught:
            SceneMap.open(store.root)
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize('cut', [0, 1, 100, -1])
@pytest.mark.parametrize('name', ['manifest.json', LOCALIZATION_FILE])
def test_truncated_files_are_found(store, name, cut):
    path = store.root / 'versions' / '0002' / name
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(MapFormatError):
        SceneMap.open(store.root)
    assert verify(store.root)


@pytest.mark.parametrize('version', ['0001', '0002'])
@pytest.mark.parametrize('name', ['manifest.json', LOCALIZATION_FILE])
def test_missing_files_are_found(store, name, version):
    (store.root / 'versions' / version / name).unlink()
    assert verify(store.root)
    if version == '0002':
        with pytest.raises(MapFormatError):
            SceneMap.open(store.root)
    else:
        assert SceneMap.open(store.root).manifest.version == '0002'


def test_missing_maps(tmp_path, store):
    for path in (tmp_path / 'nowhere', tmp_path):
        with pytest.raises(MapFormatError):
            SceneMap.open(path)
        assert verify(path)
    (store.root / 'current').unlink()
    with pytest.raises(MapFormatError, match='not a map'):
        SceneMap.open(store.root)
    assert verify(store.root)


def test_a_renamed_version_is_found(store):
    (store.root / 'versions' / '0001').rename(store.root / 'versions' / '0009')
    assert 'holds version 0001' in verify(store.root)[0]


def test_missing_update_data_is_no_damage(store):
    (store.root / 'versions' / '0002' / UPDATE_FILE).unlink()
    assert verify(store.root) == []
    with pytest.raises(MapFormatError, match='update data'):
        SceneMap.open(store.root).load_update_data()


def rewrite_manifest(store, version, **changes):
    """Change a manifest as a program of another version would have written it."""
    path = store.root / 'versions' / version / 'manifest.json'
    document = json.loads(path.read_bytes())
    del document['digest']
    document.update(changes)
    document['digest'] = manifest_module._digest(document)
    path.write_bytes(manifest_module.manifest_text(document))
    (store.root / 'current').write_text(version)


def test_other_formats_and_heads_are_refused(store):
    rewrite_manifest(store, '0002', format_version=99)
    with pytest.raises(MapFormatError, match='map format 99, this software reads 2 and 3'):
        SceneMap.open(store.root)
    rewrite_manifest(store, '0002', format_version=2, head='oracle')
    with pytest.raises(MapFormatError, match='oracle'):
        SceneMap.open(store.root)
    rewrite_manifest(store, '0002', head='regression')
    with pytest.raises(MapFormatError):
        SceneMap.open(store.root)
    rewrite_manifest(store, '0002', head='landmark', network={'width': 16, 'depth': 3})
    with pytest.raises(MapFormatError, match='depth'):
        SceneMap.open(store.root)
    rewrite_manifest(store, '0002', network=to_dict(LandmarkConfig(width=64)))
    with pytest.raises(MapFormatError, match='does not fit'):
        SceneMap.open(store.root)


def test_other_features_are_refused(store):
    with pytest.raises(MapFormatError, match='use the same weights or build the map again'):
        Localizer.from_map(store.root, device='cpu')


def test_versions_promote_and_rollback(store):
    assert store.versions() == ['0001', '0002']
    assert store.current() == '0002'
    assert SceneMap.open(store.root).manifest.parent == '0001'
    assert store.rollback() == '0001'
    assert SceneMap.open(store.root).manifest.build == {'seed': 1}
    with pytest.raises(MapFormatError, match='no parent'):
        store.rollback()
    third = store.write(make_map(3), promote=False)
    assert (third.manifest.version, third.manifest.parent) == ('0003', '0001')
    assert store.current() == '0001'
    store.promote('0003')
    assert SceneMap.open(store.root).manifest.build == {'seed': 3}
    assert SceneMap.open(store.root / 'versions' / '0002').manifest.build == {'seed': 2}
    with pytest.raises(MapFormatError, match='no version 0009'):
        store.promote('0009')
    (store.root / 'versions' / '0002' / LOCALIZATION_FILE).write_bytes(b'')
    with pytest.raises(MapFormatError, match='damaged'):
        store.promote('0002')
    assert store.current() == '0003'


def test_rollback_to_a_damaged_parent_changes_nothing(store):
    (store.root / 'versions' / '0001' / LOCALIZATION_FILE).unlink()
    with pytest.raises(MapFormatError):
        store.rollback()
    assert store.current() == '0002'


def test_strip(store):
    store.strip(version='0001')
    assert not (store.root / 'versions' / '0001' / UPDATE_FILE).exists()
    assert SceneMap.open(store.root).load_update_data()
    store.strip()
    assert verify(store.root) == []
    assert len(SceneMap.open(store.root).model.points_in_map)
    with pytest.raises(MapFormatError, match='no version 0009'):
        store.strip(version='0009')
    with pytest.raises(MapFormatError):
        MapStore(store.root / 'nowhere').strip()
    assert not (store.root / 'nowhere').exists()


def test_foreign_folders_are_left_alone(tmp_path):
    folder = tmp_path / 'photos'
    folder.mkdir()
    (folder / 'holiday.jpg').write_bytes(b'x')
    file = tmp_path / 'file'
    file.write_text('x')
    for path in (folder, file):
        with pytest.raises(MapFormatError):
            MapStore(path).check_writable()
        with pytest.raises(MapFormatError):
            MapStore(path).write(make_map())
    assert names_below(tmp_path) == ['file', 'photos/holiday.jpg']


def test_a_failure_leaves_the_old_map_or_nothing(store, tmp_path, monkeypatch):
    before = names_below(store.root)

    def fail_at(name):
        original = store_module.write_synced

        def write(path, data):
            if name in path.name:
                path.write_bytes(data[: len(data) // 2])
                raise OSError(28, 'No space left on device')
            original(path, data)

        monkeypatch.setattr(store_module, 'write_synced', write)

    for name in (LOCALIZATION_FILE, UPDATE_FILE, 'manifest.json', '.current-'):
        fail_at(name)
        with pytest.raises(OSError, match='No space'):
            store.write(make_map(3), UPDATE)
        with pytest.raises(OSError, match='No space'):
            MapStore(tmp_path / 'new').write(make_map(3), UPDATE)
        monkeypatch.undo()
        assert names_below(store.root) == before
        assert verify(store.root) == []
        assert store.current() == '0002'
        assert not (tmp_path / 'new').exists()
    assert store.write(make_map(3)).manifest.version == '0003'


def test_an_interrupt_after_the_switch_keeps_the_new_version(store, monkeypatch):
    original = MapStore._set_current

    def interrupted(self, version):
        original(self, version)
        raise KeyboardInterrupt

    monkeypatch.setattr(MapStore, '_set_current', interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write(make_map(3))
    assert store.current() == '0003'
    assert verify(store.root) == []


def test_a_full_disk_leaves_the_old_map_or_nothing(store, tmp_path):
    """A real limit on the size of files: writing fails in the middle of the file."""
    before = names_below(store.root)
    signal_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for limit in (100, 3000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            for path in (store.root, tmp_path / 'new'):
                with pytest.raises(OSError, match='File too large'):
                    MapStore(path).write(make_map(3), UPDATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, signal_handler)
    assert names_below(store.root) == before
    assert verify(store.root) == []
    assert not (tmp_path / 'new').exists()


WRITER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[2] + '/test']
import torch
torch.set_num_threads(1)
from maps.test_scene_map import UPDATE, make_map
from d2s_ros.maps.store import MapStore
scene_map = make_map(7, 3000)
print('ready', flush=True)
sys.stdin.readline()
while True:
    MapStore(sys.argv[1]).write(scene_map, UPDATE)
"""


def test_killed_writers_leave_the_old_map_or_nothing(tmp_path):
    random_ = random.Random(5)
    root = tmp_path / 'map'
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', WRITER, str(root), str(ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    versions = 0
    try:
        for process in processes:
            assert process.stdout.readline() == b'ready\n'
        for process in processes:
            process.stdin.write(b'\n')
            process.stdin.flush()
            time.sleep(random_.uniform(0.005, 0.15))
            process.kill()
            process.wait(timeout=60)
            if (root / 'current').exists():
                assert verify(root) == []
                assert SceneMap.open(root).manifest.build == {'seed': 7}
            elif root.exists():
                with pytest.raises(MapFormatError, match='not a map'):
                    SceneMap.open(root)
            found = len(MapStore(root).versions())
            assert found >= versions
            versions = found
    finally:
        for process in processes:
            process.kill()
            process.wait(timeout=60)
    MapStore(root).write(make_map(8), UPDATE)
    assert verify(root) == []
    assert SceneMap.open(root).manifest.build == {'seed': 8}
    hidden = [path.name for path in root.rglob('.*') if path.name != '.lock']
    assert hidden == []


def test_writers_at_once_take_turns(tmp_path):
    root = tmp_path / 'map'
    maps = [make_map(seed) for seed in range(6)]
    errors = []

    def write(scene_map):
        try:
            MapStore(root).write(scene_map, UPDATE)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(scene_map,)) for scene_map in maps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert MapStore(root).versions() == [f'{number:04d}' for number in range(1, 7)]
    assert verify(root) == []
    opened = [SceneMap.open(root / 'versions' / name) for name in MapStore(root).versions()]
    assert {found.manifest.build['seed'] for found in opened} == set(range(6))
    parents = [found.manifest.parent for found in opened]
    assert parents == ['', '0001', '0002', '0003', '0004', '0005']


def test_a_failing_writer_does_not_take_the_folder_from_another(tmp_path, monkeypatch):
    """The first one makes the folder and fails; the second waits for the lock meanwhile."""
    root = tmp_path / 'map'
    waiting = threading.Event()
    original = store_module._write_version

    def failing_first(folder, scene_map, *arguments):
        if scene_map.manifest.build == {'seed': 1}:
            second.start()
            waiting.wait(30)
            raise OSError(28, 'No space left on device')
        return original(folder, scene_map, *arguments)

    def write_second():
        waiting.set()
        MapStore(root).write(make_map(2))

    second = threading.Thread(target=write_second)
    monkeypatch.setattr(store_module, '_write_version', failing_first)
    with pytest.raises(OSError, match='No space'):
        MapStore(root).write(make_map(1))
    second.join(60)
    assert SceneMap.open(root).manifest.build == {'seed': 2}
    assert verify(root) == []


def test_a_copied_folder_is_a_map(store, tmp_path):
    shutil.copytree(store.root, tmp_path / 'copy')
    copy, original = SceneMap.open(tmp_path / 'copy'), SceneMap.open(store.root)
    assert manifest_document(copy.manifest) == manifest_document(original.manifest)
    assert verify(tmp_path / 'copy') == []
