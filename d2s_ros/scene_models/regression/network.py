"""The network of the D2S paper: descriptors of one image to coordinates and reliability."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2s_ros.config import option, validate
from d2s_ros.errors import ConfigError
from d2s_ros.scene_models.attention import AttentionLayer


@dataclass(frozen=True)
class RegressionConfig:
    """Shape of the paper's network (section IV); defaults are the published ones."""

    descriptor_dim: int = option(256, 'Length of a descriptor.', minimum=1, maximum=4096)
    num_layers: int = option(5, 'Attention layers L.', minimum=0, maximum=64)
    num_heads: int = option(4, 'Attention heads.', minimum=1, maximum=256)
    hidden: tuple[int, ...] = option((512, 1024, 1024, 512), 'Hidden widths of the shared MLP.')
    beta: float = option(100.0, 'Scale of the reliability, equation (2).', minimum=1e-6)
    input_scale: float = option(1.0, 'Descriptors are multiplied by it.', minimum=1e-3)

    def __post_init__(self) -> None:
        validate(self)
        if len(self.hidden) > 64 or not all(1 <= width <= 65_536 for width in self.hidden):
            raise ConfigError('hidden must name up to 64 widths between 1 and 65536')


class D2SNetwork(nn.Module):
    """A set of descriptors in, (x, y, z, p) for each out: equations (1) to (7).

    Outputs are `center + scale * y`; both buffers stay at (0, 0, 0) and 1 in the `paper` recipe.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, config: RegressionConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.descriptor_dim
        self.layers = nn.ModuleList(
            AttentionLayer(dim, config.num_heads) for _ in range(config.num_layers)
        )
        widths = [dim, *config.hidden, 4]
        mlp: list[nn.Module] = []
        for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            if index:
                mlp.append(nn.ReLU())
            mlp.append(nn.Linear(fan_in, fan_out))
        self.mlp = nn.Sequential(*mlp)
        self.register_buffer('center', torch.zeros(3))
        self.register_buffer('scale', torch.ones(()))

    def forward(self, descriptors: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict coordinates and reliability.

        Args:
            descriptors: (B, N, D) float.
            mask: (B, N) bool, False for padding.

        Returns:
            Points in the map (B, N, 3) and the raw reliability output p (B, N).
        """
        x = descriptors
        if self.config.input_scale != 1.0:
            x = self.config.input_scale * x
        for layer in self.layers:
            x = layer(x, mask)
        output = self.mlp(x)
        return self.center + self.scale * output[..., :3], output[..., 3]

    def reliability(self, p: Tensor) -> Tensor:
        """Return z = 1 / (1 + |beta p|), equation (2)."""
        return 1.0 / (1.0 + (self.config.beta * p).abs())
