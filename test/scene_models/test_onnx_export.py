"""ONNX files compute what PyTorch does; ONNX Runtime is the judge."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from d2s_ros.cli.main import main
from d2s_ros.config import to_dict
from d2s_ros.errors import UsageError
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.superpoint.int8 import calibration_image
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.localizer import Localizer
from d2s_ros.maps.manifest import MapManifest
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.scene_models.base import View
from d2s_ros.scene_models.landmark.config import LandmarkConfig
from d2s_ros.scene_models.landmark.model import LandmarkModel
from d2s_ros.scene_models.landmark.network import LandmarkNetwork
from d2s_ros.scene_models.landmark.stored_network import StoredNetwork
from d2s_ros.scene_models.landmark.table import LandmarkTable
from d2s_ros.scene_models.regression.model import RegressionModel
from d2s_ros.scene_models.regression.network import D2SNetwork, RegressionConfig

COUNT = 200
CAMERA = Camera('pinhole', 320, 240, 300.0, 300.0, 160.0, 120.0)


@pytest.fixture(scope='module')
def runtime():
    pytest.importorskip('onnxscript')
    return pytest.importorskip('onnxruntime')


@pytest.fixture(scope='module')
def extractor():
    config = FeatureConfig(name='superpoint', max_keypoints=COUNT, min_size=0)
    return create_extractor(config, device='cpu', precision='fp32')


@pytest.fixture(scope='module')
def scene_map(extractor):
    """Landmarks that are what the network finds in a picture, on a plane 4 m ahead."""
    features = extractor.extract(calibration_image(4, 320, 240))
    rays = np.concatenate([CAMERA.normalize(features.keypoints), np.ones((COUNT, 1))], axis=1)
    covariances = np.tile(1e-4 * np.eye(3, dtype=np.float32), (COUNT, 1, 1))
    points = (4.0 * rays).astype(np.float32)
    table = LandmarkTable(
        features.descriptors, points, covariances, points.mean(axis=0).astype(np.float32), 2.0
    )
    config = LandmarkConfig(
        descriptor_dim=extractor.dim, num_landmarks=COUNT, width=32, descriptor_width=24
    )
    torch.manual_seed(0)
    network = LandmarkNetwork(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    manifest = MapManifest(
        extractor.config, extractor.weights_hash, 'landmark', to_dict(config), (CAMERA,)
    )
    return SceneMap(manifest, LandmarkModel(table, StoredNetwork.of(network)))


@pytest.fixture(scope='module')
def exported(runtime, scene_map, extractor, tmp_path_factory):
    folder = tmp_path_factory.mktemp('onnx')
    return folder, scene_map.model.export_onnx(extractor, folder)


def test_files_say_what_they_are(exported):
    folder, report = exported
    assert set(report['files']) == {'superpoint.onnx', f'landmarks_{COUNT}.onnx'}
    for name in report['files']:
        assert (folder / name).stat().st_size > 10_000
    assert report['files']['superpoint.onnx']['inputs']['image'][0] == 'tensor(uint8)'
    assert report['score_error'] < 1e-4
    assert report['same_landmarks'] > 0.99


def test_onnx_runtime_finds_the_keypoints_and_landmarks_of_the_localizer(
    exported, runtime, scene_map, extractor
):
    folder, _ = exported
    image = calibration_image(4, 320, 240)
    features = extractor.extract(image)

    def session(name):
        return runtime.InferenceSession(folder / name, providers=['CPUExecutionProvider'])

    smoothed = cv2.GaussianBlur(image, (0, 0), extractor.smoothing)
    scores, _ = session('superpoint.onnx').run(None, {'image': smoothed[None, None]})
    rows, columns = np.rint(features.keypoints[:, ::-1]).astype(int).T
    # Refinement moved the keypoints by less than a pixel.
    padded = np.pad(scores[0], 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))[rows, columns]
    away = np.abs(windows - features.keypoint_scores[:, None, None]).min(axis=(1, 2))
    assert away.max() < 1e-5
    localizer = Localizer(scene_map, extractor, precision='fp32')
    coordinates = localizer.observer.observe(View(features, CAMERA)).coordinates
    landmark, reliability = session(f'landmarks_{COUNT}.onnx').run(
        None,
        {
            'descriptors': features.descriptors,
            'keypoints': CAMERA.normalize(features.keypoints).astype(np.float32),
            'log_scales': np.log(features.scales),
        },
    )
    assert (landmark == coordinates.landmark_idx).mean() > 0.98
    np.testing.assert_allclose(reliability, coordinates.reliability, atol=1e-3)


def test_command(exported, scene_map, tmp_path, capsys):
    MapStore(tmp_path / 'map').write(scene_map, {})
    assert main(['export', str(tmp_path / 'map'), str(tmp_path / 'out')]) == 0
    assert 'opset' in capsys.readouterr().out
    assert (tmp_path / 'out' / 'superpoint.onnx').is_file()
    report = json.loads((tmp_path / 'out' / 'export.json').read_text())
    assert report['map_version'] == '0001'
    assert set(report['files']) == {'superpoint.onnx', f'landmarks_{COUNT}.onnx'}


def test_without_landmarks_there_is_nothing_to_export(extractor, tmp_path):
    with pytest.raises(UsageError, match='no landmarks'):
        RegressionModel(D2SNetwork(RegressionConfig())).export_onnx(extractor, tmp_path)
