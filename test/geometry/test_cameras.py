"""Camera models against their published formulas, pycolmap and resized pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pycolmap
import pytest

from d2s_ros.errors import CalibrationError
from d2s_ros.geometry.cameras import Camera

CAMERAS = {
    'pinhole': Camera('pinhole', 640, 480, 500, 510, 322.5, 238.25),
    'plumb_bob_4': Camera('plumb_bob', 640, 480, 500, 510, 322, 238, (-0.2, 0.05, 1e-3, -2e-3)),
    'plumb_bob_5': Camera(
        'plumb_bob', 640, 480, 500, 510, 322, 238, (-0.28, 0.09, 1e-3, -2e-3, -0.01)
    ),
    'rational_8': Camera(
        'rational_polynomial',
        640,
        480,
        500,
        510,
        322,
        238,
        (0.4, 0.1, 1e-4, -2e-4, 0.01, 0.7, 0.2, 0.03),
    ),
    'equidistant': Camera(
        'equidistant', 640, 480, 280, 282, 322, 238, (0.02, -0.01, 0.004, -0.001)
    ),
}


def grid(camera: Camera, margin: float = 5) -> np.ndarray:
    x = np.linspace(margin, camera.width - 1 - margin, 13)
    y = np.linspace(margin, camera.height - 1 - margin, 11)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def reference_projection(camera: Camera, point: np.ndarray) -> np.ndarray:
    """Written from the formulas in the documentation of OpenCV and of CameraInfo."""
    x, y = point[0] / point[2], point[1] / point[2]
    k = dict(zip(('k1', 'k2', 'p1', 'p2', 'k3', 'k4', 'k5', 'k6'), camera.distortion, strict=False))
    if camera.model == 'equidistant':
        k1, k2, k3, k4 = camera.distortion
        r = np.hypot(x, y)
        theta = np.arctan(r)
        scale = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
        x, y = (x * scale / r, y * scale / r) if r > 0 else (x, y)
    elif camera.model != 'pinhole':
        r2 = x * x + y * y
        radial = 1 + k['k1'] * r2 + k['k2'] * r2**2 + k.get('k3', 0) * r2**3
        radial /= 1 + k.get('k4', 0) * r2 + k.get('k5', 0) * r2**2 + k.get('k6', 0) * r2**3
        p1, p2 = k['p1'], k['p2']
        x, y = (
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        )
    return np.array([camera.fx * x + camera.cx, camera.fy * y + camera.cy])


@pytest.mark.parametrize('name', CAMERAS)
def test_projection_follows_the_formulas(name, rng):
    camera = CAMERAS[name]
    points = np.column_stack([rng.uniform(-1, 1, (20, 2)), rng.uniform(2, 4, 20)])
    expected = [reference_projection(camera, point) for point in points]
    np.testing.assert_allclose(camera.project(points), expected, atol=1e-6)


@pytest.mark.parametrize('name', CAMERAS)
def test_normalize_is_the_inverse_of_project(name):
    camera = CAMERAS[name]
    pixels = grid(camera)
    normalized = camera.normalize(pixels)
    assert np.isfinite(normalized).all()
    rays = np.column_stack([normalized, np.ones(len(normalized))])
    np.testing.assert_allclose(camera.project(3.5 * rays), pixels, atol=1e-4)


@pytest.mark.parametrize('name', CAMERAS)
def test_undistorted_pixels_are_those_of_the_ideal_camera(name, rng):
    camera = CAMERAS[name]
    points = np.column_stack([rng.uniform(-1, 1, (20, 2)), rng.uniform(2, 4, 20)])
    undistorted = camera.undistort(camera.project(points))
    np.testing.assert_allclose(undistorted, camera.ideal.project(points), atol=1e-3)
    assert camera.ideal.distortion == ()


@pytest.mark.parametrize('name', CAMERAS)
def test_points_behind_the_camera_have_no_pixel(name):
    pixels = CAMERAS[name].project(np.array([[0, 0, -1], [0.1, 0, 0], [0.1, 0.1, 1]]))
    assert np.isnan(pixels[:2]).all()
    assert np.isfinite(pixels[2]).all()
    assert CAMERAS[name].project(np.empty((0, 3))).shape == (0, 2)
    assert CAMERAS[name].normalize(np.empty((0, 2))).shape == (0, 2)


def test_pixels_beyond_the_fold_of_a_distortion_are_nan():
    # r (1 - 0.9 r^2) never exceeds 0.41, so pixels further out have no ray.
    camera = Camera('plumb_bob', 640, 480, 300, 300, 320, 240, (-0.9, 0.0, 0.0, 0.0))
    normalized = camera.normalize([[320, 240], [360, 240], [600, 240]])
    assert np.isfinite(normalized[:2]).all()
    assert np.isnan(normalized[2]).all()


@pytest.mark.parametrize(
    ('model', 'params'),
    [
        ('SIMPLE_PINHOLE', [500, 321, 239]),
        ('PINHOLE', [500, 510, 321, 239]),
        ('SIMPLE_RADIAL', [500, 321, 239, -0.1]),
        ('RADIAL', [500, 321, 239, -0.1, 0.03]),
        ('OPENCV', [500, 510, 321, 239, -0.1, 0.03, 1e-3, -2e-3]),
        ('FULL_OPENCV', [500, 510, 321, 239, 0.2, 0.03, 1e-3, -2e-3, 0.01, 0.3, 0.05, 0.01]),
        ('OPENCV_FISHEYE', [280, 282, 321, 239, 0.02, -0.01, 0.004, -0.001]),
    ],
)
def test_colmap_cameras_project_like_pycolmap_half_a_pixel_apart(model, params, rng):
    camera = Camera.from_colmap(model, 640, 480, params)
    theirs = pycolmap.Camera(model=model, width=640, height=480, params=params)
    points = np.column_stack([rng.uniform(-1, 1, (20, 2)), rng.uniform(2, 4, 20)])
    expected = np.array([theirs.img_from_cam(point) for point in points]).reshape(-1, 2)
    # COLMAP's centre of the first pixel is (0.5, 0.5), ours is (0, 0).
    np.testing.assert_allclose(camera.project(points) + 0.5, expected, atol=1e-6)


def test_camera_info_fields():
    k = [500, 0, 320, 0, 510, 240, 0, 0, 1]
    camera = Camera.from_camera_info(640, 480, 'plumb_bob', [-0.2, 0.1, 0, 0, 0.01], k)
    assert camera == Camera('plumb_bob', 640, 480, 500, 510, 320, 240, (-0.2, 0.1, 0, 0, 0.01))
    np.testing.assert_array_equal(camera.matrix, np.reshape(k, (3, 3)))


def test_camera_info_without_distortion_is_a_pinhole():
    k = [500, 0, 320, 0, 510, 240, 0, 0, 1]
    for model, d in (('plumb_bob', [0] * 5), ('', []), ('rational_polynomial', [0] * 8)):
        assert Camera.from_camera_info(640, 480, model, d, k).model == 'pinhole'
    # A fisheye lens without coefficients is still no pinhole.
    assert Camera.from_camera_info(640, 480, 'equidistant', [0] * 4, k).model == 'equidistant'
    assert Camera.from_camera_info(640, 480, 'fisheye', [0.1] * 4, k).model == 'equidistant'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'k': [0] * 9}, 'all zeros'),
        ({'k': [500, 0, 320]}, '9 numbers'),
        ({'k': [-500, 0, 320, 0, 510, 240, 0, 0, 1]}, 'positive'),
        ({'k': [np.nan, 0, 320, 0, 510, 240, 0, 0, 1]}, 'finite'),
        ({'distortion_model': 'thin_prism'}, 'thin_prism'),
        ({'d': [0.1, 0.2]}, '4 or 5'),
        ({'width': 0}, '0x480'),
    ],
)
def test_unusable_camera_info_is_refused(change, message):
    fields = {
        'width': 640,
        'height': 480,
        'distortion_model': 'plumb_bob',
        'd': [0.1, 0, 0, 0, 0],
        'k': [500, 0, 320, 0, 510, 240, 0, 0, 1],
        **change,
    }
    with pytest.raises(CalibrationError, match=message):
        Camera.from_camera_info(**fields)


@pytest.mark.parametrize(
    ('model', 'params', 'message'),
    [('FOV', [1, 2, 3, 4, 5], 'FOV'), ('PINHOLE', [500, 320, 240], 'needs 4')],
)
def test_unusable_colmap_cameras_are_refused(model, params, message):
    with pytest.raises(CalibrationError, match=message):
        Camera.from_colmap(model, 640, 480, params)


@pytest.mark.parametrize('size', [(320, 240), (1280, 960), (160, 120)])
def test_resized_camera_fits_the_resized_picture(size):
    """A blob drawn where a point projects is found where the resized camera projects it."""
    camera = Camera('pinhole', 640, 480, 500, 510, 322.5, 238.25)
    point = np.array([[0.31, -0.17, 1.5]])
    x, y = np.meshgrid(np.arange(640), np.arange(480))
    centre = camera.project(point)[0]
    blob = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * 12**2))
    shrinks = size[0] < 640
    resized = cv2.resize(blob, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    found = np.array([(x * resized).sum(), (y * resized).sum()]) / resized.sum()
    np.testing.assert_allclose(camera.resized(*size).project(point)[0], found, atol=0.01)


def test_resizing_there_and_back_changes_nothing():
    camera = CAMERAS['plumb_bob_5']
    back = camera.resized(320, 240).resized(640, 480)
    assert back.model == camera.model
    assert back.distortion == camera.distortion
    np.testing.assert_allclose(back.matrix, camera.matrix)
    assert camera.resized(640, 480) == camera


def test_another_aspect_is_refused():
    camera = CAMERAS['pinhole']
    with pytest.raises(CalibrationError, match=r'640x360.*aspect'):
        camera.resized(640, 360)
    # Rounding to whole pixels is no other aspect.
    camera.resized(213, 160)


FIVE = (-0.2, 0.1, 1e-3, -2e-3, 0.01)
EIGHT = (*FIVE, 0.4, 0.1, 0.02)
FOUR = (0.02, -0.01, 0.004, -0.001)


@pytest.mark.parametrize(
    ('model', 'd', 'expected'),
    [
        # Drivers fill arrays of a fixed length up with zeros.
        ('plumb_bob', (*FIVE, 0, 0, 0), ('plumb_bob', FIVE)),
        ('plumb_bob', FIVE + (0,) * 9, ('plumb_bob', FIVE)),
        ('plumb_bob', FIVE[:4], ('plumb_bob', FIVE[:4])),
        ('Plumb Bob', FIVE, ('plumb_bob', FIVE)),
        ('radtan', FIVE[:4], ('plumb_bob', FIVE[:4])),
        ('brown_conrady', FIVE, ('plumb_bob', FIVE)),
        # Without the denominator the rational model is plumb_bob.
        ('rational_polynomial', FIVE, ('plumb_bob', FIVE)),
        ('rational_polynomial', FIVE[:4], ('plumb_bob', FIVE[:4])),
        ('rational_polynomial', (*FIVE, 0, 0, 0), ('plumb_bob', FIVE)),
        ('rational_polynomial', FIVE + (0,) * 9, ('plumb_bob', FIVE)),
        ('rational_polynomial', EIGHT, ('rational_polynomial', EIGHT)),
        ('rational_polynomial', EIGHT + (0,) * 6, ('rational_polynomial', EIGHT + (0,) * 6)),
        ('equidistant', (*FOUR, 0), ('equidistant', FOUR)),
        ('fisheye', FOUR + (0,) * 4, ('equidistant', FOUR)),
        ('kannala_brandt4', FOUR, ('equidistant', FOUR)),
        ('Kannala-Brandt', (*FOUR, 0), ('equidistant', FOUR)),
        ('equidistant', (0,) * 5, ('equidistant', (0,) * 4)),
        ('none', (), ('pinhole', ())),
        ('None', (0,) * 5, ('pinhole', ())),
        ('', (0,) * 5, ('pinhole', ())),
        ('plumb_bob', (), ('pinhole', ())),
        ('inverse_brown_conrady', (0,) * 5, ('pinhole', ())),
    ],
)
def test_distortions_of_drivers_that_are_exactly_representable(model, d, expected):
    camera = Camera.from_camera_info(640, 480, model, d, [500, 0, 320, 0, 510, 240, 0, 0, 1])
    assert (camera.model, camera.distortion) == expected


@pytest.mark.parametrize(
    ('model', 'd', 'message'),
    [
        ('plumb_bob', EIGHT, r'found 8, and 0\.4, 0\.1, 0\.02 after the first 5.*rational_polyn'),
        ('plumb_bob', FIVE[:3], 'found 3'),
        ('equidistant', (*FOUR, 0.1), r'needs 4.*found 5, and 0\.1 after the first 4'),
        ('equidistant', (), 'needs 4.*found 0'),
        ('equidistant', FOUR[:2], 'needs 4.*found 2'),
        ('rational_polynomial', (*FIVE, 0.4), 'found 6'),
        ('none', FIVE, "'none' is not supported with coefficients other than zero"),
        ('inverse_brown_conrady', FIVE, 'inverse_brown_conrady'),
        ('double_sphere', (0.1, 0.2), 'double_sphere'),
        ('double_sphere', (0, 0), 'double_sphere'),
    ],
)
def test_distortions_without_an_exact_counterpart_are_refused_with_the_reason(model, d, message):
    with pytest.raises(CalibrationError, match=message):
        Camera.from_camera_info(640, 480, model, d, [500, 0, 320, 0, 510, 240, 0, 0, 1])


def test_skewed_pixel_axes_are_refused():
    with pytest.raises(CalibrationError, match='skew'):
        Camera.from_camera_info(640, 480, '', (), [500, 2, 320, 0, 510, 240, 0, 0, 1])


@pytest.mark.parametrize('name', CAMERAS)
def test_dict_round_trip(name):
    assert Camera.from_dict(CAMERAS[name].to_dict()) == CAMERAS[name]


@pytest.mark.parametrize('key', ['model', 'width', 'fx', 'cy'])
def test_a_missing_value_is_named(key):
    values = CAMERAS['pinhole'].to_dict()
    del values[key]
    with pytest.raises(CalibrationError, match=key):
        Camera.from_dict(values)
