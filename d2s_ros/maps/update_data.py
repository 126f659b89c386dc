"""What a map stores of its mapping images for updates: the one writer and the one reader.

The tensors are listed in docs/reference/map_format.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from d2s_ros.errors import InputError, MapFormatError
from d2s_ros.features.types import LocalFeatures, StoredFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.maps.manifest import MapManifest
from d2s_ros.maps.scene_map import CONTENT_ERRORS, SceneMap
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction, make_reconstruction
from d2s_ros.reconstruction.retrieval import Vlad

#: Of a keypoint kept for updates, beside its descriptor: scales, position and point.
_UPDATE_BYTES = 2 + 8 + 2 + 4
#: Of points that no image was looked at for.
NO_COLOUR = 128
#: Points are the same within this share of the extent of all: float32 and rounded coordinates.
_SAME_POINT = 1e-4


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
        colours: (P, 3) uint8 RGB of the points, for the eye; None where the map keeps none.
    """

    images: list[MappedImage]
    points_in_map: NDArray[np.float64]
    vlad: Vlad
    global_descriptors: NDArray[np.float32]
    metric: bool
    logs: list[str]
    colours: NDArray[np.uint8] | None = None

    @classmethod
    def from_map(cls, scene_map: SceneMap) -> MappingData:
        """Decode the update data of a map.

        Raises:
            MapFormatError: stripped, damaged, incomplete, or with contents that no map can have.
        """
        tensors = scene_map.load_update_data()
        try:
            return cls._decode(tensors, scene_map.manifest.metric)
        except (*CONTENT_ERRORS, InputError) as error:
            raise MapFormatError(
                f'the update data of {scene_map.path} cannot be used ({error}); build the map again'
            ) from error

    def extractor(self, manifest: MapManifest) -> StoredFeatures:
        """Return what stands for the extractor while these very features are localized."""
        dim = self.images[0].features.descriptors.shape[1] if self.images else 0
        return StoredFeatures(manifest.features, manifest.features_hash, dim)

    @classmethod
    def _decode(cls, tensors: dict[str, NDArray[Any]], metric: bool) -> MappingData:
        names = _read_json(tensors, 'names')
        cameras = [Camera.from_dict(item) for item in _read_json(tensors, 'cameras')]
        logs = _read_json(tensors, 'logs') if 'logs' in tensors else [''] * len(names)
        _check(tensors, names, len(cameras), logs)
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
            logs,
            tensors.get('point_colours'),
        )

    def colours_of(self, points_in_map: NDArray[np.floating[Any]]) -> NDArray[np.uint8] | None:
        """Return the colours (N, 3) of points (N, 3) of the map; NO_COLOUR where it knows none."""
        if self.colours is None or not len(self.points_in_map):
            return None
        extent = float(np.ptp(self.points_in_map, axis=0).max())
        distances, nearest = cKDTree(self.points_in_map).query(points_in_map)
        known = distances <= _SAME_POINT * extent
        return np.where(known[:, None], self.colours[nearest], np.uint8(NO_COLOUR))

    def reconstruction(self) -> Reconstruction:
        """Return images and points with the track lengths that are stored."""
        return make_reconstruction(self.images, self.points_in_map, self.metric)


def collect_update_data(
    reconstruction: Reconstruction,
    *,
    max_keypoints: int,
    max_megabytes: float,
    logs: Sequence[str] | None = None,
    colours: NDArray[np.uint8] | None = None,
) -> dict[str, NDArray[Any]]:
    """Return what self-supervised updates need of the mapping images; no image is stored.

    Args:
        reconstruction: The images with their points.
        max_keypoints: Keypoints of an image that are kept.
        max_megabytes: Size of all of them; of many images fewer keypoints are kept.
        logs: Name of the log that an update took each image from; all '' if None.
        colours: (P, 3) RGB of the points; None keeps none.

    Returns:
        descriptors (T, D) int8 with descriptor_scales (T,), keypoints (T, 2) px of the image,
        scales (T,), point_idx (T,) into points (P, 3), offsets (I + 1,) of each image in T,
        poses (I, 7) TUM order, camera_idx (I,), stamps_ns (I,), names, logs and cameras as JSON,
        vlad_centroids (K, D) and global_descriptors (I, K * D) float16; point_colours (P, 3) uint8
        if given.
    """
    rows: dict[str, list[NDArray[Any]]] = {}
    offsets = [0]
    cameras: dict[Any, int] = {}
    vlad = Vlad.fit([image.features.descriptors for image in reconstruction.images])
    globals_ = []
    dim = reconstruction.images[0].features.descriptors.shape[1]
    per_image = 1e6 * max_megabytes / len(reconstruction.images)
    count = min(max_keypoints, int(per_image / (dim + _UPDATE_BYTES)))
    for image in reconstruction.images:
        keep = _keypoints_to_keep(image, count)
        quantised, scale = quantise(image.features.descriptors[keep])
        for name, value in (
            ('descriptors', quantised),
            ('descriptor_scales', scale),
            ('keypoints', image.features.keypoints[keep].astype(np.float32)),
            ('scales', image.features.scales[keep].astype(np.float16)),
            ('point_idx', image.point_idx[keep].astype(np.int32)),
        ):
            rows.setdefault(name, []).append(value)
        offsets.append(offsets[-1] + len(keep))
        cameras.setdefault(image.camera, len(cameras))
        globals_.append(vlad.describe(image.features.descriptors).astype(np.float16))
    data = {name: np.concatenate(values) for name, values in rows.items()}
    names = json.dumps([image.name for image in reconstruction.images]).encode()
    log_names = json.dumps(list(logs or [''] * len(reconstruction.images))).encode()
    camera_list = json.dumps([camera.to_dict() for camera in cameras]).encode()
    if colours is not None:
        data['point_colours'] = colours
    return {
        **data,
        'offsets': np.array(offsets, np.int64),
        'points': reconstruction.points_in_map.astype(np.float32),
        'poses': np.array([image.map_from_camera.to_tum() for image in reconstruction.images]),
        'camera_idx': np.array(
            [cameras[image.camera] for image in reconstruction.images], np.int32
        ),
        'stamps_ns': np.array([image.stamp_ns for image in reconstruction.images], np.int64),
        'names': np.frombuffer(names, np.uint8),
        'logs': np.frombuffer(log_names, np.uint8),
        'cameras': np.frombuffer(camera_list, np.uint8),
        'vlad_centroids': vlad.centroids.numpy(),
        'global_descriptors': np.stack(globals_),
    }


def _keypoints_to_keep(image: MappedImage, count: int) -> NDArray[np.int64]:
    """Return labelled keypoints first, then the strongest others, in their original order."""
    order = np.argsort(image.point_idx < 0, kind='stable')[:count]
    return np.sort(order)


def _read_json(tensors: dict[str, NDArray[Any]], name: str) -> list[Any]:
    found = json.loads(tensors[name].tobytes())
    if not isinstance(found, list):
        raise ValueError(f'{name} is no list')
    return found


def _check(
    tensors: dict[str, NDArray[Any]], names: list[Any], num_cameras: int, logs: list[Any]
) -> None:
    """Check shapes, types, values and indices of update data.

    Raises:
        KeyError: a tensor is missing.
        ValueError: one cannot be right; the message names it.
    """
    images, rows = len(names), len(tensors['keypoints'])
    if not images:
        raise ValueError('there are no images')
    for name, entries in (('names', names), ('logs', logs)):
        if len(entries) != images or not all(isinstance(entry, str) for entry in entries):
            raise ValueError(f'{name} are not {images} texts')
    dim = tensors['descriptors'].shape[-1]
    centroids = tensors['vlad_centroids']
    for name, kind, shape in (
        ('descriptors', 'int8', (rows, dim)),
        ('descriptor_scales', 'float16', (rows,)),
        ('keypoints', 'float32', (rows, 2)),
        ('scales', 'float16', (rows,)),
        ('point_idx', 'int32', (rows,)),
        ('offsets', 'int64', (images + 1,)),
        ('points', 'float32', (len(tensors['points']), 3)),
        ('poses', 'float64', (images, 7)),
        ('camera_idx', 'int32', (images,)),
        ('stamps_ns', 'int64', (images,)),
        ('vlad_centroids', 'float32', (len(centroids), dim)),
        ('global_descriptors', 'float16', (images, len(centroids) * dim)),
    ):
        value = tensors[name]
        if str(value.dtype) != kind or value.shape != shape:
            raise ValueError(f'{name} is {value.dtype} {value.shape}, expected {kind} {shape}')
    colours = tensors.get('point_colours')
    if colours is not None and (
        str(colours.dtype) != 'uint8' or colours.shape != (len(tensors['points']), 3)
    ):
        raise ValueError(f'point_colours is {colours.dtype} {colours.shape}, not three bytes each')
    offsets = tensors['offsets']
    if offsets[0] != 0 or offsets[-1] != rows or (np.diff(offsets) < 0).any():
        raise ValueError(f'offsets do not divide {rows} keypoints')
    for name, low, count in (
        ('point_idx', -1, len(tensors['points'])),
        ('camera_idx', 0, num_cameras),
    ):
        index = tensors[name]
        if index.size and not (low <= index.min() and index.max() < count):
            raise ValueError(f'{name} has values outside {low} to {count - 1}')
    for name in ('scales', 'descriptor_scales'):
        if (tensors[name] <= 0).any():
            raise ValueError(f'{name} has values that are not positive')


def quantise(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Return int8 vectors (M, D) and their scales (M,), the largest entry mapped to 127."""
    # Not below what float16 can tell from zero; unit vectors are far above it.
    scale = np.maximum(np.abs(vectors).max(axis=1) / 127.0, 1e-4)
    scale = scale.astype(np.float16).astype(np.float32)
    quantised = np.clip(np.rint(vectors / scale[:, None]), -127, 127).astype(np.int8)
    return quantised, scale.astype(np.float16)


def dequantise(quantised: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return L2-normalised float32 vectors (M, D) of `quantise`'s result."""
    vectors = quantised.astype(np.float32) * scales.astype(np.float32)[:, None]
    return np.asarray(
        vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32
    )
