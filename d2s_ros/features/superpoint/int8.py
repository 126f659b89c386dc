"""SuperPoint in 8-bit integers, for CPUs with VNNI instructions: four times as fast as float32.

Activations are uint8 with one scale per layer, weights int8 with one scale per output channel, sums
int32; the heads' outputs are float32. The convolutions are oneDNN's, which come with PyTorch. Each
layer's range is measured on made-up pictures when the network is loaded, so that any weight file of
the plain layout works; what lies beyond is clipped.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from d2s_ros import kernels
from d2s_ros.features.superpoint.network import SuperPointNet

#: Each layer and the one it reads; a stage ends with a pooling where the next one begins.
_INPUT_OF = {
    'conv1a': '',
    'conv1b': 'conv1a',
    'conv2a': 'conv1b',
    'conv2b': 'conv2a',
    'conv3a': 'conv2b',
    'conv3b': 'conv3a',
    'conv4a': 'conv3b',
    'conv4b': 'conv4a',
    'convPa': 'conv4b',
    'convPb': 'convPa',
    'convDa': 'conv4b',
    'convDb': 'convDa',
}
#: Activations within a layer's range. The few beyond are clipped, for finer steps below.
_RANGE_SHARE = 0.9999
_HEADS = ('convPb', 'convDb')
_POOLED = ('conv1b', 'conv2b', 'conv3b')
#: Cells are described by multiples of this: oneDNN makes a program for each number it meets.
_CELL_BUCKET = 256


def calibration_image(seed: int, width: int = 640, height: int = 480) -> NDArray[np.uint8]:
    """Make a picture with structure of all sizes and contrasts, (H, W) uint8.

    The activations it causes are those of photographs or a little larger.
    """
    rng = np.random.default_rng(seed)
    cloud = np.zeros((height, width), np.float32)
    for octave in range(1, 8):
        step = 2**octave
        noise = rng.standard_normal((height // step + 2, width // step + 2)).astype(np.float32)
        cloud += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * step**0.7
    low, high = float(cloud.min()), float(cloud.max())
    image = np.asarray((cloud - low) / (high - low) * 255.0, np.uint8)
    for _ in range(60):
        centre = rng.uniform(0, [width, height])
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
        corners = centre + rng.uniform(6, 90) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        cv2.fillPoly(image, [corners.astype(np.int32)], int(rng.integers(0, 256)))
    return image


class Int8SuperPoint:
    """The integer twin of a `SuperPointNet` without affine layers.

    Args:
        network: Float network on the CPU; only read.
    """

    def __init__(self, network: SuperPointNet) -> None:
        ranges = _activation_ranges(network)
        self._layers: dict[str, tuple[Tensor, Tensor, Tensor, Tensor, float, float, int]] = {}
        self._products: dict[str, Tensor] = {}
        for name, source in _INPUT_OF.items():
            layer = getattr(network, name)
            weight = layer.weight.detach().float()
            weight_scales = weight.abs().amax(dim=(1, 2, 3)).clamp(min=1e-12) / 127
            integers = (weight / weight_scales[:, None, None, None]).round().clamp(-127, 127)
            # Images are uint8 already: 255 is the network's 1.0.
            input_scale = ranges[source] / 255 if source else 1 / 255
            pad = layer.padding[0]
            integers = integers.to(torch.int8)
            packed = torch.ops.onednn.qconv_prepack(
                integers, weight_scales, input_scale, 0, [1, 1], [pad] * 2, [1, 1], 1, None
            )
            if name in ('convDa', 'convDb'):
                # As a product with the neighbourhoods of cells: row by row, channels last.
                rows = integers.permute(0, 2, 3, 1).reshape(len(integers), -1).contiguous()
                self._products[name] = torch.ops.onednn.qlinear_prepack(
                    rows, [_CELL_BUCKET, rows.shape[1]]
                )
            self._layers[name] = (
                packed,
                weight_scales,
                torch.zeros(len(weight), dtype=torch.int64),
                layer.bias.detach().float(),
                input_scale,
                1.0 if name in _HEADS else ranges[name] / 255,
                pad,
            )

    def _layer(self, name: str, x: Tensor) -> Tensor:
        weight, weight_scales, zeros, bias, input_scale, scale, pad = self._layers[name]
        head = name in _HEADS
        result: Tensor = torch.ops.onednn.qconv2d_pointwise(
            x, input_scale, 0, weight, weight_scales, zeros, bias, [1, 1], [pad] * 2, [1, 1], 1,
            scale, 0, torch.float32 if head else torch.uint8, 'none' if head else 'relu', [], '',
        )  # fmt: skip
        return result

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """As `SuperPointNet.forward`, from (1, 1, H, W) uint8."""
        shared, logits = self.detect(image)
        return logits, self._layer('convDb', self._layer('convDa', shared))

    def detect(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the heads share (1, 128, h, w), uint8, and the logits (1, 65, h, w)."""
        x = image.contiguous(memory_format=torch.channels_last)
        for name in list(_INPUT_OF)[:8]:
            x = self._layer(name, x)
            if name in _POOLED:
                x = torch.ops.quantized.max_pool2d(x, [2, 2], [2, 2], [0, 0], [1, 1], False)
        return x, self._layer('convPb', self._layer('convPa', x))

    def describe(self, shared: Tensor, cells: Tensor) -> Tensor:
        """Return raw descriptors (M, 256) of some cells, equal to those of all.

        Keypoints lie in half of the cells or less: the others need no descriptor.

        Args:
            shared: As `detect` returns it.
            cells: (M,) int64, row after row of (h, w).
        """
        around = self._around(shared, cells)
        return self._product('convDb', self._product('convDa', around))[: len(cells)]

    def _around(self, shared: Tensor, cells: Tensor) -> Tensor:
        """Return the nine cells around each, (M', 9 * 128), M' the next multiple of a bucket."""
        values = shared[0].permute(1, 2, 0).contiguous().numpy()
        num_rows = len(cells) + -len(cells) % _CELL_BUCKET
        found = kernels.active().gather_around(
            values, cells.numpy(), num_rows, threads=torch.get_num_threads()
        )
        return torch.from_numpy(found)

    def _product(self, name: str, x: Tensor) -> Tensor:
        _, weight_scales, zeros, bias, input_scale, scale, _ = self._layers[name]
        head = name in _HEADS
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, input_scale, 0, self._products[name], weight_scales, zeros, bias, scale, 0,
            torch.float32 if head else torch.uint8, 'none' if head else 'relu', [], '',
        )  # fmt: skip
        return result


def _activation_ranges(network: SuperPointNet) -> dict[str, float]:
    """Return each layer's range on made-up pictures: all but a few activations are below."""
    ranges = dict.fromkeys(_INPUT_OF, 1e-6)
    for seed in range(2):
        image = torch.from_numpy(calibration_image(seed, 320, 240))[None, None].float() / 255
        outputs = {'': image.contiguous(memory_format=torch.channels_last)}
        with torch.inference_mode():
            for name, source in _INPUT_OF.items():
                x = getattr(network, name)(outputs[source])
                outputs[name] = x = x if name in _HEADS else functional.relu(x)
                # A sample is enough: every seventh, of all channels.
                part = x.numpy().reshape(-1)[::7]
                ranges[name] = max(ranges[name], float(np.quantile(part, _RANGE_SHARE)))
                if name in _POOLED:
                    outputs[name] = functional.max_pool2d(x, 2)
    return ranges
