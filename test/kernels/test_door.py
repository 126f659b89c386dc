"""The door to the kernels: one choice, declared once, and nothing goes around it."""

from __future__ import annotations

import ctypes
import re
import shutil

import numpy as np
import pytest

from d2s_ros import kernels
from d2s_ros.errors import UsageError
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.kernels import compiled, library, reference
from d2s_ros.localization.localizer import Localizer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the sources and of what was built from them, that the loader looks at."""
    shutil.copytree(library._FOLDER / 'c', tmp_path / 'c')
    for path in library._FOLDER.glob('_kernels*.so'):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(library, '_FOLDER', tmp_path)
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    clear()
    yield tmp_path
    clear()


def clear():
    library._functions.cache_clear()
    kernels.active.cache_clear()


def test_they_are_built_where_there_is_a_compiler():
    if shutil.which('gcc') is None:
        pytest.skip('no compiler')
    assert library.is_built()


def test_compiled_ones_are_taken_where_they_were_built(folder, monkeypatch):
    assert kernels.active() is (compiled if library.is_built() else reference)
    assert bool(kernels.fallback_warning()) != library.is_built()
    kernels.active.cache_clear()
    monkeypatch.setenv(kernels.SWITCH, 'reference')
    assert kernels.active() is reference
    assert kernels.fallback_warning() == ''


def test_an_unknown_choice_is_an_error(folder, monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, 'fast')
    with pytest.raises(UsageError, match='D2S_KERNELS=fast is unknown; use reference or compiled'):
        kernels.active()


def test_ones_of_other_sources_are_not_used(folder, caplog, monkeypatch):
    if not library.is_built():
        pytest.skip('the compiled kernels were not built')
    clear()
    (folder / 'c' / 'search.c').write_text('/* changed */')
    assert kernels.active() is reference
    assert 'built from other sources; install the package again' in caplog.text
    assert 'missing' in kernels.fallback_warning()
    kernels.active.cache_clear()
    monkeypatch.setenv(kernels.SWITCH, 'compiled')
    with pytest.raises(UsageError, match='were not built'):
        kernels.active()


def test_ones_that_cannot_be_loaded_are_not_used(folder, caplog):
    (built,) = folder.glob('_kernels*.so')
    built.write_bytes(b'no library')
    assert kernels.active() is reference
    assert 'cannot be used' in caplog.text
    built.unlink()
    clear()
    assert kernels.active() is reference


NUMBERS = {
    'int32_t': ctypes.c_int32,
    'int64_t': ctypes.c_int64,
    'float': ctypes.c_float,
    'double': ctypes.c_double,
}
ARRAYS = {'float': 'f4', 'double': 'f8'}


def kind_of(argument):
    """Return what an argument is declared as: a number, or an array of a dtype."""
    name = argument.replace('const', '').split()[0]
    if '*' not in argument:
        return NUMBERS[name]
    sized = re.sub(r'(u?)int(\d+)_t', lambda m: f'{m[1] or "i"}{int(m[2]) // 8}', name)
    return np.dtype(ARRAYS.get(name, sized))


def declared(header):
    """Return the kinds of the arguments of each function that a header declares."""
    text = re.sub(r'/\*.*?\*/', '', header, flags=re.DOTALL)
    found = {}
    for result, name, arguments in re.findall(r'API ([\w ]+?[ *])(\w+)\(([^)]*)\);', text):
        given = [] if arguments == 'void' else arguments.split(',')
        found[name] = result.strip(), tuple(kind_of(argument) for argument in given)
    return found


def test_signatures_are_those_of_the_header(repo_root):
    found = declared((repo_root / 'd2s_ros/kernels/c/kernels.h').read_text())
    assert found.pop('d2s_source_digest') == ('const char *', ())
    assert {result for result, _ in found.values()} == {'int32_t'}
    assert {name: kinds for name, (_, kinds) in found.items()} == library.SIGNATURES


def test_the_comparison_sees_another_signature():
    header = 'API int32_t a(const float *x, int64_t n); /* API */ API int32_t b(void);'
    assert declared(header) == {
        'a': ('int32_t', (np.dtype('f4'), ctypes.c_int64)),
        'b': ('int32_t', ()),
    }


def test_every_exported_function_is_declared(repo_root):
    """What is defined without a prototype is hidden, or unused."""
    folder = repo_root / 'd2s_ros/kernels/c'
    defined = set()
    for path in folder.glob('*.c'):
        text = path.read_text()
        assert '#include "kernels.h"' in text
        defined |= set(re.findall(r'^(?:\w+ )+\*?(d2s_\w+)\(', text, re.MULTILINE))
    assert defined == {*library.SIGNATURES, 'd2s_source_digest'}


def test_nothing_goes_around_the_door(repo_root):
    """Outside of kernels nobody loads libraries or asks which implementation computes."""
    package = repo_root / 'd2s_ros'
    wrong = []
    for path in package.rglob('*.py'):
        if path.parent == package / 'kernels':
            continue
        text = path.read_text(encoding='utf-8')
        # The allocator, and the driver of a GPU.
        allowed = path in (package / 'memory.py', package / 'device.py')
        for word in ('ctypes', 'kernels.library', 'kernels.compiled', 'kernels.reference'):
            if word in text and not (allowed and word == 'ctypes'):
                wrong.append(f'{path.relative_to(repo_root)}: {word}')
        for names in re.findall(r'from d2s_ros\.kernels import (.*)', text):
            wrong += [f'{path}: {names}' for name in names.split(', ') if name != 'tensors']
    assert not wrong, '\n'.join(wrong)


def test_arrays_of_another_kind_are_refused(compiled_kernels):
    good = np.ones((3, 2), np.float32)
    assert len(compiled_kernels.cells_around(good, 4, 5)[0]) > 0
    for wrong in (good.astype(np.float64), np.ones((3, 4), np.float32)[:, ::2]):
        with pytest.raises(ValueError, match='contiguous float32'):
            compiled_kernels.cells_around(wrong, 4, 5)


def test_observers_are_told_of_calls(compiled_kernels):
    seen = []
    kernels.observers.append(lambda name, flops: seen.append((name, flops)))
    try:
        compiled_kernels.cells_around(np.ones((3, 2), np.float32), 4, 5)
        library.note_arithmetic(7)
    finally:
        kernels.observers.pop()
    assert seen == [('d2s_cells_around', 0), ('', 7)]


def test_poses_are_the_same_with_both(small_map, query_frames, use_kernels):
    results = []
    for name in ('reference', 'compiled'):
        use_kernels(name)
        localizer = Localizer.from_map(small_map.path, device='cpu')
        results.append([localizer.localize(frame.image, frame.camera) for frame in query_frames])
    count = 0
    for expected, result in zip(*results, strict=True):
        assert result.status == expected.status
        if result.localized:
            metres, degrees = pose_error(result.map_from_camera, expected.map_from_camera)
            assert metres < 2e-3
            assert degrees < 0.02
            ratio = np.trace(result.covariance) / np.trace(expected.covariance)
            assert 0.8 < ratio < 1.25
            count += 1
    assert count >= 4
