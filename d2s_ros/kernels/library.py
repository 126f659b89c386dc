"""Finds and loads the compiled part."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
#: Told of each call: its name, or '' and the arithmetic of the call before.
observers: list[Callable[[str, int], None]] = []


def source_digest() -> str:
    """Return what the sources are known by; setup.py compiles it in."""
    digest = hashlib.sha256()
    for path in sorted(_FOLDER.iterdir()):
        if path.suffix in ('.c', '.h', '.inc'):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled part, None where it was not built or was built from other sources."""
    for path in sorted(_FOLDER.glob('_kernels*.so')):
        try:
            found = ctypes.CDLL(str(path))
            found.d2s_source_digest.restype = ctypes.c_char_p
            digest = found.d2s_source_digest().decode()
        except (OSError, AttributeError) as error:
            _logger.warning('%s cannot be used (%s); install the package again', path, error)
            continue
        if digest == source_digest():
            return found
        _logger.warning('%s was built from other sources; install the package again', path)
    return None


def is_available() -> bool:
    """Return whether the compiled part can be used."""
    return library() is not None


def function(name: str, *kinds: Any) -> Any:
    """Return a function of the compiled part that returns an int32; `kinds` are ctypes types."""
    for observer in observers:
        observer(name, 0)
    return _function(name, *kinds)


@functools.cache
def _function(name: str, *kinds: Any) -> Any:
    loaded = library()
    assert loaded is not None, 'ask is_available first'
    result = loaded[name]
    result.argtypes, result.restype = kinds, ctypes.c_int32
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
