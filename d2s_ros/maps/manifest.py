"""What a map says about itself: manifest.json, read and written."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2s_ros import __version__
from d2s_ros.config import from_dict, to_dict
from d2s_ros.errors import CalibrationError, ConfigError, MapFormatError
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.cameras import Camera
from d2s_ros.maps.files import MANIFEST_FILE, MAX_MANIFEST, read_regular

FORMAT_VERSION = 3
#: Formats that are read: 2 has no origin.
_READABLE_FORMATS = (2, 3)
#: JSON types of the entries that are taken as they stand.
_JSON_TYPES = {
    'features_hash': str,
    'head': str,
    'network': dict,
    'cameras': list,
    'map_frame': str,
    'metric': bool,
    'version': str,
    'parent': str,
    'created': str,
    'software': str,
    'metrics': dict,
    'build': dict,
    'files': dict,
}


@dataclass(frozen=True)
class Calibration:
    """Figures measured on the mapping images when the map was built.

    Attributes:
        sigma_px: Noise of a keypoint of scale 1, one axis.
        covariance_scale: Factor that makes pose covariances agree with held-out errors.
        reliability_threshold: Keypoints below it are not given to the pose solver.
        scene_depth: Median depth of what the mapping images show; 0 if unknown.
        reliable_share: Median share of a mapping image's keypoints that are reliable; 0 if unknown.
        chance_evidence, chance_scale: Median evidence for poses that are chance, and the scale of
            the exponential tail above it; 0 if unknown.
    """

    sigma_px: float = 0.5
    covariance_scale: float = 1.0
    reliability_threshold: float = 0.5
    scene_depth: float = 0.0
    reliable_share: float = 0.0
    chance_evidence: float = 0.0
    chance_scale: float = 0.0


@dataclass(frozen=True, eq=False)
class MapManifest:
    """What a map says about itself; see docs/reference/map_format.md.

    All coordinates of a map are kept relative to `origin`, a point of the map frame in float64:
    float32 tells points apart by half a metre at 5,000 km from zero.
    """

    features: FeatureConfig
    features_hash: str
    head: str
    network: dict[str, Any]
    cameras: tuple[Camera, ...]
    calibration: Calibration = field(default_factory=Calibration)
    map_frame: str = 'map'
    metric: bool = True
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    version: str = ''
    parent: str = ''
    created: str = ''
    software: str = __version__
    metrics: dict[str, Any] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def scaled_by(self) -> float:
        """By what `d2s map scale` has multiplied the lengths of the map since it was built."""
        return float(self.metrics.get('scaled_by', 1.0))

    def check_features(self, weights_hash: str) -> None:
        """Check that an extractor is of the features of the map.

        Raises:
            MapFormatError: it is not.
        """
        if weights_hash != self.features_hash:
            raise MapFormatError(
                f'the map was built with {self.features.name} features '
                f'{self.features_hash[:12]}, the extractor is {weights_hash[:12]}; '
                'use the same weights or build the map again'
            )


def read_manifest(folder: Path) -> MapManifest:
    """Read and check the manifest of a version's folder.

    Raises:
        MapFormatError: missing, damaged, or of another format version.
    """
    path = folder / MANIFEST_FILE
    try:
        raw = read_regular(path, MAX_MANIFEST)
        document = json.loads(raw)
    except FileNotFoundError as error:
        raise MapFormatError(f'{folder} has no {MANIFEST_FILE}: not a map') from error
    except (OSError, ValueError, RecursionError) as error:
        raise MapFormatError(
            f'{path} is damaged ({error}); restore the map or build it again'
        ) from error
    if not isinstance(document, dict):
        raise MapFormatError(f'{path} is damaged (not an object); restore or build again')
    found = document.get('format_version')
    if found not in _READABLE_FORMATS or isinstance(found, bool):
        known = ' and '.join(map(str, _READABLE_FORMATS))
        raise MapFormatError(
            f'{folder} has map format {found!r:.80}, this software reads {known}; build the map '
            'again'
        )
    canonical = manifest_text(document) == raw
    digest = document.pop('digest', None)
    if not canonical or digest != _digest(document):
        raise MapFormatError(f'{path} is damaged (digest differs); restore or build again')
    try:
        _check_types(document)
        return MapManifest(
            # Maps of before were made without enlarging small images.
            features=from_dict(FeatureConfig, {'min_size': 0, **document['features']}),
            features_hash=document['features_hash'],
            head=document['head'],
            network=document['network'],
            cameras=tuple(Camera.from_dict(camera) for camera in document['cameras']),
            calibration=_read_calibration(document['calibration']),
            map_frame=document['map_frame'],
            metric=document['metric'],
            origin=_read_origin(document) if found >= 3 else (0.0, 0.0, 0.0),
            version=document['version'],
            parent=document['parent'],
            created=document['created'],
            software=document['software'],
            metrics=document['metrics'],
            build=document['build'],
            files=document['files'],
            format_version=found,
        )
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        ConfigError,
        CalibrationError,
    ) as error:
        raise MapFormatError(f'{path} is incomplete ({error}); build the map again') from error


def _check_types(document: dict[str, Any]) -> None:
    """Check the JSON types of what is taken as it stands."""
    for key, kind in _JSON_TYPES.items():
        if not isinstance(document[key], kind):
            raise TypeError(f'{key} is {document[key]!r:.80}, expected {kind.__name__}')
    for name, entry in document['files'].items():
        size = entry['size']
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ValueError(f'the size of {name} is {size!r:.80}')


def _read_origin(document: dict[str, Any]) -> tuple[float, float, float]:
    values = document['origin']
    if (
        not isinstance(values, list)
        or len(values) != 3
        or not all(type(value) is float and math.isfinite(value) for value in values)
    ):
        raise ValueError(f'origin is {values!r:.80}, expected three finite numbers')
    x, y, z = values
    return x, y, z


def _read_calibration(values: dict[str, Any]) -> Calibration:
    """Return the calibration of a manifest.

    Raises:
        ConfigError: unknown keys or wrong types.
        ValueError: values that no calibration can have.
    """
    calibration = from_dict(Calibration, values)
    for name, value in vars(calibration).items():
        positive = name in ('sigma_px', 'covariance_scale')
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            raise ValueError(f'calibration.{name} is {value}')
    return calibration


def manifest_document(manifest: MapManifest) -> dict[str, Any]:
    """Return the manifest as it is written, with its digest."""
    document = {
        'format_version': manifest.format_version,
        'version': manifest.version,
        'parent': manifest.parent,
        'created': manifest.created,
        'software': manifest.software,
        'map_frame': manifest.map_frame,
        'metric': manifest.metric,
        'features': to_dict(manifest.features),
        'features_hash': manifest.features_hash,
        'head': manifest.head,
        'network': manifest.network,
        'cameras': [camera.to_dict() for camera in manifest.cameras],
        'calibration': to_dict(manifest.calibration),
        'metrics': manifest.metrics,
        'build': manifest.build,
        'files': manifest.files,
    }
    if manifest.format_version >= 3:
        document['origin'] = list(manifest.origin)
    return {**document, 'digest': _digest(document)}


def manifest_text(document: dict[str, Any]) -> bytes:
    """Return the one way to write a manifest, so that a change of white space shows as well."""
    return json.dumps(document, indent=1, sort_keys=True).encode()


def _digest(document: dict[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_checked(folder: Path, name: str, manifest: MapManifest) -> bytes:
    """Read a file of a version.

    Raises:
        MapFormatError: it is missing, or its size or hash differ from the manifest.
    """
    expected = manifest.files.get(name, {})
    try:
        data = read_regular(folder / name, int(expected.get('size', 0)))
    except OSError as error:
        raise MapFormatError(f'{folder} lacks {name}; restore the map or build it again') from error
    if len(data) != expected.get('size') or hashlib.sha256(data).hexdigest() != expected.get(
        'sha256'
    ):
        raise MapFormatError(
            f'{folder / name} is damaged (its hash differs from the manifest); restore the map or '
            'build it again'
        )
    return data
