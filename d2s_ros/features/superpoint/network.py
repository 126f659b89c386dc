"""The network of SuperPoint, exactly as published (DeTone et al. 2018).

So published weight files and ours are interchangeable.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from d2s_ros.features.superpoint.layers import LAYERS, LINEAR_LAYERS, STRIP_ROWS


class SuperPointNet(nn.Module):
    """The network: (B, 1, H, W) grey in [0, 1] to detector logits and raw descriptors.

    Args:
        affine: Whether a per-channel scale and shift follows each activation. Published weights
            with batch norm after the ReLU need it: that does not fold into a convolution with
            zero padding.
    """

    def __init__(self, *, affine: bool = False) -> None:
        super().__init__()
        self.affine = affine
        for name, inputs, outputs, kernel in LAYERS:
            setattr(self, name, nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))
            if affine:
                self.register_buffer(f'{name}_scale', torch.ones(outputs))
                self.register_buffer(f'{name}_shift', torch.zeros(outputs))

    def _layer(self, name: str, x: Tensor) -> Tensor:
        x = getattr(self, name)(x)
        if name not in LINEAR_LAYERS:
            x = functional.relu(x, inplace=True)
        if self.affine:
            scale, shift = getattr(self, f'{name}_scale'), getattr(self, f'{name}_shift')
            x = x * scale[:, None, None] + shift[:, None, None]
        return x

    def _first_stage(self, image: Tensor) -> Tensor:
        """Run the two layers at full resolution and the pooling after them.

        Their maps are the largest by far (150 MB for a megapixel and more): on a CPU they are
        computed in strips that fit into its cache, which is faster and changes nothing. Exports,
        whose sizes are open, have them in one piece.
        """
        height = image.shape[2]
        if image.device.type != 'cpu' or self.training or torch.compiler.is_compiling():
            return functional.max_pool2d(self._layer('conv1b', self._layer('conv1a', image)), 2)
        strips = []
        for start in range(0, height, STRIP_ROWS):
            # Two convolutions of 3x3 look two rows beyond.
            first, last = max(0, start - 2), min(height, start + STRIP_ROWS + 2)
            x = self._layer('conv1b', self._layer('conv1a', image[:, :, first:last]))
            x = x[:, :, start - first : min(start + STRIP_ROWS, height) - first]
            strips.append(functional.max_pool2d(x, 2))
        return strips[0] if len(strips) == 1 else torch.cat(strips, dim=2)

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the encoder's last maps at 1/2, 1/4 and 1/8 of the image: 64, 128, 128 channels.

        Args:
            image: (B, 1, H, W) grey in [0, 1], H and W multiples of 8.
        """
        maps, x = [], self._first_stage(image)
        for stage in ('2', '3', '4'):
            x = self._layer(f'conv{stage}b', self._layer(f'conv{stage}a', x))
            maps.append(x)
            if stage != '4':
                x = functional.max_pool2d(x, 2)
        return maps

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, 65, H/8, W/8) and descriptors (B, 256, H/8, W/8), not normalised.

        Args:
            image: As for `stages`.
        """
        x = self.stages(image)[-1]
        logits = self._layer('convPb', self._layer('convPa', x))
        descriptors = self._layer('convDb', self._layer('convDa', x))
        return logits, descriptors
