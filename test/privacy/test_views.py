"""What an attacker sees at a view: windows, cells, and what each kind of content holds."""

from __future__ import annotations

import numpy as np
import pytest

from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.privacy.contents import DepthOnly, LandmarkKeys, RawDescriptors, with_codebook
from d2s_ros.privacy.shots import OwnScene, Shot
from d2s_ros.privacy.sparse import (
    SparseView,
    Window,
    central_window,
    picture_size,
    random_window,
    stack,
)
from d2s_ros.scene_models.landmark.product_codes import ProductCodes
from d2s_ros.scene_models.landmark.table import LandmarkTable

COUNT = 300


def unit_vectors(rng, count):
    vectors = rng.standard_normal((count, 128)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def shot(rng):
    """Return a photograph of which every keypoint shows a point."""
    features = LocalFeatures(
        (rng.random((COUNT, 2)) * [640, 480] - 0.5).astype(np.float32),
        np.ones(COUNT, np.float32),
        unit_vectors(rng, COUNT),
        (640, 480),
        np.ones(COUNT, np.float32),
    )
    return Shot(
        'a',
        np.zeros((480, 640), np.uint8),
        Camera('pinhole', 640, 480, 500.0, 500.0, 319.5, 239.5),
        RigidTransform.identity(),
        features,
        np.arange(COUNT),
        np.arange(COUNT)[::-1].copy(),
        rng.uniform(1, 5, COUNT).astype(np.float32),
    )


def table_of(keys):
    count = len(keys)
    return LandmarkTable(
        keys,
        np.zeros((count, 3), np.float32),
        np.tile(np.eye(3, dtype=np.float32), (count, 1, 1)),
        np.zeros(3, np.float32),
        1.0,
    ).coded()


def test_a_point_falls_into_the_cell_that_shows_it(rng):
    for number in range(20):
        x, y = int(rng.integers(640)), int(rng.integers(480))
        window = random_window(640, 480, (128, 96), tuple(rng.random(3)))
        grey = np.zeros((480, 640), np.uint8)
        grey[max(0, y - 4) : y + 5, max(0, x - 4) : x + 5] = 255
        inside, cells = window.cells(np.array([[x, y]], np.float32), (128, 96))
        picture = window.cut(grey, (128, 96))
        within = (
            window.left <= x + 0.5 < window.left + window.width
            and window.top <= y + 0.5 < window.top + window.height
        )
        assert len(inside) == int(within), number
        if within:
            assert picture[cells[0] // 128, cells[0] % 128] > 0.5


def test_windows_have_the_aspect_of_pictures_and_lie_inside():
    assert picture_size(640, 480, 128) == (128, 96)
    assert picture_size(576, 1024, 128) == (64, 128)
    window = central_window(576, 1024, (64, 128))
    assert (window.left, window.width, window.height) == (32, 512, 1024)
    last = random_window(640, 480, (128, 96), (0.0, 0.9999, 0.9999))
    assert last.width == pytest.approx(320)
    assert last.left + last.width <= 640
    assert last.top + last.height <= 480


def test_rows_hold_depth_over_the_median_and_whether_it_is_known():
    view = SparseView(
        np.zeros((4, 2), np.float32),
        np.array([1.0, 2.0, 4.0, np.nan], np.float32),
        np.zeros((4, 0), np.float32),
    )
    assert np.allclose(view.rows(), np.array([[2, 1], [1, 1], [0.5, 1], [0, 0]]))
    with pytest.raises(ValueError, match='do not fit together'):
        SparseView(view.pixels, view.depth[:3], view.attributes)


def test_stacked_views_keep_their_cells():
    ones, twos = np.ones((2, 3), np.float32), np.full((1, 3), 2, np.float32)
    rows, cells = stack([(ones, np.array([0, 5])), (twos, np.array([5]))], 8)
    assert rows[:, 0].tolist() == [1, 1, 2]
    assert cells.tolist() == [0, 5, 13]


def test_depth_alone_holds_no_attribute(shot, rng):
    """Whatever the descriptors are, the attacker's input is the same to the last bit."""
    content = DepthOnly()
    view = content.of_map(shot)
    assert content.dim == 0
    assert view.rows().shape == (COUNT, 2)
    features = shot.features
    others = LocalFeatures(
        features.keypoints,
        features.keypoint_scores,
        unit_vectors(rng, COUNT),
        features.image_size,
        features.scales,
    )
    changed = Shot(
        shot.name,
        shot.grey,
        shot.camera,
        shot.map_from_camera,
        others,
        shot.keypoint_idx,
        shot.point_idx,
        shot.depth,
    )
    assert np.array_equal(content.of_map(changed).rows(), view.rows())
    raw = RawDescriptors(128)
    assert not np.array_equal(raw.of_map(changed).rows(), raw.of_map(shot).rows())


def test_keys_are_those_of_the_landmarks_that_are_seen(shot, rng):
    table = table_of(unit_vectors(rng, COUNT))
    content = LandmarkKeys(table)
    view = content.of_map(shot)
    assert content.dim == view.attributes.shape[1] == 128
    assert np.array_equal(view.attributes[0], table.keys[COUNT - 1])


def test_the_attackers_own_keys_are_coded_with_the_codebook_of_the_map(shot, rng):
    table = table_of(unit_vectors(rng, COUNT))
    scene = OwnScene([shot], table.keys, [np.empty(0, np.int64)])
    # Keys of the map are their own codes; scaled to length 1, a few may fall to a neighbour.
    view = LandmarkKeys(table).of_own(scene, 0)
    exact = np.isclose(view.attributes, table.keys[shot.point_idx], atol=1e-3)
    assert exact.mean() > 0.9
    codes = with_codebook(table.codes, unit_vectors(rng, 5))
    assert isinstance(codes, ProductCodes)
    assert codes.codes.shape == (5, 32)


def test_a_window_outside_has_no_points():
    window = Window(0, 0, 64, 48)
    inside, cells = window.cells(np.array([[64.0, 10.0], [-1.0, 3.0]], np.float32), (64, 48))
    assert not len(inside)
    assert not len(cells)
