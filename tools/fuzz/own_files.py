"""What the package wrote itself and reads again: stage logs, ledgers, maps, parameters."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np


@functools.cache
def stage_log() -> bytes:
    """Return a whole stage log of an interrupted build."""
    from d2s_ros.data.array_log import ArrayLog

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'features.log'
        log = ArrayLog(path)
        for index in range(4):
            values = np.arange(20, dtype=np.float32).reshape(4, 5)
            log.append(f'image {index}', {'keypoints': values, 'rows': np.arange(index)})
        log.close()
        return path.read_bytes()


def read_stage_log(data: bytes, folder: Path) -> None:
    """Read a stage log as a build that goes on does."""
    from d2s_ros.data.array_log import StageLog

    (folder / 'features.log').write_bytes(data)
    log = StageLog(folder / 'features.log')
    for key in log.keys():  # noqa: SIM118
        log.get(key)
    log.close()


LEDGER = (
    b'[{"path": "/logs/a.mcap", "bytes": 12, "verdict": "promoted", "version": "0002"},'
    b' {"path": "/logs/b", "bytes": 0, "verdict": "unreadable", "options": {"rectified": false}}]'
)


def read_ledger(data: bytes, folder: Path) -> None:
    """Read a ledger, and write to it."""
    from d2s_ros.map_update.ledger import UpdateLedger

    ledger = UpdateLedger(folder)
    ledger.folder.mkdir()
    (ledger.folder / 'ledger.json').write_bytes(data)
    ledger.unused([folder / 'a.mcap'])
    ledger.record([{'path': 'b', 'bytes': 1}], 'promoted', '0003')
    assert ledger.entries()


@functools.cache
def map_files() -> dict[str, bytes]:
    """Return the files of a small map, made up without images."""
    from d2s_ros.config import to_dict
    from d2s_ros.features.extractor import FeatureConfig
    from d2s_ros.geometry.cameras import Camera
    from d2s_ros.maps.manifest import Calibration, MapManifest
    from d2s_ros.maps.scene_map import SceneMap
    from d2s_ros.maps.store import MapStore
    from d2s_ros.scene_models.landmark.config import LandmarkConfig
    from d2s_ros.scene_models.landmark.model import LandmarkModel
    from d2s_ros.scene_models.landmark.network import LandmarkNetwork
    from d2s_ros.scene_models.landmark.stored_network import StoredNetwork
    from d2s_ros.scene_models.landmark.table import LandmarkTable

    rng = np.random.default_rng(3)
    count = 40
    keys = rng.normal(size=(count, 16)).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    table = LandmarkTable(
        keys,
        rng.normal(size=(count, 3)).astype(np.float32),
        np.tile(np.eye(3, dtype=np.float32), (count, 1, 1)),
        np.array([1, 2, 3], np.float32),
        2.5,
    )
    config = LandmarkConfig(descriptor_dim=16, num_landmarks=count, width=16, num_layers=1)
    manifest = MapManifest(
        FeatureConfig(), 'hash', 'landmark', to_dict(config),
        (Camera('pinhole', 64, 48, 50.0, 50.0, 32.0, 24.0),),
        calibration=Calibration(0.4, 1.5, 0.3),
    )  # fmt: skip
    update: dict[str, np.ndarray] = {
        'descriptors': np.arange(60, dtype=np.int8).reshape(6, 10),
        'poses': np.eye(4),
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / 'map'
        MapStore(root).write(
            SceneMap(
                manifest, LandmarkModel(table, StoredNetwork.of(LandmarkNetwork(config).eval()))
            ),
            update,
        )
        return {
            file.relative_to(root).as_posix(): file.read_bytes()
            for file in root.rglob('*')
            if file.is_file() and file.name != '.lock'
        }


def read_map(name: str, data: bytes, folder: Path) -> None:
    """Read a map with one file changed; digests are made right, as somebody who means it would."""
    from d2s_ros.maps.scene_map import SceneMap

    files = {**map_files(), name: data}
    manifest_name = next(file for file in files if file.endswith('manifest.json'))
    if name != 'current':
        try:
            manifest = json.loads(files[manifest_name])
            if name != manifest_name:
                manifest['files'][Path(name).name] = {
                    'size': len(data),
                    'sha256': hashlib.sha256(data).hexdigest(),
                }
            del manifest['digest']
            canonical = json.dumps(manifest, sort_keys=True, separators=(',', ':'))
            manifest['digest'] = hashlib.sha256(canonical.encode()).hexdigest()
            raw = json.dumps(manifest, indent=1, sort_keys=True).encode()
        except (ValueError, KeyError, TypeError, RecursionError):
            raw = files[manifest_name]
        files[manifest_name] = raw
        files['current'] = f'0001 {hashlib.sha256(raw).hexdigest()}\n'.encode()
    root = folder / 'map'
    try:
        for file, content in files.items():
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        scene_map = SceneMap.open(root)
        scene_map.load_update_data()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def parameters() -> list[bytes]:
    """Return all options of builds and updates, with their defaults."""
    from d2s_ros.config import to_dict
    from d2s_ros.map_building.pipeline import BuildConfig
    from d2s_ros.map_update.config import UpdateConfig

    return [json.dumps(to_dict(config)).encode() for config in (BuildConfig(), UpdateConfig())]


def read_parameters(data: bytes, folder: Path) -> None:
    """Read options of builds and updates."""
    from d2s_ros.config import from_dict
    from d2s_ros.data.safe_yaml import load_yaml
    from d2s_ros.errors import D2SError
    from d2s_ros.map_building.pipeline import BuildConfig
    from d2s_ros.map_update.config import UpdateConfig

    values = load_yaml(data.decode('utf-8', 'replace'), 'parameters', 100_000)
    for kind in (BuildConfig, UpdateConfig):
        try:
            from_dict(kind, values)
        except D2SError:
            continue
