"""Labels and poses of unlabelled frames against the truth, and frames that must not be believed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from map_update.worlds import CAMERA, Room, keyframes, mapping_data

from d2s_ros.geometry.transforms import pose_error
from d2s_ros.map_update.config import LabelConfig
from d2s_ros.map_update.pseudo_labels import label_frames


@pytest.fixture(scope='module')
def room():
    return Room()


@pytest.fixture(scope='module')
def mapped(room):
    return mapping_data(room)


def label(mapped, frames, recipe='verified', held_out=None, **options):
    data, _ = mapped
    held_out = held_out or [False] * len(frames)
    return label_frames(frames, held_out, data, recipe, LabelConfig(**options))


def test_paper_recipe_copies_the_right_coordinates(room, mapped):
    frames, _, truths = keyframes(room)
    _, renumber = mapped
    labelled = label(mapped, frames, 'paper')
    assert all(frame.usable and frame.map_from_camera is None for frame in labelled)
    for frame, truth in zip(labelled, truths, strict=True):
        copied = frame.point_idx >= 0
        assert copied.sum() >= 50
        right = frame.point_idx[copied] == renumber[truth][copied]
        # Random matches of clutter are copied too: that is what verification is for.
        assert right.mean() > 0.9


def test_paper_recipe_drops_frames_with_few_labels(room, mapped):
    frames, _, _ = keyframes(room, count=4)
    labelled = label(mapped, frames, 'paper', min_labels=5000)
    assert not any(frame.usable for frame in labelled)
    assert 'labels copied, 5000 needed' in labelled[0].reason


def test_verified_poses_are_right_in_another_light(room, mapped):
    frames, poses, truths = keyframes(room, light=0.45)
    _, renumber = mapped
    labelled = label(mapped, frames)
    assert sum(frame.usable for frame in labelled) >= 11
    for frame, truth, pose in zip(labelled, truths, poses, strict=True):
        if not frame.usable:
            continue
        metres, degrees = pose_error(frame.map_from_camera, pose)
        assert metres < 0.02
        assert degrees < 0.3
        trusted = frame.point_idx >= 0
        wrong = frame.point_idx[trusted] != renumber[truth][trusted]
        assert wrong.mean() < 0.01


def test_labels_of_moved_things_are_not_trusted(room, mapped):
    """A third of the room has moved by half a metre: its labels are copied, but not believed."""
    moved = np.arange(len(room.points)) % 3 == 0
    points = room.points + moved[:, None] * [0.4, 0.3, 0.2]
    frames, poses, truths = keyframes(room, points=points)
    labelled = label(mapped, frames)
    published = label(mapped, frames, 'paper')
    assert sum(frame.usable for frame in labelled) >= 10
    copied = believed = 0
    for frame, paper, truth, pose in zip(labelled, published, truths, poses, strict=True):
        if not frame.usable:
            continue
        assert pose_error(frame.map_from_camera, pose)[0] < 0.03
        is_moved = (truth >= 0) & moved[np.maximum(truth, 0)]
        copied += int((paper.point_idx[is_moved] >= 0).sum())
        believed += int((frame.point_idx[is_moved] >= 0).sum())
    assert copied > 100
    assert believed <= 0.1 * copied


def test_another_place_is_not_believed(room, mapped):
    frames, _, _ = keyframes(Room(seed=99))
    labelled = label(mapped, frames, min_labels=4)
    assert not any(frame.usable for frame in labelled)
    assert all(frame.reason for frame in labelled)


def test_wrong_calibration_drops_the_whole_log(room, mapped):
    wrong = replace(CAMERA, fx=CAMERA.fx * 1.2, fy=CAMERA.fy * 1.2)
    frames, _, _ = keyframes(room, log='wrong', camera=wrong)
    good, _, _ = keyframes(room, log='right', seed=5)
    labelled = label(mapped, frames + good)
    assert not any(frame.usable for frame in labelled[: len(frames)])
    assert any('focal length' in frame.reason for frame in labelled[: len(frames)])
    assert sum(frame.usable for frame in labelled[len(frames) :]) >= 11


def test_a_jump_in_time_order_is_dropped(room, mapped):
    """A frame of the other side of the room with a stamp in between cannot be true."""
    frames, _, _ = keyframes(room, count=16)
    frames[3] = replace(frames[11], name='swapped', stamp_ns=frames[3].stamp_ns)
    labelled = label(mapped, frames, jump_factor=2.5)
    assert 'jumps' in labelled[3].reason
    assert sum(frame.usable for frame in labelled) >= 13


def test_held_out_frames_are_verified_but_teach_nobody(room, mapped):
    frames, _, _ = keyframes(room, count=8)
    held_out = [index == 2 for index in range(8)]
    labelled = label(mapped, frames, held_out=held_out)
    assert labelled[2].held_out
    assert labelled[2].map_from_camera is not None
