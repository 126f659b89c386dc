"""Dense features: what an image shows at every place, at several sizes of what is around it.

Local features stand at keypoints alone; labels are told of every place of an image. Extractors
behind `DenseExtractor` are frozen: nothing of a scene is in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from d2s_ros.errors import ConfigError, WeightsError
from d2s_ros.features.network_images import pad_to_cells
from d2s_ros.features.superpoint.extractor import checked_device
from d2s_ros.features.superpoint.files import default_weights_path
from d2s_ros.features.superpoint.weights import load_network

#: Names of the extractors that `create_dense` makes.
BACKBONES = ('superpoint',)
#: Every pyramid has maps of these strides, px of the image that was given.
STRIDES = (2, 4, 8, 16, 32)


@dataclass(frozen=True, eq=False)
class FeaturePyramid:
    """Dense features of one image.

    Cell (r, c) of a map of stride s describes what is around the pixel (s c + (s - 1) / 2,
    s r + (s - 1) / 2).

    Attributes:
        maps: By stride, (C, h, w) float32, on the device of the extractor.
        image_size: (width, height) px.
    """

    maps: dict[int, Tensor]
    image_size: tuple[int, int]


class DenseExtractor(Protocol):
    """Turns an image into dense features. Deterministic, and the same for all scenes."""

    name: str
    #: Channels of the map of each stride.
    channels: dict[int, int]
    #: sha256 of the weights.
    weights_hash: str

    def maps(self, grey: NDArray[np.uint8]) -> FeaturePyramid:
        """Return the dense features of (H, W)."""
        ...


class SuperPointEncoder:
    """The encoder of SuperPoint; the two coarsest maps are means of its last one.

    Args:
        device: 'cpu' or 'cuda'.

    Raises:
        WeightsError: the packaged weights are missing.
    """

    name = 'superpoint'

    def __init__(self, device: str = 'cpu') -> None:
        path = default_weights_path()
        if path is None:
            raise WeightsError('labels need the packaged weights of SuperPoint; install them again')
        network, self.weights_hash = load_network(path)[:2]
        self.channels = {2: 64, 4: 128, 8: 128, 16: 128, 32: 128}
        self._device = checked_device(device)
        self._network = network.eval().requires_grad_(False)
        self._network = self._network.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def maps(self, grey: NDArray[np.uint8]) -> FeaturePyramid:
        """Return the dense features of (H, W)."""
        height, width = grey.shape
        image = torch.from_numpy(pad_to_cells(grey))[None, None].to(self._device)
        image = image.to(torch.float32) / 255.0
        found = self._network.stages(image.contiguous(memory_format=torch.channels_last))
        for _ in (16, 32):
            # Edges count what is there alone.
            found.append(functional.avg_pool2d(found[-1], 2, ceil_mode=True))
        # A mean blurs what it is the mean of as far as its stride.
        maps = {
            stride: values[0].contiguous() for stride, values in zip(STRIDES, found, strict=True)
        }
        return FeaturePyramid(maps, (width, height))


def create_dense(name: str, *, device: str = 'cpu') -> DenseExtractor:
    """Make the dense extractor of a name.

    Raises:
        ConfigError: there is none.
        WeightsError: its weights are missing.
    """
    if name == 'superpoint':
        return SuperPointEncoder(device)
    raise ConfigError(f'unknown dense features {name!r}, it must be one of {", ".join(BACKBONES)}')
