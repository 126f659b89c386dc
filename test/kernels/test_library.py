"""The compiled part: found, refused where it is stale, and done without where it is missing."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from d2s_ros.geometry.transforms import pose_error
from d2s_ros.kernels import library, search
from d2s_ros.localization.localizer import Localizer
from d2s_ros.scene_models.landmark.compiled_scorer import CompiledJudge
from d2s_ros.scene_models.landmark.table import LandmarkIndex


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the sources and of what was built from them, that the loader looks at."""
    for path in library._FOLDER.iterdir():
        if path.suffix in ('.c', '.h', '.inc', '.so'):
            shutil.copy(path, tmp_path)
    monkeypatch.setattr(library, '_FOLDER', tmp_path)
    library.library.cache_clear()
    yield tmp_path
    library.library.cache_clear()


def test_there_is_one_where_there_is_a_compiler():
    if shutil.which('gcc') is None:
        pytest.skip('no compiler')
    assert library.is_available()


def test_one_of_other_sources_is_not_used(folder, caplog):
    assert library.library() is not None
    library.library.cache_clear()
    (folder / 'search.c').write_text('/* changed */')
    assert library.library() is None
    assert 'built from other sources; install the package again' in caplog.text


def test_one_that_cannot_be_loaded_is_not_used(folder, caplog):
    (built,) = folder.glob('_kernels*.so')
    built.write_bytes(b'no library')
    assert library.library() is None
    assert 'cannot be used' in caplog.text
    built.unlink()
    library.library.cache_clear()
    assert library.library() is None
    assert not library.is_available()
    assert not search.can_search()


def test_arrays_of_another_kind_are_refused():
    good = np.zeros((3, 4), np.float32)
    assert library.address(good, np.float32, 3, 4) == good.ctypes.data
    for wrong in (good.astype(np.float64), good[:, :2], good.T, good[:2]):
        with pytest.raises(ValueError, match='contiguous float32'):
            library.address(wrong, np.float32, 3, 4)


def test_observers_are_told_of_calls(rng):
    if not search.can_search():
        pytest.skip('no fast products of bytes')
    seen = []
    keys = rng.normal(size=(70, 8)).astype(np.float32)
    index = search.ByteKeys(keys, np.eye(8, dtype=np.float32))
    library.observers.append(lambda name, flops: seen.append((name, flops)))
    try:
        index.search(keys[:3], num_found=4, count=2, threads=1)
    finally:
        library.observers.pop()
    assert seen == [('d2s_search', 0), ('', 2 * 3 * (128 * 8 + 8 * (8 + 4)))]


def test_the_localizer_does_without(small_map, query_frames, monkeypatch):
    """The same frames, by the compiled part and without it: the same poses."""
    compiled = Localizer.from_map(small_map.path, device='cpu')
    monkeypatch.setattr(library, 'library', lambda: None)
    plain = Localizer.from_map(small_map.path, device='cpu')
    assert isinstance(compiled._judge_candidates, CompiledJudge)
    assert not isinstance(plain._judge_candidates, CompiledJudge)
    expected = [plain.localize(frame.image, frame.camera) for frame in query_frames]
    monkeypatch.undo()
    count = 0
    for frame, other in zip(query_frames, expected, strict=True):
        result = compiled.localize(frame.image, frame.camera)
        assert result.status == other.status
        if result.localized:
            metres, degrees = pose_error(result.map_from_camera, other.map_from_camera)
            assert metres < 2e-3
            assert degrees < 0.02
            ratio = np.trace(result.covariance) / np.trace(other.covariance)
            assert 0.8 < ratio < 1.25
            count += 1
    assert count >= 4


def test_an_index_without_it_is_exact(rng, monkeypatch):
    keys = rng.normal(size=(500, 32)).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    monkeypatch.setattr(library, 'library', lambda: None)
    index = LandmarkIndex(keys)
    assert index._byte_keys is None
    found = index.search(keys[:20], 3)
    order = np.argsort(-(keys[:20] @ keys.T), axis=1)[:, :3]
    np.testing.assert_array_equal(found.landmark_idx, order)
