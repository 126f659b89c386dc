"""Augmented views: the labels stay true, whatever the camera."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.scene_models.regression.augmentation import (
    AugmentationConfig,
    change_brightness,
    draw_view,
    turned_view,
)

POSE = RigidTransform(rotation_from_vector([0.3, -0.5, 0.8]), np.array([1.0, -2.0, 0.5]))
CAMERAS = {
    'pinhole': Camera('pinhole', 320, 240, 260.0, 260.0, 150.0, 130.0),
    'oblong pixels': Camera('pinhole', 320, 240, 260.0, 300.0, 150.0, 130.0),
    'plumb_bob': Camera(
        'plumb_bob', 320, 240, 260.0, 270.0, 150.0, 130.0, (-0.2, 0.05, 0.004, -0.003, 0.01)
    ),
    'rational': Camera(
        'rational_polynomial',
        320,
        240,
        260.0,
        270.0,
        150.0,
        130.0,
        (0.1, 0.02, 0.004, -0.003, 0.01, 0.2, 0.03, 0.01, 0.004, 0.001, -0.005, 0.002),
    ),
    'equidistant': Camera(
        'equidistant', 320, 240, 200.0, 205.0, 150.0, 130.0, (-0.01, 0.004, -0.002, 0.0003)
    ),
}


@pytest.mark.parametrize('name', CAMERAS)
@pytest.mark.parametrize(('degrees', 'zoom'), [(30, 1.3), (-17, 0.7), (0, 1.2), (25, 1.0)])
def test_the_view_sees_the_same_points(name, degrees, zoom, rng):
    camera = CAMERAS[name]
    in_camera = rng.uniform([-1.2, -0.9, 2.0], [1.2, 0.9, 5.0], size=(200, 3))
    points = POSE.apply(in_camera)
    image = np.zeros((240, 320), np.uint8)
    view = turned_view(image, camera, POSE, angle=np.radians(degrees), zoom=zoom)
    before = camera.project(in_camera)
    after = view.camera.project(view.map_from_camera.inverse().apply(points))
    warped = before @ view.view_from_image[:, :2].T + view.view_from_image[:, 2]
    assert np.abs(after - warped).max() < 0.01
    assert np.linalg.norm(after - before, axis=1).max() > 5
    np.testing.assert_allclose(view.map_from_camera.translation, POSE.translation)


def test_turning_the_pose_on_the_other_side_is_wrong(rng):
    """The mistake of the authors' code: the map turns instead of the camera."""
    camera = CAMERAS['pinhole']
    in_camera = rng.uniform([-1, -0.7, 2.0], [1, 0.7, 5.0], size=(50, 3))
    points = POSE.apply(in_camera)
    view = turned_view(np.zeros((240, 320), np.uint8), camera, POSE, angle=0.4, zoom=1.0)
    turn = RigidTransform(rotation_from_vector([0, 0, 0.4]), np.zeros(3))
    wrong = (POSE.inverse() @ turn).apply(points)
    warped = camera.project(in_camera) @ view.view_from_image[:, :2].T + view.view_from_image[:, 2]
    error = np.linalg.norm(view.camera.project(wrong) - warped, axis=1)
    assert np.nanmedian(error) > 20 or np.isnan(error).all()


def test_the_image_moves_as_the_pixels_say():
    camera = CAMERAS['oblong pixels']
    image = np.zeros((240, 320), np.uint8)
    blobs = np.array([[100.0, 80.0], [200.0, 160.0], [170.0, 90.0]])
    for x, y in blobs.astype(int):
        cv2.circle(image, (int(x), int(y)), 6, 255, -1, cv2.LINE_AA)
    view = turned_view(image, camera, POSE, angle=np.radians(20), zoom=1.2)
    for x, y in blobs @ view.view_from_image[:, :2].T + view.view_from_image[:, 2]:
        window = view.image[int(y) - 12 : int(y) + 13, int(x) - 12 : int(x) + 13].astype(float)
        rows, columns = np.mgrid[int(y) - 12 : int(y) + 13, int(x) - 12 : int(x) + 13]
        centre = [(window * columns).sum(), (window * rows).sum()] / window.sum()
        np.testing.assert_allclose(centre, [x, y], atol=0.15)


def test_nothing_is_seen_beyond_the_original():
    camera = CAMERAS['pinhole']
    image = np.full((240, 320), 200, np.uint8)
    view = turned_view(image, camera, POSE, angle=np.radians(25), zoom=0.8)
    assert (view.image[view.mask > 0] == 200).all()
    assert 0.2 < (view.mask > 0).mean() < 0.7
    same = turned_view(image, camera, POSE, angle=0.0, zoom=1.0)
    assert (same.mask > 0).all()
    np.testing.assert_array_equal(same.image, image)


def test_a_tilted_sensor_is_not_turned(rng):
    tilted = Camera(
        'rational_polynomial', 320, 240, 260.0, 260.0, 150.0, 130.0, (0.0,) * 12 + (0.02, 0.01)
    )
    view = turned_view(np.zeros((240, 320), np.uint8), tilted, POSE, angle=0.4, zoom=1.2)
    np.testing.assert_allclose(view.map_from_camera.rotation, POSE.rotation)
    assert view.camera.fx == pytest.approx(312.0)


def test_brightness_and_contrast():
    image = np.array([[100, 140]], np.uint8)
    np.testing.assert_array_equal(change_brightness(image, contrast=1, brightness=0), image)
    np.testing.assert_array_equal(
        change_brightness(image, contrast=0.5, brightness=0.2), [[110 + 51, 130 + 51]]
    )
    assert change_brightness(image, contrast=1, brightness=0.9).max() == 255


def test_draws_stay_in_their_ranges():
    camera = CAMERAS['pinhole']
    image = np.full((240, 320), 128, np.uint8)
    config = AugmentationConfig()
    angles, zooms, greys = [], [], []
    for seed in range(40):
        view = draw_view(image, camera, POSE, config, np.random.default_rng(seed))
        turn = view.map_from_camera.inverse().rotation @ POSE.rotation
        angles.append(np.degrees(np.arctan2(turn[1, 0], turn[0, 0])))
        zooms.append(view.camera.fx / camera.fx)
        greys.append(int(np.median(view.image[view.mask > 0])))
    assert 20 < np.max(np.abs(angles)) <= 30
    assert 0.7 <= min(zooms) < 0.8
    assert 1.2 < max(zooms) <= 1.3
    assert np.max(np.abs(np.array(greys) - 128)) <= 0.15 * 255 + 1
