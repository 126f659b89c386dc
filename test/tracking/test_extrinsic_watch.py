"""Transforms between cameras that are a little off are told, and bad ones are not used."""

from __future__ import annotations

import numpy as np
import pytest

from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.localization.result import (
    CameraShare,
    Disagreement,
    LocalizationResult,
    LocalizationStatus,
)
from d2s_ros.tracking.extrinsic_watch import ExtrinsicWatch


def result(*cameras):
    """Return a localized image; of each camera a name, its degrees off and whether it is out."""
    shares = []
    for name, degrees, left_out in cameras:
        moved = RigidTransform(rotation_from_vector(np.radians(degrees)), np.zeros(3))
        status = 'left_out' if left_out else 'used'
        shares.append(CameraShare(name, status, disagreement=Disagreement(moved, 1.0)))
    return LocalizationResult(
        LocalizationStatus.LOCALIZED,
        map_from_camera=RigidTransform.identity(),
        covariance=np.eye(6),
        cameras=tuple(shares),
    )


def turned(degrees, rng):
    return np.array([0.0, degrees, 0.0]) + 0.3 * rng.standard_normal(3)


def test_a_transform_that_is_a_little_off_is_told(rng):
    watch = ExtrinsicWatch()
    for _ in range(40):
        assert not watch.check(result(('/left', turned(0.0, rng), False)))
    said = [watch.check(result(('/left', turned(1.0, rng), False))) for _ in range(20)]
    assert '/left' in said[-1]
    degrees = float(said[-1].partition(' degrees')[0].rpartition(' ')[2])
    assert degrees == pytest.approx(1.0, abs=0.3)
    assert not watch.distrusted
    watch.reset()
    assert watch.check(result(('/left', turned(1.0, rng), False))) == ''


def test_few_images_say_nothing(rng):
    watch = ExtrinsicWatch()
    said = [watch.check(result(('/left', turned(3.0, rng), False))) for _ in range(4)]
    assert not any(said)


def test_of_two_cameras_the_second_is_distrusted(rng):
    """Which one is left out of an image changes with what they see; both are off by as much."""
    watch = ExtrinsicWatch()
    for number in range(12):
        first = number % 2 == 0
        said = watch.check(
            result(('/front', turned(-5.0, rng), first), ('/back', turned(5.0, rng), not first))
        )
    assert watch.distrusted == {'/back'}
    assert 'not used until that is mended: /back' in said
    # It gives nothing new any more, and what was found stays told.
    assert watch.check(result(('/front', turned(0.0, rng), False))) == said
    watch.reset()
    assert not watch.distrusted


def test_of_three_cameras_it_is_the_one_that_was_left_out(rng):
    watch = ExtrinsicWatch()
    for _ in range(10):
        watch.check(
            result(
                ('/front', turned(5.0, rng), True),
                ('/left', turned(0.0, rng), False),
                ('/back', turned(0.0, rng), False),
            )
        )
    assert watch.distrusted == {'/front'}
