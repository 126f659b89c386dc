"""The metrics of the attack, against known values and another implementation."""

from __future__ import annotations

import numpy as np
import pytest

from d2s_ros.privacy.metrics import (
    MAX_PSNR,
    FeatureDistance,
    Likeness,
    gradient_correlation,
    likeness,
    mae,
    psnr,
    ssim,
)


@pytest.fixture
def picture(rng):
    """Return a picture with structure of several sizes."""
    rows, columns = np.mgrid[0:96, 0:128]
    waves = 0.2 * np.sin(rows / 7) + 0.2 * np.sin(columns / 11 + rows / 23)
    return np.clip(0.5 + waves + 0.02 * rng.standard_normal((96, 128)), 0, 1).astype(np.float32)


def test_psnr_and_mae_of_an_even_difference():
    truth = np.full((20, 30), 0.5, np.float32)
    assert psnr(truth + 0.1, truth) == pytest.approx(20.0, abs=1e-4)
    assert psnr(truth - 0.01, truth) == pytest.approx(40.0, abs=1e-3)
    assert psnr(truth, truth) == MAX_PSNR
    assert mae(truth + 0.1, truth) == pytest.approx(0.1, abs=1e-6)


def test_ssim_is_that_of_another_implementation(picture, rng):
    other = pytest.importorskip('skimage.metrics').structural_similarity
    noisy = np.clip(picture + 0.1 * rng.standard_normal(picture.shape), 0, 1).astype(np.float32)
    expected = other(
        noisy.astype(np.float64),
        picture.astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
    )
    assert ssim(noisy, picture) == pytest.approx(expected, abs=1e-6)
    assert ssim(picture, picture) == pytest.approx(1.0)


def test_gradient_correlation_knows_edges_not_brightness(picture, rng):
    assert gradient_correlation(picture, picture) == pytest.approx(1.0)
    assert gradient_correlation(0.3 * picture + 0.2, picture) == pytest.approx(1.0, abs=1e-5)
    assert gradient_correlation(1 - picture, picture) == pytest.approx(-1.0, abs=1e-6)
    unrelated = rng.random(picture.shape).astype(np.float32)
    assert abs(gradient_correlation(unrelated, picture)) < 0.05
    assert gradient_correlation(np.full_like(picture, 0.5), picture) == 0.0


def test_feature_distance_grows_with_damage(picture, rng):
    distance = FeatureDistance()
    slightly = np.clip(picture + 0.02 * rng.standard_normal(picture.shape), 0, 1)
    unrelated = rng.random(picture.shape).astype(np.float32)
    near = distance(slightly.astype(np.float32), picture)
    assert distance(picture, picture) == pytest.approx(0.0, abs=1e-5)
    assert 0.0 < near < 0.5 * distance(unrelated, picture)


def test_means_are_of_each_metric(picture):
    distance = FeatureDistance()
    same = likeness(picture, picture, distance)
    worse = likeness(np.full_like(picture, 0.5), picture, distance)
    mean = Likeness.mean([same, worse])
    assert mean.psnr_db == pytest.approx((same.psnr_db + worse.psnr_db) / 2)
    assert mean.gradient_correlation == pytest.approx(0.5)
    with pytest.raises(ValueError, match='pictures are'):
        likeness(picture[:-1], picture, distance)
