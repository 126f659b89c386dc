"""Finds and loads the compiled kernels."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np

from d2s_ros.kernels.interface import observers

_logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent

#: Kinds of arguments: numbers by what C takes, arrays by their dtype.
_I32, _I64, _F32, _F64 = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_double
_FLOATS, _DOUBLES, _LONGS, _INTS, _SHORTS, _BYTES, _SMALL = (
    np.dtype(name) for name in ('f4', 'f8', 'i8', 'i4', 'u2', 'u1', 'i1')
)
_RESIDUALS = (*[_DOUBLES] * 3, _I64, _DOUBLES, *[_F64] * 4)
#: Arguments of each function of c/kernels.h, which all return an int32.
SIGNATURES: dict[str, tuple[Any, ...]] = {
    'd2s_score_map': (_FLOATS, *[_I64] * 4, _I32, _FLOATS),
    'd2s_strongest_maxima': (_FLOATS, *[_I64] * 4, _F32, _BYTES, _I32, _I32, _LONGS),
    'd2s_refine_keypoints': (_FLOATS, _I64, _LONGS, _I64, _F32, _FLOATS),
    'd2s_cells_around': (_FLOATS, *[_I64] * 3, _LONGS, _FLOATS, _LONGS),
    'd2s_gather_around': (_BYTES, *[_I64] * 3, _LONGS, _I64, _I32, _BYTES),
    'd2s_products': (_I32, _BYTES, _SMALL, _INTS, _I64, *[_I32] * 3, _BYTES),
    'd2s_project': (_FLOATS, _I64, _I64, _FLOATS, _I64, _FLOATS),
    'd2s_search': (
        *(_FLOATS, _FLOATS, _I64, _I64, _FLOATS, _F32, _SMALL, _INTS, _I64, _I64),
        *([_I32] * 6),
        *(_LONGS, _FLOATS, _FLOATS),
    ),
    'd2s_convolve': (*(_FLOATS, *[_I64] * 5, _FLOATS, _FLOATS, _I64, _I32, _I32, _FLOATS),),
    'd2s_convolve_image': (_BYTES, *[_I64] * 4, _FLOATS, _FLOATS, _I64, _I32, _FLOATS),
    'd2s_multiply': (_FLOATS, _I64, _I64, _FLOATS, _FLOATS, _I64, _I32, _FLOATS),
    'd2s_score_candidates': (
        *(_FLOATS, _LONGS, *[_FLOATS] * 4, *[_I64] * 6, _FLOATS, _FLOATS, *[_SHORTS] * 3),
        *(_FLOATS, _F64, _I32, _FLOATS, _LONGS),
    ),
    'd2s_whiten': (*[_DOUBLES] * 3, _I64, _DOUBLES, _F64, _F64, _DOUBLES),
    'd2s_squared_residuals': (*_RESIDUALS, _DOUBLES),
    'd2s_linearise': (*_RESIDUALS, _F64, _I32, _DOUBLES),
    'd2s_squared_scores': (*_RESIDUALS, _F64, _F64, _DOUBLES, _I32, _DOUBLES),
    'd2s_first_close': (
        *(_DOUBLES, _I64, _DOUBLES, _LONGS, _I64, _DOUBLES, *[_F64] * 5),
        *(_BYTES, _BYTES, _LONGS),
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
            found = load(path)
        except (OSError, AttributeError) as error:
            _logger.warning('%s cannot be used (%s); install the package again', path, error)
            continue
        if found is None:
            _logger.warning('%s was built from other sources; install the package again', path)
            continue
        return found
    return None


def load(path: Path) -> dict[str, Any] | None:
    """Return the functions of a library by name, None if it was built from other sources.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it lacks a function.
    """
    found = ctypes.CDLL(str(path))
    found.d2s_source_digest.restype = ctypes.c_char_p
    if found.d2s_source_digest().decode() != source_digest():
        return None
    functions = {name: found[name] for name in SIGNATURES}
    for name, kinds in SIGNATURES.items():
        functions[name].argtypes = [
            ctypes.c_void_p if isinstance(kind, np.dtype) else kind for kind in kinds
        ]
    return functions


def is_built() -> bool:
    """Return whether there are compiled kernels of these sources."""
    return _functions() is not None


def call(name: str, *arguments: Any) -> int:
    """Call a function and return its result; None stands for no array.

    Raises:
        ValueError: if an array is not contiguous, or of another type.
    """
    for observer in observers:
        observer(name, 0)
    functions = _functions()
    assert functions is not None, 'chosen only where they were built'
    result: int = functions[name](*map(passed, SIGNATURES[name], arguments))
    return result


def passed(kind: Any, value: Any) -> Any:
    """Return an argument as C takes it: of arrays where they lie. Callers may do so beforehand."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype != kind or not value.flags.c_contiguous:
        raise ValueError(
            f'expected a contiguous {kind} array, found {value.dtype} {value.shape} with strides '
            f'{value.strides}'
        )
    return value.__array_interface__['data'][0]


def note_arithmetic(flops: int) -> None:
    """Tell observers how many multiplications and additions a call took, where these are many."""
    for observer in observers:
        observer('', flops)
