"""Mapped places and frames for the benchmarks, with rendered logs, maps and features kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

from d2s_ros.data.colmap_model import ColmapSource
from d2s_ros.data.frames import Frame, FrameSource
from d2s_ros.data.sources import open_source
from d2s_ros.features.types import FeatureExtractor
from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import simulate_log

#: Logs of a simulated building: the map, what is asked of it, and another building.
LOGS: dict[str, dict[str, Any]] = {
    'map': {'frames': 60},
    'query_day': {'frames': 40, 'trajectory_seed': 21},
    'query_dusk': {'frames': 120, 'trajectory_seed': 22, 'lighting': 'dusk'},
    'query_night': {'frames': 120, 'trajectory_seed': 23, 'lighting': 'night'},
    'query_moved': {'frames': 120, 'trajectory_seed': 24, 'change': 'moved'},
    'other': {'frames': 150, 'other_place': True, 'trajectory': 'random'},
}


@dataclass(frozen=True, eq=False)
class Observed:
    """One frame with its features; `truth` is its map_from_camera, if it shows the place."""

    name: str
    features: LocalFeatures
    camera: Camera
    truth: RigidTransform | None


class Places:
    """Simulated buildings 'b<seed>' and scenes of photographs, by name.

    Args:
        work: Folder of maps and features; what is there is used again.
        logs: Folder of rendered logs, `b<seed>/<log>`; rendered if missing.
        data: Folder of scenes with images/, a COLMAP text model and split.json.
        size: Width and height of the images of logs that are rendered.
    """

    def __init__(
        self,
        work: Path,
        logs: Path | None = None,
        data: Path | None = None,
        size: Sequence[int] | None = None,
    ) -> None:
        self.work, self.size = work, size
        self.logs = logs or work / 'logs'
        self.data = data

    def log(self, building: str, name: str) -> Path:
        """Return the folder of a building's log, rendered if it is not there."""
        folder = self.logs / building / name
        if not (folder / 'groundtruth_tum.txt').exists():
            config = SimulationConfig(seed=int(building[1:]), poses=False)
            if self.size is not None:
                config = replace(config, width=self.size[0], height=self.size[1])
            simulate_log(replace(config, **LOGS[name]), folder, progress=False)
        return folder

    def source(self, place: str, part: str) -> FrameSource:
        """Return the frames of a log of a building, or the 'map' or 'query' images of a scene."""
        if is_building(place):
            folder = self.log(place, part)
            return open_source(folder, poses=folder / 'groundtruth_tum.txt')
        assert self.data is not None, 'scenes of photographs need the folder they are in'
        folder = self.data / place
        return ColmapSource(folder, json.loads((folder / 'split.json').read_text())[part])

    def map(self, place: str) -> SceneMap:
        """Return the map of a place, built by default settings if it is not there."""
        folder = self.work / 'maps' / place
        if not (folder / 'current').exists():
            build_map(self.source(place, 'map'), folder, budget('standard'), progress=False)
        return SceneMap.open(folder)

    def observed(self, place: str, part: str, extractor: FeatureExtractor) -> list[Observed]:
        """Return frames of a place with their features."""
        return self.extracted(f'{place}_{part}', self.source(place, part), extractor)

    def extracted(
        self, name: str, frames: FrameSource | Iterator[Frame], extractor: FeatureExtractor
    ) -> list[Observed]:
        """Return frames with their features, from the folder if they have been there before."""
        key = hashlib.sha256(f'{extractor.weights_hash} {extractor.config}'.encode()).hexdigest()
        path = self.work / 'features' / f'{name}_{key[:8]}.npz'
        if not path.exists():
            _save(path, frames, extractor)
        return list(_load(path))


def is_building(place: str) -> bool:
    """Return whether a place is a simulated building."""
    return place[:1] == 'b' and place[1:].isdigit()


def photographs(folder: Path) -> Iterator[Frame]:
    """Yield the photographs of a folder, 640 px wide, as a camera of 70 degrees would see them."""
    for path in sorted(folder.glob('*.jpg')):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if image is None:
            continue
        height = round(640 * image.shape[0] / image.shape[1])
        image = cv2.resize(image, (640, height), interpolation=cv2.INTER_CUBIC)
        camera = Camera('pinhole', 640, height, 460.8, 460.8, 319.5, (height - 1) / 2)
        yield Frame(path.stem, 0, np.asarray(image, np.uint8), camera, None)


def _save(path: Path, frames: FrameSource | Iterator[Frame], extractor: FeatureExtractor) -> None:
    names, cameras, poses, offsets = [], [], [], [0]
    rows: list[tuple[np.ndarray, ...]] = []
    for frame in frames:
        assert frame.image is not None
        assert frame.camera is not None
        found = extractor.extract(frame.image)
        rows.append(
            (
                found.keypoints,
                found.keypoint_scores,
                found.scales,
                np.round(found.descriptors * 10_000).astype(np.int16),
            )
        )
        names.append(frame.name)
        cameras.append(frame.camera.to_dict())
        pose = frame.map_from_camera
        poses.append([np.nan] * 7 if pose is None else list(pose.to_tum()))
        offsets.append(offsets[-1] + len(found))
    path.parent.mkdir(parents=True, exist_ok=True)
    keypoints, scores, scales, descriptors = (
        np.concatenate(part) for part in zip(*rows, strict=True)
    )
    with (path.parent / f'{path.stem}.tmp').open('wb') as file:
        np.savez(
            file,
            keypoints=keypoints,
            scores=scores,
            scales=scales,
            descriptors=descriptors,
            offsets=np.array(offsets),
            poses=np.array(poses),
            about=np.frombuffer(
                json.dumps({'names': names, 'cameras': cameras}).encode(), np.uint8
            ),
        )
    (path.parent / f'{path.stem}.tmp').replace(path)


def _load(path: Path) -> Iterator[Observed]:
    with np.load(path) as data:
        about = json.loads(data['about'].tobytes())
        arrays = {name: data[name] for name in data.files if name != 'about'}
    for index, name in enumerate(about['names']):
        part = slice(arrays['offsets'][index], arrays['offsets'][index + 1])
        camera = Camera.from_dict(about['cameras'][index])
        descriptors = arrays['descriptors'][part].astype(np.float32) / 10_000
        descriptors /= np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-9)
        features = LocalFeatures(
            arrays['keypoints'][part],
            arrays['scores'][part],
            descriptors,
            (camera.width, camera.height),
            arrays['scales'][part],
        )
        pose = arrays['poses'][index]
        truth = None if np.isnan(pose).any() else RigidTransform.from_tum(pose)
        yield Observed(name, features, camera, truth)
