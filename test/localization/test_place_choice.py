"""Which place an image shows: other places are evidence against a pose."""

from __future__ import annotations

import numpy as np
import pytest

from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.localization.limits import Limits
from d2s_ros.localization.place_choice import Attempt, choose
from d2s_ros.localization.result import LocalizationResult, LocalizationStatus


def attempt(place, inliers, *, x=0.0, accepted=True, frame=None):
    pose = RigidTransform(np.eye(3), np.array([x, 0.0, 0.0]))
    status = LocalizationStatus.LOCALIZED if accepted else LocalizationStatus.POOR_SPREAD
    result = LocalizationResult(
        status,
        '' if accepted else 'close together',
        map_from_camera=pose if accepted else None,
        covariance=1e-4 * np.eye(6) if accepted else None,
        num_inliers=inliers,
    )
    return Attempt(place, frame or f'map_{place}', result, pose, 1e-4 * np.eye(6))


def test_the_place_with_most_inliers_is_published_with_its_frame():
    found = choose([attempt('f5', 20), attempt('f6', 90)], Limits())
    assert found.localized
    assert (found.place, found.frame) == ('f6', 'map_f6')
    check = found.checks[-1]
    assert check.name == 'rival place'
    assert check.value == pytest.approx(20 / 90)


@pytest.mark.parametrize('accepted', [True, False])
def test_a_second_place_that_explains_nearly_as_much_refuses_the_pose(accepted):
    found = choose([attempt('f5', 80, accepted=accepted), attempt('f6', 90)], Limits())
    assert found.status is LocalizationStatus.AMBIGUOUS_PLACE
    assert found.map_from_camera is None
    assert found.covariance is None
    assert (found.place, found.frame) == ('', '')
    assert 'f5 explains the image with 80 inliers, f6 with 90' in found.reason
    assert not found.checks[-1].passed


def test_the_limit_is_an_option():
    attempts = [attempt('f5', 80), attempt('f6', 90)]
    assert choose(attempts, Limits(max_rival_share=0.9)).localized


def test_an_overlapping_place_that_gives_the_same_pose_is_no_rival():
    for accepted in (True, False):
        west = attempt('west', 80, x=0.001, accepted=accepted, frame='map')
        found = choose([west, attempt('east', 90, frame='map')], Limits())
        assert found.localized
        assert (found.place, found.frame) == ('east', 'map')
    far = attempt('west', 80, x=3.0, frame='map')
    found = choose([far, attempt('east', 90, frame='map')], Limits())
    assert found.status is LocalizationStatus.AMBIGUOUS_PLACE


def test_where_no_place_is_accepted_the_nearest_one_gives_the_reason():
    found = choose([attempt('f5', 5, accepted=False), attempt('f6', 9, accepted=False)], Limits())
    assert found.status is LocalizationStatus.POOR_SPREAD
    assert found.num_inliers == 9
    assert found.place == ''


def test_one_place_alone_has_no_rival():
    found = choose([attempt('f5', 40)], Limits())
    assert found.localized
    assert 'rival place' not in {check.name for check in found.checks}
