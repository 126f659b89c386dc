"""SuperPoint on a CPU by the compiled kernels alone; float32.

Robots without PyTorch have no other. Where PyTorch is, this takes about half of its time, and
PyTorch's 8-bit network, on CPUs that have one, takes less still.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2s_ros import kernels
from d2s_ros.device import has_fast_int8
from d2s_ros.errors import UsageError, WeightsError
from d2s_ros.features.network_images import NetworkImages, pad_to_cells
from d2s_ros.features.superpoint.files import default_weights_path, projection_path, read_arrays
from d2s_ros.features.superpoint.layers import LAYERS, STRIP_ROWS
from d2s_ros.features.types import FeatureConfig
from d2s_ros.kernels.convolution import Convolution, ImageConvolution, Product, can_convolve
from d2s_ros.threads import num_threads

#: Layers that end with a pooling.
_POOLED = ('conv2b', 'conv3b')
#: Of the search for keypoints, as in `SuperPoint`.
_NMS_RADIUS, _THRESHOLD, _BORDER = 4, 0.0005, 4


def is_faster(path: Path) -> bool:
    """Return whether the compiled network computes these weights, and PyTorch none faster."""
    from safetensors import SafetensorError, safe_open

    if has_fast_int8() or not kernels.is_compiled() or path.suffix != '.safetensors':
        return False
    try:
        with safe_open(path, 'numpy') as file:
            return set(file.keys()) == set(_expected_shapes())
    except (OSError, SafetensorError):
        return False  # PyTorch's reader says what is wrong


class CompiledSuperPoint(NetworkImages):
    """SuperPoint behind the `FeatureExtractor` contract; the features are those of `SuperPoint`.

    Args:
        path: A .safetensors file without affine layers; None takes the packaged one. A projection
            beside it is read as `SuperPoint.from_pretrained` does.
        config: Number of keypoints and image size.

    Raises:
        WeightsError: the file is missing, unreadable or of another architecture.
        UsageError: the compiled part of the package is missing.
    """

    #: As that of `SuperPoint`.
    graph_state = 'there is no GPU'

    def __init__(self, path: str | Path | None = None, *, config: FeatureConfig) -> None:
        if not can_convolve():
            raise UsageError(
                'superpoint needs PyTorch or the compiled part of the package, and neither is '
                'here; install a C compiler and the package again, or PyTorch'
            )
        found = default_weights_path() if path is None else Path(path)
        if found is None:
            raise WeightsError('the package has no superpoint weights; give a weight file')
        self.config = config
        arrays, self.weights_hash = read_arrays(found)
        weights, biases = _checked(arrays, found)
        self.smoothing, projection = 0.0, None
        if projection_path(found).is_file():
            others, digest = read_arrays(projection_path(found))
            projection = others.get('projection')
            if projection is None or projection.ndim != 2 or len(projection) != 256:
                raise WeightsError(f'{projection_path(found)} is not a projection of superpoint')
            if 'smoothing' in others:
                self.smoothing = float(others['smoothing'].max())
            self.weights_hash = hashlib.sha256((self.weights_hash + digest).encode()).hexdigest()
        self.dim = 256 if projection is None else projection.shape[1]
        self._projection = None if projection is None else Product(projection.T)
        self._first = ImageConvolution(weights['conv1a'], biases['conv1a'])
        self._layers = {
            name: Convolution(weights[name], biases[name])
            for name, inputs, _, side in LAYERS
            if side == 3 and inputs > 1
        }
        self._heads = {
            name: Product(weights[name][:, :, 0, 0], biases[name])
            for name, _, _, side in LAYERS
            if side == 1
        }

    def _shared_map(self, padded: NDArray[np.uint8], threads: int) -> NDArray[np.float32]:
        """Return what the heads share (h, w, 128) of an image (H, W), multiples of 8."""
        height, strips = len(padded), []
        for start in range(0, height, STRIP_ROWS):
            # The maps at full resolution are the largest by far: strips stay small.
            first, last = max(0, start - 2), min(height, start + STRIP_ROWS + 2)
            x = self._first(padded, first=first, count=last - first, threads=threads)
            count = min(start + STRIP_ROWS, height) - start
            strip = self._layers['conv1b'](
                x, threads=threads, pool=True, first=start - first, count=count
            )
            strips.append(strip)
        x = np.concatenate(strips)
        for name in ('conv2a', 'conv2b', 'conv3a', 'conv3b', 'conv4a', 'conv4b'):
            x = self._layers[name](x, threads=threads, pool=name in _POOLED)
        return x

    def forward(self, padded: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits (h, w, 65) and what descriptors are made of (h * w, 256), of (H, W)."""
        threads = num_threads()
        shared = self._shared_map(padded, threads)
        height, width = shared.shape[:2]
        detected = self._layers['convPa'](shared, threads=threads).reshape(height * width, -1)
        logits = self._heads['convPb'](detected, threads=threads).reshape(height, width, -1)
        described = self._layers['convDa'](shared, threads=threads).reshape(height * width, -1)
        return logits, described

    def _run(
        self, grey: NDArray[np.uint8], allowed: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
        compute, threads = kernels.active(), num_threads()
        logits, described = self.forward(pad_to_cells(grey))
        height, width = logits.shape[:2]
        scores = compute.score_map(logits, *grey.shape, threads=threads)
        index = compute.strongest_maxima(
            scores,
            _NMS_RADIUS,
            self.config.max_keypoints,
            border=_BORDER,
            threshold=_THRESHOLD,
            allowed=allowed,
            threads=threads,
        )
        keypoints = compute.refine_keypoints(scores, index)
        cells, positions, shares = compute.cells_around(keypoints, height, width)
        raw = self._heads['convDb'](described[cells], threads=threads)
        descriptors = self._descriptors(raw, positions, shares, threads)
        return keypoints.astype(np.float64), scores.reshape(-1)[index], descriptors

    def _descriptors(
        self,
        raw: NDArray[np.float32],
        positions: NDArray[np.int64],
        shares: NDArray[np.float32],
        threads: int,
    ) -> NDArray[np.float32]:
        """Return unit descriptors (K, D) from raw ones (M, 256), rows (K, 4) and weights."""
        unit = raw / np.maximum(_lengths(raw), 1e-12)
        mixed = np.zeros((len(positions), unit.shape[1]), np.float32)
        for corner in range(4):
            mixed += unit[positions[:, corner]] * shares[:, corner, None]
        if self._projection is not None:
            mixed = self._projection(mixed, threads=threads)
        return np.asarray(mixed / np.maximum(_lengths(mixed), 1e-12), np.float32)


def _lengths(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the lengths (N, 1) of rows."""
    return np.sqrt(np.einsum('nc,nc->n', rows, rows))[:, None]


def _expected_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of plain SuperPoint by their names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, inputs, outputs, side in LAYERS:
        shapes[f'{name}.weight'] = outputs, inputs, side, side
        shapes[f'{name}.bias'] = (outputs,)
    return shapes


def _checked(
    arrays: dict[str, NDArray[np.float32]], path: Path
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """Return weights and biases by layer."""
    expected = _expected_shapes()
    for key in sorted(set(expected) ^ set(arrays)):
        what = 'it lacks' if key in expected else 'without PyTorch it must not have'
        raise WeightsError(f'{path} is not a weight file of plain SuperPoint: {what} {key}')
    for key, shape in expected.items():
        if arrays[key].shape != shape:
            raise WeightsError(
                f'{path} is not a SuperPoint weight file: {key} is {arrays[key].shape}, expected '
                f'{shape}'
            )
    names = [name for name, *_ in LAYERS]
    return (
        {name: arrays[f'{name}.weight'] for name in names},
        {name: arrays[f'{name}.bias'] for name in names},
    )
