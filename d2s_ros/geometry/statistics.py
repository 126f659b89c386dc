"""Small statistics of points and integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Item = TypeVar('Item')


def median_of(values: Array) -> float:
    """Return the median of (N,), N > 0: `np.median` takes four times as long for some hundred."""
    low, high = (len(values) - 1) // 2, len(values) // 2
    ordered = np.partition(values, (low, high))
    return float(0.5 * (ordered[low] + ordered[high]))


def scatter_of(points: Array) -> Array:
    """Return the covariance (D, D) of points (N, D)."""
    centred = points - points.mean(axis=0)
    return np.asarray(centred.T @ centred / (len(points) - 1))


def first_of_each(values: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """Return where integers (N,) from 0 to `size` - 1 are seen for the first time."""
    positions = np.arange(len(values))
    first = np.empty(size, np.int64)
    # Of several values for one place, NumPy keeps the last.
    first[values[::-1]] = positions[::-1]
    return np.asarray(first[values] == positions)


def ellipse_area(scatter: Array) -> float:
    """Return the area of the two-sigma ellipse of a scatter (2, 2)."""
    return float(4 * np.pi * np.sqrt(max(float(np.linalg.det(scatter)), 0.0)))


def extent_of(points: Array) -> float:
    """Return the width of points (N, 3) in the second widest direction, two sigma to both sides."""
    variances = np.linalg.eigvalsh(scatter_of(points))
    return float(4.0 * np.sqrt(max(variances[1], 0.0)))


def subsample(values: Sequence[Item], count: int) -> list[Item]:
    """Return at most `count` of the values, evenly."""
    kept = np.linspace(0, len(values) - 1, min(len(values), count)).round().astype(int)
    return [values[index] for index in kept]


def largest_sigma(covariance: NDArray[np.float64]) -> float:
    """Return the largest standard deviation of any direction of a covariance (D, D)."""
    return float(np.sqrt(max(0.0, float(np.linalg.eigvalsh(covariance)[-1]))))
