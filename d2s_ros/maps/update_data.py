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
from d2s_ros.reconstruction.points import make_reconstruction
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction
from d2s_ros.reconstruction.retrieval import Vlad


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
