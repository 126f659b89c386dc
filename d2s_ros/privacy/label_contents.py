"""What maps of labels hold of a place, and the dense features that labels stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from d2s_ros.features.dense import create_dense
from d2s_ros.privacy.contents import Content
from d2s_ros.privacy.shots import OwnScene, Shot
from d2s_ros.privacy.sparse import SparseView
from d2s_ros.scene_models.labels.images import Undistorter
from d2s_ros.scene_models.labels.model import LabelModel
from d2s_ros.scene_models.labels.samples import read_cells


class LabelReader:
    """Reads dense features, and labels by the heads of a map, at the points of photographs.

    Args:
        model: The map's: the attacker owns its heads.
        device: 'cpu' or 'cuda'.
    """

    def __init__(self, model: LabelModel, device: str = 'cpu') -> None:
        self.model = model
        self._dense = create_dense(model.network.config.backbone, device=device)
        self._undistorter = Undistorter(model.network.config.max_size)
        self._features: dict[int, NDArray[np.float16]] = {}
        self._labels: dict[int, NDArray[np.int64]] = {}

    @property
    def finest_dim(self) -> int:
        """Numbers of the features that the finest level reads."""
        return sum(self._dense.channels[stride] for stride in self.model.network.levels[-1].inputs)

    def finest(self, shot: Shot) -> NDArray[np.float32]:
        """Return the dense features (N, C) that the finest level reads at each point, length 1."""
        if id(shot) not in self._features:
            self._read(shot)
        return self._features[id(shot)].astype(np.float32)

    def voted(self, scene: OwnScene) -> NDArray[np.int64]:
        """Return the labels (P, L) that the heads tell of all views of each point of a scene."""
        if id(scene) not in self._labels:
            config = self.model.network.config
            count = len(scene.mean_descriptors)
            total = torch.zeros(count, len(config.levels), config.num_labels)
            for shot in scene.shots:
                total.index_add_(0, torch.from_numpy(shot.point_idx), self._read(shot))
            self._labels[id(scene)] = total.argmax(dim=-1).numpy()
        return self._labels[id(scene)]

    @torch.inference_mode()
    def _read(self, shot: Shot) -> Tensor:
        """Return log probabilities (N, L, K) of labels at the points; keeps the finest features."""
        image = self._undistorter(shot.grey, shot.camera)
        ideal = shot.camera.undistort(shot.pixels)
        pixels = torch.from_numpy(
            np.nan_to_num(image.pixels(ideal, shot.camera)).astype(np.float32)
        )
        found: dict[int, Tensor] = {}
        for stride, values in self._dense.maps(image.grey).maps.items():
            cells = values.permute(1, 2, 0).flatten(0, 1).cpu()
            found[stride] = read_cells(cells, (values.shape[1], values.shape[2]), stride, pixels)
        network = self.model.network
        columns = torch.cat([found[stride] for stride in network.levels[-1].inputs], dim=1)
        unit = functional.normalize(columns, dim=1)
        self._features[id(shot)] = unit.numpy().astype(np.float16)
        logits = [
            head([found[stride] for stride in level.inputs])
            for level, head in zip(network.levels, network.heads, strict=True)
        ]
        return torch.stack([functional.log_softmax(values, dim=-1) for values in logits], dim=1)


@dataclass(frozen=True)
class Lever:
    """How much of the labels of a map is left.

    Attributes:
        name: For reports.
        first, last: Levels that are left, as of a slice.
        count: Labels of each level; others are merged at random. None: all.
        every: One point in so many is left.
    """

    name: str = 'labels'
    first: int | None = None
    last: int | None = None
    count: int | None = None
    every: int = 1


#: What may be left of the labels of a map, by the word for it.
LEVERS = {
    'labels': Lever(),
    'finest': Lever('finest label', first=-1),
    'coarse': Lever('labels without the finest', last=-1),
    'few': Lever('labels merged to 16', count=16),
    'sparse': Lever('labels of every eighth point', every=8),
}


class Labels(Content):
    """The labels of points, one of each level; one number of K as K numbers, one of them 1.

    Args:
        reader: Of the map.
        lever: What is left of them.
    """

    def __init__(self, reader: LabelReader, lever: Lever = LEVERS['labels']) -> None:
        self._reader = reader
        self._lever = lever
        table = reader.model.table
        labels = reader.model.network.config.num_labels
        # Labels are numbered at random, so that these merge as any do.
        self._count = min(labels, lever.count or labels)
        levels = table.labels[:, lever.first : lever.last].shape[1]
        self.name = lever.name
        of_points = 'a point' if lever.every == 1 else f'of one point in {lever.every}'
        self.meaning = f'{levels} of {self._count} labels {of_points} (localization.safetensors)'
        self.dim = levels * self._count

    def of_map(self, shot: Shot) -> SparseView:
        """Return the labels of the points that the photograph shows."""
        return self._view(shot, self._reader.model.table.labels[shot.point_idx].astype(np.int64))

    def of_own(self, scene: OwnScene, index: int) -> SparseView:
        """Return the labels that the heads of the map give the attacker's own points."""
        shot = scene.shots[index]
        return self._view(shot, self._reader.voted(scene)[shot.point_idx])

    def _view(self, shot: Shot, labels: NDArray[np.int64]) -> SparseView:
        lever = self._lever
        left = shot.point_idx % lever.every == 0
        chosen = labels[left, lever.first : lever.last] % self._count
        one_hot = np.eye(self._count, dtype=np.float32)[chosen]
        return SparseView(
            shot.pixels[left], shot.depth[left], one_hot.reshape(int(left.sum()), self.dim)
        )


class DenseFeatures(Content):
    """The dense features of the photograph itself that labels stand for: their ceiling."""

    name = 'dense features'
    meaning = 'dense features of the photograph itself that the finest labels are told of'

    def __init__(self, reader: LabelReader) -> None:
        self._reader = reader
        self.dim = reader.finest_dim

    def of_map(self, shot: Shot) -> SparseView:
        """Return the features at the points."""
        return SparseView(shot.pixels, shot.depth, self._reader.finest(shot))

    def of_own(self, scene: OwnScene, index: int) -> SparseView:
        """Return the features at the points."""
        return self.of_map(scene.shots[index])
