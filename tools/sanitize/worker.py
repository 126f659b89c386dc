"""Makes calls of a sanitized library: LIBRARY FIRST_SEED COUNT.

Prints a JSON line before each call, and one more where it raised what is not documented. A seed
below zero stands for a read beyond an array, by which one sees that the sanitizers are at work.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from d2s_ros.kernels import compiled, library
from d2s_ros.kernels.compiled_landmarks import ByteKeys
from d2s_ros.kernels.interface import ScorerInputs, ScorerParts

Arguments = dict[str, Any]

_INTEGERS = (-(2**63), -(2**31), -7, -1, 0, 1, 3, 17, 2**20, 2**31 - 1, 2**31, 2**40, 2**62)
_NUMBERS = (float('nan'), float('inf'), -float('inf'), -1e30, 1e30, 1e-40, -1.0, 0.0, 2.0**31)
_TYPES = ('f4', 'f8', 'i8', 'i4', 'u1', '?', 'u2')


def _floats(rng: random.Random, *shape: int, kind: str = 'f4') -> np.ndarray:
    values = np.random.default_rng(rng.randrange(2**32)).random(shape)
    return values.astype(kind)


def _indices(rng: random.Random, limit: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(rng.randrange(2**32)).integers(0, limit, shape)


def _parts(rng: random.Random) -> ScorerParts:
    dim, candidates, frequencies, width, landmarks = 8, 3, 2, 6, 11
    inputs = dim + 4 * candidates + 3 + 4 * frequencies
    return ScorerParts(
        _floats(rng, width, inputs),
        _floats(rng, width),
        _floats(rng, width + 2, width),
        _floats(rng, width + 2),
        _floats(rng, 3, landmarks, width),
        _floats(rng, 4, width),
        0.5,
        frequencies,
        rng.random() < 0.3,
    )


def _score(rng: random.Random) -> tuple[Callable[..., Any], Arguments]:
    num = rng.randrange(0, 9)
    given: Arguments = dict(
        zip(
            ScorerInputs._fields,
            (
                _floats(rng, num, 8),
                _indices(rng, 11, num, 3),
                *(_floats(rng, num, 3) for _ in range(2)),
                _floats(rng, num, 2),
                _floats(rng, num),
            ),
            strict=True,
        ),
        threads=2,
    )
    parts = _parts(rng)._asdict()
    if rng.random() < 0.4:
        _spoil(parts, rng)

    def call(threads: int, **inputs: Any) -> Any:
        return compiled.candidate_scorer(ScorerParts(**parts))(
            ScorerInputs(**inputs), threads=threads
        )

    return call, given


def _keys(rng: random.Random) -> tuple[Callable[..., Any], Arguments]:
    given: Arguments = {
        'keys': _floats(rng, 9, 8),
        'directions': _floats(rng, 8, 4),
        'queries': _floats(rng, 5, 8),
        'count': 3,
        'rows': _indices(rng, 9, 2),
        'others': _floats(rng, 2, 8),
        'threads': 2,
    }

    def call(
        keys: Any, directions: Any, queries: Any, count: int, rows: Any, others: Any, threads: int
    ) -> Any:
        found = ByteKeys(keys, directions).replaced(rows, others)
        return found.search(queries, count, threads=threads)

    return call, given


def _residuals(rng: random.Random) -> tuple[Callable[..., Any], Arguments]:
    count = rng.randrange(0, 9)
    given: Arguments = {
        'keypoints': _floats(rng, count, 2, kind='f8'),
        'points': _floats(rng, count, 3, kind='f8'),
        'intrinsics': (50.0, 50.0, 3.0, 4.0),
        'variances': _floats(rng, count, 3, kind='f8'),
        'point_covariances': rng.choice([None, _floats(rng, count, 3, 3, kind='f8')]),
        'cauchy_scale': 2.0,
        'rotation': np.eye(3),
        'translation': np.zeros(3),
        'slope': 0.5,
        'inverse': np.eye(rng.choice([6, 7])),
    }

    def call(rotation: Any, translation: Any, slope: float, inverse: Any, **problem: Any) -> Any:
        residuals = compiled.residuals(**problem)
        residuals.whiten(rotation, translation)
        residuals.squared(rotation, translation)
        residuals.linearise(rotation, translation, with_focal=len(inverse) == 7)
        return residuals.gradient_scatter(rotation, translation, slope, inverse)

    return call, given


def _close(rng: random.Random) -> tuple[Callable[..., Any], Arguments]:
    count = rng.randrange(0, 9)
    return compiled.first_close, {
        'keypoints': _floats(rng, count, 2, kind='f8'),
        'landmarks': _floats(rng, 11, 3, kind='f8'),
        'landmark_idx': _indices(rng, 11, count, 3),
        'rotation': np.eye(3),
        'translation': np.zeros(3),
        'intrinsics': (50.0, 50.0, 3.0, 4.0),
        'radius_px': 4.0,
        'skipped': rng.choice([None, np.zeros(count, bool)]),
        'taken': rng.choice([None, np.zeros(11, bool)]),
    }


#: What makes a call that is right.
CALLS: dict[str, Callable[[random.Random], tuple[Callable[..., Any], Arguments]]] = {
    'score_map': lambda rng: (
        compiled.score_map,
        {'logits': _floats(rng, 3, 4, 65), 'height': 22, 'width': 32, 'threads': 2},
    ),
    'strongest_maxima': lambda rng: (
        compiled.strongest_maxima,
        {
            'scores': _floats(rng, 20, 30),
            'radius': rng.choice([0, 2, 5]),
            'count': 4,
            'border': 2,
            'threshold': 0.1,
            'allowed': rng.choice([None, np.ones((20, 30), np.uint8)]),
            'threads': 2,
        },
    ),
    'refine_keypoints': lambda rng: (
        compiled.refine_keypoints,
        {'scores': _floats(rng, 20, 30), 'index': _indices(rng, 500, 5) + 31},
    ),
    'cells_around': lambda rng: (
        compiled.cells_around,
        {'keypoints': _floats(rng, 6, 2) * 40, 'height': 4, 'width': 5},
    ),
    'gather_around': lambda rng: (
        compiled.gather_around,
        {
            'values': np.ones((4, 5, 16), np.uint8),
            'cells': _indices(rng, 20, 6),
            'num_rows': 8,
            'threads': 2,
        },
    ),
    'key_index': _keys,
    'candidate_scorer': _score,
    'residuals': _residuals,
    'first_close': _close,
}


def _spoil(arguments: Arguments, rng: random.Random) -> None:
    """Make one argument one that does not fit, most likely."""
    name = rng.choice(list(arguments))
    value = arguments[name]
    if isinstance(value, np.ndarray):
        arguments[name] = _spoilt_array(value, rng)
    elif isinstance(value, bool):
        arguments[name] = not value
    elif isinstance(value, int):
        arguments[name] = rng.choice(_INTEGERS)
    elif isinstance(value, float):
        arguments[name] = rng.choice(_NUMBERS)
    elif isinstance(value, tuple):
        arguments[name] = tuple(rng.choice(_NUMBERS) for _ in value)


def _spoilt_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    kind = rng.randrange(7)
    array = array.copy()
    if kind <= 1 and array.size:
        where = rng.randrange(array.size)
        odd = _INTEGERS if array.dtype.kind in 'iub' else _NUMBERS
        array.reshape(-1)[where] = np.array(rng.choice(odd)).astype(array.dtype)
        return array
    if kind == 2:
        return array.astype(rng.choice(_TYPES))
    if kind == 3:
        return np.asfortranarray(array) if array.ndim > 1 else np.repeat(array, 2)[::2]
    axis = rng.randrange(array.ndim)
    if kind == 4 and array.shape[axis]:
        return np.ascontiguousarray(array.take(range(array.shape[axis] - 1), axis))
    if kind == 5:
        return np.ascontiguousarray(np.concatenate([array, array], axis))
    return array.reshape(-1) if rng.random() < 0.5 else array[None]


def make_call(seed: int) -> tuple[str, Callable[..., Any], Arguments]:
    """Return the call that a seed stands for: its name, the function and its arguments."""
    rng = random.Random(seed)
    name = list(CALLS)[seed % len(CALLS)]
    function, arguments = CALLS[name](rng)
    for _ in range(rng.choice([1, 1, 2])):
        _spoil(arguments, rng)
    return name, function, arguments


def main() -> int:
    """Make calls as the arguments say."""
    path, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    functions = library.load(path)
    assert functions is not None, 'built from other sources'
    library._functions = lambda: functions  # type: ignore[assignment]
    for seed in range(first, first + count):
        if seed < 0:
            _say(seed=seed, call='beyond')
            index = np.array([10**4])
            library.call(
                'd2s_refine_keypoints', np.ones((9, 9), np.float32), 9, index, 1, 1e-9,
                np.empty((1, 2), np.float32),
            )  # fmt: skip
            continue
        name, function, arguments = make_call(seed)
        _say(seed=seed, call=name)
        try:
            function(**arguments)
        except (ValueError, MemoryError):
            continue
        except Exception as error:
            _say(seed=seed, call=name, found=f'{type(error).__name__} in {name}: {error}')
    return 0


def _say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + '\n')
    sys.stdout.flush()


if __name__ == '__main__':
    sys.exit(main())
