"""Maps whose digests are right and whose contents are not: refused when opened, never later."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest
from map_update.worlds import Room, mapping_data
from maps.test_scene_map import make_map
from safetensors.numpy import load_file, save

from d2s_ros.errors import MapFormatError
from d2s_ros.maps import manifest as manifest_module
from d2s_ros.maps.files import LOCALIZATION_FILE, MANIFEST_FILE, UPDATE_FILE
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.update_data import MappingData, collect_update_data


@pytest.fixture
def root(tmp_path):
    """Return a map with update data."""
    data, _ = mapping_data(Room(seed=3, count=400))
    update_data = collect_update_data(
        data.reconstruction(), max_keypoints=200, max_megabytes=10.0, logs=data.logs
    )
    return MapStore(tmp_path / 'map').write(make_map(), update_data).path.parents[1]


def rewrite(root, name=None, tensors=None, **changes):
    """Write a file or entries of the manifest of version 0001 anew, with right digests."""
    folder = root / 'versions' / '0001'
    document = json.loads((folder / MANIFEST_FILE).read_bytes())
    if name is not None:
        data = tensors if isinstance(tensors, bytes) else save(tensors)
        (folder / name).write_bytes(data)
        digest = manifest_module.hashlib.sha256(data).hexdigest()
        document['files'][name] = {'size': len(data), 'sha256': digest}
    document.update(changes)
    del document['digest']
    document['digest'] = manifest_module._digest(document)
    (folder / MANIFEST_FILE).write_bytes(manifest_module.manifest_text(document))
    (root / 'current').write_text('0001\n')


def repeated(value, times):
    return np.concatenate([value] * times)


LOCALIZATION = {
    'half of the points': lambda t: {'points': t['points'][:20]},
    'half of points and covariances': lambda t: {
        'points': t['points'][:20],
        'covariances': t['covariances'][:20],
    },
    'covariances of another count': lambda t: {'covariances': t['covariances'][:10]},
    'more keys than points': lambda t: {'key_codes': repeated(t['key_codes'], 40)},
    'fewer parts of keys': lambda t: {'key_codes': t['key_codes'][:, :2].copy()},
    'codes beyond the codebook': lambda t: {'key_codebook': t['key_codebook'][:, :3].copy()},
    'codes of another type': lambda t: {'key_codes': t['key_codes'].astype(np.int64) - 1},
    'a codebook of another type': lambda t: {'key_codebook': t['key_codebook'].astype(np.int32)},
    'a flat codebook': lambda t: {'key_codebook': t['key_codebook'].reshape(-1)},
    'an empty codebook': lambda t: {'key_codebook': t['key_codebook'][:, :0].copy()},
    'one point that is not a number': lambda t: {
        'points': np.where(np.arange(120).reshape(40, 3) == 7, np.nan, t['points'])
    },
    'infinite points': lambda t: {'points': np.full_like(t['points'], np.inf)},
    'points beyond all bounds': lambda t: {'points': t['points'] * np.float32(1e20)},
    'points in pairs': lambda t: {'points': t['points'][:, :2].copy()},
    'points as numbers': lambda t: {'points': np.array(3.0, np.float32)},
    'points of another type': lambda t: {'points': t['points'].astype(np.float64)},
    'covariances that are not numbers': lambda t: {
        'covariances': np.full_like(t['covariances'], np.nan)
    },
    'negative covariances': lambda t: {'covariances': -t['covariances']},
    'covariances of zero': lambda t: {'covariances': t['covariances'] * 0},
    'indefinite covariances': lambda t: {
        'covariances': t['covariances'] + np.array([0, 9, 0, 0, 0, 0], np.float32)
    },
    'a codebook that is not numbers': lambda t: {
        'key_codebook': np.full_like(t['key_codebook'], np.nan)
    },
    'a center of two numbers': lambda t: {'center': t['center'][:2]},
    'extent 0': lambda t: {'extent': t['extent'] * 0},
    'a negative extent': lambda t: {'extent': -t['extent']},
    'no extent': lambda t: {'extent': t['extent'][:0]},
    'no landmarks': lambda t: {
        name: t[name][:0].copy() for name in ('points', 'covariances', 'key_codes')
    },
    'fewer landmarks than candidates': lambda t: {
        name: t[name][:3].copy() for name in ('points', 'covariances', 'key_codes')
    },
    'weights that are not numbers': lambda t: {
        name: np.full_like(value, np.nan)
        for name, value in t.items()
        if name.startswith('network.') and value.dtype == np.float16
    },
    'weights of another shape': lambda t: {
        name: value[:1] for name, value in t.items() if name.startswith('network.') and value.ndim
    },
}


@pytest.mark.parametrize('name', LOCALIZATION)
def test_landmarks_that_cannot_be_are_refused(root, name):
    tensors = load_file(root / 'versions' / '0001' / LOCALIZATION_FILE)
    changed = LOCALIZATION[name](tensors)
    rewrite(root, LOCALIZATION_FILE, {**tensors, **changed})
    with pytest.raises(MapFormatError, match='does not fit its manifest'):
        SceneMap.open(root)


def test_every_missing_tensor_is_named(root):
    tensors = load_file(root / 'versions' / '0001' / LOCALIZATION_FILE)
    for missing in tensors:
        rewrite(root, LOCALIZATION_FILE, {k: v for k, v in tensors.items() if k != missing})
        with pytest.raises(MapFormatError, match=missing.removeprefix('network.')):
            SceneMap.open(root)


@pytest.mark.parametrize(
    'data', [b'', b'\xff' * 100, b'\x00' * 8, bytes([255] * 7 + [127]) + b'{}']
)
def test_files_that_are_no_tensors_are_refused(root, data):
    rewrite(root, LOCALIZATION_FILE, data)
    with pytest.raises(MapFormatError):
        SceneMap.open(root)


MANIFEST = {
    'cameras': ({}, [1], ['x'], [{}], [{'model': 'pinhole'}], None),
    'calibration': (
        [],
        {'sigma_px': 0.0},
        {'sigma_px': float('nan')},
        {'covariance_scale': -1.0},
        {'scene_depth': float('inf')},
        {'unknown': 1.0},
    ),
    'features': ([], {'name': 3}, {'max_keypoints': -1}),
    'features_hash': (3, None),
    'head': (['landmark'], None),
    'network': ([], 3, {'width': 10**9}, {'num_layers': 10**9}, {'descriptor_dim': 'x'}),
    'map_frame': (3, None),
    'metric': ('yes', 1),
    'version': (1, None),
    'parent': (None, 2),
    'metrics': ([], None),
    'build': ('x',),
    'files': ([], {'localization.safetensors': 3}, {'a': {'size': 'x'}}, {'a': {'size': -1}}, {}),
    'origin': (
        None,
        [],
        [0.0, 0.0],
        [0, 0, 0],
        [0.0, 0.0, float('nan')],
        [0.0, 0.0, 'x'],
        {'x': 1.0},
        10**400,
    ),
    'format_version': (1, 4, '3', True, None, [3]),
}


@pytest.mark.parametrize('key', MANIFEST)
def test_manifests_that_cannot_be_are_refused(root, key):
    original = json.loads((root / 'versions' / '0001' / MANIFEST_FILE).read_bytes())[key]
    for value in MANIFEST[key]:
        rewrite(root, **{key: value})
        with pytest.raises(MapFormatError):
            SceneMap.open(root)
    rewrite(root, **{key: original})
    SceneMap.open(root)


def test_manifests_nested_without_end_are_refused(root):
    (root / 'versions' / '0001' / MANIFEST_FILE).write_bytes(b'[' * 100_000)
    (root / 'current').write_text('0001')
    with pytest.raises(MapFormatError, match='damaged'):
        SceneMap.open(root)


UPDATE = {
    'no images': lambda t: {'names': np.frombuffer(b'[]', np.uint8)},
    'names that are no texts': lambda t: {
        'names': np.frombuffer(b'[' + b'1,' * 23 + b'1]', np.uint8)
    },
    'names that are no list': lambda t: {'names': np.frombuffer(b'{"a": 1}', np.uint8)},
    'names that are no JSON': lambda t: {'names': np.frombuffer(b'\xff\xfe', np.uint8)},
    'names nested without end': lambda t: {'names': np.frombuffer(b'[' * 99_999, np.uint8)},
    'logs of another count': lambda t: {'logs': np.frombuffer(b'["a"]', np.uint8)},
    'cameras that are none': lambda t: {'cameras': np.frombuffer(b'[{"model": 3}]', np.uint8)},
    'a camera that is not there': lambda t: {'camera_idx': t['camera_idx'] + 1},
    'a negative camera': lambda t: {'camera_idx': t['camera_idx'] - 1},
    'offsets beyond the end': lambda t: {'offsets': t['offsets'] + 3},
    'offsets that go back': lambda t: {'offsets': t['offsets'][np.r_[0, 2, 1, 3:25]]},
    'points that are not there': lambda t: {'points': t['points'][:5]},
    'labels of -2': lambda t: {'point_idx': t['point_idx'] - 1},
    'poses that are none': lambda t: {'poses': t['poses'] * 0},
    'poses in another layout': lambda t: {'poses': t['poses'][:, :6].copy()},
    'poses that are not numbers': lambda t: {'poses': t['poses'] * np.nan},
    'keypoints of another count': lambda t: {'keypoints': t['keypoints'][:3]},
    'keypoints as numbers': lambda t: {'keypoints': np.array(1.0, np.float32)},
    'descriptors of another type': lambda t: {'descriptors': t['descriptors'].astype(np.float32)},
    'descriptors without size': lambda t: {'descriptor_scales': t['descriptor_scales'] * 0},
    'scales of zero': lambda t: {'scales': t['scales'] * 0},
    'centroids of other descriptors': lambda t: {
        'vlad_centroids': t['vlad_centroids'][:, :3].copy()
    },
    'global descriptors of another count': lambda t: {
        'global_descriptors': t['global_descriptors'][:2]
    },
}


@pytest.mark.parametrize('name', UPDATE)
def test_update_data_that_cannot_be_is_refused(root, name):
    tensors = load_file(root / 'versions' / '0001' / UPDATE_FILE)
    rewrite(root, UPDATE_FILE, {**tensors, **UPDATE[name](tensors)})
    with pytest.raises(MapFormatError, match='update'):
        MappingData.from_map(SceneMap.open(root))


def test_every_missing_tensor_of_update_data_is_named(root):
    tensors = load_file(root / 'versions' / '0001' / UPDATE_FILE)
    for missing in set(tensors) - {'logs'}:
        rewrite(root, UPDATE_FILE, {k: v for k, v in tensors.items() if k != missing})
        with pytest.raises(MapFormatError, match=missing):
            MappingData.from_map(SceneMap.open(root))


@pytest.mark.parametrize(
    'name', ['current', f'versions/0001/{MANIFEST_FILE}', f'versions/0001/{LOCALIZATION_FILE}']
)
def test_only_regular_files_are_read(root, name):
    """A pipe would be waited for, a device never ends."""
    path = root / name
    kept = path.read_bytes()
    for make in (os.mkfifo, lambda p: p.symlink_to('/dev/zero'), os.mkdir):
        path.unlink()
        make(path)
        refused = []

        def open_it(refused=refused):
            try:
                SceneMap.open(root)
            except MapFormatError as error:
                refused.append(str(error))

        thread = threading.Thread(target=open_it, daemon=True)
        thread.start()
        thread.join(30)
        assert refused, f'{name} made by {make} was waited for or read'
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
        path.write_bytes(kept)
    # A link to a regular file is one.
    path.rename(root.parent / 'elsewhere')
    path.symlink_to(root.parent / 'elsewhere')
    assert SceneMap.open(root).manifest.version == '0001'


def test_files_larger_than_they_can_be_are_not_read(root):
    (root / 'current').write_bytes(b'0001' + b' ' * 10_000)
    with pytest.raises(MapFormatError, match='10004 bytes'):
        SceneMap.open(root)
    (root / 'current').write_text('1' * 300)
    with pytest.raises(MapFormatError, match='damaged'):
        SceneMap.open(root)
    (root / 'current').write_bytes(b'\xff\xfe')
    with pytest.raises(MapFormatError, match='cannot be read'):
        SceneMap.open(root)
    (root / 'current').write_text('0001')
    file = root / 'versions' / '0001' / LOCALIZATION_FILE
    size = file.stat().st_size
    os.truncate(file, 1 << 40)
    with pytest.raises(MapFormatError, match=f'at most {size} are expected'):
        SceneMap.open(root)


def test_a_pipe_in_place_of_a_lock_is_not_waited_for(root):
    lock = root / '.lock'
    lock.unlink()
    os.mkfifo(lock)
    for action in (MapStore(root).strip, lambda: MapStore(root).write(make_map(2))):
        with pytest.raises(MapFormatError, match='not a regular file'):
            action()
    lock.unlink()
    MapStore(root).write(make_map(2))
    assert SceneMap.open(root).manifest.version == '0002'
