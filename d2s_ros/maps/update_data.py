"""The mapping images as updates see them: decoded from what the map stores for updates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import MapFormatError
from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.maps.scene_map import SceneMap, dequantise
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction
from d2s_ros.reconstruction.retrieval import Vlad
from d2s_ros.scene_models.landmark.table import LandmarkStatistics, LandmarkTable


@dataclass(frozen=True, eq=False)
class MappingData:
    """What an update knows of the mapping images.

    Attributes:
        images: With features (the kept ones), poses and labels.
        points_in_map: (P, 3) float64; points with several prototypes occur several times.
        vlad: Codebook of the global descriptors.
        global_descriptors: (I, G) float32.
        metric: Whether the map's scale is that of the world.
        logs: Name of the log that an update took each image from; '' for the first mapping.
    """

    images: list[MappedImage]
    points_in_map: NDArray[np.float64]
    vlad: Vlad
    global_descriptors: NDArray[np.float32]
    metric: bool
    logs: list[str]

    @classmethod
    def from_map(cls, scene_map: SceneMap) -> MappingData:
        """Decode the update data of a map.

        Raises:
            MapFormatError: stripped, damaged, or incomplete.
        """
        tensors = scene_map.load_update_data()
        try:
            return cls._decode(tensors, scene_map.manifest.metric)
        except (KeyError, ValueError, IndexError) as error:
            raise MapFormatError(
                f'the update data of {scene_map.path} is incomplete ({error}); build the map again'
            ) from error

    @classmethod
    def _decode(cls, tensors: dict[str, NDArray[Any]], metric: bool) -> MappingData:
        names = json.loads(bytes(tensors['names']))
        cameras = [Camera.from_dict(item) for item in json.loads(bytes(tensors['cameras']))]
        descriptors = dequantise(tensors['descriptors'], tensors['descriptor_scales'])
        offsets = tensors['offsets']
        images = []
        for index, name in enumerate(names):
            rows = slice(int(offsets[index]), int(offsets[index + 1]))
            camera = cameras[int(tensors['camera_idx'][index])]
            keypoints = np.asarray(tensors['keypoints'][rows], np.float32)
            features = LocalFeatures(
                keypoints,
                np.zeros(len(keypoints), np.float32),
                descriptors[rows],
                (camera.width, camera.height),
                tensors['scales'][rows].astype(np.float32),
            )
            images.append(
                MappedImage(
                    str(name),
                    int(tensors['stamps_ns'][index]),
                    camera,
                    RigidTransform.from_tum(tensors['poses'][index]),
                    features,
                    camera.undistort(keypoints),
                    tensors['point_idx'][rows].astype(np.int64),
                )
            )
        return cls(
            images,
            tensors['points'].astype(np.float64),
            Vlad(tensors['vlad_centroids']),
            tensors['global_descriptors'].astype(np.float32),
            metric,
            json.loads(bytes(tensors['logs'])) if 'logs' in tensors else [''] * len(images),
        )

    def reconstruction(self) -> Reconstruction:
        """Return images and points with the track lengths that are stored."""
        return make_reconstruction(self.images, self.points_in_map, self.metric)


def make_reconstruction(
    images: list[MappedImage], points_in_map: NDArray[np.float64], metric: bool
) -> Reconstruction:
    """Return a reconstruction; errors of points are measured, track lengths counted."""
    count = len(points_in_map)
    lengths = np.zeros(count, np.int64)
    errors, observations = np.zeros(count), np.zeros(count)
    for image in images:
        seen = np.flatnonzero(image.point_idx >= 0)
        points = image.point_idx[seen]
        lengths += np.bincount(np.unique(points), minlength=count)
        camera_from_map = image.map_from_camera.inverse()
        projected = image.camera.ideal.project(camera_from_map.apply(points_in_map[points]))
        residual = np.linalg.norm(projected - image.ideal_keypoints[seen], axis=1)
        good = np.isfinite(residual)
        np.add.at(errors, points[good], residual[good])
        np.add.at(observations, points[good], 1)
    return Reconstruction(
        images, points_in_map, errors / np.maximum(observations, 1), lengths, metric
    )


def point_groups(points_in_map: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each point (P,) the number of its place; prototypes of one point share it."""
    _, groups = np.unique(points_in_map.astype(np.float32), axis=0, return_inverse=True)
    return np.asarray(groups, np.int64).reshape(-1)


def statistics_of(table: LandmarkTable, reconstruction: Reconstruction) -> LandmarkStatistics:
    """Find the observations behind a map's keys again, to leave images out of them.

    A landmark is the point of its coordinates; among prototypes, the one whose observations are
    most like the key.
    """
    points = reconstruction.points_in_map.astype(np.float32)
    dim = table.keys.shape[1]
    sums = np.zeros((len(points), dim))
    counts = np.zeros(len(points), np.int64)
    for image in reconstruction.images:
        seen = np.flatnonzero(image.point_idx >= 0)
        np.add.at(sums, image.point_idx[seen], image.features.descriptors[seen])
        np.add.at(counts, image.point_idx[seen], 1)
    by_place: dict[bytes, list[int]] = {}
    for index, point in enumerate(points):
        by_place.setdefault(point.tobytes(), []).append(index)
    landmark_of_point = np.full(len(points), -1, np.int64)
    landmark_sums = np.zeros((len(table), dim))
    landmark_counts = np.zeros(len(table), np.int64)
    for landmark, point in enumerate(table.points_in_map):
        free = [i for i in by_place.get(point.tobytes(), ()) if landmark_of_point[i] < 0]
        if not free:
            continue
        if len(free) > 1:
            norms = np.maximum(np.linalg.norm(sums[free], axis=1), 1e-12)
            best = free[int(np.argmax(sums[free] @ table.keys[landmark] / norms))]
        else:
            best = free[0]
        landmark_of_point[best] = landmark
        landmark_sums[landmark], landmark_counts[landmark] = sums[best], counts[best]
    return LandmarkStatistics(landmark_sums, landmark_counts, landmark_of_point)
