"""The regression head as a scene model: the network of the D2S paper."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from d2s_ros.config import from_dict, to_dict
from d2s_ros.data.array_log import ArrayLog
from d2s_ros.scene_models.base import (
    BuildContext,
    Built,
    Observation,
    Observer,
    SceneCoordinates,
    SceneModel,
    View,
)
from d2s_ros.scene_models.regression import build
from d2s_ros.scene_models.regression.network import D2SNetwork, RegressionConfig
from d2s_ros.scene_models.regression.samples import RegressionSample
from d2s_ros.scene_models.regression.trainer import (
    RegressionTrainingConfig,
    train_regression_network,
)
from d2s_ros.scene_models.shared_samples import unpack_sample
from d2s_ros.scene_models.state import load_state, pack_state


class RegressionObserver(Observer):
    """The network on a device.

    Args:
        network: Read only.
        device: 'cpu' or 'cuda'.
    """

    def __init__(self, network: D2SNetwork, device: str) -> None:
        self._network = (network if device == 'cpu' else copy.deepcopy(network)).to(device).eval()
        self._device = device

    @torch.inference_mode()
    def observe(self, view: View) -> Observation:
        """Regress the coordinates of the keypoints from their descriptors."""
        descriptors = torch.from_numpy(view.features.descriptors)[None].to(self._device)
        points, p = self._network(descriptors)
        points_in_map = points[0].cpu().numpy().astype(np.float64)
        z = self._network.reliability(p)[0].cpu().numpy()
        # Training may have diverged: what is not a number is not reliable either.
        finite = np.isfinite(points_in_map).all(axis=1) & np.isfinite(z)
        coordinates = SceneCoordinates(
            np.where(finite[:, None], points_in_map, 0.0),
            np.where(finite, z, 0.0).astype(np.float32),
        )
        return Observation(view, coordinates)

    def observe_by_chance(self, view: View, rng: np.random.Generator) -> Observation:
        """Observe with the keypoints shuffled among the descriptors."""
        order = rng.permutation(len(view.features))
        shuffled = replace(view.features, keypoints=view.features.keypoints[order])
        return self.observe(View(shuffled, view.camera))


@dataclass(frozen=True, eq=False)
class RegressionModel(SceneModel):
    """Coordinates regressed from all descriptors of an image.

    Attributes:
        network: The network, in map coordinates.
    """

    name: ClassVar[str] = 'regression'
    recipes: ClassVar[tuple[str, ...]] = ('default', 'paper', 'learned')
    #: The choice of the D2S authors: regressed coordinates are less exact than points of tracks.
    min_error_px: ClassVar[float] = build.MIN_ERROR_PX

    network: D2SNetwork

    @classmethod
    def build(cls, context: BuildContext) -> Built:
        """Train the network on the images of a reconstruction and augmented views of them."""
        network, figures = build.train(context)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return Built(
            cls(network),
            {'training': figures, 'num_parameters': parameters},
            build.noise_px(RegressionObserver(network, 'cpu').observe, context),
        )

    @classmethod
    def budget(cls, name: str, *, recipe: str, seed: int) -> dict[str, Any]:
        """Return the fields of `BuildConfig` that differ from their defaults in a budget."""
        return build.budget(name, recipe, seed)

    @classmethod
    def join_training(
        cls,
        network_config: dict[str, Any],
        training: dict[str, Any],
        log: ArrayLog,
        samples: Sequence[Sequence[str]],
        held_out: Sequence[str],
        *,
        device: str,
        checkpoint: Path | None,
    ) -> None:
        """Train as the first process of torchrun does, on the samples that it shares."""
        train_regression_network(
            [[unpack_sample(RegressionSample, log.read(key)) for key in keys] for keys in samples],
            from_dict(RegressionConfig, network_config),
            from_dict(RegressionTrainingConfig, training),
            device=device,
            checkpoint=checkpoint,
            held_out=[unpack_sample(RegressionSample, log.read(key)) for key in held_out],
        )

    @property
    def network_config(self) -> dict[str, Any]:
        """The shape of the network."""
        return to_dict(self.network.config)

    @property
    def summary(self) -> str:
        """How large it is, for people."""
        return f'{sum(parameter.numel() for parameter in self.network.parameters())} parameters'

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the weights of the network."""
        return pack_state(self.network)

    @classmethod
    def from_tensors(
        cls, network_config: dict[str, Any], tensors: Mapping[str, NDArray[Any]]
    ) -> RegressionModel:
        """Make the model again from what `network_config` and `tensors` gave."""
        network = D2SNetwork(from_dict(RegressionConfig, network_config))
        load_state(network, tensors)
        return cls(network)

    def scaled(self, factor: float) -> RegressionModel:
        """Return the model with everything in the place larger by `factor`."""
        network = copy.deepcopy(self.network)
        network.center *= factor
        network.scale *= factor
        return RegressionModel(network)

    def observer(self, *, device: str, precision: str, sigma_px: float) -> RegressionObserver:
        """Put the network on a device; it is always computed in float32."""
        return RegressionObserver(self.network, device)
