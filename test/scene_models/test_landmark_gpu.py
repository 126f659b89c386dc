"""The stages give the same on a GPU, where each is recorded, as on a CPU; tried on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FrameList

from d2s_ros.cuda_graph import FrameRecorder
from d2s_ros.evaluation.operations import OperationCounter
from d2s_ros.features.network_images import pad_to_cells
from d2s_ros.features.superpoint.extractor import SuperPoint
from d2s_ros.features.superpoint.network import SuperPointNet
from d2s_ros.features.types import FeatureConfig
from d2s_ros.localization.compute_budget import ComputeBudget
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.scene_models.landmark.config import LandmarkConfig
from d2s_ros.scene_models.landmark.gpu import RecordedChoice
from d2s_ros.scene_models.landmark.inference import LandmarkScorer
from d2s_ros.scene_models.landmark.network import LandmarkNetwork
from d2s_ros.scene_models.landmark.stored_network import StoredNetwork
from d2s_ros.scene_models.landmark.tensor_index import TensorIndex


@pytest.fixture(scope='module')
def superpoint_map(small_map, tmp_path_factory):
    """Return the path of a map of the images of `small_map`, with SuperPoint."""
    features = FeatureConfig(name='superpoint', max_keypoints=512, min_size=0)
    config = budget('quick', features=features)
    training = replace(config.training, steps=20, images_per_step=2, keypoints_per_image=256)
    path = tmp_path_factory.mktemp('superpoint') / 'map'
    build_map(
        FrameList(small_map.frames),
        path,
        replace(config, training=training, keep_update_data=False),
        device='cpu',
        progress=False,
    )
    return path


@pytest.fixture
def localizers(superpoint_map):
    """Return a localizer as on a CPU, and one that computes as on a GPU, both in float32."""
    plain, whole = (
        Localizer.from_map(superpoint_map, device='cpu', precision='fp32') for _ in range(2)
    )
    model: Any = whole.scene_map.model
    extractor: Any = whole.extractor
    observer: Any = whole.observer
    points = torch.from_numpy(model.table.normalized(model.table.points_in_map))
    scorer = LandmarkScorer(model.stored, points, device='cpu', dtype=torch.float32)
    index = TensorIndex(model.table.keys)
    network = model.network
    assert network.descriptors is not None
    observer._choice = RecordedChoice(
        index, scorer, network.config.num_candidates, network.descriptors
    )
    extractor._run_on_cpu = extractor._run_on_gpu
    return plain, whole


def test_poses_are_the_same(localizers, small_map):
    plain, whole = localizers
    localized = 0
    for frame in small_map.frames[::4]:
        expected = plain.localize(frame.image, frame.camera, details=True)
        found = whole.localize(frame.image, frame.camera, details=True)
        assert found.status is expected.status
        assert found.num_keypoints == expected.num_keypoints
        np.testing.assert_allclose(found.details.keypoints, expected.details.keypoints, atol=1e-3)
        np.testing.assert_allclose(
            found.details.reliability, expected.details.reliability, atol=2e-3
        )
        if expected.map_from_camera is None:
            continue
        localized += 1
        np.testing.assert_allclose(
            found.map_from_camera.matrix, expected.map_from_camera.matrix, atol=1e-3
        )
    assert localized >= 3


def test_an_empty_image(localizers, small_map):
    plain, whole = localizers
    frame = small_map.frames[0]
    black = np.zeros_like(frame.image)
    expected, found = (by.localize(black, frame.camera) for by in (plain, whole))
    assert not found.localized
    assert (found.status, found.num_keypoints) == (expected.status, expected.num_keypoints)


def test_nothing_waits_for_the_device():
    """On PyTorch's device without data, what would need a number of the device is an error."""
    extractor = SuperPoint(
        SuperPointNet(),
        FeatureConfig(name='superpoint', max_keypoints=512, min_size=0),
        weights_hash='',
        device='meta',
    )
    config = LandmarkConfig(descriptor_dim=256, num_landmarks=300, descriptor_width=32)
    network = LandmarkNetwork(config)
    scorer = LandmarkScorer(
        StoredNetwork.of(network),
        torch.rand(300, 3),
        device='meta',
        dtype=torch.float32,
    )
    index = TensorIndex(np.ones((300, 256), np.float32), device='meta')
    choice = RecordedChoice(index, scorer, config.num_candidates, network.descriptors)
    image = torch.from_numpy(pad_to_cells(np.zeros((118, 160), np.uint8))).to('meta')
    with OperationCounter() as counter:
        keypoints = extractor.on_device(image, (118, 160))
        table = choice.compute(torch.zeros((512, 3 + 256), device='meta'))
    assert keypoints.shape == (512, 3 + 256)
    assert table.shape == (512, 2 + 3 * config.num_candidates)
    assert counter.to_host == counter.to_device == 0
    assert counter.operations.total() < 400


def test_reduced_budgets_go_the_same_way(localizers, small_map):
    frame, budget = small_map.frames[4], ComputeBudget(0.5, 0.8)
    expected, found = (by.localize(frame.image, frame.camera, budget=budget) for by in localizers)
    assert found.status is expected.status
    assert found.num_keypoints == expected.num_keypoints
    assert set(found.latency_ms) == {'features', 'network', 'pose', 'total'}
    assert all(found.latency_ms[stage] > 0 for stage in found.latency_ms)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_one_transfer_in_and_one_out_of_a_stage(superpoint_map, small_map):
    plain = Localizer.from_map(superpoint_map, device='cpu', precision='fp32')
    whole = Localizer.from_map(superpoint_map, device='cuda', precision='fp32')
    frame = small_map.frames[4]
    whole.localize(frame.image, frame.camera)
    with torch.inference_mode(), OperationCounter() as counter:
        found = whole.localize(frame.image, frame.camera)
    assert (counter.to_device, counter.to_host) == (2, 2)
    expected = plain.localize(frame.image, frame.camera)
    np.testing.assert_allclose(
        found.map_from_camera.matrix, expected.map_from_camera.matrix, atol=1e-3
    )


def test_what_cannot_be_recorded_runs_one_by_one(caplog):
    """PyTorch without CUDA refuses to record, as a GPU does that is short of memory."""
    if torch.cuda.is_available():
        pytest.skip('here a recording succeeds')
    recorder = FrameRecorder(torch.device('cpu'))
    recorder._refused = ''
    images = [torch.full((8, 8), value, dtype=torch.uint8) for value in range(12)]
    for kind in ('a', 'b'):
        for image in images:
            found = recorder.run(kind, lambda image: image.float() + 1, image)
            assert torch.equal(found, image.float() + 1)
    assert [record.levelname for record in caplog.records] == ['WARNING']
    assert 'cannot be recorded as a CUDA graph' in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_a_recorded_frame_gives_what_its_operations_give(superpoint_map, small_map, caplog):
    plain: Any
    recorded: Any
    plain, recorded = (
        Localizer.from_map(superpoint_map, device='cuda', precision='fp32') for _ in range(2)
    )
    for recorder in (plain.extractor._recorder, plain.observer._choice._recorder):
        recorder._refused = 'asked for'
    straight = small_map.frames[0].camera
    bent = replace(straight, model='plumb_bob', distortion=(-0.1, 0.0, 0.0, 0.0, 0.0))
    for camera in (straight, bent):
        for frame in small_map.frames[:8]:
            expected = plain.localize(frame.image, camera, details=True)
            found = recorded.localize(frame.image, camera, details=True)
            assert found.status is expected.status
            np.testing.assert_allclose(
                found.details.keypoints, expected.details.keypoints, atol=1e-2
            )
        assert recorded.extractor._recorder._recorded is not None
    assert recorded.observer._choice._recorder._recorded is not None
    assert not caplog.records
