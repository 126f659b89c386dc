"""Compiled search for candidate landmarks, and the compiled scorer that chooses among them."""

from __future__ import annotations

import copy
import math

import numpy as np
from numpy.typing import NDArray

from d2s_ros.kernels import checks
from d2s_ros.kernels.interface import Floats, Indices, KeyIndex, ScorerInputs, ScorerParts
from d2s_ros.kernels.library import call, note_arithmetic

#: Keys are searched by blocks of so many, and at most so many of them are found.
_BLOCK, _MOST_FOUND = 64, 64
#: The search looks at so many principal components of the keys, and finds so many candidates beyond
#: those that are asked for: such cosines, of 8 bits, do not order them exactly.
_COMPONENTS, _SPARE_CANDIDATES = 64, 6
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
        ValueError: if there are no keys.
    """

    def __init__(self, keys: Floats, directions: Floats) -> None:
        if not len(keys):
            raise ValueError('there are no keys to search')
        checks.dimensions(keys, 2, 'keys')
        checks.dimensions(directions, 2, 'directions')
        checks.fits(directions, keys.shape[1], directions.shape[1])
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
    """As `Kernels.key_index`; in bytes where the processor multiplies these fast and exactly."""
    # PyTorch's threads sleep after a product: those of NumPy's BLAS keep spinning.
    import torch

    from d2s_ros.kernels import reference

    if not len(keys) or not call('d2s_can_search'):
        return reference.key_index(keys)
    values = torch.from_numpy(np.ascontiguousarray(keys))
    # The orthonormal directions in which the keys are longest.
    directions = torch.linalg.eigh((values.T @ values).double()).eigenvectors.flip(1)
    return ByteKeys(keys, directions[:, :_COMPONENTS].to(values.dtype).contiguous().numpy())


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
        import torch
        from torch.nn import functional

        from d2s_ros.kernels.tensors import fourier

        checks.scorer(parts)
        (weight, input_bias, final_weight, final_bias) = map(torch.from_numpy, parts[:4])
        self._parts = parts
        with torch.inference_mode():
            padding = -len(final_bias) % _LANES
            # The columns beyond are zero, and never read.
            self._final = functional.pad(final_weight, (0, 0, 0, padding)).T.contiguous()
            product = weight.T @ self._final
            bias = functional.pad(final_bias, (0, padding)) + input_bias @ self._final
            if parts.ignores_keypoints:
                # What the point (0, 0) and the scale 1 add, whatever the keypoint.
                rows = product[-(3 + 4 * parts.num_frequencies) :]
                place = fourier(torch.zeros(2), parts.num_frequencies)
                bias += functional.pad(place, (0, 1)) @ rows
                rows.zero_()
            self._product, self._bias = product.contiguous().numpy(), bias.numpy()
        self._evidence = np.ascontiguousarray(parts.evidence_weight)
        self._tables = self._packed(parts.of_points)

    def _packed(self, of_points: Floats) -> tuple[NDArray[np.uint16], ...]:
        """Return what landmarks add as best, as second, and to hidden layers, as bfloat16."""
        import torch

        with torch.inference_mode():
            best, second, hidden = torch.from_numpy(of_points)
            values = best @ self._final, second @ self._final, hidden
            return tuple(
                value.to(torch.bfloat16).contiguous().view(torch.uint16).numpy() for value in values
            )

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
