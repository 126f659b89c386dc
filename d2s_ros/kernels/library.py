"""Finds and loads the compiled kernels."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
from ctypes import c_double, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.kernels.interface import observers

_logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent

_ARRAY, _PIXELS = c_void_p, (c_double,) * 4
_RESIDUALS = (_ARRAY, _ARRAY, _ARRAY, c_int64, _ARRAY, *_PIXELS)
#: Arguments of each function of c/kernels.h, which all return an int32.
SIGNATURES: dict[str, tuple[Any, ...]] = {
    'd2s_score_map': (_ARRAY, *[c_int64] * 4, c_int32, _ARRAY),
    'd2s_strongest_maxima': (
        *(_ARRAY, *[c_int64] * 4, c_float),
        *(_ARRAY, c_int32, c_int32, _ARRAY),
    ),
    'd2s_refine_keypoints': (_ARRAY, c_int64, _ARRAY, c_int64, c_float, _ARRAY),
    'd2s_cells_around': (_ARRAY, *[c_int64] * 3, *[_ARRAY] * 3),
    'd2s_gather_around': (_ARRAY, *[c_int64] * 3, _ARRAY, c_int64, c_int32, _ARRAY),
    'd2s_can_search': (),
    'd2s_project': (_ARRAY, c_int64, c_int64, _ARRAY, c_int64, _ARRAY),
    'd2s_search': (
        *(_ARRAY, _ARRAY, c_int64, c_int64, _ARRAY, c_float, _ARRAY, _ARRAY),
        *(c_int64, c_int64, *[c_int32] * 6, *[_ARRAY] * 3),
    ),
    'd2s_score_candidates': (
        *[_ARRAY] * 6,
        *[c_int64] * 6,
        *[_ARRAY] * 6,
        *(c_double, c_int32, _ARRAY, _ARRAY),
    ),
    'd2s_whiten': (_ARRAY, _ARRAY, _ARRAY, c_int64, _ARRAY, c_double, c_double, _ARRAY),
    'd2s_squared_residuals': (*_RESIDUALS, _ARRAY),
    'd2s_linearise': (*_RESIDUALS, c_double, c_int32, _ARRAY),
    'd2s_squared_scores': (*_RESIDUALS, c_double, c_double, _ARRAY, c_int32, _ARRAY),
    'd2s_first_close': (
        *(_ARRAY, c_int64, _ARRAY, _ARRAY, c_int64, _ARRAY),
        *(*_PIXELS, c_double, _ARRAY, _ARRAY, _ARRAY),
    ),
}


def source_digest() -> str:
    """Return what the sources are known by; setup.py compiles it in."""
    digest = hashlib.sha256()
    for path in sorted((_FOLDER / 'c').iterdir()):
        if path.suffix in ('.c', '.h', '.inc'):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _functions() -> dict[str, Any] | None:
    """Return the functions by name, None where they were not built, or from other sources."""
    for path in sorted(_FOLDER.glob('_kernels*.so')):
        try:
            found = ctypes.CDLL(str(path))
            found.d2s_source_digest.restype = ctypes.c_char_p
            digest = found.d2s_source_digest().decode()
        except (OSError, AttributeError) as error:
            _logger.warning('%s cannot be used (%s); install the package again', path, error)
            continue
        if digest != source_digest():
            _logger.warning('%s was built from other sources; install the package again', path)
            continue
        functions = {name: found[name] for name in SIGNATURES}
        for name, kinds in SIGNATURES.items():
            functions[name].argtypes, functions[name].restype = kinds, ctypes.c_int32
        return functions
    return None


def is_built() -> bool:
    """Return whether there are compiled kernels of these sources."""
    return _functions() is not None


def call(name: str, *arguments: Any) -> int:
    """Call a function and return its result; arrays are given by their `address`."""
    for observer in observers:
        observer(name, 0)
    functions = _functions()
    assert functions is not None, 'chosen only where they were built'
    result: int = functions[name](*arguments)
    return result


def note_arithmetic(flops: int) -> None:
    """Tell observers how many multiplications and additions a call took, where these are many."""
    for observer in observers:
        observer('', flops)


def address(array: NDArray[Any], kind: Any, *shape: int) -> int:
    """Return where an array lies in memory.

    Raises:
        ValueError: if it is not a contiguous array of that type and shape.
    """
    if array.dtype != kind or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(
            f'expected a contiguous {np.dtype(kind)} array {shape}, found {array.dtype} '
            f'{array.shape}'
        )
    place: int = array.__array_interface__['data'][0]
    return place
