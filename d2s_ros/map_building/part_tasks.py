"""The tasks of a split build: features of some images, matches of some pairs, the map of a part."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.array_log import StageLog
from d2s_ros.device import resolve_device
from d2s_ros.errors import InputError
from d2s_ros.features.extractor import create_mapping_extractor
from d2s_ros.features.types import FeatureConfig, FeatureExtractor
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.pipeline import make_map
from d2s_ros.map_building.preparation import Clock, Prepared
from d2s_ros.map_building.stages import feature_arrays
from d2s_ros.map_building.tasks import Records
from d2s_ros.maps.store import MapStore
from d2s_ros.reconstruction.pair_matching import match_pairs, pack_matches
from d2s_ros.reconstruction.reconstruction import (
    ImageInput,
    Reconstruction,
    ReconstructionConfig,
)
from d2s_ros.reconstruction.triangulation import triangulate


@dataclass(frozen=True)
class ExtractorOf:
    """How a task makes its extractor.

    Attributes:
        config: Of the features.
        device: 'auto', 'cpu' or 'cuda', of the machine that the task runs on.
        weights: Weight file there, None for those of the package.
    """

    config: FeatureConfig
    device: str
    weights: str | None

    def get(self) -> FeatureExtractor:
        """Make the extractor, once in each process."""
        return _extractor(self)


@functools.lru_cache(maxsize=1)
def _extractor(of: ExtractorOf) -> FeatureExtractor:
    return create_mapping_extractor(of.config, device=resolve_device(of.device), weights=of.weights)


def extract_features(
    extractor: ExtractorOf, images: Sequence[tuple[str, NDArray[np.uint8]]]
) -> Records:
    """Return the features of images (H, W) by their keys."""
    found = extractor.get()
    return {key: feature_arrays(found.extract(image)) for key, image in images}


def match_images(
    images: Mapping[int, ImageInput],
    pairs: Sequence[tuple[int, int]],
    config: ReconstructionConfig,
    guided: bool,
    key: str,
) -> Records:
    """Return the matches of pairs of images as one record.

    Args:
        images: Those of the pairs, by their number.
        pairs: Numbers (i, j), i < j.
        config: Limits.
        guided: Along the epipolar lines of the images' poses.
        key: Of the record.
    """
    rows = sorted(images)
    number_of = {row: number for number, row in enumerate(rows)}
    members = [images[row] for row in rows]
    ideal = [image.camera.undistort(image.features.keypoints) for image in members]
    found = match_pairs(
        members,
        ideal,
        [(number_of[i], number_of[j]) for i, j in pairs],
        config,
        StageLog(None),
        guided=guided,
    )
    nothing = np.zeros((0, 2), np.int64)
    return {
        key: pack_matches(
            {(i, j): found.get((number_of[i], number_of[j]), nothing) for i, j in pairs}
        )
    }


@dataclass(frozen=True, eq=False)
class PlaceTask:
    """What the map of a part is made from.

    Attributes:
        images: Of the part.
        reconstruction: Of the part, None to triangulate `matches`.
        matches: (M, 2) keypoint indices of pairs (i, j), i < j, of posed images.
        placement: Where scale and frame are from.
        origin: (3,) that coordinates are relative to.
        dropped: Why images of the log were not used, with counts.
    """

    images: list[ImageInput]
    reconstruction: Reconstruction | None
    matches: dict[tuple[int, int], NDArray[np.int64]] | None
    placement: dict[str, Any]
    origin: NDArray[np.float64]
    dropped: dict[str, int]


def build_place(task: PlaceTask, config: BuildConfig, extractor: ExtractorOf, key: str) -> Records:
    """Return the files of the map of a part, or why there is none, as one record."""
    clock = Clock()
    reconstruction = task.reconstruction
    try:
        if reconstruction is None:
            with clock.timed('reconstruction'):
                reconstruction = triangulate(task.images, task.matches or {}, config.reconstruction)
        scene_map, update_data = make_map(
            Prepared(task.images, task.dropped, task.origin, reconstruction, task.placement),
            extractor.get(),
            config,
            clock,
            source=None,
            device=resolve_device(extractor.device),
            progress=False,
            stages=None,
            more={},
        )
    except InputError as error:
        return {key: {'failed': np.frombuffer(str(error).encode(), np.uint8)}}
    with tempfile.TemporaryDirectory(prefix='d2s_place_') as folder:
        written = MapStore(folder).write(scene_map, update_data)
        assert written.path is not None
        return {
            key: {
                file.name: np.frombuffer(file.read_bytes(), np.uint8)
                for file in sorted(written.path.iterdir())
            }
        }
