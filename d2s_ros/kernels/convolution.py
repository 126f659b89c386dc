"""Compiled convolutions, for networks that run without PyTorch; their reference is PyTorch's.

Maps are (rows, columns, channels) float32; channels are filled up to multiples of 16 with zeros.
"""

from __future__ import annotations

import numpy as np

from d2s_ros.kernels import checks
from d2s_ros.kernels.interface import Bytes, Floats
from d2s_ros.kernels.library import call, is_built

#: Channels of maps are multiples of this.
_LANES = 16
#: Winograd's F(4x4, 3x3): what weights are multiplied by on either side.
_TRANSFORM = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)


def can_convolve() -> bool:
    """Return whether the compiled part is here; there is no other."""
    return is_built()


def _filled(bias: Floats) -> Floats:
    return np.pad(bias, (0, -len(bias) % _LANES)).astype(np.float32)


class Convolution:
    """A 3x3 convolution with ReLU of maps of several channels.

    Args:
        weight: (outputs, inputs, 3, 3), inputs a multiple of sixteen.
        bias: (outputs,).
    """

    def __init__(self, weight: Floats, bias: Floats) -> None:
        checks.fits(weight, len(bias), weight.shape[1], 3, 3)
        if weight.shape[1] % _LANES:
            raise ValueError(f'{weight.shape[1]} channels are no multiple of {_LANES}')
        points = np.einsum('ia,ocab,jb->ijco', _TRANSFORM, weight.astype(np.float64), _TRANSFORM)
        points = points.reshape(36, weight.shape[1], len(bias))
        self._bias = _filled(bias)
        room = ((0, 0), (0, 0), (0, len(self._bias) - len(bias)))
        self._weights = np.ascontiguousarray(np.pad(points, room), np.float32)

    def __call__(
        self,
        given: Floats,
        *,
        threads: int,
        pool: bool = False,
        first: int = 0,
        count: int | None = None,
    ) -> Floats:
        """Return some rows of the output (count, columns, outputs).

        Args:
            given: (rows, columns, inputs); beyond it there are zeros.
            threads: To compute with.
            pool: Return the maxima of 2x2 instead.
            first, count: Rows of the output; all without. Even with `pool`, as are columns.
        """
        checks.enough_threads(threads)
        checks.dimensions(given, 3, 'a map')
        rows, columns, inputs = given.shape
        checks.fits(given, rows, columns, self._weights.shape[1])
        count = rows - first if count is None else count
        by = 2 if pool else 1
        if not 0 <= first <= first + count <= rows or first % by or count % by or columns % by:
            raise ValueError(f'rows {first} to {first + count} of {rows}x{columns} do not fit')
        outputs = len(self._bias)
        result = np.empty((count // by, columns // by, outputs), np.float32)
        what = given, rows, columns, inputs, first, count, self._weights, self._bias, outputs
        if call('d2s_convolve', *what, int(pool), threads, result):
            raise MemoryError('no memory for a convolution')
        return result


class ImageConvolution:
    """A 3x3 convolution with ReLU of a grey image, whose bytes count as 0 to 1.

    Args:
        weight: (outputs, 1, 3, 3).
        bias: (outputs,).
    """

    def __init__(self, weight: Floats, bias: Floats) -> None:
        checks.fits(weight, len(bias), 1, 3, 3)
        self._bias = _filled(bias)
        by_pixel = weight.reshape(len(bias), 9).T / 255.0
        room = ((0, 0), (0, len(self._bias) - len(bias)))
        self._weights = np.ascontiguousarray(np.pad(by_pixel, room), np.float32)

    def __call__(self, image: Bytes, *, first: int, count: int, threads: int) -> Floats:
        """Return rows `first` to `first + count` (count, columns, outputs) of an image (H, W)."""
        checks.enough_threads(threads)
        checks.dimensions(image, 2, 'an image')
        rows, columns = image.shape
        if not 0 <= first <= first + count <= rows:
            raise ValueError(f'rows {first} to {first + count} of {rows} do not fit')
        result = np.empty((count, columns, len(self._bias)), np.float32)
        what = image, rows, columns, first, count, self._weights, self._bias, len(self._bias)
        call('d2s_convolve_image', *what, threads, result)
        return result


class Product:
    """A linear layer, or a 1x1 convolution.

    Args:
        weight: (outputs, inputs).
        bias: (outputs,); None: zeros.
    """

    def __init__(self, weight: Floats, bias: Floats | None = None) -> None:
        checks.dimensions(weight, 2, 'weights')
        self._outputs = len(weight)
        self._bias = _filled(np.zeros(len(weight), np.float32) if bias is None else bias)
        room = ((0, len(self._bias) - len(weight)), (0, 0))
        self._weights = np.ascontiguousarray(np.pad(weight, room).T, np.float32)

    def __call__(self, values: Floats, *, threads: int) -> Floats:
        """Return (N, outputs) of values (N, inputs)."""
        checks.enough_threads(threads)
        checks.fits(values, len(values), len(self._weights))
        rows, inputs = values.shape
        # Four rows at a time.
        filled = np.ascontiguousarray(np.pad(values, ((0, -rows % 4), (0, 0))))
        result = np.empty((len(filled), len(self._bias)), np.float32)
        what = filled, len(filled), inputs, self._weights, self._bias, len(self._bias)
        call('d2s_multiply', *what, threads, result)
        return np.ascontiguousarray(result[:rows, : self._outputs])
