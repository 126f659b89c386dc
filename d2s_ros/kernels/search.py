"""The nearest landmarks of each keypoint, by products of bytes and exact cosines."""

from __future__ import annotations

import copy
import math
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.kernels.library import address, function, is_available, note_arithmetic

#: Keys are searched by blocks of so many, and at most so many of them are found.
_BLOCK, _MOST_FOUND = 64, 64
#: Components of bytes, and the bytes that cosines become.
_LARGEST, _LARGEST_COSINE = 127, 255


def can_search() -> bool:
    """Return whether this processor multiplies bytes fast, and the compiled part is there."""
    return is_available() and bool(function('d2s_can_search')())


class ByteKeys:
    """Keys arranged for the search among their principal components, in bytes.

    Args:
        keys: (M, D) float32, L2-normalised.
        directions: (D, d) float32, orthonormal: of the components that are looked at, best those in
            which the keys are longest.

    Raises:
        ValueError: if there are no keys.
    """

    def __init__(self, keys: NDArray[np.float32], directions: NDArray[np.float32]) -> None:
        if not len(keys):
            raise ValueError('there are no keys to search')
        self._keys = np.ascontiguousarray(keys)
        # Products take four components at a time.
        self._directions = np.pad(directions, ((0, 0), (0, -directions.shape[1] % 4)))
        components = self._components(self._keys)
        self._scale = _LARGEST / max(float(np.abs(components).max()), 1e-6)
        stride = -(-len(keys) // _BLOCK) * _BLOCK
        self._packed = np.zeros((stride // 8, components.shape[1] // 4, 8, 4), np.int8)
        self._offsets = np.zeros(stride, np.int32)
        self._pack(np.arange(len(keys)), components)
        # Sums of a cosine of one become 15 bits, these a byte.
        self._shift = max(0, math.ceil(math.log2(self._scale**2)) - 14)
        factor = round(_LARGEST_COSINE * 2**15 / (self._scale**2 / 2**self._shift))
        self._factor = min(factor, 2**15 - 1)

    def _pack(self, rows: NDArray[np.int64], components: NDArray[np.float32]) -> None:
        small = np.rint(components * self._scale).clip(-_LARGEST, _LARGEST).astype(np.int8)
        self._packed[rows // 8, :, rows % 8] = small.reshape(len(rows), -1, 4)
        # Components of queries are bytes around 128.
        self._offsets[rows] = -128 * small.sum(axis=1, dtype=np.int32)

    def _components(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the components (N, d) of (N, D)."""
        return _product(values, self._directions)

    def replaced(self, rows: NDArray[np.int64], keys: NDArray[np.float32]) -> ByteKeys:
        """Return keys of which some rows (R,) are others, (R, D)."""
        result = copy.copy(self)
        result._keys, result._packed = self._keys.copy(), self._packed.copy()
        result._offsets = self._offsets.copy()
        result._keys[rows] = keys
        result._pack(rows, self._components(np.ascontiguousarray(keys, np.float32)))
        return result

    def search(
        self, queries: NDArray[np.float32], *, num_found: int, count: int, threads: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """Return the keys that are nearest to queries.

        Args:
            queries: (N, D), L2-normalised.
            num_found: Keys that the products choose, of which exact cosines are computed.
            count: Keys that are returned of these, C.
            threads: To compute with.

        Returns:
            Rows of the keys, their cosines, best first, and about the highest cosine that any of
            the queries has to each of them: exactly the cosine for mutual neighbours; (N, C) each.
        """
        width, dim = self._keys.shape
        if not 0 < count <= num_found <= min(_MOST_FOUND, width):
            raise ValueError(f'{count} of {num_found} keys of {width} are too many or none')
        num = len(queries)
        stride, groups = len(self._offsets), self._packed.shape[1]
        idx = np.empty((num, count), np.int64)
        similarity = np.empty((num, count), np.float32)
        best = np.empty((num, count), np.float32)
        failed = _function()(
            address(queries, np.float32, num, dim),
            address(self._keys, np.float32, width, dim),
            num,
            dim,
            address(self._directions, np.float32, dim, 4 * groups),
            self._scale,
            address(self._packed, np.int8, stride // 8, groups, 8, 4),
            address(self._offsets, np.int32, stride),
            width,
            stride,
            groups,
            self._shift,
            self._factor,
            num_found,
            count,
            threads,
            address(idx, np.int64, num, count),
            address(similarity, np.float32, num, count),
            address(best, np.float32, num, count),
        )
        if failed:
            raise MemoryError('no memory to search landmarks')
        products = stride * 4 * groups + dim * (4 * groups + num_found)
        note_arithmetic(2 * num * products)
        return idx, similarity, best


def _product(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a (N, K) times b (K, D) without a BLAS, whose threads keep spinning after it."""
    (rows, dim), size = a.shape, b.shape[1]
    result = np.empty((rows, size), np.float32)
    function('d2s_project', c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p)(
        address(a, np.float32, rows, dim),
        rows,
        dim,
        address(b, np.float32, dim, size),
        size,
        address(result, np.float32, rows, size),
    )
    return result


def _function() -> Any:
    array = c_void_p
    return function(
        'd2s_search', array, array, c_int64, c_int64, array, c_float, array, array,
        c_int64, c_int64, *[c_int32] * 6, array, array, array,
    )  # fmt: skip
