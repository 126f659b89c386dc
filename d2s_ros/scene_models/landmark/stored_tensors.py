"""Whether the tensors of a map are those of landmarks: shapes, types, values and indices.

A digest tells that a file is as it was written, not that it was written well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.scene_models.landmark.config import LandmarkConfig
from d2s_ros.scene_models.landmark.product_codes import PART_DIM
from d2s_ros.scene_models.landmark.short_form import ShortForm

#: Coordinates beyond would overflow when they are squared in float32.
_MAX_COORDINATE = 1e12
#: A covariance may be this negative, share of its trace, by rounding.
_ROUNDING = 1e-4


def check_landmark_tensors(tensors: Mapping[str, NDArray[Any]], config: LandmarkConfig) -> None:
    """Check the tensors that docs/reference/map_format.md lists, except the network's.

    Args:
        tensors: As read from a map.
        config: Shape of the network.

    Raises:
        KeyError: a tensor is missing.
        ValueError: one has a wrong shape, type or value; the message names it.
    """
    if config.short_keys:
        _check_short_form(tensors, config)
    else:
        _check_product_codes(tensors, config)
    center, extent = tensors['center'], tensors['extent']
    for name, value, shape in (('center', center, (3,)), ('extent', extent, (1,))):
        if value.dtype != np.float32 or value.shape != shape:
            raise ValueError(f'{name} is {value.dtype} {value.shape}, expected float32 {shape}')
    _check_coordinates('center', center)
    if not float(extent[0]) > 0:
        raise ValueError(f'extent is {float(extent[0])}, it must be positive')


def _check_short_form(tensors: Mapping[str, NDArray[Any]], config: LandmarkConfig) -> None:
    short = ShortForm.from_tensors(tensors)
    short.check(config.descriptor_dim, config.short_keys)
    _check_count(len(short.codes), config)
    _check_coordinates('points', short.points_in_map())


def _check_count(count: int, config: LandmarkConfig) -> None:
    if count < config.num_candidates:
        raise ValueError(f'{count} landmarks, {config.num_candidates} candidates of a keypoint')


def _check_coordinates(name: str, value: NDArray[np.float32]) -> None:
    if float(np.abs(value).max()) > _MAX_COORDINATE:
        raise ValueError(f'{name} has coordinates beyond {_MAX_COORDINATE:.0e}')


def _check_product_codes(tensors: Mapping[str, NDArray[Any]], config: LandmarkConfig) -> None:
    codebook, codes = tensors['key_codebook'], tensors['key_codes']
    points, covariances = tensors['points'], tensors['covariances']
    parts = -(-config.descriptor_dim // PART_DIM)
    count = len(points) if points.ndim else 0
    for name, value, dtype, shape in (
        ('key_codes', codes, np.uint8, (count, parts)),
        ('points', points, np.float32, (count, 3)),
        ('covariances', covariances, np.float32, (count, 6)),
    ):
        if value.dtype != dtype or value.shape != shape:
            raise ValueError(
                f'{name} is {value.dtype} {value.shape}, expected {np.dtype(dtype)} {shape}'
            )
    _check_count(count, config)
    if (
        codebook.dtype != np.float16
        or codebook.ndim != 3
        or codebook.shape[::2] != (parts, PART_DIM)
        or not 1 <= codebook.shape[1] <= 256
    ):
        raise ValueError(
            f'key_codebook is {codebook.dtype} {codebook.shape}, expected float16 ({parts}, 1 to '
            f'256, {PART_DIM})'
        )
    if int(codes.max()) >= codebook.shape[1]:
        raise ValueError(
            f'key_codes names centroid {int(codes.max())} of {codebook.shape[1]} in key_codebook'
        )
    _check_coordinates('points', points)
    _check_covariances(covariances.astype(np.float64))


def _check_covariances(upper: NDArray[np.float64]) -> None:
    """Check that symmetric matrices, (M, 6) xx xy xz yy yz zz, are positive."""
    diagonal = upper[:, [0, 3, 5]]
    matrices = np.empty((len(upper), 3, 3))
    rows, columns = np.triu_indices(3)
    matrices[:, rows, columns] = matrices[:, columns, rows] = upper
    smallest = np.linalg.eigvalsh(matrices)[:, 0]
    wrong = (diagonal <= 0).any(axis=1) | (smallest < -_ROUNDING * diagonal.sum(axis=1))
    if wrong.any():
        raise ValueError(
            f'covariances of {int(wrong.sum())} landmarks are not positive, the first of landmark '
            f'{int(np.flatnonzero(wrong)[0])}'
        )
