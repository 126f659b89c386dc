"""The manifest and the index of an area: what is written is read, and damage is found."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from maps.test_scene_map import make_map

from d2s_ros.errors import MapFormatError, UsageError
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.maps.area import (
    Place,
    check_place_name,
    is_area,
    locked,
    read_area,
    verify_area,
    write_area,
)
from d2s_ros.maps.area_index import AreaIndex
from d2s_ros.maps.files import AREA_FILE, PLACES_FOLDER
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore

UP = RigidTransform(np.eye(3), np.array([0.0, 0.0, 3.0]))


def images(seed, count=6):
    """Local descriptors of images of a place that has a look of its own."""
    rng = np.random.default_rng(seed)
    look = rng.normal(size=(30, 16))
    made = [look + 0.3 * rng.normal(size=look.shape) for _ in range(count)]
    return [(one / np.linalg.norm(one, axis=1, keepdims=True)).astype(np.float32) for one in made]


@pytest.fixture
def root(tmp_path):
    """An area of three places."""
    root = tmp_path / 'area'
    places = [Place('cellar'), Place('floor1'), Place('floor2', UP)]
    with locked(root):
        for seed, place in enumerate(places):
            MapStore(root / PLACES_FOLDER / place.name).write(make_map(seed))
        index = AreaIndex.fit([images(seed) for seed in range(3)])
        write_area(root, frame='site', places=places, index=index)
    return root


def test_what_is_written_is_read(root):
    area = read_area(root)
    assert is_area(root)
    assert list(area.places) == ['cellar', 'floor1', 'floor2']
    assert area.frames() == ['site_cellar', 'site_floor1', 'site']
    assert area.frame_of('floor2') == 'site'
    np.testing.assert_allclose(area.places['floor2'].area_from_place.matrix, UP.matrix)
    assert area.versions() == dict.fromkeys(area.places, '0001')
    assert verify_area(root) == []
    assert SceneMap.open(area.folder('floor1')).manifest.build == {'seed': 1}
    with pytest.raises(UsageError, match='cellar, floor1, floor2'):
        area.folder('floor3')


def test_a_new_version_of_a_place_is_another_version_of_the_area(root):
    before = read_area(root).version()
    MapStore(root / PLACES_FOLDER / 'cellar').write(make_map(7))
    after = read_area(root).version()
    assert before != after
    MapStore(root / PLACES_FOLDER / 'cellar').rollback()
    assert read_area(root).version() == before


def test_the_index_names_the_place_that_looks_alike(root):
    index = read_area(root).read_index()
    for seed in range(3):
        for image in images(seed, 9)[6:]:
            assert int(index.similarities(image).argmax()) == seed
    more = index.with_place(3, images(5)).with_place(0, images(8))
    assert more.num_places == 4
    assert int(more.similarities(images(5, 7)[6]).argmax()) == 3
    assert int(more.similarities(images(8, 7)[6]).argmax()) == 0


def test_every_changed_byte_of_manifest_and_index_is_found(root):
    area = read_area(root)
    for name in (AREA_FILE, area.index_file):
        path = root / name
        good = path.read_bytes()
        for position in np.linspace(0, len(good) - 1, 40).astype(int):
            spoilt = bytearray(good)
            spoilt[position] ^= 4
            path.write_bytes(bytes(spoilt))
            assert verify_area(root), (name, position)
        for cut in (0, len(good) // 2, len(good) - 1):
            path.write_bytes(good[:cut])
            assert verify_area(root), (name, cut)
        path.write_bytes(good)
    assert verify_area(root) == []
    (root / area.index_file).unlink()
    assert any('lacks index' in problem for problem in verify_area(root))


def rewrite(root, **changes):
    """Write a manifest with other contents and a right digest."""
    from d2s_ros.maps.area import _digest, _text

    document = json.loads((root / AREA_FILE).read_text())
    document.pop('digest')
    document |= changes
    (root / AREA_FILE).write_bytes(_text({**document, 'digest': _digest(document)}))


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'format_version': 2}, 'format 2'),
        ({'format_version': True}, 'format True'),
        ({'places': []}, 'no places'),
        ({'places': 3}, 'incomplete'),
        ({'places': [{'name': '../x', 'area_from_place': None}]}, 'cannot be named'),
        ({'places': 2 * [{'name': 'a', 'area_from_place': None}]}, 'twice'),
        ({'places': [{'name': 'a', 'area_from_place': [1.0]}]}, 'seven finite'),
        ({'places': [{'name': 'a', 'area_from_place': [0.0] * 7}]}, 'quaternion'),
        ({'frame': ''}, 'frame is'),
        ({'index': {'file': '../index', 'sha256': 64 * '0'}}, 'index is'),
        ({'further': 1}, 'keys'),
    ],
)
def test_manifests_that_no_area_has_are_refused(root, changes, words):
    rewrite(root, **changes)
    with pytest.raises(MapFormatError, match=words):
        read_area(root)


def test_an_index_of_other_places_is_refused(root):
    rewrite(root, places=[{'name': 'cellar', 'area_from_place': None}])
    with pytest.raises(MapFormatError, match='not of 1 places'):
        read_area(root).read_index()


def test_places_of_other_features_are_refused(root):
    area = read_area(root)
    other = make_map(4)
    features = replace(other.manifest.features, max_keypoints=99)
    other = replace(other, manifest=replace(other.manifest, features=features))
    MapStore(root / PLACES_FOLDER / 'roof').write(other)
    places = [*area.places.values(), Place('roof')]
    index = area.read_index().with_place(3, images(9))
    with pytest.raises(MapFormatError, match='different features'):
        write_area(root, frame='site', places=places, index=index)
    assert verify_area(root) == []


@pytest.mark.parametrize('name', ['', '.hidden', 'a/b', 'a b', 'stock\u00e9', 65 * 'a'])
def test_names_that_are_no_folders_or_frames_are_refused(name):
    with pytest.raises(UsageError, match='cannot be named'):
        check_place_name(name)


def test_an_area_is_not_taken_for_a_map_nor_a_map_for_an_area(root, tmp_path):
    with pytest.raises(MapFormatError, match='is an area'):
        SceneMap.open(root)
    with pytest.raises(MapFormatError, match='holds other files'):
        MapStore(root).check_writable()
    MapStore(tmp_path / 'map').write(make_map())
    assert not is_area(tmp_path / 'map')
    with pytest.raises(MapFormatError, match='holds other files'), locked(tmp_path / 'map'):
        pass
    (tmp_path / 'file').touch()
    with pytest.raises(MapFormatError, match='is a file'), locked(tmp_path / 'file'):
        pass
    with pytest.raises(MapFormatError, match='it has no area'):
        read_area(tmp_path)


def test_two_writers_do_not_write_at_once(root):
    with locked(root), pytest.raises(UsageError, match='another process'), locked(root):
        pass


def test_a_copied_area_is_the_same(root, tmp_path):
    shutil.copytree(root, tmp_path / 'copy')
    assert read_area(tmp_path / 'copy').version() == read_area(root).version()
