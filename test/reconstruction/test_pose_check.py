"""Wrong mapping poses are named, right ones are not."""

from __future__ import annotations

import numpy as np
import pytest
from map_update.worlds import CAMERA, Room, path

from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.reconstruction.pipeline import reconstruct
from d2s_ros.reconstruction.pose_check import find_doubtful_poses
from d2s_ros.reconstruction.reconstruction import ImageInput


def images_of(room, wrong=(), change=None, count=30):
    """Return images of a room; of those named the poses are changed."""
    rng = np.random.default_rng(1)
    images = []
    for n, (position, heading) in enumerate(path(count)):
        features, _, pose = room.look(position, heading, rng)
        if n in wrong:
            pose = change(pose)
        images.append(ImageInput(f'image{n:02d}', n, CAMERA, pose, features))
    return images


def away(pose):
    """Return a pose two metres from where it was."""
    return pose.moved([1.6, -1.2, 0.1])


def turned(pose):
    """Return a pose turned by 25 degrees about the camera's vertical axis."""
    turn = rotation_from_vector(np.radians([0.0, 25.0, 0.0]))
    return RigidTransform(pose.rotation @ turn, pose.translation)


@pytest.mark.parametrize('change', [away, turned])
def test_a_tenth_of_wrong_poses_is_named(change):
    wrong = (3, 11, 22)
    images = images_of(Room(seed=5), wrong, change)
    found = find_doubtful_poses(reconstruct(images))
    assert [doubt.name for doubt in found] == [f'image{n:02d}' for n in wrong]
    for doubt in found:
        assert doubt.distance == pytest.approx(2.0 if change is away else 0.0, abs=0.1)
        assert doubt.angle_deg == pytest.approx(0.0 if change is away else 25.0, abs=1.0)


def test_right_poses_are_not():
    assert find_doubtful_poses(reconstruct(images_of(Room(seed=5)))) == []


def test_neither_are_images_that_show_little():
    """An image of clutter has few points; nothing says that its pose is wrong."""
    room = Room(seed=5)
    images = images_of(room)
    rng = np.random.default_rng(9)
    position, heading = path(30)[7]
    features, _, pose = room.look(position, heading, rng, missing=0.97, clutter=200)
    images[7] = ImageInput('image07', 7, CAMERA, pose, features)
    assert find_doubtful_poses(reconstruct(images)) == []
