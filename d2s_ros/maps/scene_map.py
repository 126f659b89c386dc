"""A map in memory: a manifest with its scene model, read from and turned into tensors."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from d2s_ros.config import from_dict
from d2s_ros.errors import CalibrationError, ConfigError, MapFormatError
from d2s_ros.maps.files import LOCALIZATION_FILE, UPDATE_FILE, version_folder
from d2s_ros.maps.manifest import MapManifest, read_checked, read_manifest
from d2s_ros.scene_models.landmark.network import LandmarkConfig, LandmarkNetwork
from d2s_ros.scene_models.landmark.product_codes import ProductCodes
from d2s_ros.scene_models.landmark.stored_tensors import check_landmark_tensors
from d2s_ros.scene_models.landmark.table import LandmarkTable
from d2s_ros.scene_models.regression.network import D2SNetwork, RegressionConfig

#: What reading tensors that no map can have raises.
CONTENT_ERRORS = (
    SafetensorError,
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    RuntimeError,
    ConfigError,
    CalibrationError,
)


@dataclass(frozen=True, eq=False)
class SceneMap:
    """A map in memory: exactly one of `landmark` and `regression` is there.

    Attributes:
        manifest: What the map says about itself.
        landmark_table, landmark_network: The landmark head.
        regression: The paper's network.
        path: Folder of the version it was read from, None if never written.
    """

    manifest: MapManifest
    landmark_table: LandmarkTable | None = None
    landmark_network: LandmarkNetwork | None = None
    regression: D2SNetwork | None = None
    path: Path | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SceneMap:
        """Read the live version of a map folder, or a version's own folder.

        Raises:
            MapFormatError: missing, damaged (any flipped or missing byte), of another format, or
                written with contents that no map can have.
        """
        folder = version_folder(Path(path).expanduser())
        manifest = read_manifest(folder)
        data = read_checked(folder, LOCALIZATION_FILE, manifest)
        try:
            tensors = load_tensors(data)
            check_finite(tensors)
            return _unpack(manifest, tensors, folder)
        except CONTENT_ERRORS as error:
            raise MapFormatError(
                f'{folder / LOCALIZATION_FILE} does not fit its manifest ({error}); build the map '
                'again'
            ) from error

    @property
    def origin(self) -> NDArray[np.float64]:
        """The point (3,) of the map frame that all stored coordinates are relative to."""
        return np.array(self.manifest.origin)

    def in_local_frame(self) -> SceneMap:
        """Return the map as if its origin were that of the map frame.

        Its poses are then relative to `manifest.origin`, like everything that it stores.
        """
        return replace(self, manifest=replace(self.manifest, origin=(0.0, 0.0, 0.0)))

    def load_update_data(self) -> dict[str, NDArray[Any]]:
        """Read what updates need.

        Raises:
            MapFormatError: if it was stripped or is damaged.
        """
        if self.path is None or UPDATE_FILE not in self.manifest.files:
            raise MapFormatError(
                'this map has no update data (stripped, or built without); localization works, '
                'updates need a map built with it'
            )
        if not (self.path / UPDATE_FILE).exists():
            raise MapFormatError(
                f'{self.path} has lost its update data ({UPDATE_FILE}); localization works, '
                'updates do not'
            )
        data = read_checked(self.path, UPDATE_FILE, self.manifest)
        try:
            tensors: dict[str, NDArray[Any]] = load_tensors(data)
            check_finite(tensors)
        except CONTENT_ERRORS as error:
            raise MapFormatError(
                f'{self.path / UPDATE_FILE} does not fit its manifest ({error}); build the map '
                'again'
            ) from error
        return tensors

    def localization_size_bytes(self) -> int:
        """Return the size of what a robot needs, without the feature extractor."""
        return int(self.manifest.files.get(LOCALIZATION_FILE, {}).get('size', 0))


def check_finite(tensors: dict[str, NDArray[Any]]) -> None:
    """Check that all numbers are numbers.

    Raises:
        ValueError: a tensor holds infinity or NaN; the message names it.
    """
    for name, value in tensors.items():
        if value.dtype.kind == 'f' and not np.isfinite(value).all():
            raise ValueError(f'{name} has values that are not finite')


def serialize_model(scene_map: SceneMap) -> bytes:
    """Return what localization needs of a map as the bytes of a safetensors file.

    Raises:
        MapFormatError: the map has no model.
    """
    return serialize(_pack(scene_map))


def serialize(tensors: dict[str, NDArray[Any]]) -> bytes:
    """Return tensors as the bytes of a safetensors file."""
    # safetensors writes an array's memory as it lies: other layouts would come back scrambled.
    return save_tensors({name: np.asarray(value, order='C') for name, value in tensors.items()})


def _pack(scene_map: SceneMap) -> dict[str, NDArray[Any]]:
    """Turn the model into tensors: keys as product codes, matrices as float16."""
    if scene_map.regression is not None:
        return _half_state(scene_map.regression)
    table, network = scene_map.landmark_table, scene_map.landmark_network
    if table is None or network is None:
        raise MapFormatError('a map needs a landmark table and network, or a regression network')
    table = table.coded()
    assert table.codes is not None
    upper = np.triu_indices(3)
    return {
        'key_codebook': table.codes.codebook,
        'key_codes': table.codes.codes,
        'points': table.points_in_map.astype(np.float32),
        'covariances': table.covariances[:, upper[0], upper[1]].astype(np.float32),
        'center': table.center.astype(np.float32),
        'extent': np.array([table.extent], np.float32),
        **_half_state(network),
    }


def _unpack(manifest: MapManifest, tensors: dict[str, NDArray[Any]], folder: Path) -> SceneMap:
    state = {
        name.removeprefix('network.'): torch.from_numpy(value.astype(np.float32))
        for name, value in tensors.items()
        if name.startswith('network.')
    }
    if manifest.head == 'regression':
        regression = D2SNetwork(from_dict(RegressionConfig, manifest.network))
        regression.load_state_dict(state)
        return SceneMap(manifest, regression=regression.eval(), path=folder)
    if manifest.head != 'landmark':
        raise MapFormatError(f'{folder} has a head of unknown type {manifest.head!r}')
    config = from_dict(LandmarkConfig, manifest.network)
    check_landmark_tensors(tensors, config)
    codes = ProductCodes(tensors['key_codebook'], tensors['key_codes'], config.descriptor_dim)
    covariances = np.zeros((len(tensors['points']), 3, 3), np.float32)
    rows, columns = np.triu_indices(3)
    covariances[:, rows, columns] = tensors['covariances']
    covariances[:, columns, rows] = tensors['covariances']
    table = LandmarkTable(
        codes.decode(),
        tensors['points'],
        covariances,
        tensors['center'],
        float(tensors['extent'][0]),
        codes,
    )
    network = LandmarkNetwork(config)
    network.load_state_dict(state)
    return SceneMap(manifest, landmark_table=table, landmark_network=network.eval(), path=folder)


def _half_state(network: torch.nn.Module) -> dict[str, NDArray[Any]]:
    """Return matrices as float16; vectors and scalars hold offsets of coordinates: float32."""
    return {
        f'network.{name}': value.detach()
        .cpu()
        .numpy()
        .astype(np.float16 if value.ndim > 1 else np.float32)
        for name, value in network.state_dict().items()
    }
