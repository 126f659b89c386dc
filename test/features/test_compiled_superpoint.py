"""SuperPoint by the compiled kernels finds what it finds by PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from d2s_ros.device import has_fast_int8
from d2s_ros.errors import WeightsError
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.superpoint.compiled import CompiledSuperPoint, is_faster
from d2s_ros.features.superpoint.extractor import SuperPoint
from d2s_ros.features.superpoint.files import default_weights_path
from d2s_ros.features.superpoint.int8 import calibration_image
from d2s_ros.features.types import FeatureConfig
from d2s_ros.kernels import library

pytestmark = pytest.mark.skipif(not library.is_built(), reason='the compiled part is missing')
CONFIG = FeatureConfig(name='superpoint', max_keypoints=300, min_size=0)


@pytest.fixture(scope='module')
def both():
    return CompiledSuperPoint(config=CONFIG), SuperPoint.from_pretrained(config=CONFIG)


@pytest.mark.parametrize('size', [(320, 240), (203, 150), (64, 60)])
def test_features_are_the_same(both, size):
    image = calibration_image(3, *size)
    found, expected = (extractor.extract(image) for extractor in both)
    assert both[0].weights_hash == both[1].weights_hash
    assert both[0].dim == both[1].dim == found.descriptors.shape[1]
    assert found.image_size == expected.image_size
    distance = np.linalg.norm(found.keypoints[:, None] - expected.keypoints, axis=2)
    nearest = distance.argmin(axis=1)
    same = distance.min(axis=1) < 1e-2
    # Of keypoints that are equally strong others may be the last.
    assert same.mean() > 0.98
    assert len(found) == len(expected) > 20
    cosines = (found.descriptors * expected.descriptors[nearest]).sum(axis=1)[same]
    np.testing.assert_allclose(cosines, 1.0, atol=1e-5)
    np.testing.assert_allclose(
        found.keypoint_scores[same], expected.keypoint_scores[nearest][same], rtol=1e-3, atol=1e-5
    )


@pytest.mark.skipif(has_fast_int8(), reason='CPU with VNNI: 8 bits are faster')
def test_it_is_what_auto_takes(tmp_path, monkeypatch):
    """Where PyTorch has nothing faster; weights of another layout are PyTorch's."""
    arrays = load_file(default_weights_path())
    plain, affine = tmp_path / 'plain.safetensors', tmp_path / 'affine.safetensors'
    save_file(arrays, plain)
    ones = {f'conv1a_scale.{name}': np.ones(64, np.float32) for name in ('weight', 'bias')}
    save_file({**arrays, **ones}, affine)
    monkeypatch.delenv('D2S_KERNELS', raising=False)
    made = create_extractor(CONFIG, weights=str(plain), precision='auto')
    assert isinstance(made, CompiledSuperPoint)
    assert isinstance(create_extractor(CONFIG, precision='fp32'), SuperPoint)
    assert not is_faster(affine)
    assert not is_faster(tmp_path / 'nowhere.safetensors')
    monkeypatch.setenv('D2S_KERNELS', 'reference')
    assert isinstance(create_extractor(CONFIG, precision='auto'), SuperPoint)


def test_a_mask_holds(both):
    image = calibration_image(4, 160, 120)
    mask = np.zeros(image.shape, np.uint8)
    mask[:, 80:] = 1
    found = both[0].extract(image, mask)
    assert len(found) > 10
    assert (found.keypoints[:, 0] > 79).all()


def test_other_files_are_refused(tmp_path):
    arrays = load_file(default_weights_path())
    for name, change, message in (
        ('lacks', lambda a: a.pop('convDb.bias'), 'lacks convDb.bias'),
        ('affine', lambda a: a.update(conv1a_scale=np.ones(64, np.float32)), 'conv1a_scale'),
        ('shape', lambda a: a.update({'convPb.bias': np.ones(3, np.float32)}), 'convPb.bias'),
        ('nan', lambda a: a.update({'convPb.bias': np.full(65, np.nan)}), 'not finite'),
    ):
        changed = dict(arrays)
        change(changed)
        path = tmp_path / f'{name}.safetensors'
        save_file(changed, path)
        with pytest.raises(WeightsError, match=message):
            CompiledSuperPoint(path, config=CONFIG)
    with pytest.raises(WeightsError, match='PyTorch'):
        CompiledSuperPoint(tmp_path / 'other.pth', config=CONFIG)
    with pytest.raises(WeightsError, match='cannot read'):
        CompiledSuperPoint(tmp_path / 'nowhere.safetensors', config=CONFIG)
