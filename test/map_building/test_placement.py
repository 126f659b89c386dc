"""Scale, up and origin of maps that are made of images alone, on simulated logs with the truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from d2s_ros.data.bag_depth import decode_depth
from d2s_ros.data.sources import open_source
from d2s_ros.data.tum import read_tum
from d2s_ros.errors import ConfigError, InputError
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.images import collect_images
from d2s_ros.map_building.placement import PlacementConfig, place
from d2s_ros.reconstruction.metric_frame import scale_from_ratios, transformed
from d2s_ros.reconstruction.pipeline import reconstruct
from d2s_ros.reconstruction.pose_refinement import align_poses
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import simulate_log

SIZE = 0.3


class Placed:
    """A log with everything that tells scale, and its reconstruction of images alone."""

    def __init__(self, folder):
        simulated = SimulationConfig(
            seed=5,
            frames=30,
            width=480,
            height=360,
            poses=False,
            odometry=True,
            depth=True,
            tag_size=SIZE,
        )
        simulate_log(simulated, folder, progress=False)
        self.source = open_source(folder)
        config = BuildConfig(features=FeatureConfig(name='rootsift', max_keypoints=900))
        images, _ = collect_images(
            self.source, create_extractor(config.features, device='cpu'), config
        )
        self.odometry = {image.name: image.map_from_camera for image in images}
        unposed = [replace(image, map_from_camera=None) for image in images]
        self.reconstruction = reconstruct(unposed, config.reconstruction)
        self.truth = read_tum(folder / 'groundtruth_tum.txt')

    def truths(self, reconstruction):
        return [self.truth.at(image.stamp_ns) for image in reconstruction.images]


@pytest.fixture(scope='module')
def placed(tmp_path_factory):
    return Placed(tmp_path_factory.mktemp('log') / 'log')


def scale_error(placed, reconstruction):
    """Return by how much distances between cameras differ from the truth, as a share."""
    own = np.stack([image.map_from_camera.translation for image in reconstruction.images])
    true = np.stack([pose.translation for pose in placed.truths(reconstruction)])
    lengths = [
        np.linalg.norm(places[:, None] - places[None], axis=2).sum() for places in (own, true)
    ]
    return abs(lengths[0] / lengths[1] - 1)


def tilt_deg(placed, reconstruction):
    """Return the angle between z of the map and the true one: how far it is from upright."""
    turns = [
        image.map_from_camera.rotation @ truth.rotation.T
        for image, truth in zip(reconstruction.images, placed.truths(reconstruction), strict=True)
    ]
    up = np.mean([turn[:, 2] for turn in turns], axis=0)
    return np.degrees(np.arccos(up[2] / np.linalg.norm(up)))


def test_the_shape_is_right(placed):
    """Images of a whole log without poses are all placed, to one percent of their spread."""
    own = [image.map_from_camera for image in placed.reconstruction.images]
    assert len(own) == 30
    truths = placed.truths(placed.reconstruction)
    align = align_poses(own, truths)
    true = np.stack([pose.translation for pose in truths])
    off = np.linalg.norm(np.stack([align(pose).translation for pose in own]) - true, axis=1)
    spread = np.linalg.norm(true - true.mean(0), axis=1).mean()
    print(f'off by {off.mean() / spread:.4f} of the spread on average')
    assert off.mean() < 0.01 * spread


def heights(placed, reconstruction):
    own = [image.map_from_camera.translation[2] for image in reconstruction.images]
    return np.array(own) - [pose.translation[2] for pose in placed.truths(reconstruction)]


@pytest.mark.parametrize(
    ('config', 'source', 'limit'),
    [
        (PlacementConfig(), 'depth', 0.01),
        (PlacementConfig(tag_size=SIZE), 'tag', 0.01),
        (PlacementConfig(align_poses=True), 'odometry', 0.03),
    ],
)
def test_scale_and_up(placed, config, source, limit):
    """Depth and tags tell the scale within 1 %, odometry that is off by 2 % within 3 %."""
    found, figures = place(placed.reconstruction, placed.source, placed.odometry, config)
    assert found.metric
    assert figures['scale_from'] == source
    error, tilt = scale_error(placed, found), tilt_deg(placed, found)
    print(f'{source}: scale off by {error:.4f}, up by {tilt:.3f} deg, {figures}')
    assert error < limit
    assert tilt < 1.0
    if source != 'odometry':
        assert figures['frame_from'] == 'floor'
        assert np.abs(heights(placed, found)).max() < 0.06
        first = found.images[0].map_from_camera
        np.testing.assert_allclose(first.translation[:2], 0, atol=1e-9)


def test_depth_in_a_folder_as_tum_lays_it_out(placed, tmp_path):
    """rgb/ are the images, depth/ tells the scale, 5000 units a metre."""
    from d2s_ros.data.bag_depth import DepthImages

    for name in ('rgb', 'depth'):
        (tmp_path / name).mkdir()
        (tmp_path / f'{name}.txt').write_text('# timestamp filename\n')
    frames = list(placed.source)
    depth = placed.source.depth
    assert isinstance(depth, DepthImages)
    for frame in frames:
        cv2.imwrite(str(tmp_path / 'rgb' / f'{frame.stamp_ns / 1e9:.6f}.png'), frame.image)
    for index, measured in depth.at(np.array([frame.stamp_ns for frame in frames])):
        values = np.nan_to_num(5000 * measured).clip(0, 65535).astype(np.uint16)
        # Such cameras take their two images at slightly different times.
        name = f'{frames[index].stamp_ns / 1e9 + 0.013:.6f}.png'
        cv2.imwrite(str(tmp_path / 'depth' / name), values)
    source: Any = open_source(tmp_path, for_mapping=True)
    assert len(source) == len(source.depth) == len(frames)
    assert [frame.stamp_ns for frame in source] == [frame.stamp_ns for frame in frames]
    found, figures = place(placed.reconstruction, source, {}, PlacementConfig())
    assert figures['scale_from'] == 'depth'
    assert scale_error(placed, found) < 0.01
    # Without the lists nothing says what a unit of the depth is.
    (tmp_path / 'depth.txt').unlink()
    source = open_source(tmp_path, for_mapping=True)
    assert source.depth is None


def test_the_origin_is_a_tag(placed):
    """z up, and x out of the wall that the tag hangs on."""
    config = PlacementConfig(tag_size=SIZE, origin='tag:0')
    with pytest.raises(InputError, match='tag 400 is not seen'):
        place(placed.reconstruction, placed.source, {}, replace(config, origin='tag:400'))
    for number in range(8):
        try:
            config = PlacementConfig(tag_size=SIZE, origin=f'tag:{number}')
            found, figures = place(placed.reconstruction, placed.source, {}, config)
            break
        except InputError:
            continue
    assert figures['frame_from'] == f'tag:{number}'
    assert tilt_deg(placed, found) < 1.0
    # Cameras see the tag from the front.
    from_tag = np.stack([image.map_from_camera.translation for image in found.images])
    assert (from_tag[:, 0] > 0).mean() > 0.9


def test_nothing_tells_the_scale(placed):
    config = PlacementConfig(use_depth=False)
    found, figures = place(placed.reconstruction, placed.source, {}, config)
    assert not found.metric
    assert figures['scale_from'] == ''
    assert tilt_deg(placed, found) < 1.0


def test_a_tag_that_is_not_there(placed):
    config = PlacementConfig(tag_size=SIZE, tag_family='4x4_50')
    with pytest.raises(InputError, match='no tag of 4x4_50'):
        place(placed.reconstruction, placed.source, {}, config)


def test_points_move_with_their_cameras(placed):
    motion = RigidTransform(rotation_from_vector([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 3.0]))
    before = placed.reconstruction
    after = transformed(before, 2.5, motion, metric=True)
    for old, new in zip(before.images[:3], after.images[:3], strict=True):
        np.testing.assert_allclose(
            new.map_from_camera.inverse().apply(after.points_in_map),
            2.5 * old.map_from_camera.inverse().apply(before.points_in_map),
            atol=1e-6,
        )


def test_wrong_options_and_too_few_ratios():
    with pytest.raises(ConfigError, match='tag:ID'):
        PlacementConfig(origin='here')
    with pytest.raises(ConfigError):
        PlacementConfig(tag_family='77h1')
    with pytest.raises(InputError, match='3 measurements'):
        scale_from_ratios(np.array([1.0, 1.0, 1.0, np.nan, -1.0]), 'depth')
    ratios = np.r_[np.full(60, 2.0), np.full(30, 9.0)]
    assert scale_from_ratios(ratios, 'depth').factor == pytest.approx(2.0)


class Message:
    encoding, is_bigendian, height, width, step = '16UC1', 1, 2, 2, 6

    def __init__(self, data):
        self.data = data


def test_depth_of_both_byte_orders_and_padding():
    data = bytes([0, 10, 0, 0, 9, 9, 4, 0, 0xFF, 0xFF, 9, 9])
    found = decode_depth(Message(data))
    np.testing.assert_allclose(found, [[0.01, np.nan], [1.024, 65.535]], rtol=1e-6)
    assert decode_depth(Message(data[:-1])) is None
