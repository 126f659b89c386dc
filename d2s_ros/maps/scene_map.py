"""A map in memory: a manifest with its scene model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from d2s_ros.errors import ConfigError, MapFormatError
from d2s_ros.maps.files import LOCALIZATION_FILE, UPDATE_FILE, version_folder
from d2s_ros.maps.manifest import MapManifest, read_checked, read_manifest
from d2s_ros.scene_models.base import SceneModel
from d2s_ros.scene_models.registry import model_class


@dataclass(frozen=True, eq=False)
class SceneMap:
    """A map in memory.

    Attributes:
        manifest: What the map says about itself.
        model: Tells where the keypoints of an image lie.
        path: Folder of the version it was read from, None if never written.
    """

    manifest: MapManifest
    model: SceneModel
    path: Path | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SceneMap:
        """Read the live version of a map folder, or a version's own folder.

        Raises:
            MapFormatError: missing, damaged (any flipped or missing byte), or of another format.
        """
        folder = version_folder(Path(path))
        manifest = read_manifest(folder)
        data = read_checked(folder, LOCALIZATION_FILE, manifest)
        try:
            kind = model_class(manifest.head)
        except ConfigError as error:
            raise MapFormatError(
                f'{folder} has a scene model that this software does not know ({error}); use the '
                'software that built it'
            ) from error
        try:
            model = kind.from_tensors(manifest.network, load_tensors(data))
            return cls(manifest, model, folder)
        except (SafetensorError, KeyError, ValueError, RuntimeError, ConfigError) as error:
            raise MapFormatError(
                f'{folder / LOCALIZATION_FILE} does not fit its manifest ({error}); build the map '
                'again'
            ) from error

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
        tensors: dict[str, NDArray[Any]] = load_tensors(
            read_checked(self.path, UPDATE_FILE, self.manifest)
        )
        return tensors

    def localization_size_bytes(self) -> int:
        """Return the size of what a robot needs, without the feature extractor."""
        return int(self.manifest.files.get(LOCALIZATION_FILE, {}).get('size', 0))


def serialize(tensors: dict[str, NDArray[Any]]) -> bytes:
    """Return tensors as the bytes of a safetensors file."""
    # safetensors writes an array's memory as it lies: other layouts would come back scrambled.
    return save_tensors({name: np.asarray(value, order='C') for name, value in tensors.items()})
