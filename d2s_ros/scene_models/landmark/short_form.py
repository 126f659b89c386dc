"""A table of landmarks in a third of the bytes: short keys, points on a grid, rounded covariances.

A key is a few principal components of all keys, 4 bits each, and the size of a step. A point is 24
bits an axis on a grid that spans the scene: steps are finer than float32 where the scene is wide.
Of a covariance the Cholesky factor is kept, float16: its square is positive whatever is rounded.
Everything is decoded once, when a map is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Steps of a code on either side of zero; a code is 0 to 15.
_HALF_STEPS = 8
#: Largest code of a point.
_LAST = 2**24 - 1
_ROWS, _COLUMNS = np.tril_indices(3)


@dataclass(frozen=True, eq=False)
class ShortForm:
    """What a map keeps of M landmarks with D-dimensional keys, C principal components of them.

    Attributes:
        components: (C + 1, D) float16, C even: the components, and the mean last.
        codes: (M, C / 2) uint8, two components a byte, the first in the lower half.
        steps: (M,) float16, what one step of a key's codes is.
        grid: (4,) float32, the lowest corner of the points, and a step.
        points: (M, 9) uint8, x y z in steps, 24 bits each, lowest byte first.
        factors: (M, 6) float16, rows of the lower Cholesky factor over `unit`.
        unit: (1,) float32.
    """

    components: NDArray[np.float16]
    codes: NDArray[np.uint8]
    steps: NDArray[np.float16]
    grid: NDArray[np.float32]
    points: NDArray[np.uint8]
    factors: NDArray[np.float16]
    unit: NDArray[np.float32]

    @classmethod
    def encode(
        cls,
        keys: NDArray[np.float32],
        points_in_map: NDArray[np.float32],
        covariances: NDArray[np.float32],
        num_components: int,
    ) -> ShortForm:
        """Shorten keys (M, D), points (M, 3) and covariances (M, 3, 3).

        Args:
            keys, points_in_map, covariances: Of a table.
            num_components: Even, at most D.
        """
        mean = keys.mean(axis=0, dtype=np.float64)
        centered = keys - mean
        _, vectors = np.linalg.eigh(centered.T @ centered)
        components = np.concatenate([vectors[:, ::-1][:, :num_components].T, mean[None]])
        components = components.astype(np.float16)
        codes, steps = _coded(keys, components)
        lowest = points_in_map.min(axis=0).astype(np.float32)
        span = float((points_in_map - lowest).max()) if len(points_in_map) else 0.0
        grid = np.append(lowest, np.float32(max(span, 1e-6) / _LAST)).astype(np.float32)
        factors = np.linalg.cholesky(covariances.astype(np.float64))
        unit = np.array([np.median(factors[:, range(3), range(3)])], np.float32)
        scaled = np.clip(factors[:, _ROWS, _COLUMNS] / unit, -6e4, 6e4)
        return cls(
            components,
            (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8),
            steps,
            grid,
            _on_grid(points_in_map, grid),
            scaled.astype(np.float16),
            unit,
        )

    def keys(self) -> NDArray[np.float32]:
        """Return L2-normalised keys (M, D)."""
        codes = np.stack([self.codes & 15, self.codes >> 4], axis=2)
        return _decoded(codes.reshape(len(self.codes), -1), self.steps, self.components)

    def keys_like(self, keys: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return keys (N, D) as they would come back from a map."""
        return _decoded(*_coded(keys, self.components), self.components)

    def points_in_map(self) -> NDArray[np.float32]:
        """Return points (M, 3)."""
        return _from_grid(self.points, self.grid)

    def points_like(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return points (N, 3) as they would come back from a map."""
        return _from_grid(_on_grid(points, self.grid), self.grid)

    def covariances(self) -> NDArray[np.float32]:
        """Return covariances (M, 3, 3)."""
        factors = np.zeros((len(self.factors), 3, 3))
        factors[:, _ROWS, _COLUMNS] = self.factors.astype(np.float64) * self.unit
        # What the float16 flushed to zero is not known exactly.
        least = 1e-3 * np.abs(factors).max(axis=(1, 2))[:, None]
        diagonal = np.maximum(factors[:, range(3), range(3)], least)
        factors[:, range(3), range(3)] = diagonal
        return np.asarray(factors @ factors.transpose(0, 2, 1), np.float32)

    def scaled(self, factor: float) -> ShortForm:
        """Return the landmarks with all coordinates multiplied by `factor`; codes stay."""
        return replace(
            self,
            grid=(self.grid * factor).astype(np.float32),
            unit=(self.unit * factor).astype(np.float32),
        )

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the tensors of a map by name."""
        return {f'short.{name}': getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]]) -> ShortForm:
        """Take the tensors of a map, as `tensors` gave them.

        Raises:
            KeyError: one is missing.
        """
        return cls(*(tensors[f'short.{name}'] for name in cls.__dataclass_fields__))

    def check(self, dim: int, num_components: int) -> None:
        """Check types, shapes and values.

        Args:
            dim: D, of the descriptors.
            num_components: C.

        Raises:
            ValueError: what is wrong, with the name of the tensor.
        """
        count = len(self.codes) if self.codes.ndim else 0
        expected: dict[str, tuple[Any, tuple[int, ...]]] = {
            'components': (np.float16, (num_components + 1, dim)),
            'codes': (np.uint8, (count, num_components // 2)),
            'steps': (np.float16, (count,)),
            'grid': (np.float32, (4,)),
            'points': (np.uint8, (count, 9)),
            'factors': (np.float16, (count, 6)),
            'unit': (np.float32, (1,)),
        }
        for name, (dtype, shape) in expected.items():
            value = getattr(self, name)
            if value.dtype != dtype or value.shape != shape:
                raise ValueError(
                    f'short.{name} is {value.dtype} {value.shape}, expected {np.dtype(dtype)} '
                    f'{shape}'
                )
            if dtype is not np.uint8 and not np.isfinite(value).all():
                raise ValueError(f'short.{name} has numbers that are not finite')
        for name, value in (('grid', self.grid[3]), ('unit', self.unit[0])):
            if not float(value) > 0:
                raise ValueError(f'the step of short.{name} is {float(value)}, not positive')
        if (self.factors[:, [0, 2, 5]] < 0).any() or not self.factors.any(axis=1).all():
            raise ValueError('short.factors has covariances that are not positive')


def _coded(
    keys: NDArray[np.float32], components: NDArray[np.float16]
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    exact = components.astype(np.float32)
    numbers = (keys - exact[-1]) @ exact[:-1].T
    steps = np.abs(numbers).max(axis=1, initial=0.0) / (_HALF_STEPS - 0.5)
    steps = np.maximum(steps, 1e-6).astype(np.float16)
    codes = np.floor(numbers / steps.astype(np.float32)[:, None]) + _HALF_STEPS
    return np.clip(codes, 0, 2 * _HALF_STEPS - 1).astype(np.uint8), steps


def _decoded(
    codes: NDArray[np.uint8], steps: NDArray[np.float16], components: NDArray[np.float16]
) -> NDArray[np.float32]:
    exact = components.astype(np.float32)
    numbers = (codes.astype(np.float32) - (_HALF_STEPS - 0.5)) * steps.astype(np.float32)[:, None]
    keys = numbers @ exact[:-1] + exact[-1]
    norms = np.linalg.norm(keys, axis=1, keepdims=True)
    return np.asarray(keys / np.maximum(norms, 1e-12), np.float32)


def _on_grid(points: NDArray[np.float32], grid: NDArray[np.float32]) -> NDArray[np.uint8]:
    exact = grid.astype(np.float64)
    steps = np.rint((points.astype(np.float64) - exact[:3]) / exact[3])
    codes = np.clip(steps, 0, _LAST).astype('<u4')
    return codes[..., None].view(np.uint8)[..., :3].reshape(len(points), 9)


def _from_grid(codes: NDArray[np.uint8], grid: NDArray[np.float32]) -> NDArray[np.float32]:
    exact = grid.astype(np.float64)
    whole = np.zeros((len(codes), 3, 4), np.uint8)
    whole[..., :3] = codes.reshape(len(codes), 3, 3)
    steps = whole.view('<u4')[..., 0].astype(np.float64)
    return np.asarray(exact[:3] + steps * exact[3], np.float32)
