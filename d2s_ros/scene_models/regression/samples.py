"""Training samples of the regression head: mapping images and augmented views of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from d2s_ros.data.frames import FrameSource
from d2s_ros.features.types import FeatureExtractor, LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction
from d2s_ros.scene_models.regression.augmentation import (
    AugmentationConfig,
    AugmentedView,
    draw_view,
)

#: A keypoint of an augmented view has the label of a point that projects this close to it.
_LABEL_DISTANCE_PX = 2.0
#: Views with fewer keypoints teach nothing.
_MIN_KEYPOINTS = 16


@dataclass(frozen=True, eq=False)
class RegressionSample:
    """The N keypoints of one image with their labels, in the units of the network.

    Attributes:
        descriptors: (N, D) float32.
        tracks: (N,) int64 point of the reconstruction, -1 without a label.
        targets: (N, 3) float32, zero without a label.
        z: (N,) float32, 1 with a label, 0 without: the true reliability.
        pixels: (N, 2) float32 undistorted px, zero where unknown.
        depths: (N,) float32 depth of the target, 1 without a label.
        rotation, translation: (3, 3) and (3,) float32 of camera_from_map.
        intrinsics: (4,) float32 fx, fy, cx, cy.
    """

    descriptors: Tensor
    tracks: Tensor
    targets: Tensor
    z: Tensor
    pixels: Tensor
    depths: Tensor
    rotation: Tensor
    translation: Tensor
    intrinsics: Tensor

    def __len__(self) -> int:
        return len(self.descriptors)

    def labelled_only(self, points: Tensor) -> RegressionSample:
        """Return the sample with the labels of some points (L,) alone."""
        keep = torch.isin(self.tracks, points)
        return replace(
            self,
            tracks=torch.where(keep, self.tracks, -1),
            targets=self.targets * keep[:, None],
            z=keep.to(self.z.dtype),
            depths=torch.where(keep, self.depths, 1.0),
        )


@dataclass(frozen=True, eq=False)
class CoordinateFrame:
    """Where the network's coordinates lie in the map: map = center + scale * network.

    Attributes:
        center: (3,) float64.
        scale: Positive.
    """

    center: NDArray[np.float64]
    scale: float

    @classmethod
    def of_points(cls, points_in_map: NDArray[np.float64]) -> CoordinateFrame:
        """Return the frame in which most points (P, 3) lie within 1 of the origin."""
        center = np.median(points_in_map, axis=0)
        extent = float(np.percentile(np.abs(points_in_map - center).max(axis=1), 90))
        return cls(center, max(extent, 1e-9))

    @classmethod
    def identity(cls) -> CoordinateFrame:
        """Return the map frame itself, as published."""
        return cls(np.zeros(3), 1.0)


def make_regression_sample(
    features: LocalFeatures,
    camera: Camera,
    map_from_camera: RigidTransform,
    point_idx: NDArray[np.int64],
    points_in_map: NDArray[np.float64],
    frame: CoordinateFrame,
) -> RegressionSample:
    """Make the sample of one image.

    Args:
        features: Keypoints and descriptors.
        camera, map_from_camera: Of the image.
        point_idx: (N,) point of each keypoint, -1 for none.
        points_in_map: (P, 3).
        frame: The network's coordinates.
    """
    ideal = camera.undistort(features.keypoints)
    labelled = (point_idx >= 0) & np.isfinite(ideal).all(axis=1)
    camera_from_map = map_from_camera.inverse()
    targets = np.zeros((len(features), 3))
    depths = np.ones(len(features))
    points = points_in_map[point_idx[labelled]]
    targets[labelled] = (points - frame.center) / frame.scale
    depths[labelled] = camera_from_map.apply(points)[:, 2] / frame.scale
    # A projection does not change when the scene is scaled about the camera.
    translation = camera_from_map.apply(frame.center[None])[0] / frame.scale

    def tensor(values: object) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.float32))

    return RegressionSample(
        torch.from_numpy(features.descriptors),
        torch.from_numpy(np.where(labelled, point_idx, -1)),
        tensor(targets),
        tensor(labelled),
        tensor(np.nan_to_num(ideal)),
        tensor(depths),
        tensor(camera_from_map.rotation),
        tensor(translation),
        tensor([camera.fx, camera.fy, camera.cx, camera.cy]),
    )


def samples_of_images(
    reconstruction: Reconstruction, frame: CoordinateFrame
) -> list[RegressionSample]:
    """Return one sample for each mapping image, as it is."""
    return [
        make_regression_sample(
            image.features,
            image.camera,
            image.map_from_camera,
            image.point_idx,
            reconstruction.points_in_map,
            frame,
        )
        for image in reconstruction.images
    ]


def samples_of_views(
    source: FrameSource,
    reconstruction: Reconstruction,
    extractor: FeatureExtractor,
    frame: CoordinateFrame,
    config: AugmentationConfig,
    *,
    image_idx: Sequence[int],
    seed: int,
    progress: bool = False,
) -> dict[int, list[RegressionSample]]:
    """Return samples of augmented views by the index of their mapping image.

    The log is read again, because images are not kept in memory. Keypoints are detected anew in
    each view, so that they are what a turned camera gives.

    Args:
        source: The log that `reconstruction` was made from.
        reconstruction: Images and points.
        extractor: Of the map's features.
        frame: The network's coordinates.
        config: Ranges and number of views.
        image_idx: Mapping images to make views of.
        seed: Together with the image and the number of the view, it decides the view.
        progress: Show a progress bar.
    """
    samples: dict[int, list[RegressionSample]] = {index: [] for index in image_idx}
    if config.copies == 0 or config.share == 0:
        return samples
    wanted = {reconstruction.images[index].name: index for index in image_idx}
    bar = tqdm(source, total=len(source), desc='views', unit='image', disable=not progress)
    for image in bar:
        index = wanted.get(image.name)
        if index is None or image.image is None:
            continue
        mapped = reconstruction.images[index]
        for copy in range(config.copies):
            rng = np.random.default_rng([seed, index, copy])
            view = draw_view(image.image, mapped.camera, mapped.map_from_camera, config, rng)
            features = extractor.extract(view.image, view.mask)
            if len(features) < _MIN_KEYPOINTS:
                continue
            point_idx = transfer_labels(mapped, view, features, reconstruction.points_in_map)
            samples[index].append(
                make_regression_sample(
                    features,
                    view.camera,
                    view.map_from_camera,
                    point_idx,
                    reconstruction.points_in_map,
                    frame,
                )
            )
    return samples


def transfer_labels(
    mapped: MappedImage,
    view: AugmentedView,
    features: LocalFeatures,
    points_in_map: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Return the point (N,) of each keypoint of a view, -1 for none.

    A keypoint has the label of the nearest of the points seen in the original image.
    """
    seen = np.unique(mapped.point_idx[mapped.point_idx >= 0])
    point_idx = np.full(len(features), -1, np.int64)
    projected = view.camera.project(
        view.map_from_camera.inverse().apply(points_in_map[seen].reshape(-1, 3))
    )
    finite = np.isfinite(projected).all(axis=1)
    seen, projected = seen[finite], projected[finite]
    if len(seen) == 0 or len(features) == 0:
        return point_idx
    distance = torch.cdist(
        torch.from_numpy(features.keypoints.astype(np.float64)), torch.from_numpy(projected)
    )
    nearest, column = (value.numpy() for value in distance.min(dim=1))
    close = nearest <= _LABEL_DISTANCE_PX
    point_idx[close] = seen[column[close]]
    return point_idx
