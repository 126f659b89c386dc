"""The network of the landmark head as a map keeps it: arrays, made into a network on demand.

Localizing needs no more than the arrays where no layer looks at several keypoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.scene_models.landmark.config import LandmarkConfig
from d2s_ros.scene_models.landmark.stored_descriptors import StoredDescriptorNetwork

if TYPE_CHECKING:
    from d2s_ros.scene_models.landmark.network import LandmarkNetwork

_PREFIX = 'network.'


@dataclass(frozen=True, eq=False)
class StoredNetwork:
    """The weights of a `LandmarkNetwork`.

    Attributes:
        config: Its shape.
        state: float32 by the name of the parameter; what is here fits the shape.
    """

    config: LandmarkConfig
    state: Mapping[str, NDArray[np.float32]]

    @classmethod
    def of(cls, network: LandmarkNetwork) -> StoredNetwork:
        """Return a snapshot: training the network further does not change it."""
        state = network.state_dict()
        return cls(
            network.config,
            {name: value.detach().float().cpu().numpy().copy() for name, value in state.items()},
        )

    @classmethod
    def from_tensors(
        cls, config: LandmarkConfig, tensors: Mapping[str, NDArray[Any]]
    ) -> StoredNetwork:
        """Take the weights from the tensors of a map.

        Raises:
            KeyError, ValueError: one is missing, of no such network, or of another shape.
        """
        state = {
            name.removeprefix(_PREFIX): np.asarray(value, np.float32)
            for name, value in tensors.items()
            if name.startswith(_PREFIX)
        }
        expected = _shapes(config)
        for name in sorted(set(expected) ^ set(state)):
            what = 'is missing' if name in expected else 'is of no such network'
            raise ValueError(f'{_PREFIX}{name} {what}')
        for name, shape in expected.items():
            if state[name].shape != shape:
                raise ValueError(f'{_PREFIX}{name} is {state[name].shape}, expected {shape}')
        return cls(config, state)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return matrices as float16; vectors and scalars hold offsets of coordinates: float32."""
        return {
            f'{_PREFIX}{name}': value.astype(np.float16 if value.ndim > 1 else np.float32)
            for name, value in self.state.items()
        }

    @cached_property
    def describe(self) -> StoredDescriptorNetwork:
        """What descriptors pass before they are compared."""
        prefix = 'descriptors.'
        return StoredDescriptorNetwork(
            {
                name.removeprefix(prefix): value
                for name, value in self.state.items()
                if name.startswith(prefix)
            }
        )

    @cached_property
    def network(self) -> LandmarkNetwork:
        """The network with these weights, in evaluation; needs PyTorch."""
        import torch

        from d2s_ros.scene_models.landmark.network import LandmarkNetwork

        network = LandmarkNetwork(self.config)
        network.load_state_dict({n: torch.from_numpy(v.copy()) for n, v in self.state.items()})
        return network.eval()


def _shapes(config: LandmarkConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters; a test compares them with a network's."""
    width, of_point = config.width, 3 + 6 * config.num_frequencies
    evidence = 4
    linear = {
        'from_descriptor': (width, config.descriptor_dim),
        'from_evidence': (width, evidence * config.num_candidates),
        'from_points': (width, 2 * of_point),
        'from_keypoint': (width, 3 + 4 * config.num_frequencies),
        'query': (width, width),
        'candidate_in': (width, of_point + evidence),
        'candidate_out': (width, width),
        'none': (1, width),
    }
    if config.descriptor_width:
        linear['descriptors.inner'] = (config.descriptor_width, config.descriptor_dim)
        linear['descriptors.outer'] = (config.descriptor_dim, config.descriptor_width)
    shapes: dict[str, tuple[int, ...]] = {'gain': ()}
    for index in range(config.num_layers):
        layer = f'layers.{index}'
        linear |= {f'{layer}.{name}': (width, width) for name in ('query', 'key', 'value', 'merge')}
        linear |= {
            f'{layer}.mlp_in': (2 * width, 2 * width),
            f'{layer}.mlp_out': (width, 2 * width),
        }
        shapes |= {f'{layer}.norm.weight': (width,), f'{layer}.norm.bias': (width,)}
    for name, shape in linear.items():
        shapes |= {f'{name}.weight': shape, f'{name}.bias': shape[:1]}
    return shapes
