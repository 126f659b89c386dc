"""What a map learns from verified frames, against the truth of a synthetic room."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from map_update.worlds import Room, keyframes, mapping_data

from d2s_ros.map_update.config import GrowthConfig, LabelConfig
from d2s_ros.map_update.growth import as_mapping_data, grow
from d2s_ros.map_update.place_changes import PlaceChanges
from d2s_ros.map_update.pseudo_labels import label_frames
from d2s_ros.reconstruction.reconstruction import point_groups
from d2s_ros.scene_models.landmark.leave_one_out import statistics_of
from d2s_ros.scene_models.landmark.table import find_training_candidates
from d2s_ros.scene_models.landmark.update import landmarks_of


@pytest.fixture(scope='module')
def room():
    return Room()


@pytest.fixture(scope='module')
def mapped(room):
    return mapping_data(room)


def grown_from(mapped, frames, held_out=None, **options):
    data, _ = mapped
    held_out = held_out or [False] * len(frames)
    labelled = label_frames(frames, held_out, data, 'verified', LabelConfig())
    return grow(data, labelled, GrowthConfig(**options)), labelled


def test_new_light_gives_prototypes_with_the_same_points(room, mapped):
    frames, _, _ = keyframes(room, light=0.45)
    grown, _ = grown_from(mapped, frames)
    assert grown.figures['prototypes_added'] > 200
    points = grown.reconstruction.points_in_map
    groups = point_groups(points)
    assert len(points) - (groups.max() + 1) == grown.figures['prototypes_added']
    table, statistics = landmarks_of(grown, 5000)
    # Both lights find their landmark: a new image of either has the right one as its candidate.
    for light in (0.0, 0.45):
        features, truth, _ = room.look((4.3, 3.1, 1.5), 0.5, np.random.default_rng(9), light=light)
        nobody = np.full(len(features), -1, np.int64)
        best = find_training_candidates(features, nobody, table, statistics, 1).landmark_idx[:, 0]
        error = np.linalg.norm(table.points_in_map[best] - room.points[truth], axis=1)
        assert (error[truth >= 0] < 0.1).mean() > 0.8
        if light:
            similarity = (features.descriptors * table.keys[best]).sum(1)
            assert np.median(similarity[truth >= 0]) > 0.85


def test_unmapped_structure_is_triangulated(room):
    """Half of the room was not mapped; the log adds points where they truly are."""
    data, _ = mapping_data(room)
    unmapped = np.flatnonzero(data.points_in_map[:, 2] > 1.7)
    for image in data.images:
        image.point_idx[np.isin(image.point_idx, unmapped)] = -1
    frames, _, _ = keyframes(room, count=24)
    labelled = label_frames(frames, [False] * len(frames), data, 'verified', LabelConfig())
    grown = grow(data, labelled, GrowthConfig())
    assert grown.figures['points_added'] > 100
    new = grown.reconstruction.points_in_map[len(data.points_in_map) :]
    distance = np.linalg.norm(new[:, None] - room.points[None], axis=2).min(axis=1)
    assert np.median(distance) < 0.05
    assert (distance < 0.2).mean() > 0.9


def drives(room, points_of_drives):
    """Return frames of several logs; each shows the room's points where it is told."""
    return [
        frame
        for number, points in enumerate(points_of_drives)
        for frame in keyframes(room, count=16, seed=5 + number, log=f'log{number}', points=points)[
            0
        ]
    ]


def without_a_fifth(room):
    """Return which points are gone, and all points with these far away."""
    gone = np.arange(len(room.points)) % 5 == 0
    points = room.points.copy()
    points[gone] += 100.0
    return gone, points


def test_gone_points_are_forgotten_and_others_kept(room, mapped):
    _, renumber = mapped
    gone, points = without_a_fifth(room)
    grown, _ = grown_from(mapped, drives(room, [points] * 3))
    forgotten = grown.priority < 0
    truly_gone = np.zeros(len(forgotten), bool)
    truly_gone[renumber[np.flatnonzero(gone)][renumber[np.flatnonzero(gone)] >= 0]] = True
    assert forgotten.sum() > 30
    assert truly_gone[forgotten].mean() > 0.98
    assert grown.figures['points_forgotten'] == forgotten.sum()
    table, _ = landmarks_of(grown, 5000)
    assert np.allclose(np.linalg.norm(table.keys, axis=1), 1, atol=1e-4)
    for image in grown.reconstruction.images:
        assert not forgotten[image.point_idx[image.point_idx >= 0]].any()


def test_what_changed_is_reported_by_region(room, mapped):
    """A quarter of one end of the room is gone; nothing is taken out of the map yet."""
    _, renumber = mapped
    gone = (room.points[:, 0] > 5.0) & (np.arange(len(room.points)) % 4 == 0)
    points = room.points.copy()
    points[gone] += 100.0
    grown, _ = grown_from(mapped, drives(room, [points] * 2))
    changes = grown.changes
    assert grown.figures['points_forgotten'] == changes.removed < 15
    truly_gone = np.zeros(len(changes.known), bool)
    rows = renumber[np.flatnonzero(gone)]
    truly_gone[rows[rows >= 0]] = True
    assert changes.lost.sum() > 30
    assert truly_gone[changes.lost].mean() > 0.9
    regions = [region for region in changes.regions() if region.lost > 10]
    assert regions
    assert all(region.center[0] > 4.5 for region in regions)
    assert all(region.lost <= region.known for region in regions)
    moved = changes.moved([1000.0, 0.0, 0.0])
    assert moved.regions()[0].center[0] == pytest.approx(changes.regions()[0].center[0] + 1000.0)
    assert str(int(changes.lost.sum())) in changes.sentences()[0]
    report = changes.to_report()
    assert report['lost'] == changes.lost.sum()
    assert report['regions'][0]['lost'] == changes.regions()[0].lost
    assert changes.picture().startswith(b'\x89PNG')


def test_a_place_of_which_nothing_is_known_has_no_regions():
    nothing = PlaceChanges(np.zeros((0, 3)), np.zeros(0, bool), 0, np.zeros((0, 3)))
    assert nothing.regions() == []
    assert nothing.picture().startswith(b'\x89PNG')
    same = np.random.default_rng(0).random((100, 3))
    assert PlaceChanges(same, np.zeros(100, bool), 0, np.zeros((0, 3))).regions() == []


@pytest.mark.parametrize('present', [(0, 0), (0, 0, 0, 1)])
def test_points_that_come_back_are_kept(room, mapped, present):
    """Furniture that is gone for a log or two, or is back in the last, is not forgotten."""
    _, points = without_a_fifth(room)
    grown, _ = grown_from(mapped, drives(room, [(points, None)[there] for there in present]))
    assert grown.figures['points_forgotten'] < 15


def test_points_missed_in_earlier_updates_are_forgotten(room, mapped):
    """Two logs missed them in one update, the third in the next."""
    _, renumber = mapped
    data, _ = mapped
    _, points = without_a_fifth(room)
    first, _ = grown_from(mapped, drives(room, [points] * 2))
    assert first.figures['points_forgotten'] < 15
    frames = keyframes(room, count=16, seed=9, log='third', points=points)[0]
    grown, _ = grown_from((as_mapping_data(data, first), renumber), frames)
    assert grown.figures['points_forgotten'] > 30


def test_points_to_keep_stay_landmarks_whatever_the_budget(room, mapped):
    frames, _, _ = keyframes(room, light=0.45)
    grown, _ = grown_from(mapped, frames)
    order = np.argsort(grown.priority)
    least = order[grown.priority[order] >= 0][:300]
    _, usual = landmarks_of(grown, 400)
    assert (usual.landmark_of_point[least] >= 0).mean() < 0.5
    priority = grown.priority.copy()
    priority[least] = np.inf
    table, statistics = landmarks_of(replace(grown, priority=priority), 400)
    assert len(table) == 400
    assert (statistics.landmark_of_point[least] >= 0).all()


def test_held_out_frames_add_nothing(room, mapped):
    frames, _, _ = keyframes(room, count=8)
    grown, _ = grown_from(mapped, frames, held_out=[False] * 6 + [True] * 2)
    names = {image.name for image in grown.reconstruction.images}
    assert 'log/log5' in names
    assert not names & {'log/log6', 'log/log7'}


@pytest.mark.parametrize('short_keys', [0, 32])
def test_leave_one_out_statistics_are_found_again(room, mapped, short_keys):
    frames, _, _ = keyframes(room, light=0.45)
    grown, _ = grown_from(mapped, frames)
    table, statistics = landmarks_of(grown, 5000)
    if short_keys:
        # Points are where the map keeps them, not where the reconstruction has them.
        table = table.coded(short_keys)
    again = statistics_of(table, grown.reconstruction)
    assert (again.counts > 0).mean() > 0.99
    same = again.landmark_of_point == statistics.landmark_of_point
    assert same.mean() > 0.99
