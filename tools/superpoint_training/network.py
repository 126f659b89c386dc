"""SuperPoint with batch norm for training, and its folding into the plain published layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from d2s_ros.features.superpoint.layers import LAYERS, LINEAR_LAYERS


class TrainableSuperPoint(nn.Module):
    """SuperPoint with a batch norm between each convolution and its ReLU.

    In that order the norm folds into the convolution (`folded_state_dict`), so that what is
    shipped has exactly the published architecture.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first_stage_frozen = False
        self.statistics_frozen = False
        for name, inputs, outputs, kernel in LAYERS:
            linear = name in LINEAR_LAYERS
            conv: Any = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=linear)
            setattr(self, name, conv)
            if linear:
                nn.init.normal_(conv.weight, std=inputs**-0.5)
                nn.init.zeros_(conv.bias)
            else:
                nn.init.kaiming_normal_(conv.weight, nonlinearity='relu')
                setattr(self, _norm_name(name), nn.BatchNorm2d(outputs))
        # A cell has no keypoint far more often than one at any given pixel.
        with torch.no_grad():
            self.get_parameter('convPb.bias')[64] = 5.0

    def freeze_first_stage(self) -> None:
        """Stop training the two layers at full resolution: they settle early and cost the most."""
        self.first_stage_frozen = True
        for name in ('conv1a', 'conv1b', 'norm1a', 'norm1b'):
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Begin with finished weights in the published layout; the norms become scale and shift.

        Their statistics stay: measured on a few small views they would be worse than those that
        the weights were finished with, and without them a step costs two thirds.
        """
        with torch.no_grad():
            for name, *_ in LAYERS:
                conv = self.get_submodule(name)
                weight, bias = state[f'{name}.weight'].float(), state[f'{name}.bias'].float()
                if name not in LINEAR_LAYERS:
                    norm = self.get_submodule(_norm_name(name))
                    # The size that Muon keeps them at.
                    size = weight.norm() / len(weight) ** 0.5
                    weight = weight / size
                    norm.get_buffer('running_mean').zero_()
                    norm.get_buffer('running_var').fill_(1.0)
                    norm.get_parameter('weight').fill_(float(size) * (1.0 + norm.eps) ** 0.5)  # type: ignore[operator]
                    norm.get_parameter('bias').copy_(bias)
                else:
                    conv.get_parameter('bias').copy_(bias)
                conv.get_parameter('weight').copy_(weight)
        self.statistics_frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> TrainableSuperPoint:
        """Set the mode; the norms of a frozen stage keep their statistics."""
        super().train(mode)
        if self.statistics_frozen:
            for name, module in self.named_children():
                if name.startswith('norm'):
                    module.eval()
        if self.first_stage_frozen:
            self.get_submodule('norm1a').eval()
            self.get_submodule('norm1b').eval()
        return self

    def _layer(self, name: str, x: Tensor) -> Tensor:
        if self.statistics_frozen:
            # Folded at each step: one pass over the map less.
            norm = getattr(self, _norm_name(name))
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            weight = getattr(self, name).weight * scale[:, None, None, None]
            shift = norm.bias - norm.running_mean * scale
            return functional.relu(functional.conv2d(x, weight, shift, padding='same'))
        return functional.relu(getattr(self, _norm_name(name))(getattr(self, name)(x)))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return detector logits (B, 65, H/8, W/8) and raw descriptors (B, 256, H/8, W/8).

        Args:
            image: (B, 1, H, W) grey in [0, 1], H and W multiples of 8.
        """
        x = image
        for stage in ('1', '2', '3', '4'):
            frozen = stage == '1' and self.first_stage_frozen
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                x = self._layer(f'conv{stage}b', self._layer(f'conv{stage}a', x))
                if stage != '4':
                    x = functional.max_pool2d(x, 2)
        logits = self.get_submodule('convPb')(self._layer('convPa', x))
        descriptors = self.get_submodule('convDb')(self._layer('convDa', x))
        return logits, descriptors

    def folded_state_dict(self) -> dict[str, Tensor]:
        """Return float32 weights in the published layout, each norm folded into its convolution."""
        result: dict[str, Tensor] = {}
        for name, *_ in LAYERS:
            conv = getattr(self, name)
            weight = conv.weight.detach().double()
            if name in LINEAR_LAYERS:
                bias = conv.bias.detach().double()
            else:
                norm = getattr(self, _norm_name(name))
                scale = (
                    norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
                )
                weight = weight * scale[:, None, None, None]
                bias = norm.bias.detach().double() - norm.running_mean.double() * scale
            result[f'{name}.weight'] = weight.float().contiguous()
            result[f'{name}.bias'] = bias.float().contiguous()
        return result


def _norm_name(layer: str) -> str:
    return layer.replace('conv', 'norm')


def save_weights(network: TrainableSuperPoint, path: Path, metadata: dict[str, str]) -> None:
    """Write the folded weights as float16 safetensors; written aside, then renamed."""
    state = {name: value.half().cpu() for name, value in network.folded_state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix('.partial')
    # Not `save_file`: that makes a file only its owner may read.
    temporary.write_bytes(save(state, {'format': 'pt', **metadata}))
    os.replace(temporary, path)
