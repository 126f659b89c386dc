"""Messages to core types and back: no node."""

from __future__ import annotations

import array

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from geometry_msgs.msg import PoseWithCovarianceStamped
from ros.helpers import image_msg, info_msg
from sensor_msgs.msg import CompressedImage, RegionOfInterest

from d2s_ros.data.calibration import CameraInfoValues
from d2s_ros.errors import CalibrationError, InputError, UnsupportedImageError
from d2s_ros.geometry.transforms import (
    RigidTransform,
    covariance_of_body,
    rotation_from_vector,
    vector_from_rotation,
)
from d2s_ros.ros import conversions


def random_transform(rng):
    return RigidTransform(rotation_from_vector(rng.normal(size=3)), rng.normal(size=3) * 5)


def test_stamps_survive():
    for stamp in (0, 1, 999_999_999, 1_700_000_000_123_456_789):
        assert conversions.ns_from_stamp(conversions.stamp_from_ns(stamp)) == stamp


def test_images_with_padded_rows(rng):
    image = rng.integers(0, 255, (7, 10, 3), dtype=np.uint8)
    padded = np.zeros((7, 40), np.uint8)
    padded[:, :30] = image.reshape(7, 30)
    message = image_msg(image, 0)
    message.step, message.data = 40, array.array('B', padded.tobytes())
    np.testing.assert_array_equal(conversions.image_from_msg(message), image)


def test_image_round_trip(rng):
    for shape in ((5, 8), (5, 8, 3)):
        image = rng.integers(0, 255, shape, dtype=np.uint8)
        message = conversions.image_to_msg(image, 5, 'camera')
        np.testing.assert_array_equal(conversions.image_from_msg(message), image)


def test_big_endian_mono16():
    values = (np.arange(12).reshape(3, 4) * 5000).astype(np.uint16)
    little, big = image_msg(np.zeros((3, 4), np.uint8), 0), image_msg(np.zeros((3, 4), np.uint8), 0)
    for message, order in ((little, '<u2'), (big, '>u2')):
        message.encoding, message.step = 'mono16', 8
        message.is_bigendian = int(order == '>u2')
        message.data = array.array('B', values.astype(order).tobytes())
    decoded = conversions.image_from_msg(big)
    np.testing.assert_array_equal(decoded, conversions.image_from_msg(little))
    assert decoded[0, 0] < decoded[1, 0] < decoded[2, 0]


def test_broken_images_are_refused():
    short = image_msg(np.zeros((4, 4), np.uint8), 0)
    short.data = array.array('B', b'123')
    unknown = image_msg(np.zeros((4, 4), np.uint8), 0)
    unknown.encoding = 'holographic'
    empty = CompressedImage(format='jpeg')
    for message in (short, unknown, empty):
        with pytest.raises(UnsupportedImageError):
            conversions.image_from_msg(message)


def test_camera_of_the_same_scaled_and_other_size():
    info = info_msg(0, size=(640, 480), focal=400.0, d=(0.1, 0.0, 0.0, 0.0, 0.0))
    camera = CameraInfoValues.from_message(info).camera(640, 480)
    assert (camera.model, camera.fx, camera.cx) == ('plumb_bob', 400.0, 319.5)
    half = CameraInfoValues.from_message(info).camera(320, 240)
    assert (half.fx, half.cx) == (200.0, 159.5)
    with pytest.raises(CalibrationError, match='aspect'):
        CameraInfoValues.from_message(info).camera(640, 400)


def test_camera_of_a_binned_region():
    info = info_msg(0, size=(640, 480), focal=400.0)
    info.roi = RegionOfInterest(x_offset=100, y_offset=80, width=320, height=240)
    info.binning_x = info.binning_y = 2
    whole = CameraInfoValues.from_message(info).camera(640, 480)
    part = CameraInfoValues.from_message(info).camera(160, 120)
    points = np.array([[0.1, -0.05, 1.0], [-0.2, 0.1, 2.0]])
    # Pixel centres: the region starts at pixel 100, 80; two pixels become one.
    expected = (whole.project(points) - [100, 80] + 0.5) / 2 - 0.5
    np.testing.assert_allclose(part.project(points), expected, atol=1e-9)


def test_rectified_images_use_p():
    info = info_msg(0, d=(0.3, 0.0, 0.0, 0.0, 0.0))
    info.p[0] = info.p[5] = 33.0
    camera = CameraInfoValues.from_message(info).camera(64, 48, rectified=True)
    assert (camera.model, camera.fx) == ('pinhole', 33.0)
    info.p = [0.0] * 12
    with pytest.raises(CalibrationError, match='not rectified'):
        CameraInfoValues.from_message(info).camera(64, 48, rectified=True)


def test_uncalibrated_cameras_are_refused():
    zeros = info_msg(0)
    zeros.k = [0.0] * 9
    for message, words in (
        (zeros, 'zeros'),
        (info_msg(0, size=(0, 0)), 'not positive'),
        (info_msg(0, model='telescope', d=(0.1,)), 'not supported'),
    ):
        with pytest.raises(CalibrationError, match=words):
            CameraInfoValues.from_message(message).camera(64, 48)


def test_pose_and_covariance_round_trip(rng):
    pose = random_transform(rng)
    root = rng.normal(size=(6, 6))
    covariance = root @ root.T
    message = conversions.pose_with_covariance(pose, covariance, 12, 'map')
    assert message.header.frame_id == 'map'
    # Row-major in the order x y z, rotation about x y z.
    assert message.pose.covariance[1] == covariance[0, 1]
    assert message.pose.covariance[35] == covariance[5, 5]
    found, matrix = conversions.pose_with_covariance_from_msg(message)
    np.testing.assert_allclose(found.matrix, pose.matrix, atol=1e-12)
    np.testing.assert_array_equal(matrix, covariance)


def test_invalid_poses_are_refused():
    def message(**changes):
        result = PoseWithCovarianceStamped()
        for name, value in changes.items():
            if name == 'covariance':
                result.pose.covariance = np.asarray(value, np.float64)
            else:
                part = 'position' if name in 'xyz' else 'orientation'
                setattr(getattr(result.pose.pose, part), name.removeprefix('q'), value)
        return result

    skewed = np.zeros(36)
    skewed[1] = 1.0
    negative = np.zeros(36)
    negative[0] = -1.0
    for bad, words in (
        (message(x=float('nan')), 'finite'),
        (message(qw=0.0), 'norm'),
        (message(covariance=skewed), 'symmetric'),
        (message(covariance=negative), 'negative'),
        (message(covariance=np.full(36, np.nan)), 'finite'),
    ):
        with pytest.raises(InputError, match=words):
            conversions.pose_with_covariance_from_msg(bad)


def test_transform_round_trip(rng):
    transform = random_transform(rng)
    message = conversions.transform_to_msg(transform, 7, 'map', 'base')
    assert (message.header.frame_id, message.child_frame_id) == ('map', 'base')
    values = conversions.transform_from_msg(message.transform)
    np.testing.assert_allclose(RigidTransform.from_tum(values).matrix, transform.matrix, atol=1e-12)


def test_covariance_of_another_body_agrees_with_samples(rng):
    map_from_camera, camera_from_base = random_transform(rng), random_transform(rng)
    root = rng.normal(size=(6, 6)) * 1e-3
    covariance = root @ root.T
    errors = rng.multivariate_normal(np.zeros(6), covariance, 100_000)
    base = map_from_camera @ camera_from_base
    moved = []
    for error in errors[:4000]:
        turn = rotation_from_vector(error[3:])
        disturbed = RigidTransform(
            turn @ map_from_camera.rotation, map_from_camera.translation + error[:3]
        )
        found = disturbed @ camera_from_base
        moved.append(
            np.r_[
                found.translation - base.translation,
                vector_from_rotation(found.rotation @ base.rotation.T),
            ]
        )
    sampled = np.cov(np.array(moved).T)
    expected = covariance_of_body(covariance, map_from_camera, camera_from_base)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(sampled / scale, expected / scale, atol=0.08)
    # With no lever the covariance stays: the axes are the map's, not the body's.
    turned = RigidTransform(camera_from_base.rotation, np.zeros(3))
    np.testing.assert_allclose(covariance_of_body(covariance, map_from_camera, turned), covariance)


def test_point_cloud_can_be_read_back(rng):
    points = rng.normal(size=(5, 3)).astype(np.float32)
    message = conversions.point_cloud(points, np.arange(5), 3, 'map')
    assert [field.name for field in message.fields] == ['x', 'y', 'z', 'intensity']
    values = np.frombuffer(message.data, '<f4').reshape(message.width, 4)
    np.testing.assert_array_equal(values[:, :3], points)
    np.testing.assert_array_equal(values[:, 3], np.arange(5))
    assert message.row_step == len(message.data)


def test_a_cloud_far_from_zero_keeps_its_millimetres(rng):
    points = rng.normal([500_123.0, 4_600_321.0, 112.0], size=(5, 3))
    message = conversions.point_cloud(points, np.arange(5), 3, 'map')
    kind = np.dtype(
        {
            'names': [field.name for field in message.fields],
            'formats': [{7: '<f4', 8: '<f8'}[field.datatype] for field in message.fields],
            'offsets': [field.offset for field in message.fields],
            'itemsize': message.point_step,
        }
    )
    values = np.frombuffer(message.data, kind)
    read = np.stack([values[name] for name in 'xyz'], 1)
    np.testing.assert_array_equal(read, points)
    np.testing.assert_array_equal(values['intensity'], np.arange(5))
    assert message.is_dense
    assert message.row_step == len(message.data)
    empty = conversions.point_cloud(np.zeros((0, 3)), [], 3, 'map')
    assert empty.width == 0
    assert not conversions.point_cloud([[np.nan, 0, 0]], [1], 3, 'map').is_dense


@pytest.mark.parametrize(
    ('encoding', 'channels'),
    [('mono8', 1), ('bgr8', 3), ('rgb8', 3), ('bgra8', 4), ('rgba8', 4), ('bayer_rggb8', 1)],
)
def test_decodes_as_cv_bridge_does(encoding, channels, rng):
    cv_bridge = pytest.importorskip(
        'cv_bridge', reason='cv_bridge is not installed; a ROS 2 distribution brings it'
    )
    image = rng.integers(0, 255, (6, 8, channels), dtype=np.uint8)
    message = image_msg(image[:, :, 0] if channels == 1 else image[:, :, :3], 0)
    message.encoding, message.step = encoding, 8 * channels
    message.data = array.array('B', image.tobytes())
    wanted = 'mono8' if encoding == 'mono8' else 'bgr8'
    expected = cv_bridge.CvBridge().imgmsg_to_cv2(message, wanted)
    np.testing.assert_array_equal(conversions.image_from_msg(message), expected)
