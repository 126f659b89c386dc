"""The index of an area: a global descriptor of each mapping image, and the place it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors

from d2s_ros.device import require_torch
from d2s_ros.errors import MapFormatError
from d2s_ros.maps.scene_map import CONTENT_ERRORS, check_finite, serialize
from d2s_ros.maps.update_data import quantise
from d2s_ros.reconstruction.retrieval import Vlad

if TYPE_CHECKING:
    import torch

#: Centroids of the codebook, and mapping images of a place that say how near it is.
_CENTROIDS, _NEAREST = 16, 3
#: Mapping images of a place in the index.
_MAX_IMAGES = 400


@dataclass(frozen=True, eq=False)
class AreaIndex:
    """Which places of an area look like an image.

    Attributes:
        vlad: Codebook of the global descriptors.
        descriptors: (I, G) int8, of the mapping images.
        scales: (I,) float16, that make unit vectors of them.
        place_idx: (I,) int16 number of the place that each image shows.
        num_places: Number of places.
    """

    vlad: Vlad
    descriptors: NDArray[np.int8]
    scales: NDArray[np.float16]
    place_idx: NDArray[np.int16]
    num_places: int

    @classmethod
    def fit(cls, places: Sequence[Sequence[NDArray[np.float32]]], *, seed: int = 0) -> AreaIndex:
        """Make the codebook and the index.

        Args:
            places: Of each place, the local descriptors (N, D) of its mapping images.
            seed: Of the codebook.
        """
        vlad = Vlad.fit(
            [image for images in places for image in images], num_centroids=_CENTROIDS, seed=seed
        )
        dim = vlad.centroids.shape[0] * vlad.centroids.shape[1]
        empty = cls(
            vlad,
            np.zeros((0, dim), np.int8),
            np.zeros(0, np.float16),
            np.zeros(0, np.int16),
            len(places),
        )
        for number, images in enumerate(places):
            empty = empty.with_place(number, images)
        return empty

    def with_place(self, number: int, images: Sequence[NDArray[np.float32]]) -> AreaIndex:
        """Return the index with other images of a place, of an existing or a further one.

        Args:
            number: Of the place.
            images: Local descriptors (N, D) of its mapping images.
        """
        rows = np.linspace(0, len(images) - 1, min(len(images), _MAX_IMAGES)).round().astype(int)
        described = np.stack([self.vlad.describe(images[row]) for row in rows.tolist()])
        quantised, scales = quantise(described)
        others = self.place_idx != number
        return AreaIndex(
            self.vlad,
            np.concatenate([self.descriptors[others], quantised]),
            np.concatenate([self.scales[others], scales]),
            np.concatenate([self.place_idx[others], np.full(len(rows), number, np.int16)]),
            max(self.num_places, number + 1),
        )

    def of_places(self, numbers: Sequence[int]) -> AreaIndex:
        """Return the index of some places, which take the numbers from 0 on."""
        rows = [np.flatnonzero(self.place_idx == number) for number in numbers]
        renumbered = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        chosen = np.concatenate(rows)
        return AreaIndex(
            self.vlad,
            self.descriptors[chosen],
            self.scales[chosen],
            renumbered.astype(np.int16),
            len(rows),
        )

    def similarities(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return how alike an image and each place are (P,), from -1 to 1.

        Args:
            descriptors: (N, D) local descriptors of the image.
        """
        require_torch('an area of several maps')
        import torch

        query = torch.from_numpy(self.vlad.describe(descriptors))
        found = torch.mv(self._unpacked, query).numpy()
        alike = np.full(self.num_places, -1.0, np.float32)
        for number in range(self.num_places):
            of_place = found[self.place_idx == number]
            if len(of_place):
                # One mapping image alone may look alike by chance.
                alike[number] = np.sort(of_place)[-_NEAREST:].mean()
        return alike

    @cached_property
    def _unpacked(self) -> torch.Tensor:
        """The descriptors (I, G) float32: four times the memory, for one fast product a frame."""
        import torch

        scales = torch.from_numpy(self.scales.astype(np.float32))
        return torch.from_numpy(self.descriptors).float().mul_(scales[:, None])

    def to_bytes(self) -> bytes:
        """Return the file of the index."""
        tensors: dict[str, NDArray[Any]] = {
            'centroids': self.vlad.centroids.numpy(),
            'descriptors': self.descriptors,
            'scales': self.scales,
            'place_idx': self.place_idx,
        }
        return serialize(tensors)

    @classmethod
    def from_bytes(cls, data: bytes, num_places: int, path: Path) -> AreaIndex:
        """Read what `to_bytes` wrote.

        Args:
            data: The file.
            num_places: Places of the area.
            path: Of the file, for messages.

        Raises:
            MapFormatError: it cannot be an index of so many places.
        """
        try:
            tensors: dict[str, NDArray[Any]] = load_tensors(data)
            check_finite(tensors)
            centroids = tensors['centroids']
            count = len(tensors['place_idx'])
            for name, kind, shape in (
                ('centroids', 'float32', (len(centroids), centroids.shape[-1])),
                ('descriptors', 'int8', (count, centroids.size)),
                ('scales', 'float16', (count,)),
                ('place_idx', 'int16', (count,)),
            ):
                value = tensors[name]
                if str(value.dtype) != kind or value.shape != shape or not value.size:
                    raise ValueError(f'{name} is {value.dtype} {value.shape}, expected {kind}')
            numbers = tensors['place_idx']
            if set(numbers.tolist()) != set(range(num_places)):
                raise ValueError(f'it is not of {num_places} places')
            return cls(
                Vlad(centroids), tensors['descriptors'], tensors['scales'], numbers, num_places
            )
        except CONTENT_ERRORS as error:
            raise MapFormatError(
                f'{path} cannot be used ({error}); build the area again'
            ) from error
