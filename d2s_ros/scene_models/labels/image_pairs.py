"""Which images the recipe of SegLoc trains on together: pairs, near images and far ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.scene_models.labels.samples import LabelSample

#: Points that two images share.
_MIN_MATCHES = 30
#: Share of an image that the box around its matches covers.
_MIN_OVERLAP = 0.75
#: Pairs of an image that are kept in any case, those that overlap most.
_BEST = 3
#: Images nearer than this are positives, further ones than this negatives: shares of the median
#: depth of what images see.
NEAR_SHARE, FAR_SHARE = 0.4, 0.8


@dataclass(frozen=True, eq=False)
class ImagePair:
    """Two images, and rows of their observations that show the same points.

    Attributes:
        first, second: Images.
        rows_first, rows_second: (M,) int64.
    """

    first: int
    second: int
    rows_first: Tensor
    rows_second: Tensor


def find_pairs(samples: Sequence[LabelSample]) -> list[ImagePair]:
    """Return the pairs of images that share enough of what they see."""
    found: dict[tuple[int, int], tuple[float, ImagePair]] = {}
    points = [sample.point_idx.numpy() for sample in samples]
    for i, sample in enumerate(samples):
        for j in range(i + 1, len(samples)):
            _, rows_i, rows_j = np.intersect1d(points[i], points[j], return_indices=True)
            if len(rows_i) < _MIN_MATCHES:
                continue
            overlap = min(_covered(sample, rows_i), _covered(samples[j], rows_j))
            pair = ImagePair(i, j, torch.from_numpy(rows_i), torch.from_numpy(rows_j))
            found[i, j] = (overlap, pair)
    kept = {key for key, (overlap, _) in found.items() if overlap >= _MIN_OVERLAP}
    for image in range(len(samples)):
        own = [key for key in found if image in key]
        kept.update(sorted(own, key=lambda key: -found[key][0])[:_BEST])
    return [found[key][1] for key in sorted(kept)]


def _covered(sample: LabelSample, rows: NDArray[np.int64]) -> float:
    """Return the share of an image that the box around some of its observations covers."""
    pixels = sample.pixels[torch.from_numpy(rows)]
    width, height = (pixels.amax(dim=0) - pixels.amin(dim=0)).tolist()
    return width * height / (sample.image.camera.width * sample.image.camera.height)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Where images were taken, relative to each other.

    Attributes:
        near, far: (I, I) bool: taken near enough to be alike, and far enough to differ.
    """

    near: NDArray[np.bool_]
    far: NDArray[np.bool_]

    @classmethod
    def of(cls, poses: Sequence[RigidTransform], depth: float) -> Neighbours:
        """Compare the places of map_from_camera; `depth` is the median of what images see."""
        centres = np.stack([pose.translation for pose in poses])
        distance = np.linalg.norm(centres[:, None] - centres[None], axis=2)
        near = distance <= NEAR_SHARE * depth
        np.fill_diagonal(near, False)
        return cls(near, distance > FAR_SHARE * depth)

    def hard(self, index: int, similarity: NDArray[np.float32]) -> tuple[int | None, int | None]:
        """Return the near image that is least like one, and the far one that is most like it.

        Args:
            index: The image.
            similarity: (I, I) cosines of pooled vectors.
        """
        near, far = np.flatnonzero(self.near[index]), np.flatnonzero(self.far[index])
        row = similarity[index]
        return (
            int(near[row[near].argmin()]) if len(near) else None,
            int(far[row[far].argmax()]) if len(far) else None,
        )
