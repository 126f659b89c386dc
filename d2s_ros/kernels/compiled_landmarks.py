"""Compiled search for candidate landmarks, and the compiled scorer that chooses among them."""

from __future__ import annotations

import copy
import math

import numpy as np
from numpy.typing import NDArray

from d2s_ros.kernels import checks
from d2s_ros.kernels.arrays import fourier
from d2s_ros.kernels.interface import Floats, Indices, KeyIndex, ScorerInputs, ScorerParts
from d2s_ros.kernels.library import call, note_arithmetic

#: Keys are searched by blocks of so many, and at most so many of them are found.
_BLOCK, _MOST_FOUND = 64, 64
#: The search looks at so many principal components of the keys, and finds so many candidates beyond
#: those that are asked for: such cosines, of 8 bits, do not order them exactly.
_COMPONENTS, _SPARE_CANDIDATES = 64, 6
#: Products of more are not prepared for: four times MOST_GROUPS of products.c.
_MOST_COMPONENTS = 1024
#: Components of bytes, and the bytes that cosines become.
_LARGEST, _LARGEST_COSINE = 127, 255
#: Columns of the scorer's product are a multiple of this.
_LANES = 16


class ByteKeys:
    """A `KeyIndex` that looks among principal components of the keys, in bytes.

    Args:
        keys: (M, D) float32, L2-normalised.
        directions: (D, d) float32, orthonormal: of the components that are looked at, best those in
            which the keys are longest.

    Raises:
        ValueError: if there are no keys, or too many directions.
    """

    def __init__(self, keys: Floats, directions: Floats) -> None:
        if not len(keys):
            raise ValueError('there are no keys to search')
        checks.dimensions(keys, 2, 'keys')
        checks.dimensions(directions, 2, 'directions')
        checks.fits(directions, keys.shape[1], directions.shape[1])
        if directions.shape[1] > _MOST_COMPONENTS:
            raise ValueError(f'{directions.shape[1]} components are too many to search by')
        self._keys = np.ascontiguousarray(keys)
        # Products take four components at a time.
        self._directions = np.pad(directions, ((0, 0), (0, -directions.shape[1] % 4)))
        components = _product(self._keys, self._directions)
        self._scale = _LARGEST / max(float(np.abs(components).max()), 1e-6)
        stride = -(-len(keys) // _BLOCK) * _BLOCK
        self._packed = np.zeros((stride // 8, components.shape[1] // 4, 8, 4), np.int8)
        self._offsets = np.zeros(stride, np.int32)
        self._pack(np.arange(len(keys)), components)
        # Sums of a cosine of one become 15 bits, these a byte.
        self._shift = max(0, math.ceil(math.log2(self._scale**2)) - 14)
        factor = round(_LARGEST_COSINE * 2**15 / (self._scale**2 / 2**self._shift))
        self._factor = min(factor, 2**15 - 1)

    def _pack(self, rows: Indices, components: Floats) -> None:
        small = np.rint(components * self._scale).clip(-_LARGEST, _LARGEST).astype(np.int8)
        self._packed[rows // 8, :, rows % 8] = small.reshape(len(rows), -1, 4)
        # Components of queries are bytes around 128.
        self._offsets[rows] = -128 * small.sum(axis=1, dtype=np.int32)

    def replaced(self, rows: Indices, keys: Floats) -> ByteKeys:
        """As `KeyIndex.replaced`."""
        checks.rows(rows, len(self._keys), 'keys')
        checks.dimensions(rows, 1, 'rows')
        checks.fits(keys, len(rows), self._keys.shape[1])
        result = copy.copy(self)
        result._keys, result._packed = self._keys.copy(), self._packed.copy()
        result._offsets = self._offsets.copy()
        result._keys[rows] = keys
        components = _product(np.ascontiguousarray(keys, np.float32), self._directions)
        result._pack(rows, components)
        return result

    def search(
        self, queries: Floats, count: int, *, threads: int
    ) -> tuple[Indices, Floats, Floats]:
        """As `KeyIndex.search`."""
        width = len(self._keys)
        checks.search(count, min(_MOST_FOUND, width), threads)
        checks.fits(queries, len(queries), self._keys.shape[1])
        num, dim = queries.shape
        num_found = min(count + _SPARE_CANDIDATES, _MOST_FOUND, width)
        stride, groups = len(self._offsets), self._packed.shape[1]
        idx = np.empty((num, count), np.int64)
        similarity, best = (np.empty((num, count), np.float32) for _ in range(2))
        keys = self._directions, self._scale, self._packed, self._offsets, width, stride, groups
        numbers = self._shift, self._factor, num_found, count, threads
        given = queries, self._keys, num, dim, *keys, *numbers
        failed = call('d2s_search', *given, idx, similarity, best)
        if failed:
            raise MemoryError('no memory to search landmarks')
        products = stride * 4 * groups + dim * (4 * groups + num_found)
        note_arithmetic(2 * num * products)
        return idx, similarity, best


def key_index(keys: Floats) -> KeyIndex:
    """As `Kernels.key_index`."""
    values = np.ascontiguousarray(keys)
    # The orthonormal directions in which the keys are longest.
    directions = np.linalg.eigh((values.T @ values).astype(np.float64)).eigenvectors[:, ::-1]
    return ByteKeys(keys, np.ascontiguousarray(directions[:, :_COMPONENTS], np.float32))


def _bfloat16(values: Floats) -> NDArray[np.uint16]:
    """Return the upper halves of float32 numbers, rounded to the nearest, of two the even one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def _product(a: Floats, b: Floats) -> Floats:
    """Return a (N, K) times b (K, D) without a BLAS, whose threads keep spinning after it."""
    (rows, dim), size = a.shape, b.shape[1]
    result = np.empty((rows, size), np.float32)
    call('d2s_project', a, rows, dim, b, size, result)
    return result


class LinearScorer:
    """A `CandidateScorer` of one product, with tables of landmarks in bfloat16.

    What the network computes of a keypoint before it looks at the candidates is linear in its
    inputs. Products are float32.
    """

    def __init__(self, parts: ScorerParts) -> None:
        checks.scorer(parts)
        self._parts = parts
        padding = -len(parts.final_bias) % _LANES
        # The columns beyond are zero, and never read.
        self._final = np.pad(parts.final_weight, ((0, padding), (0, 0))).T
        product = parts.input_weight.T @ self._final
        bias = np.pad(parts.final_bias, (0, padding)) + parts.input_bias @ self._final
        if parts.ignores_keypoints:
            # What the point (0, 0) and the scale 1 add, whatever the keypoint.
            rows = product[-(3 + 4 * parts.num_frequencies) :]
            place = fourier(np.zeros(2, np.float32), parts.num_frequencies)
            bias = bias + np.pad(place, (0, 1)) @ rows
            rows[:] = 0.0
        self._product = np.ascontiguousarray(product)
        self._bias = np.asarray(bias, np.float32)
        self._evidence = np.ascontiguousarray(parts.evidence_weight)
        self._tables = self._packed(parts.of_points)

    def _packed(self, of_points: Floats) -> tuple[NDArray[np.uint16], ...]:
        """Return what landmarks add as best, as second, and to hidden layers, as bfloat16."""
        best, second, hidden = of_points
        return tuple(_bfloat16(x) for x in (best @ self._final, second @ self._final, hidden))

    def with_points(self, of_points: Floats) -> LinearScorer:
        """As `CandidateScorer.with_points`."""
        checks.fits(of_points, *self._parts.of_points.shape)
        other = copy.copy(self)
        other._parts = self._parts._replace(of_points=of_points)
        rows = np.flatnonzero((of_points != self._parts.of_points).any(axis=(0, 2)))
        other._tables = tuple(table.copy() for table in self._tables)
        for table, values in zip(other._tables, self._packed(of_points[:, rows]), strict=True):
            table[rows] = values
        return other

    def __call__(self, inputs: ScorerInputs, *, threads: int) -> tuple[Floats, Indices]:
        """As `CandidateScorer.__call__`."""
        (num_inputs, stride), frequencies = self._product.shape, self._parts.num_frequencies
        num_landmarks, width = self._tables[2].shape
        checks.scores(inputs, num_inputs, num_landmarks, frequencies, threads)
        (rows, dim), candidates = inputs.descriptors.shape, inputs.landmark_idx.shape[1]
        reliability, choice = np.empty(rows, np.float32), np.empty(rows, np.int64)
        sizes = rows, dim, candidates, frequencies, width, stride
        weights = self._product, self._bias, *self._tables, self._evidence, self._parts.gain
        given = *inputs, *sizes, *weights, threads
        failed = call('d2s_score_candidates', *given, reliability, choice)
        if failed:
            raise MemoryError('no memory to score candidates')
        note_arithmetic(2 * rows * (num_inputs * stride + candidates * width * (4 + 1)))
        return reliability, choice


candidate_scorer = LinearScorer
