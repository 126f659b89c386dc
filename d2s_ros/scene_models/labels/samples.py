"""What labels are learned from: dense features of mapping images where points were observed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from d2s_ros.data.frames import FrameSource
from d2s_ros.errors import InputError
from d2s_ros.features.dense import STRIDES, DenseExtractor, FeaturePyramid
from d2s_ros.reconstruction.reconstruction import Reconstruction
from d2s_ros.scene_models.labels.images import LabelImage, Undistorter


@dataclass(frozen=True, eq=False)
class LabelSample:
    """One mapping image.

    Attributes:
        image: As labels see it.
        pixels: (N, 2) float32 where points of the map were observed, px of `image`.
        point_idx: (N,) int64 rows of the map's points.
        features: (N, C) float16 at these places, all strides side by side.
        cells: By stride, (h w, C) float16 dense features; empty of images that are only voted with.
        sizes: By stride, (h, w).
    """

    image: LabelImage
    pixels: Tensor
    point_idx: Tensor
    features: Tensor
    cells: dict[int, Tensor] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)

    def pyramid(self, device: str) -> FeaturePyramid:
        """Return the dense features that are kept, float32, on a device."""
        maps = {
            stride: cells.to(device)
            .float()
            .reshape(*self.sizes[stride], -1)
            .permute(2, 0, 1)
            .contiguous()
            for stride, cells in self.cells.items()
        }
        return FeaturePyramid(maps, (self.image.camera.width, self.image.camera.height))

    def read(self, stride: int, pixels: Tensor) -> Tensor:
        """Return float32 features (N, C) of a stride at pixels (N, 2)."""
        return read_cells(self.cells[stride], self.sizes[stride], stride, pixels)


def read_cells(cells: Tensor, size: tuple[int, int], stride: int, pixels: Tensor) -> Tensor:
    """Return features (N, C) float32 of cells (h w, C), bilinear at pixels (N, 2)."""
    height, width = size
    limit = torch.tensor([width - 1, height - 1], dtype=torch.float32)
    grid = ((pixels + 0.5) / stride - 0.5).clamp_min(0.0).minimum(limit)
    low = grid.floor()
    fraction = grid - low
    low = low.long()
    high = (low + 1).minimum(limit.long())
    x, y = fraction[:, :1], fraction[:, 1:]
    rows = torch.stack([low[:, 1], low[:, 1], high[:, 1], high[:, 1]], dim=1)
    columns = torch.stack([low[:, 0], high[:, 0], low[:, 0], high[:, 0]], dim=1)
    weights = torch.cat([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x], dim=1)
    # Ten times as fast as an index, a product and a sum: this is most of a training.
    return functional.embedding_bag(
        rows * width + columns, cells, mode='sum', per_sample_weights=weights.to(cells.dtype)
    ).float()


def collect_samples(
    source: FrameSource | None,
    reconstruction: Reconstruction,
    row_of_point: NDArray[np.int64],
    dense: DenseExtractor,
    undistorter: Undistorter,
    *,
    trained: Sequence[int],
    progress: bool = False,
) -> dict[int, LabelSample]:
    """Read the log again, and return samples by the index of their mapping image.

    Args:
        source: The log that `reconstruction` was made from.
        reconstruction: Images and points.
        row_of_point: (P,) row of each point in the map, -1 for those that are not kept.
        dense: Frozen features.
        undistorter: Makes label images.
        trained: Images whose dense features are kept, for the training.
        progress: Show a progress bar.

    Raises:
        InputError: there are no pixels of the mapping images.
    """
    if source is None:
        raise InputError(
            'the labels head looks at the pixels of the log, which are not at hand here; build '
            'the map from its log'
        )
    images = reconstruction.images
    wanted = {image.name: index for index, image in enumerate(images)}
    dense_of = frozenset(trained)
    samples: dict[int, LabelSample] = {}
    bar = tqdm(source, total=len(source), desc='labels', unit='image', disable=not progress)
    for frame in bar:
        index = wanted.get(frame.name)
        if index is None or frame.image is None or index in samples:
            continue
        mapped = images[index]
        image = undistorter(frame.image, mapped.camera)
        maps = dense.maps(image.grey).maps
        cells = {
            stride: maps[stride].permute(1, 2, 0).flatten(0, 1).to('cpu', torch.float16)
            for stride in STRIDES
        }
        sizes = {stride: (maps[stride].shape[1], maps[stride].shape[2]) for stride in STRIDES}
        rows = np.where(mapped.point_idx >= 0, row_of_point[mapped.point_idx], -1)
        kept = np.flatnonzero((rows >= 0) & np.isfinite(mapped.ideal_keypoints).all(axis=1))
        pixels = torch.from_numpy(
            image.pixels(mapped.ideal_keypoints[kept], mapped.camera).astype(np.float32)
        )
        features = [read_cells(cells[stride], sizes[stride], stride, pixels) for stride in STRIDES]
        samples[index] = LabelSample(
            image,
            pixels,
            torch.from_numpy(rows[kept]),
            torch.cat(features, dim=1).half(),
            cells if index in dense_of else {},
            sizes,
        )
    if len(samples) < len(images):
        raise InputError(
            f'{len(images) - len(samples)} of {len(images)} mapping images are not in the log any '
            'more; build the map from the whole log'
        )
    return samples
