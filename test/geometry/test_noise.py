"""Noise of keypoints where a lens stretches the image."""

from __future__ import annotations

import numpy as np
import pytest

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.noise import ideal_variances, in_image_px

PINHOLE = Camera('pinhole', 640, 480, 320.0, 325.0, 322.0, 238.0)
FISHEYE = Camera(
    'equidistant', 640, 480, 320.0, 325.0, 322.0, 238.0, (-0.012, 0.004, -0.002, 0.0003)
)
WIDE = Camera(
    'plumb_bob', 640, 480, 340.0, 340.0, 315.0, 244.0, (-0.16, 0.02, 0.0005, -0.0003, 0.0)
)


@pytest.mark.parametrize('camera', [FISHEYE, WIDE], ids=['fisheye', 'wide'])
@pytest.mark.parametrize('pixel', [(320.0, 240.0), (40.0, 30.0), (600.0, 250.0)])
def test_noise_of_the_image_is_what_it_is_without_distortion(rng, camera, pixel):
    """Noisy keypoints are undistorted: their covariance is the one that was told."""
    sigma = 0.2
    drawn = np.array(pixel) + sigma * rng.normal(size=(20_000, 2))
    found = np.cov(camera.undistort(drawn).T)
    (xx, xy, yy) = ideal_variances(np.array([sigma**2]), camera.undistort([pixel]), camera)[0]
    assert np.array([[xx, xy], [xy, yy]]) == pytest.approx(found, rel=0.06, abs=0.04 * found.max())


def test_the_border_of_a_fisheye_is_less_exact_along_the_radius():
    border = FISHEYE.undistort([[20.0, 238.0]])
    xx, xy, yy = ideal_variances(np.array([1.0]), border, FISHEYE)[0]
    assert xx > 3.0 * yy > 3.0
    assert abs(xy) < 0.02 * yy


def test_vectors_of_the_ideal_image_are_those_between_pixels(rng):
    pixels = rng.uniform([20, 20], [620, 460], (50, 2))
    moved = pixels + rng.uniform(-0.2, 0.2, (50, 2))
    ideal = FISHEYE.undistort(pixels)
    vectors = in_image_px(FISHEYE.undistort(moved) - ideal, ideal, FISHEYE)
    np.testing.assert_allclose(vectors, moved - pixels, atol=0.01)


def test_a_pinhole_changes_nothing(rng):
    ideal = rng.uniform(0, 480, (5, 2))
    vectors = rng.normal(size=(5, 2, 3))
    assert in_image_px(vectors, ideal, PINHOLE) is vectors
    variances = ideal_variances(np.arange(5.0), ideal, PINHOLE)
    np.testing.assert_array_equal(variances, np.arange(5.0)[:, None] * [1.0, 0.0, 1.0])


def test_what_has_no_ideal_pixel_is_as_exact_as_in_the_image():
    nowhere = np.full((1, 2), np.nan)
    assert ideal_variances(np.array([4.0]), nowhere, FISHEYE).tolist() == [[4.0, 0.0, 4.0]]
