"""What maps hold of a place, kind by kind, as an attacker reads it.

Each kind says what the map shows at a view, and what a map of the attacker's own photographs
would show: he trains on the second and is measured on the first. He owns the map with its
decoders (codebooks, heads of labels), all software, and knows which points a view shows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from d2s_ros.maps.update_data import MappingData, dequantise, quantise
from d2s_ros.privacy.shots import OwnScene, Shot
from d2s_ros.privacy.sparse import SparseView
from d2s_ros.reconstruction.clustering import nearest_centroids
from d2s_ros.scene_models.landmark.product_codes import PART_DIM, ProductCodes
from d2s_ros.scene_models.landmark.table import LandmarkTable


class Content(ABC):
    """One kind of content.

    Attributes:
        name: For reports.
        meaning: What it is, one sentence for people.
        dim: Numbers of a point beside its depth.
    """

    name: str
    meaning: str
    dim: int

    @abstractmethod
    def of_map(self, shot: Shot) -> SparseView | None:
        """Return what the map shows at a photograph of the place; None: nothing is kept of it."""

    @abstractmethod
    def of_own(self, scene: OwnScene, index: int) -> SparseView:
        """Return what a map of the attacker's own would show at one of his photographs."""


def _view(shot: Shot, attributes: NDArray[np.float32]) -> SparseView:
    return SparseView(shot.pixels, shot.depth, np.asarray(attributes, np.float32))


class DepthOnly(Content):
    """Points alone: the floor that no map with points is below."""

    name = 'depth'
    meaning = 'points without any attribute: where they are in the image, and how far'
    dim = 0

    def of_map(self, shot: Shot) -> SparseView:
        """Return the points without attributes."""
        return _view(shot, np.zeros((len(shot), 0), np.float32))

    def of_own(self, scene: OwnScene, index: int) -> SparseView:
        """Return the points without attributes."""
        return self.of_map(scene.shots[index])


@dataclass(frozen=True, eq=False)
class LandmarkKeys(Content):
    """The keys of landmarks: mean descriptors as product codes, decoded."""

    table: LandmarkTable
    name = 'landmark keys'
    meaning = 'mean descriptors of landmarks as product codes (localization.safetensors)'

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Numbers of a key."""
        return int(self.table.keys.shape[1])

    def of_map(self, shot: Shot) -> SparseView:
        """Return the keys of the landmarks that the photograph shows."""
        return _view(shot, self.table.keys[shot.point_idx])

    def of_own(self, scene: OwnScene, index: int) -> SparseView:
        """Return mean descriptors, coded with the codebook of the map."""
        shot = scene.shots[index]
        means = scene.mean_descriptors[shot.point_idx]
        coded = self.table.coded().codes
        assert coded is not None
        return _view(shot, with_codebook(coded, means).decode())


def with_codebook(known: ProductCodes, vectors: NDArray[np.float32]) -> ProductCodes:
    """Encode vectors (M, D) with the codebook of others."""
    parts = np.pad(vectors, ((0, 0), (0, -vectors.shape[1] % PART_DIM)))
    codes = [
        nearest_centroids(
            torch.from_numpy(part.copy()), torch.from_numpy(book.astype(np.float32))
        ).numpy()
        for part, book in zip(
            np.split(parts, len(known.codebook), axis=1), known.codebook, strict=True
        )
    ]
    return ProductCodes(known.codebook, np.stack(codes, axis=1).astype(np.uint8), known.dim)


@dataclass(frozen=True)
class RawDescriptors(Content):
    """The descriptors of the photograph itself: what no map keeps, and the ceiling."""

    dim: int
    name = 'raw descriptors'
    meaning = 'descriptors of the photograph itself at the same points, in float32: the ceiling'

    def of_map(self, shot: Shot) -> SparseView:
        """Return the descriptors of the keypoints at the points."""
        return _view(shot, shot.features.descriptors[shot.keypoint_idx])

    def of_own(self, scene: OwnScene, index: int) -> SparseView:
        """Return the descriptors of the keypoints at the points."""
        return self.of_map(scene.shots[index])


class UpdateData(Content):
    """What updates keep of mapping images: keypoints with scales and 8-bit descriptors."""

    name = 'update data'
    meaning = 'keypoints, scales and 8-bit descriptors of mapping images (update.safetensors)'

    def __init__(self, data: MappingData) -> None:
        self._images = {image.name: image for image in data.images}
        self._points = data.points_in_map
        self._count = max(len(image.features) for image in data.images)
        #: Descriptor and scale.
        self.dim = data.images[0].features.descriptors.shape[1] + 1

    @property
    def names(self) -> set[str]:
        """Names of the mapping images."""
        return set(self._images)

    def of_map(self, shot: Shot) -> SparseView | None:
        """Return all that is kept of the mapping image of the same name."""
        image = self._images.get(shot.name)
        if image is None:
            return None
        depth = np.full(len(image.features), np.nan, np.float32)
        labelled = image.point_idx >= 0
        points = self._points[image.point_idx[labelled]]
        depth[labelled] = image.map_from_camera.inverse().apply(points)[:, 2]
        return _with_scales(
            image.features.keypoints, depth, image.features.scales, image.features.descriptors
        )

    def of_own(self, scene: OwnScene, index: int) -> SparseView:
        """Return as much of the attacker's own photograph, descriptors in 8 bits."""
        shot = scene.shots[index]
        rest = scene.unused[index][: max(0, self._count - len(shot))]
        rows = np.concatenate([shot.keypoint_idx[: self._count], rest])
        depth = np.full(len(rows), np.nan, np.float32)
        depth[: len(rows) - len(rest)] = shot.depth[: self._count]
        features = shot.features
        return _with_scales(
            features.keypoints[rows],
            depth,
            features.scales[rows],
            dequantise(*quantise(features.descriptors[rows])),
        )


def _with_scales(
    pixels: NDArray[np.float32],
    depth: NDArray[np.float32],
    scales: NDArray[np.float32],
    descriptors: NDArray[np.float32],
) -> SparseView:
    attributes = np.column_stack([descriptors, np.log(np.maximum(scales, 1e-3))])
    return SparseView(np.asarray(pixels, np.float32), depth, np.asarray(attributes, np.float32))
