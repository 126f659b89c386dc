"""The weights of a network as tensors of a map file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_PREFIX = 'network.'


def pack_state(network: torch.nn.Module) -> dict[str, NDArray[Any]]:
    """Return matrices as float16; vectors and scalars hold offsets of coordinates: float32."""
    return {
        f'{_PREFIX}{name}': value.detach()
        .cpu()
        .numpy()
        .astype(np.float16 if value.ndim > 1 else np.float32)
        for name, value in network.state_dict().items()
    }


def load_state(network: torch.nn.Module, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Give a network the weights that `pack_state` returned, and set it to evaluation.

    Raises:
        RuntimeError: they are not those of such a network.
    """
    state = {
        name.removeprefix(_PREFIX): torch.from_numpy(value.astype(np.float32))
        for name, value in tensors.items()
        if name.startswith(_PREFIX)
    }
    network.load_state_dict(state)
    network.eval()
