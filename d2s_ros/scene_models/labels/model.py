"""The labels head as a scene model: points with labels, heads that tell labels of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from d2s_ros.config import from_dict, to_dict
from d2s_ros.features.dense import DenseExtractor, create_dense
from d2s_ros.geometry.cameras import Camera
from d2s_ros.reconstruction.reconstruction import Reconstruction, make_reconstruction
from d2s_ros.scene_models.base import BuildContext, Built, SceneModel
from d2s_ros.scene_models.labels import build, update
from d2s_ros.scene_models.labels.memory import remembered_image
from d2s_ros.scene_models.labels.network import LabelConfig, LabelNetwork
from d2s_ros.scene_models.labels.observer import LabelObserver, MappingImages
from d2s_ros.scene_models.labels.table import LabelTable
from d2s_ros.scene_models.state import load_state, pack_state
from d2s_ros.scene_models.view_updates import LearnsFromViews, PosedView


@dataclass(frozen=True, eq=False)
class LabelModel(SceneModel, LearnsFromViews):
    """Points that carry labels instead of descriptors.

    Attributes:
        table: The points.
        network: Tells the labels of an image from its dense features.
        weights_hash: Of the dense features.
        chance: Median and scale of the place evidence that images of other places have.
        mapping: To leave images out; None where it is not known which made the map.
        memory: To leave images out as the map remembers them; None without.
    """

    name: ClassVar[str] = 'labels'
    recipes: ClassVar[tuple[str, ...]] = ('default', 'paper')
    #: Descriptors of mapping images are what labels are there to avoid.
    keeps_update_data: ClassVar[bool] = False

    table: LabelTable
    network: LabelNetwork
    weights_hash: str
    chance: tuple[float, float]
    mapping: MappingImages | None = None
    memory: Reconstruction | None = None

    @classmethod
    def build(cls, context: BuildContext) -> Built:
        """Learn the labels of a reconstruction."""
        built = build.build_labels(context)
        weights_hash = create_dense(built.network.config.backbone).weights_hash
        model = cls(built.table, built.network, weights_hash, built.chance, built.mapping)
        return Built(model, {'training': built.figures, 'num_landmarks': len(built.table)})

    @classmethod
    def budget(cls, name: str, *, recipe: str, seed: int) -> dict[str, Any]:
        """Return the fields of `BuildConfig` that differ from their defaults in a budget."""
        return build.budget(name, recipe, seed)

    @property
    def network_config(self) -> dict[str, Any]:
        """The shape of the heads, and the dense features that they read."""
        return {**to_dict(self.network.config), 'backbone_hash': self.weights_hash}

    @property
    def summary(self) -> str:
        """How large it is, for people."""
        config = self.network.config
        return (
            f'{len(self.table)} points with {len(config.levels)} of {config.num_labels} labels each'
        )

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return points, labels, what images see, and the weights of the heads."""
        return {
            **self.table.tensors(),
            'chance': np.array(self.chance, np.float32),
            **pack_state(self.network),
        }

    @classmethod
    def from_tensors(
        cls, network_config: dict[str, Any], tensors: Mapping[str, NDArray[Any]]
    ) -> LabelModel:
        """Make the model again from what `network_config` and `tensors` gave."""
        shape = dict(network_config)
        weights_hash = shape.pop('backbone_hash')
        config = from_dict(LabelConfig, shape)
        dense = _dense(config, weights_hash, 'cpu')
        network = LabelNetwork(config, dense.channels)
        load_state(network, tensors)
        build.check_network(network)
        chance = tensors['chance']
        if chance.shape != (2,) or not np.isfinite(chance).all() or chance[1] <= 0:
            raise ValueError('chance must be a median and a positive scale')
        table = LabelTable.from_tensors(tensors, len(config.levels), config.num_labels)
        return cls(table, network, weights_hash, (float(chance[0]), float(chance[1])))

    def scaled(self, factor: float) -> LabelModel:
        """Return the model with everything in the place larger by `factor`."""
        return replace(self, table=self.table.scaled(factor), mapping=None, memory=None)

    def observer(self, *, device: str, precision: str, sigma_px: float) -> LabelObserver:
        """Put heads and dense features on a device; they are always computed in float32."""
        return LabelObserver(
            self.table,
            self.network,
            _dense(self.network.config, self.weights_hash, device),
            self.chance,
            sigma_px,
            device,
            self.mapping,
            self.memory,
        )

    @property
    def points_in_map(self) -> NDArray[np.float32]:
        """(M, 3) float32 points with labels."""
        return self.table.points_in_map

    @property
    def extent(self) -> float:
        """Half the width of most of the scene, unit of the map."""
        points = self.table.points_in_map
        return float(np.percentile(np.abs(points - np.median(points, axis=0)).max(axis=1), 90))

    @property
    def leaves_out(self) -> bool:
        """Whether mapping images can be left out of retrieval."""
        return self.mapping is not None or self.memory is not None

    def remembered(self, camera: Camera) -> Reconstruction:
        """Return points where they project in the poses of the mapping images."""
        count = len(self.table.image_poses)
        images = [remembered_image(self.table, index, camera) for index in range(count)]
        return make_reconstruction(images, self.table.points.points_in_map, True)

    def with_mapping(self, reconstruction: Reconstruction) -> LabelModel:
        """Return the model with images that it remembers, to be left out of retrieval."""
        return replace(self, memory=reconstruction)

    def with_views(
        self,
        views: Sequence[PosedView],
        points_in_map: NDArray[np.float64],
        covariances: NDArray[np.float64],
        *,
        device: str,
    ) -> Built:
        """Return the model with further images and points; its heads stay as they are."""
        observer = self.observer(device=device, precision='fp32', sigma_px=1.0)
        table, figures = update.with_views(self.table, observer, views, points_in_map, covariances)
        return Built(replace(self, table=table), {**figures, 'num_landmarks': len(table)})


def _dense(config: LabelConfig, weights_hash: str, device: str) -> DenseExtractor:
    """Make the dense features of a map.

    Raises:
        ValueError: the map was made with others.
    """
    dense = create_dense(config.backbone, device=device)
    if dense.weights_hash != weights_hash:
        raise ValueError(
            f'the map was made with {config.backbone} features {str(weights_hash)[:12]}, here are '
            f'{dense.weights_hash[:12]}'
        )
    return dense
