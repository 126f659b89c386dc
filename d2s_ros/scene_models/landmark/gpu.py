"""Features, search and scores of an image on a GPU: one transfer in, one out, no wait between.

Shapes depend on the size of the image alone, never on what it shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from d2s_ros.features.superpoint.extractor import SuperPoint, pad_to_cells
from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.kernels.tensors import reliability_of
from d2s_ros.scene_models.landmark.cuda_graph import FrameRecorder
from d2s_ros.scene_models.landmark.inference import LandmarkScorer
from d2s_ros.scene_models.landmark.table import Candidates, LandmarkIndex, normalized_places


@dataclass(frozen=True, eq=False)
class Observation:
    """What an image shows of a map.

    Attributes:
        features: Keypoints; descriptors stay on the device, here they have no columns.
        candidates: Landmarks that each may show.
        reliability: (N,) float32.
        choice: (N,) int64, the column of `candidates` that it is of.
    """

    features: LocalFeatures
    candidates: Candidates
    reliability: NDArray[np.float32]
    choice: NDArray[np.int64]


class DeviceStages:
    """From an image to scored candidates, on the device of the extractor.

    Args:
        extractor: On the device, as are the keys of `index` and the weights of `scorer`.
        index: Of the map's landmarks.
        scorer: Without attention, in which keypoints that are none would be seen by others.
        num_candidates: Candidates of a keypoint.
    """

    def __init__(
        self,
        extractor: SuperPoint,
        index: LandmarkIndex,
        scorer: LandmarkScorer,
        num_candidates: int,
    ) -> None:
        self._extractor, self._index, self._scorer = extractor, index, scorer
        self._num_candidates = num_candidates
        self._places: tuple[Camera, Tensor] | None = None
        self._recorder = FrameRecorder(extractor.device)

    def observe(self, grey: NDArray[np.uint8], camera: Camera) -> Observation:
        """Return what an image (H, W) of a camera of this size shows."""
        resized, factor = self._extractor.prepared(grey)
        image = torch.from_numpy(pad_to_cells(resized))
        places = self._places_of(camera)

        def compute(padded: Tensor) -> Tensor:
            return self.compute(padded, resized.shape, factor, places)

        kind = grey.shape, resized.shape, camera
        rows = self._recorder.run(kind, compute, image).numpy()
        rows = rows[rows[:, 2] > self._extractor.threshold]
        count = self._num_candidates
        keypoints, numbers = rows[:, :2].copy(), rows[:, 5:].reshape(len(rows), 3, count)
        features = LocalFeatures(
            keypoints,
            rows[:, 2].copy(),
            np.empty((len(rows), 0), np.float32),
            (grey.shape[1], grey.shape[0]),
            np.ones(len(rows), np.float32),
        )
        candidates = Candidates(
            numbers[:, 0].astype(np.int64), numbers[:, 1].copy(), numbers[:, 2].copy()
        )
        return Observation(features, candidates, rows[:, 3].copy(), rows[:, 4].astype(np.int64))

    @torch.inference_mode()
    def compute(
        self, padded: Tensor, size: tuple[int, ...], factor: NDArray[np.float64], places: Tensor
    ) -> Tensor:
        """Do all that runs on the device.

        Args:
            padded: (H, W) uint8, multiples of 8.
            size: Height and width of it without padding.
            factor: Px of the given image in one of these, x and y.
            places: (1, 2, H', W') coordinates x/z, y/z of the pixels of the given image.

        Returns:
            (K, 5 + 3 C) float32: x, y (px of the given image), score, reliability, choice; index,
            cosine and best cosine of each candidate. Indices are exact up to 2^24.
        """
        table = self._extractor.on_device(padded, size)
        strength = table[:, 2]
        # The host knows these numbers: they are no transfer.
        x = (table[:, 0] + 0.5) * float(factor[0]) - 0.5
        y = (table[:, 1] + 0.5) * float(factor[1]) - 0.5
        height, width = places.shape[-2:]
        grid = torch.stack([x * (2.0 / (width - 1)) - 1.0, y * (2.0 / (height - 1)) - 1.0], dim=1)
        seen = functional.grid_sample(
            places, grid[None, None], mode='bilinear', padding_mode='border', align_corners=True
        )[0, :, 0].T
        # What is not a keypoint is like nothing.
        real = (strength > self._extractor.threshold)[:, None]
        descriptors = table[:, 3:] * real
        idx, similarity, best = self._index.nearest(descriptors, self._num_candidates)
        # All keypoints of SuperPoint have the scale 1.
        logits = self._scorer(descriptors, idx, similarity, best, seen, torch.zeros_like(strength))
        reliability, choice = reliability_of(logits)
        parts = [torch.stack([x, y, strength, reliability, choice.float()], dim=1)]
        return torch.cat([*parts, idx.float(), similarity, best], dim=1)

    def _places_of(self, camera: Camera) -> Tensor:
        """Return the coordinates of all pixels, computed once per camera."""
        if self._places is None or self._places[0] != camera:
            y, x = np.mgrid[: camera.height, : camera.width]
            pixels = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64)
            places = normalized_places(camera, pixels).T.reshape(1, 2, camera.height, camera.width)
            on_device = torch.from_numpy(np.ascontiguousarray(places)).to(self._extractor.device)
            self._places = camera, on_device
        return self._places[1]
