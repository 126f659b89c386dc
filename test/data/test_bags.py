"""Bags written with rosbags, cut off or damaged on purpose, and the recorded fox bags."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3

import cv2
import numpy as np
import pytest
from data.bag_writing import (
    CAMERA,
    START_NS,
    camera_log,
    compressed_message,
    depth_message,
    image_message,
    info_message,
    jpeg,
    make,
    odom_message,
    picture,
    pose_cov_message,
    pose_message,
    storage_file,
    tf_message,
    write_bag,
)
from scipy.spatial.transform import Rotation

from d2s_ros.data.bags import BagSource
from d2s_ros.data.colmap_model import read_colmap_model
from d2s_ros.data.tum import Trajectory, read_tum
from d2s_ros.errors import BagError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, interpolate, pose_error

PERIOD_NS = 10**8


def transform(seed: int) -> RigidTransform:
    rng = np.random.default_rng(seed)
    return RigidTransform(Rotation.from_quat(rng.normal(size=4)).as_matrix(), rng.uniform(-3, 3, 3))


def assert_pose(found, expected, atol=1e-9):
    assert found is not None
    np.testing.assert_allclose(found.matrix, expected.matrix, atol=atol)


@pytest.mark.parametrize('storage', ['sqlite3', 'mcap'])
@pytest.mark.parametrize('kind', ['compressed', 'image'])
def test_frames_of_a_bag(tmp_path, storage, kind):
    bag = write_bag(tmp_path / 'bag', camera_log(5, kind=kind), storage)
    for path in (bag, storage_file(bag)):
        source = BagSource(path)
        assert len(source) == 5
        for _repeat in range(2):
            frames = list(source)
            assert [frame.stamp_ns for frame in frames] == [
                START_NS + index * PERIOD_NS for index in range(5)
            ]
            assert [frame.name for frame in frames][:2] == [
                '1700000000.000000000',
                '1700000000.100000000',
            ]
            for index, frame in enumerate(frames):
                expected = picture(index)
                if kind == 'compressed':
                    expected = cv2.imdecode(np.frombuffer(jpeg(expected), np.uint8), 1)
                np.testing.assert_array_equal(frame.image, expected)
                assert frame.camera == CAMERA
                assert frame.map_from_camera is None
                assert frame.error == ''


def test_compressed_mcap(tmp_path):
    bag = write_bag(tmp_path / 'bag', camera_log(5), 'mcap', compression='storage')
    assert len(list(BagSource(bag))) == 5
    assert len(list(BagSource(bag, partial=True))) == 5


def test_raw_is_preferred_to_the_compressed_form_of_the_same_camera(tmp_path):
    log = camera_log(2) + camera_log(2, kind='image')
    source = BagSource(write_bag(tmp_path / 'bag', sorted(log, key=lambda item: item[2])))
    assert source.image_topic == '/camera/image_raw'


def test_several_cameras_must_be_chosen_between(tmp_path):
    log = camera_log(2)
    log += [(topic.replace('camera/', 'rear/'), *rest) for topic, *rest in camera_log(2)]
    bag = write_bag(tmp_path / 'bag', log)
    with pytest.raises(BagError, match=r'/camera/image_raw/compressed, /rear/image_raw/comp'):
        BagSource(bag)
    source = BagSource(bag, '/rear/image_raw/compressed')
    assert source.camera_info_topic == '/rear/camera_info'
    with pytest.raises(BagError, match=r'/side.*image topics in the log: /camera'):
        BagSource(bag, '/side')
    with pytest.raises(BagError, match='no camera_info on /side'):
        BagSource(bag, '/rear/image_raw/compressed', '/side')


def test_camera_info_elsewhere(tmp_path):
    log = [
        ('/left/info', 'info', START_NS, info_message(START_NS)),
        ('/image', 'image', START_NS, image_message(START_NS, picture(0))),
    ]
    assert BagSource(write_bag(tmp_path / 'one', log)).camera_info_topic == '/left/info'
    log.insert(0, ('/right/info', 'info', START_NS, info_message(START_NS)))
    with pytest.raises(BagError, match='/left/info, /right/info'):
        BagSource(write_bag(tmp_path / 'two', log))


def test_bag_time_stands_in_for_a_stamp_of_zero(tmp_path):
    log = [
        ('/image', 'image', START_NS + 5, image_message(0, picture(0))),
        ('/image', 'image', START_NS + 6, image_message(0, picture(1))),
    ]
    frames = list(BagSource(write_bag(tmp_path / 'bag', log)))
    assert [frame.stamp_ns for frame in frames] == [START_NS + 5, START_NS + 6]
    assert 'no camera_info' in frames[0].error
    assert frames[0].camera is None
    assert frames[0].image is not None


def test_equal_stamps_get_distinct_names(tmp_path):
    log = [('/image', 'image', START_NS, image_message(START_NS, picture(i))) for i in range(3)]
    names = [frame.name for frame in BagSource(write_bag(tmp_path / 'bag', log))]
    assert names == ['1700000000.000000000', '1700000000.000000000_2', '1700000000.000000000_3']


def test_camera_info_once_and_late(tmp_path):
    log = [item for item in camera_log(3) if item[1] != 'info']
    late = START_NS + 2 * PERIOD_NS
    log.append(('/camera/camera_info', 'info', late, info_message(late)))
    frames = list(BagSource(write_bag(tmp_path / 'bag', log)))
    assert [frame.camera for frame in frames] == [CAMERA] * 3


def test_the_latest_camera_info_before_the_image_counts(tmp_path):
    log = [item for item in camera_log(4) if item[1] != 'info']
    for index, focal in ((0, 50.0), (2, 60.0)):
        stamp = START_NS + index * PERIOD_NS
        k = CAMERA.matrix.copy()
        k[0, 0] = focal
        log.append(('/camera/camera_info', 'info', stamp, info_message(stamp, k=k.reshape(-1))))
    frames = list(BagSource(write_bag(tmp_path / 'bag', log)))
    assert [frame.camera.fx for frame in frames] == [50, 50, 60, 60]


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'k': np.zeros(9)}, 'not calibrated'),
        ({'distortion_model': 'mystery'}, 'mystery'),
        ({'d': np.array([0.1, 0.2])}, 'coefficients'),
        ({'width': 100}, 'aspect'),
        ({'width': 0, 'height': 0}, 'not positive'),
    ],
)
def test_unusable_camera_info_becomes_the_frames_error(tmp_path, changes, reason):
    log = [
        ('/camera/camera_info', 'info', START_NS, info_message(START_NS, **changes)),
        ('/camera/image', 'image', START_NS, image_message(START_NS, picture(0))),
    ]
    (frame,) = BagSource(write_bag(tmp_path / 'bag', log))
    assert frame.camera is None
    assert reason in frame.error
    assert frame.image is not None


def test_camera_info_of_another_size_of_the_same_aspect_is_resized(tmp_path):
    log = camera_log(1, kind='image')
    log[1] = ('/camera/image_raw', 'image', START_NS, image_message(START_NS, picture(0, 32, 24)))
    (frame,) = BagSource(write_bag(tmp_path / 'bag', log))
    assert frame.camera == CAMERA.resized(32, 24)
    assert frame.error == ''


def test_region_of_interest_moves_the_principal_point(tmp_path):
    log = camera_log(1, kind='image')
    roi = (8, 4, 24, 32)  # x and y offset, height, width
    log[0] = ('/camera/camera_info', 'info', START_NS, info_message(START_NS, roi=roi))
    crop = np.ascontiguousarray(picture(0)[4:28, 8:40])
    log[1] = ('/camera/image_raw', 'image', START_NS, image_message(START_NS, crop))
    (frame,) = BagSource(write_bag(tmp_path / 'bag', log))
    point = [[0.1, -0.1, 1.0]]
    np.testing.assert_allclose(
        frame.camera.project(point), CAMERA.project(point) - [8, 4], atol=1e-9
    )


def test_a_full_image_despite_a_region_of_interest(tmp_path):
    log = camera_log(1)
    log[0] = ('/camera/camera_info', 'info', START_NS, info_message(START_NS, roi=(8, 4, 24, 32)))
    (frame,) = BagSource(write_bag(tmp_path / 'bag', log))
    assert frame.camera == CAMERA


def test_rectified_images_use_the_projection_matrix(tmp_path):
    log = camera_log(1)
    p = np.array([[40.0, 0, 30, -4], [0, 41, 22, 0], [0, 0, 1, 0]])
    log[0] = ('/camera/camera_info', 'info', START_NS, info_message(START_NS, p=p.reshape(-1)))
    bag = write_bag(tmp_path / 'bag', log)
    (frame,) = BagSource(bag, rectified=True)
    assert frame.camera == Camera('pinhole', 64, 48, 40, 41, 30, 22)
    (frame,) = BagSource(bag)
    assert frame.camera == CAMERA
    log[0] = (*log[0][:3], info_message(START_NS, p=np.zeros(12)))
    (frame,) = BagSource(write_bag(tmp_path / 'zeros', log), rectified=True)
    assert 'not rectified' in frame.error


def test_broken_images_are_frames_with_an_error(tmp_path):
    log = camera_log(4)
    good = jpeg(picture(1))
    topic = '/camera/image_raw/compressed'
    log[3] = (topic, 'compressed', log[3][2], compressed_message(log[3][2], good[:-200]))
    log[5] = (topic, 'compressed', log[5][2], compressed_message(log[5][2], b'no picture'))
    log[7] = (topic, 'compressed', log[7][2], b'\x00\x01\x00\x00short')
    frames = list(BagSource(write_bag(tmp_path / 'bag', log)))
    assert [frame.image is None for frame in frames] == [False, True, True, True]
    assert 'truncated' in frames[1].error
    assert 'decoded' in frames[2].error
    assert 'damaged' in frames[3].error


def poses_log(kind: str, message, count: int = 5):
    return [
        ('/pose', kind, START_NS + i * PERIOD_NS, message(START_NS + i * PERIOD_NS, transform(i)))
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ('kind', 'message'), [('pose', pose_message), ('pose_cov', pose_cov_message)]
)
def test_poses_of_the_camera(tmp_path, kind, message):
    source = BagSource(write_bag(tmp_path / 'bag', camera_log(5) + poses_log(kind, message)))
    assert source.pose_topic == '/pose'
    for index, frame in enumerate(source):
        assert_pose(frame.map_from_camera, transform(index))


def test_poses_are_interpolated_between_near_neighbours_only(tmp_path):
    stamps = [0, 100_000_000, 400_000_000]  # neighbours of the last image are 50 and 250 ms away
    log = [
        ('/pose', 'pose', START_NS + at, pose_message(START_NS + at, transform(index)))
        for index, at in enumerate(stamps)
    ]
    for at in (30_000_000, 100_000_000, 150_000_000, 400_000_000, 410_000_000):
        log.append(('/image', 'image', START_NS + at, image_message(START_NS + at, picture(0))))
    poses = [frame.map_from_camera for frame in BagSource(write_bag(tmp_path / 'bag', log))]
    assert_pose(poses[0], interpolate(transform(0), transform(1), 0.3))
    assert_pose(poses[1], transform(1))
    assert poses[2] is None
    assert_pose(poses[3], transform(2))
    assert poses[4] is None


def odometry_log(child: str = 'base_link'):
    return [
        (
            '/odom',
            'odom',
            START_NS + i * PERIOD_NS,
            odom_message(START_NS + i * PERIOD_NS, transform(i), child),
        )
        for i in range(5)
    ]


def static_log(*edges):
    return [('/tf_static', 'tf', START_NS, tf_message(START_NS, *edges))]


def test_odometry_of_the_base_is_carried_to_the_camera(tmp_path):
    static = static_log(
        ('base_link', 'mast', transform(90)), ('mast', 'camera_optical_frame', transform(91))
    )
    source = BagSource(write_bag(tmp_path / 'bag', static + camera_log(5) + odometry_log()))
    assert source.pose_topic == '/odom'
    base_from_camera = transform(90) @ transform(91)
    for index, frame in enumerate(source):
        assert_pose(frame.map_from_camera, transform(index) @ base_from_camera)


@pytest.mark.parametrize('moves', [False, True])
def test_odometry_with_a_camera_that_is_mounted_on_tf(tmp_path, moves):
    """Some drivers send what is fixed on /tf again and again; a mast may turn."""

    def mast(index):
        return transform(60 + index) if moves else transform(90)

    log = static_log(('mast', 'camera_optical_frame', transform(91)))
    # Where nothing moves, what is sent need not reach the last image.
    for index in range(5 if moves else 2):
        stamp = START_NS + index * PERIOD_NS
        log.append(('/tf', 'tf', stamp, tf_message(stamp, ('base_link', 'mast', mast(index)))))
    source = BagSource(write_bag(tmp_path / 'bag', log + camera_log(5) + odometry_log()))
    assert source.pose_topic == '/odom'
    for index, frame in enumerate(source):
        assert_pose(frame.map_from_camera, transform(index) @ mast(index) @ transform(91))


def test_odometry_of_the_camera_itself(tmp_path):
    log = camera_log(5) + odometry_log('camera_optical_frame')
    for index, frame in enumerate(BagSource(write_bag(tmp_path / 'bag', log))):
        assert_pose(frame.map_from_camera, transform(index))


def test_odometry_without_the_way_to_the_camera_is_not_used(tmp_path):
    bag = write_bag(tmp_path / 'bag', camera_log(2) + odometry_log())
    source = BagSource(bag)
    assert source.pose_topic is None
    assert '/tf_static' in source.pose_problem
    assert next(iter(source)).map_from_camera is None
    with pytest.raises(BagError, match='tf_static'):
        BagSource(bag, pose_topic='/odom')


def tf_log():
    log = static_log(('base_link', '/camera_optical_frame', transform(90)))
    for index in range(5):
        stamp = START_NS + index * PERIOD_NS
        edges = (('map', 'odom', transform(50)), ('odom', 'base_link', transform(index)))
        log.append(('/tf', 'tf', stamp, tf_message(stamp, *edges)))
    return log


def test_transforms_from_the_map_to_the_camera(tmp_path):
    source = BagSource(write_bag(tmp_path / 'bag', camera_log(5) + tf_log()))
    assert source.pose_topic == '/tf'
    for index, frame in enumerate(source):
        expected = transform(50) @ transform(index) @ transform(90)
        assert_pose(frame.map_from_camera, expected)


def test_preference_and_explicit_choice_of_poses(tmp_path):
    log = camera_log(3) + tf_log() + odometry_log()
    both = write_bag(tmp_path / 'both', log)
    assert BagSource(both).pose_topic == '/tf'
    assert BagSource(both, pose_topic='/odom').pose_topic == '/odom'
    all_kinds = write_bag(tmp_path / 'all', log + poses_log('pose', pose_message))
    assert BagSource(all_kinds).pose_topic == '/pose'
    assert BagSource(all_kinds, pose_topic='/tf').pose_topic == '/tf'
    with pytest.raises(BagError, match='no messages on /nothing'):
        BagSource(both, pose_topic='/nothing')
    with pytest.raises(BagError, match='gives no poses'):
        BagSource(both, pose_topic='/camera/camera_info')


def test_several_pose_topics_are_not_guessed_between(tmp_path):
    log = camera_log(2) + poses_log('pose', pose_message)
    log += [('/other', *rest) for _topic, *rest in poses_log('pose', pose_message)]
    source = BagSource(write_bag(tmp_path / 'bag', log))
    assert '/other, /pose' in source.pose_problem
    assert next(iter(source)).map_from_camera is None


def test_a_given_trajectory_replaces_the_poses_of_the_log(tmp_path):
    stamps = np.array([START_NS, START_NS + PERIOD_NS])
    trajectory = Trajectory(stamps, (transform(7), transform(8)))
    bag = write_bag(tmp_path / 'bag', camera_log(3) + poses_log('pose', pose_message))
    poses = [frame.map_from_camera for frame in BagSource(bag, poses=trajectory)]
    assert_pose(poses[0], transform(7))
    assert_pose(poses[1], transform(8))
    assert poses[2] is None


def test_poses_without_a_rotation_are_skipped(tmp_path):
    message = pose_message(START_NS, transform(0))
    message.pose.orientation = make('geometry_msgs/msg/Quaternion', 0.0, 0.0, 0.0, 0.0)
    bag = write_bag(tmp_path / 'bag', [*camera_log(2), ('/pose', 'pose', START_NS, message)])
    source = BagSource(bag)
    assert 'no valid poses' in source.pose_problem


def test_what_is_no_bag(tmp_path):
    with pytest.raises(BagError, match='does not exist'):
        BagSource(tmp_path / 'nothing')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(BagError, match=r'no metadata\.yaml'):
        BagSource(tmp_path / 'empty')
    (tmp_path / 'file.txt').write_text('text')
    with pytest.raises(BagError, match='not a rosbag2 file'):
        BagSource(tmp_path / 'file.txt')


@pytest.mark.parametrize('storage', ['sqlite3', 'mcap'])
def test_empty_bags_and_bags_without_images(tmp_path, storage):
    empty = write_bag(tmp_path / 'empty', [], storage)
    with pytest.raises(BagError, match=r'empty|damaged'):
        BagSource(empty)
    text = make('std_msgs/msg/String', 'hello')
    other = write_bag(tmp_path / 'other', [('/chatter', 'string', START_NS, text)], storage)
    with pytest.raises(BagError, match=r'holds no images.*/chatter'):
        BagSource(other)


@pytest.mark.parametrize('storage', ['sqlite3', 'mcap'])
def test_a_bag_without_metadata_is_still_being_recorded(tmp_path, storage):
    bag = write_bag(tmp_path / 'bag', camera_log(5), storage)
    (bag / 'metadata.yaml').unlink()
    with pytest.raises(BagError, match=r'still being recorded.*reindex'):
        BagSource(bag)
    assert len(list(BagSource(bag, partial=True))) == 5


def test_a_database_that_is_being_written_is_refused(tmp_path):
    bag = write_bag(tmp_path / 'bag', camera_log(5))
    file = storage_file(bag)
    connection = sqlite3.connect(file)
    connection.execute('PRAGMA journal_mode=WAL')
    connection.execute('UPDATE messages SET timestamp = timestamp + 1')
    connection.commit()
    try:
        with pytest.raises(BagError, match='still being recorded'):
            BagSource(bag)
    finally:
        connection.close()


@pytest.mark.parametrize('storage', ['sqlite3', 'mcap'])
@pytest.mark.parametrize('share', [0.0, 0.0005, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_cut_off_bags(tmp_path, storage, share):
    """Cut anywhere: a clear error, and the images before the cut where they are asked for."""
    bag = write_bag(tmp_path / 'bag', camera_log(40), storage)
    complete = list(BagSource(bag))
    file = storage_file(bag)
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    for path in (bag, file):
        with pytest.raises(BagError, match=r'damaged|empty|cut off'):
            list(BagSource(path))
    try:
        left = list(BagSource(bag, partial=True))
    except BagError:
        assert share < 0.5
        return
    assert 0 < len(left) <= 40
    if share > 0.5:
        assert len(left) >= int(40 * (share - 0.3))
    for frame, expected in zip(left, complete, strict=False):
        assert frame.name == expected.name
        # The torn page may hold the ends of the last two images, which must then not be shown.
        if frame.image is None:
            assert frame.name in [item.name for item in left[-2:]]
            assert 'truncated' in frame.error
        else:
            np.testing.assert_array_equal(frame.image, expected.image)


def test_a_missing_storage_file_and_broken_metadata(tmp_path):
    bag = write_bag(tmp_path / 'bag', camera_log(3))
    metadata = bag / 'metadata.yaml'
    text = metadata.read_text()
    metadata.write_text(text[: len(text) // 2])
    with pytest.raises(BagError, match='damaged'):
        BagSource(bag)
    metadata.write_text(text)
    storage_file(bag).unlink()
    with pytest.raises(BagError, match='missing'):
        BagSource(bag)


def test_metadata_that_promises_more_messages(tmp_path):
    bag = write_bag(tmp_path / 'bag', camera_log(3))
    connection = sqlite3.connect(storage_file(bag))
    connection.execute('DELETE FROM messages WHERE id = (SELECT MAX(id) FROM messages)')
    connection.commit()
    connection.close()
    with pytest.raises(BagError, match='2 of 3 messages'):
        list(BagSource(bag))


def test_damage_inside_an_mcap_is_noticed(tmp_path):
    bag = write_bag(tmp_path / 'bag', camera_log(40), 'mcap', compression='storage')
    file = storage_file(bag)
    data = bytearray(file.read_bytes())
    start = data.index(b'\x28\xb5\x2f\xfd')  # where the first chunk's compressed bytes begin
    data[start + 8 : start + 40] = bytes(32)
    file.write_bytes(data)
    with pytest.raises(BagError, match='damaged'):
        list(BagSource(bag))


def test_a_split_bag_is_read_in_order(tmp_path):
    """Recorders split long logs into files that are numbered 0 to 10 and more."""
    bag = tmp_path / 'split'
    bag.mkdir()
    for part in range(12):
        messages = [
            ('/image', 'image', START_NS + part, image_message(START_NS + part, picture(part)))
        ]
        piece = write_bag(tmp_path / f'part_{part}', messages)
        shutil.copy(storage_file(piece), bag / f'split_{part}.db3')
    names = [frame.stamp_ns - START_NS for frame in BagSource(bag, partial=True)]
    assert names == list(range(12))


@pytest.mark.parametrize(('part', 'count'), [('map', 40), ('query', 10)])
def test_fox_bags(shared_data, part, count):
    folder = shared_data / 'fox_bags'
    truth = read_tum(folder / f'{part}_groundtruth_tum.txt')
    names = json.loads((shared_data / 'fox' / 'split.json').read_text())[part]
    model = read_colmap_model(shared_data / 'fox')
    poses = {image.name: image.map_from_camera for image in model.images}
    source = BagSource(folder / part, poses=truth)
    assert len(source) == count == len(names)
    for frame, name in zip(source, names, strict=True):
        image = cv2.imread(str(shared_data / 'fox' / 'images' / name))
        np.testing.assert_array_equal(frame.image, image)
        np.testing.assert_allclose(frame.camera.matrix, model.cameras[1].matrix, atol=1e-6)
        np.testing.assert_allclose(frame.camera.distortion, model.cameras[1].distortion, atol=1e-9)
        distance, degrees = pose_error(frame.map_from_camera, poses[name])
        assert distance < 1e-6
        assert degrees < 1e-4


@pytest.mark.parametrize('storage', ['sqlite3', 'mcap'])
@pytest.mark.parametrize('partial', [False, True])
def test_random_damage_is_a_frame_without_image_or_a_clear_error(tmp_path, storage, partial, rng):
    bag = write_bag(tmp_path / 'bag', [*camera_log(8), *tf_log()], storage)
    file = storage_file(bag)
    original = file.read_bytes()
    messages = []
    for _attempt in range(25):
        data = bytearray(original)
        # The ends hold the structure: headers, index and footer.
        limit = int(rng.choice([200, 5000, len(data)]))
        places = rng.integers(0, limit, 3)
        places = len(data) - 1 - places if rng.random() < 0.3 else places
        data[int(places[0])] ^= int(rng.integers(1, 256))
        data[int(places[1])] = 0xFF
        data[int(places[2])] = 0
        file.write_bytes(data)
        try:
            for frame in BagSource(bag, partial=partial):
                assert frame.image is not None or frame.error
        except BagError as error:
            messages.append(str(error))
    assert messages
    assert not any('\n' in message for message in messages)


def rgbd_log(count: int = 3, kind: str = 'compressed'):
    """Colour and depth side by side, as `ros2 bag record -a` of an RGB-D camera leaves them."""
    log = []
    for topic, name, stamp, message in camera_log(count, kind=kind):
        log.append((topic.replace('/camera/', '/camera/color/'), name, stamp, message))
    for index in range(count):
        stamp = START_NS + index * PERIOD_NS
        depth = info_message(stamp, frame_id='depth_optical_frame', k=2 * np.eye(3).reshape(-1))
        log.append(('/camera/depth/camera_info', 'info', stamp, depth))
        log.append(('/camera/depth/image_rect_raw', 'image', stamp, depth_message(stamp)))
    return log


@pytest.mark.parametrize('kind', ['compressed', 'image'])
def test_depth_is_no_candidate_beside_pictures(tmp_path, kind):
    source = BagSource(write_bag(tmp_path / 'bag', rgbd_log(kind=kind)))
    assert source.image_topic.startswith('/camera/color/')
    assert source.camera_info_topic == '/camera/color/camera_info'


def test_video_packets_are_no_candidate_beside_pictures(tmp_path):
    log = camera_log(2)
    packet = compressed_message(START_NS, b'\x00\x00\x00\x01\x67\x42' + bytes(100), 'h264')
    log.append(('/camera/image_raw/h264', 'compressed', START_NS, packet))
    source = BagSource(write_bag(tmp_path / 'bag', log))
    assert source.image_topic == '/camera/image_raw/compressed'


def test_video_packets_alone_are_told_by_name(tmp_path):
    packet = compressed_message(START_NS, b'\x00\x00\x00\x01\x67\x42' + bytes(100), 'h264')
    log = [('/camera/h264', 'compressed', START_NS, packet)]
    (frame,) = BagSource(write_bag(tmp_path / 'bag', log))
    assert frame.image is None
    assert "video (format 'h264')" in frame.error


def test_the_only_images_are_taken_even_if_they_are_of_16_bits(tmp_path):
    log = [('/thermal', 'image', START_NS, depth_message(START_NS))]
    assert BagSource(write_bag(tmp_path / 'bag', log)).image_topic == '/thermal'


def test_the_calibration_of_another_camera_is_told(tmp_path, caplog):
    log = [item for item in rgbd_log() if item[0] != '/camera/color/camera_info']
    source = BagSource(write_bag(tmp_path / 'bag', log))
    assert source.camera_info_topic == '/camera/depth/camera_info'
    for word in ('/camera/depth/camera_info', "'depth_optical_frame'", '/camera/color/image_raw',
                 "'camera_optical_frame'", '--camera-info-topic'):  # fmt: skip
        assert word in caplog.text
    caplog.clear()
    BagSource(write_bag(tmp_path / 'own', camera_log(2)))
    assert not caplog.text


def test_the_calibration_of_the_same_frame_is_preferred(tmp_path, caplog):
    log = [
        ('/image', 'image', START_NS, image_message(START_NS, picture(0))),
        ('/left/info', 'info', START_NS, info_message(START_NS, frame_id='left')),
        ('/right/info', 'info', START_NS, info_message(START_NS)),
    ]
    assert BagSource(write_bag(tmp_path / 'bag', log)).camera_info_topic == '/right/info'
    assert not caplog.text


@pytest.mark.parametrize(
    'name',
    [
        'image_rect',
        'image_rect_color',
        'rectified/image',
        'imageRect',
        'undistorted',
        'left_undist/image',
    ],
)
def test_a_rectified_topic_with_distortion_is_refused(tmp_path, name):
    p = np.array([[40.0, 0, 30, 0], [0, 41, 22, 0], [0, 0, 1, 0]]).reshape(-1)
    log = [
        ('/camera/camera_info', 'info', START_NS, info_message(START_NS, p=p)),
        (f'/camera/{name}', 'image', START_NS, image_message(START_NS, picture(0))),
    ]
    bag = write_bag(tmp_path / 'bag', log)
    for partial in (False, True):
        with pytest.raises(BagError, match=rf'{name} is named like .*--rectified'):
            BagSource(bag, partial=partial)
    assert next(iter(BagSource(bag, rectified=True))).camera.model == 'pinhole'
    assert next(iter(BagSource(bag, camera=CAMERA))).camera == CAMERA
    log[0] = (*log[0][:3], info_message(START_NS, d=np.zeros(5)))
    assert next(iter(BagSource(write_bag(tmp_path / 'zero', log)))).camera.model == 'pinhole'


@pytest.mark.parametrize('kind', ['direct', 'mirect', 'rectangle'])
def test_a_topic_with_rect_inside_a_word_is_not_rectified(tmp_path, kind):
    log = [
        ('/camera/camera_info', 'info', START_NS, info_message(START_NS)),
        (f'/camera/{kind}', 'image', START_NS, image_message(START_NS, picture(0))),
    ]
    assert next(iter(BagSource(write_bag(tmp_path / 'bag', log)))).camera == CAMERA


def test_poses_that_cover_the_images_are_preferred(tmp_path, caplog):
    """Nav2 robots record /goal_pose beside the transforms."""
    goal = ('/goal_pose', 'pose', START_NS, pose_message(START_NS, transform(7)))
    source = BagSource(write_bag(tmp_path / 'bag', camera_log(5) + tf_log() + [goal]))
    assert source.pose_topic == '/tf'
    assert source.pose_problem == ''
    assert '/goal_pose cover 1 of 5 images; those of /tf are used' in caplog.text
    with_poses = camera_log(5) + poses_log('pose', pose_message) + [goal]
    source = BagSource(write_bag(tmp_path / 'two', with_poses))
    assert source.pose_topic == '/pose'


def test_poses_of_another_clock_are_told(tmp_path):
    hour = 3600 * 10**9
    log = [
        (topic, kind, stamp, pose_message(stamp + hour, transform(0)))
        for topic, kind, stamp, _message in poses_log('pose', pose_message)
    ]
    bag = write_bag(tmp_path / 'bag', camera_log(5) + log)
    for pose_topic in (None, '/pose'):
        source = BagSource(bag, pose_topic=pose_topic)
        assert re.search(r'/pose from 1700003600\.0.* 3599\.6 s apart.*clocks', source.pose_problem)


def test_odometry_of_no_frame_is_refused_by_name(tmp_path):
    static = static_log(('base_link', 'camera_optical_frame', transform(90)))
    bag = write_bag(tmp_path / 'bag', camera_log(5) + static + odometry_log(''))
    source = BagSource(bag)
    assert source.pose_topic is None
    assert '/odom' in source.pose_problem
    assert 'child_frame_id is empty' in source.pose_problem
    with pytest.raises(BagError, match=r'/odom.*child_frame_id'):
        BagSource(bag, pose_topic='/odom')
    mixed = odometry_log()[:3] + odometry_log('')[3:]
    source = BagSource(write_bag(tmp_path / 'mixed', camera_log(5) + static + mixed))
    assert "mixes poses of the frames '', 'base_link'" in source.pose_problem


@pytest.mark.parametrize(('gap', 'covered'), [(1.0, True), (9.9, True), (10.2, False)])
def test_transforms_are_interpolated_as_tf2_does(tmp_path, gap, covered):
    """map->odom comes rarely; a tf2 buffer holds ten seconds."""
    end = START_NS + round(gap * 1e9)
    log = static_log(('base_link', 'camera_optical_frame', transform(90)))
    for stamp, seed in ((START_NS, 50), (end, 51)):
        log.append(('/tf', 'tf', stamp, tf_message(stamp, ('map', 'odom', transform(seed)))))
    for stamp in range(START_NS, end + 1, PERIOD_NS):
        log.append(('/tf', 'tf', stamp, tf_message(stamp, ('odom', 'base_link', transform(1)))))
    at = START_NS + round(0.37e9)
    log.append(('/image', 'image', at, image_message(at, picture(0))))
    (frame,) = BagSource(write_bag(tmp_path / 'bag', log), pose_topic='/tf')
    if not covered:
        assert frame.map_from_camera is None
        return
    map_from_odom = interpolate(transform(50), transform(51), 0.37 / gap)
    assert_pose(frame.map_from_camera, map_from_odom @ transform(1) @ transform(90))


def test_stamps_of_zero_are_told(tmp_path, caplog):
    log = [('/image', 'image', START_NS, image_message(0, picture(0)))]
    BagSource(write_bag(tmp_path / 'bag', log))
    assert 'stamps of zero' in caplog.text


def test_localizing_reads_no_poses(tmp_path):
    bag = write_bag(tmp_path / 'bag', camera_log(2) + odometry_log(''))
    source = BagSource(bag, want_poses=False)
    assert source.pose_problem == ''
    assert next(iter(source)).map_from_camera is None


@pytest.mark.parametrize(
    ('kind', 'message'), [('pose', pose_message), ('pose_cov', pose_cov_message)]
)
def test_poses_of_another_body_than_the_camera_are_noticed(tmp_path, kind, message, caplog):
    """/amcl_pose is of the base, a stereo camera's /pose of its body: the transforms show it."""
    base = [
        (
            '/base_pose',
            kind,
            START_NS + i * PERIOD_NS,
            message(START_NS + i * PERIOD_NS, transform(50) @ transform(i)),
        )
        for i in range(5)
    ]
    bag = write_bag(tmp_path / 'bag', camera_log(5) + tf_log() + base)
    source = BagSource(bag)
    assert source.pose_topic == '/tf'
    assert '/base_pose gives poses of another body than the camera' in caplog.text
    for index, frame in enumerate(source):
        expected = transform(50) @ transform(index) @ transform(90)
        assert_pose(frame.map_from_camera, expected)
    assert BagSource(bag, pose_topic='/base_pose').pose_topic == '/base_pose'
    caplog.clear()
    own = [
        (
            '/pose',
            kind,
            START_NS + i * PERIOD_NS,
            message(START_NS + i * PERIOD_NS, transform(50) @ transform(i) @ transform(90)),
        )
        for i in range(5)
    ]
    source = BagSource(write_bag(tmp_path / 'own', camera_log(5) + tf_log() + own))
    assert source.pose_topic == '/pose'
    assert not caplog.text
