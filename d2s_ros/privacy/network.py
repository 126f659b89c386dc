"""The networks of the attack: one that makes a picture of sparse points, one that refines it.

After Pittaluga, Koppal, Kang and Sinha, Revealing scenes by inverting structure from motion
reconstructions, CVPR 2019, and SegLoc's use of it, in small: U-Nets with skip connections, the
second on the output of the first and the sparse input. There is no network for the visibility of
points: the attacker knows it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Of the rectifiers for what is negative.
_SLOPE = 0.1


class _Block(nn.Module):
    """Two convolutions of 3x3."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.leaky_relu(self.first(x), _SLOPE)
        return functional.leaky_relu(self.second(x), _SLOPE)


class UNet(nn.Module):
    """Encoder, decoder and the connections between equal sizes.

    Args:
        inputs: Channels of the input.
        widths: Channels of each size, fine to coarse; each is half as large as the one before.
        outputs: Channels of the output.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            _Block(before, after)
            for before, after in zip((inputs, *widths[:-1]), widths, strict=True)
        )
        self.up = nn.ModuleList(
            _Block(coarse + fine, fine)
            for coarse, fine in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.last = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H, W) of (B, inputs, H, W)."""
        kept = []
        for number, block in enumerate(self.down):
            if number:
                x = functional.avg_pool2d(x, 2)
            x = block(x)
            kept.append(x)
        kept.pop()
        for block in self.up:
            x = functional.interpolate(x, scale_factor=2.0, mode='nearest')
            x = block(torch.cat([x, kept.pop()], dim=1))
        found: Tensor = self.last(x)
        return found


class InversionNetwork(nn.Module):
    """From points with attributes to a grey picture.

    Attributes enter through one linear map, whatever they are: no kind of content has layers of
    its own. The first network works at half the size of the picture.

    Args:
        inputs: Numbers of a point.
        width: Channels at the finest.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.points = nn.Linear(inputs, width)
        self.coarse = UNet(4 * (width + 1), (width, 2 * width, 3 * width, 3 * width), 1)
        self.refined = UNet(width + 2, (width // 2, width, 2 * width), 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # The usual start loses half of the signal in each layer, and most of the training.
                nn.init.kaiming_normal_(module.weight, a=_SLOPE)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            for network in (self.coarse, self.refined):
                network.last.weight.mul_(0.1)

    def forward(self, rows: Tensor, cells: Tensor, shape: tuple[int, int, int]) -> list[Tensor]:
        """Return the coarse and the refined pictures (B, 1, H, W); 0 is black, 1 white.

        Args:
            rows: (T, inputs) points of all pictures.
            cells: (T,) int64 cell of each among the B H W ones.
            shape: B, H, W; H and W multiples of 16.
        """
        count, height, width = shape
        channels = self.points.out_features
        total = rows.new_zeros(count * height * width, channels + 1)
        ones = rows.new_ones(len(rows), 1)
        total = total.index_add(0, cells, torch.cat([self.points(rows), ones], dim=1))
        number = total[:, -1:]
        mean = torch.cat([total[:, :-1] / number.clamp_min(1.0), number.clamp_max(1.0)], dim=1)
        sparse = mean.view(count, height, width, channels + 1).permute(0, 3, 1, 2)
        small = functional.pixel_unshuffle(sparse, 2)
        coarse = 0.5 + functional.interpolate(
            self.coarse(small), scale_factor=2.0, mode='bilinear', align_corners=False
        )
        refined = coarse + self.refined(torch.cat([coarse, sparse], dim=1))
        return [coarse, refined]
