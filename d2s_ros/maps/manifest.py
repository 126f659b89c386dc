"""What a map says about itself: manifest.json, read and written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2s_ros import __version__
from d2s_ros.config import from_dict, to_dict
from d2s_ros.errors import CalibrationError, ConfigError, MapFormatError
from d2s_ros.features.extractor import FeatureConfig
from d2s_ros.geometry.cameras import Camera
from d2s_ros.maps.files import MANIFEST_FILE

FORMAT_VERSION = 2


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
    """What a map says about itself; see docs/map_format.md."""

    features: FeatureConfig
    features_hash: str
    head: str
    network: dict[str, Any]
    cameras: tuple[Camera, ...]
    calibration: Calibration = field(default_factory=Calibration)
    map_frame: str = 'map'
    metric: bool = True
    version: str = ''
    parent: str = ''
    created: str = ''
    software: str = __version__
    metrics: dict[str, Any] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def read_manifest(folder: Path) -> MapManifest:
    """Read and check the manifest of a version's folder.

    Raises:
        MapFormatError: missing, damaged, or of another format version.
    """
    path = folder / MANIFEST_FILE
    try:
        raw = path.read_bytes()
        document = json.loads(raw)
    except FileNotFoundError as error:
        raise MapFormatError(f'{folder} has no {MANIFEST_FILE}: not a map') from error
    except (OSError, ValueError) as error:
        raise MapFormatError(
            f'{path} is damaged ({error}); restore the map or build it again'
        ) from error
    if not isinstance(document, dict):
        raise MapFormatError(f'{path} is damaged (not an object); restore or build again')
    found = document.get('format_version')
    if found != FORMAT_VERSION:
        raise MapFormatError(
            f'{folder} has map format {found}, this software reads {FORMAT_VERSION}; build the '
            'map again'
        )
    canonical = manifest_text(document) == raw
    digest = document.pop('digest', None)
    if not canonical or digest != _digest(document):
        raise MapFormatError(f'{path} is damaged (digest differs); restore or build again')
    try:
        return MapManifest(
            features=from_dict(FeatureConfig, document['features']),
            features_hash=document['features_hash'],
            head=document['head'],
            network=document['network'],
            cameras=tuple(Camera.from_dict(camera) for camera in document['cameras']),
            calibration=from_dict(Calibration, document['calibration']),
            map_frame=document['map_frame'],
            metric=document['metric'],
            version=document['version'],
            parent=document['parent'],
            created=document['created'],
            software=document['software'],
            metrics=document['metrics'],
            build=document['build'],
            files=document['files'],
        )
    except (KeyError, TypeError, ConfigError, CalibrationError) as error:
        raise MapFormatError(f'{path} is incomplete ({error}); build the map again') from error


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
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise MapFormatError(f'{folder} lacks {name}; restore the map or build it again') from error
    expected = manifest.files.get(name, {})
    if len(data) != expected.get('size') or hashlib.sha256(data).hexdigest() != expected.get(
        'sha256'
    ):
        raise MapFormatError(
            f'{folder / name} is damaged (its hash differs from the manifest); restore the map or '
            'build it again'
        )
    return data
