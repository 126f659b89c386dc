"""Photographs with the points that they show: of the mapped place, and the attacker's own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from tqdm import tqdm

from d2s_ros.data.array_log import StageLog
from d2s_ros.data.frames import Frame, FrameSource
from d2s_ros.errors import InputError
from d2s_ros.features.types import FeatureExtractor, LocalFeatures, to_grey
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.map_building.stages import frame_digest, keep_features, load_features
from d2s_ros.reconstruction.pipeline import reconstruct
from d2s_ros.reconstruction.reconstruction import ImageInput, ReconstructionConfig

_logger = logging.getLogger(__name__)

#: A point of the map is seen where a keypoint is within this distance, px of 1000 px images.
_SEEN_PX = 1.5
#: By chance, projections find keypoints too: this far off, px of 1000 px images.
_SHIFT_PX = 12.0
#: Right poses find at least this many times as many keypoints as chance does.
_MIN_OVER_CHANCE = 2.0
#: Photographs with fewer points show nothing to make a picture of.
MIN_POINTS = 30


@dataclass(frozen=True, eq=False)
class Shot:
    """A photograph with the points that it shows.

    Attributes:
        name: Of the image.
        grey: (H, W) uint8.
        camera: Intrinsics.
        map_from_camera: Pose in the frame of the points.
        features: Keypoints, of the map's kind.
        keypoint_idx: (N,) int64 keypoint at each point.
        point_idx: (N,) int64 row of the point in the map, or in the attacker's reconstruction.
        depth: (N,) float32 of each point along the optical axis.
    """

    name: str
    grey: NDArray[np.uint8]
    camera: Camera
    map_from_camera: RigidTransform
    features: LocalFeatures
    keypoint_idx: NDArray[np.int64]
    point_idx: NDArray[np.int64]
    depth: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.keypoint_idx)

    @property
    def pixels(self) -> NDArray[np.float32]:
        """(N, 2) px of the points in the photograph."""
        return self.features.keypoints[self.keypoint_idx]


@dataclass(frozen=True, eq=False)
class OwnScene:
    """A place that the attacker has photographed and reconstructed.

    Attributes:
        shots: Their `point_idx` are rows of `mean_descriptors`.
        mean_descriptors: (P, D) float32 unit means over the keypoints of each point.
        unused: Of each shot, its keypoints without a point, (K,) int64.
    """

    shots: list[Shot]
    mean_descriptors: NDArray[np.float32]
    unused: list[NDArray[np.int64]]


def read_photographs(source: FrameSource, limit: int, *, names: set[str] | None) -> list[Frame]:
    """Return photographs with pose and camera, at most `limit`, evenly chosen.

    Args:
        source: The photographs of the place.
        limit: Most of them.
        names: Only these, if any of them is there.

    Raises:
        InputError: there is none.
    """
    known: list[int] = []
    named: list[int] = []
    total = 0
    for index, frame in enumerate(source):
        total += 1
        if frame.image is None or frame.camera is None or frame.map_from_camera is None:
            continue
        known.append(index)
        if names is not None and frame.name in names:
            named.append(index)
    if not known:
        raise InputError(
            f'none of {total} photographs of the place has an image, a calibration and a pose; '
            'give a folder with a COLMAP model, a log with poses, or --poses'
        )
    candidates = named or known
    keep = np.linspace(0, len(candidates) - 1, min(limit, len(candidates))).round().astype(int)
    wanted = {candidates[index] for index in keep}
    return [frame for index, frame in enumerate(source) if index in wanted]


def shots_of_map(
    frames: Sequence[Frame],
    points_in_map: NDArray[np.float64],
    extractor: FeatureExtractor,
    log: StageLog,
    *,
    progress: bool = False,
) -> list[Shot]:
    """Return the photographs with the points of a map that they show.

    Which points a photograph shows is given to the attacker: those that project onto one of its
    keypoints. Photographs with fewer than `MIN_POINTS` are left out.

    Raises:
        InputError: the poses do not fit the map.
    """
    shots: list[Shot] = []
    seen, by_chance = 0, 0
    bar = tqdm(frames, desc='photographs of the place', unit='image', disable=not progress)
    for frame in bar:
        assert frame.image is not None
        assert frame.camera is not None
        assert frame.map_from_camera is not None
        features = _features(frame, extractor, log)
        in_camera = frame.map_from_camera.inverse().apply(points_in_map)
        pixels = frame.camera.project(in_camera)
        keypoint_idx, point_idx = _seen(features.keypoints, pixels, frame.camera)
        seen += len(point_idx)
        shift = _SHIFT_PX * _unit_px(frame.camera)
        by_chance += len(_seen(features.keypoints, pixels + shift, frame.camera)[0])
        if len(point_idx) >= MIN_POINTS:
            shots.append(
                Shot(
                    frame.name,
                    to_grey(frame.image),
                    frame.camera,
                    frame.map_from_camera,
                    features,
                    keypoint_idx,
                    point_idx,
                    in_camera[point_idx, 2].astype(np.float32),
                )
            )
    if seen < _MIN_OVER_CHANCE * by_chance or not shots:
        raise InputError(
            f'the photographs show {seen} points of the map, {by_chance} would be chance: their '
            'poses are not in the frame of the map; give the poses that it was built with'
        )
    if len(shots) < len(frames):
        _logger.warning(
            '%d of %d photographs show fewer than %d points of the map and are left out',
            len(frames) - len(shots),
            len(frames),
            MIN_POINTS,
        )
    return shots


def own_scene(
    source: FrameSource,
    extractor: FeatureExtractor,
    limit: int,
    features_log: StageLog,
    matches_log: StageLog,
    *,
    progress: bool = False,
) -> OwnScene:
    """Reconstruct a place from the attacker's photographs, as a map would be built.

    Raises:
        InputError: they cannot be reconstructed.
    """
    total = len(source)
    keep = set(np.linspace(0, total - 1, min(total, limit)).round().astype(int))
    frames: dict[str, Frame] = {}
    images: list[ImageInput] = []
    bar = tqdm(source, total=total, desc="attacker's features", unit='image', disable=not progress)
    for index, frame in enumerate(bar):
        if index not in keep or frame.image is None or frame.camera is None:
            continue
        features = _features(frame, extractor, features_log)
        if len(features) < MIN_POINTS:
            continue
        frames[frame.name] = frame
        images.append(
            ImageInput(frame.name, frame.stamp_ns, frame.camera, frame.map_from_camera, features)
        )
    posed = [image for image in images if image.map_from_camera is not None]
    images = posed if len(posed) >= 2 else images
    found = reconstruct(images, ReconstructionConfig(), stage=matches_log, progress=progress)
    dim = extractor.dim
    sums = np.zeros((len(found.points_in_map), dim), np.float64)
    shots, unused = [], []
    for image in found.images:
        keypoint_idx = np.flatnonzero(image.point_idx >= 0)
        point_idx = image.point_idx[keypoint_idx]
        np.add.at(sums, point_idx, image.features.descriptors[keypoint_idx])
        if len(point_idx) < MIN_POINTS:
            continue
        in_camera = image.map_from_camera.inverse().apply(found.points_in_map[point_idx])
        picture = frames[image.name].image
        assert picture is not None
        shots.append(
            Shot(
                image.name,
                to_grey(picture),
                image.camera,
                image.map_from_camera,
                image.features,
                keypoint_idx,
                point_idx,
                in_camera[:, 2].astype(np.float32),
            )
        )
        unused.append(np.flatnonzero(image.point_idx < 0))
    means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return OwnScene(shots, means.astype(np.float32), unused)


def _features(frame: Frame, extractor: FeatureExtractor, log: StageLog) -> LocalFeatures:
    """Return the features of a photograph, from the log if they are there."""
    assert frame.image is not None
    key = f'{extractor.weights_hash} {extractor.config} {frame_digest(frame)}'
    features = load_features(log, key)
    if features is None:
        features = extractor.extract(frame.image)
        keep_features(log, key, features)
    return features


def _unit_px(camera: Camera) -> float:
    """Return how many px of a photograph one px of an image of 1000 px is, at least 1."""
    return max(1.0, max(camera.width, camera.height) / 1000.0)


def _seen(
    keypoints: NDArray[np.float32], pixels: NDArray[np.float64], camera: Camera
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return keypoints (N,) and the point (N,) that projects nearest to each, within the limit."""
    with np.errstate(invalid='ignore'):
        inside = ((pixels >= 0) & (pixels < [camera.width, camera.height])).all(axis=1)
    projected = np.flatnonzero(inside)
    if not len(projected) or not len(keypoints):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    distance, nearest = cKDTree(pixels[projected]).query(
        keypoints, distance_upper_bound=_SEEN_PX * _unit_px(camera)
    )
    found = np.flatnonzero(np.isfinite(distance))
    return found, projected[nearest[found]].astype(np.int64)
