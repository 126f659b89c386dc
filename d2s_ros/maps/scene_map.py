"""A map in memory: a manifest with its scene model."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from d2s_ros.errors import CalibrationError, ConfigError, MapFormatError
from d2s_ros.maps.files import LOCALIZATION_FILE, UPDATE_FILE, version_folder
from d2s_ros.maps.manifest import MapManifest, read_checked, read_manifest
from d2s_ros.scene_models.base import SceneModel
from d2s_ros.scene_models.registry import model_class

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
            MapFormatError: missing, damaged (any flipped or missing byte), of another format, or
                written with contents that no map can have.
        """
        folder = version_folder(Path(path).expanduser())
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
            tensors = load_tensors(data)
            check_finite(tensors)
            return cls(manifest, kind.from_tensors(manifest.network, tensors), folder)
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

    @property
    def has_update_data(self) -> bool:
        """Whether what updates need is there."""
        return (
            self.path is not None
            and UPDATE_FILE in self.manifest.files
            and (self.path / UPDATE_FILE).exists()
        )

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


def serialize(tensors: dict[str, NDArray[Any]]) -> bytes:
    """Return tensors as the bytes of a safetensors file."""
    # safetensors writes an array's memory as it lies: other layouts would come back scrambled.
    return save_tensors({name: np.asarray(value, order='C') for name, value in tensors.items()})
