"""Acceptance: each check passes and fails, each limit decides something, and what limits say."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from d2s_ros.errors import ConfigError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.localization.acceptance import (
    PoseEvidence,
    check_keypoints,
    checks,
    inlier_evidence,
    needed_evidence,
)
from d2s_ros.localization.intrinsics_error import IntrinsicsError
from d2s_ros.localization.limits import NOT_LOGGED, Limits, read_limits
from d2s_ros.localization.moved_object import InlierView, count_off_plane
from d2s_ros.localization.pose_prior import PosePrior
from d2s_ros.localization.pose_solver import PoseEstimate, PoseUncertainty, Support
from d2s_ros.localization.result import (
    LocalizationResult,
    LocalizationStatus,
    first_failure,
)

CAMERA = Camera('pinhole', 640, 480, 500.0, 500.0, 320.0, 240.0)
DEPTH = 4.0
Status = LocalizationStatus


def box(count, width, thickness=0.0, depth=DEPTH):
    """Return points (count, 3) of an object of this width in front of the camera."""
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (count, 3))
    return points * [width, width, thickness] + np.array([0.0, 0.0, depth])


def ring(count, width, hole):
    """Return points (count, 3) around an object, none closer to its middle than half of `hole`."""
    points = np.random.default_rng(1).uniform(-0.5, 0.5, (50 * count, 3)) * [width, width, 0.0]
    points = points[np.abs(points[:, :2]).max(axis=1) > 0.5 * hole][:count]
    assert len(points) == count
    return points + np.array([0.0, 0.0, DEPTH])


def support_at(count, spread=0.5, extent=3.0, pixel=(320.0, 240.0)):
    """Return support whose keypoints are all at one pixel."""
    return Support(np.tile(np.array(pixel), (count, 1)), spread, extent)


def evidence_of(
    points,
    *,
    used=None,
    sigma=1e-3,
    support=None,
    focal_error=(0.0, float('inf')),
    intrinsics=None,
    landmarks=None,
    determined=True,
    **known,
):
    """Return evidence for a pose at the origin whose inliers are points (K, 3)."""
    pixels = CAMERA.project(points)
    mask = np.arange(used or len(points)) < len(points)
    sigma = np.broadcast_to(sigma, 6)
    estimate = PoseEstimate(
        RigidTransform.identity(),
        PoseUncertainty(lambda: (np.diag(np.square(sigma)), not determined)),
        mask,
        np.zeros(len(mask)),
        float(np.median(points[:, 2])),
        np.cov(pixels.T),
        float(4 * np.sqrt(np.linalg.eigvalsh(np.cov(points.T))[1])),
        support=support,
        focal_error=focal_error,
        intrinsics_error=intrinsics,
    )
    view = None
    if landmarks is not None:
        view = InlierView(pixels, points, landmarks.astype(np.float32))
    known = {'scene_depth': DEPTH, 'view': view, **known}
    return PoseEvidence(CAMERA, estimate, len(mask), 4.0, **known)


def intrinsics(*change, sigma, gain=100.0):
    """Return what an image says that fits other intrinsics."""
    information = np.eye(5) / sigma**2
    return IntrinsicsError(information, information @ np.array(change), CAMERA.fx, gain)


ROOM = box(60, 3.0, 2.0)
PICTURE = box(300, 1.2)
AROUND = np.concatenate([PICTURE, ring(300, 4.6, 1.9)])


def picture(seen=150, landmarks=AROUND, **known):
    """Return evidence of a picture 1.2 m wide, of whose 300 landmarks some are inliers."""
    return evidence_of(PICTURE[:seen], landmarks=landmarks, **known)


def near_prior(points=ROOM, *, away=0.0, turn_deg=0.0, sigma_m=0.05, sigma_deg=1.0, **known):
    """Return evidence of a pose that a prior with an error was asked for."""
    rotation = rotation_from_vector(np.radians([0.0, turn_deg, 0.0]))
    prior = PosePrior(RigidTransform(rotation, np.array([away, 0.0, 0.0])), sigma_m, sigma_deg)
    return evidence_of(points, prior=prior, **known)


def outcome(evidence, limits=None):
    failure = first_failure(checks(evidence, limits or Limits()))
    return Status.LOCALIZED if failure is None else failure.status


def check_named(name, evidence, limits=None):
    return next(c for c in checks(evidence, limits or Limits()) if c.name == name)


#: Name of a check, its status, and evidence that passes and that fails it.
CASES = [
    (
        'correspondences',
        Status.TOO_FEW_RELIABLE,
        evidence_of(box(14, 3.0, 2.0)),
        evidence_of(box(13, 3.0, 2.0)),
    ),
    ('pose', Status.NO_POSE, evidence_of(ROOM), replace(evidence_of(ROOM), estimate=None)),
    (
        'inliers',
        Status.TOO_FEW_INLIERS,
        evidence_of(box(14, 3.0, 2.0), used=40),
        evidence_of(box(13, 3.0, 2.0), used=40),
    ),
    (
        'inlier share',
        Status.LOW_INLIER_SHARE,
        evidence_of(ROOM, used=400, expected_inliers=150.0),
        # As with a wrong focal length: keypoints find their landmarks, which then do not fit.
        evidence_of(ROOM, used=400, expected_inliers=320.0),
    ),
    (
        'share of reliable',
        Status.LOW_INLIER_SHARE,
        evidence_of(ROOM, num_reliable=1440),
        evidence_of(ROOM, num_reliable=1441),
    ),
    (
        'chance',
        Status.TOO_FEW_INLIERS,
        evidence_of(box(28, 3.0, 2.0), used=100, chance_median=5.0, chance_scale=2.0),
        evidence_of(box(28, 3.0, 2.0), used=100, chance_median=60.0, chance_scale=2.0),
    ),
    (
        'extent',
        Status.POOR_SPREAD,
        evidence_of(box(200, 2.5)),
        # A picture of 30 cm seen from 4 m.
        evidence_of(box(200, 0.3)),
    ),
    (
        'spread',
        Status.POOR_SPREAD,
        evidence_of(box(200, 1.2)),
        evidence_of(box(200, 1.2, depth=13.0)),
    ),
    (
        'determined',
        Status.UNCERTAIN,
        evidence_of(ROOM),
        evidence_of(ROOM, determined=False),
    ),
    (
        'rotation sigma',
        Status.UNCERTAIN,
        evidence_of(ROOM, sigma=[0, 0, 0, 0, 0, 0.05]),
        evidence_of(ROOM, sigma=[0, 0, 0, 0, 0, 0.06]),
    ),
    (
        'translation sigma',
        Status.UNCERTAIN,
        evidence_of(ROOM, sigma=[0, 0.19, 0, 0, 0, 0]),
        evidence_of(ROOM, sigma=[0, 0.21, 0, 0, 0, 0]),
    ),
    (
        'moved object',
        Status.MOVED_OBJECT,
        # Nothing else is there to be seen.
        picture(landmarks=np.concatenate([PICTURE, ring(10, 4.6, 1.9)])),
        picture(),
    ),
    (
        'intrinsics',
        Status.CALIBRATION_MISMATCH,
        # A focal length has a check of its own.
        evidence_of(ROOM, intrinsics=intrinsics(0.1, 0.01, 0.03, 0.0, 0.05, sigma=0.02)),
        evidence_of(ROOM, intrinsics=intrinsics(0.0, 0.0, 0.06, 0.0, 0.0, sigma=0.02)),
    ),
    (
        'focal length',
        Status.CALIBRATION_MISMATCH,
        evidence_of(ROOM, focal_error=(0.05, 0.01)),
        evidence_of(ROOM, focal_error=(-0.05, 0.001)),
    ),
    (
        'stretch',
        Status.UNCERTAIN,
        # Within eight sigmas, as in bad light: twelve percent is no camera's.
        evidence_of(ROOM, focal_error=(0.12, 0.07)),
        evidence_of(ROOM, focal_error=(0.14, 0.058)),
    ),
    (
        'sigma over prior',
        Status.UNCERTAIN,
        near_prior(sigma=0.02),
        near_prior(sigma=0.03, sigma_m=0.02),
    ),
    ('distance to prior', Status.UNCERTAIN, near_prior(away=0.15), near_prior(away=0.25)),
    ('turn from prior', Status.UNCERTAIN, near_prior(turn_deg=3.0), near_prior(turn_deg=5.0)),
]


@pytest.mark.parametrize(
    ('name', 'status', 'passing', 'failing'), CASES, ids=[name for name, *_ in CASES]
)
def test_each_check_passes_and_fails(name, status, passing, failing):
    made = checks(passing, Limits())
    assert [check.name for check in made if not check.passed] == []
    assert name in {check.name for check in made}
    failure = first_failure(checks(failing, Limits()))
    assert (failure.name, failure.status) == (name, status)
    for check in (*made, failure):
        assert check.reason
        assert '\n' not in check.reason


def test_the_table_has_every_check():
    names = {check.name for *_, passing, _ in CASES for check in checks(passing, Limits())}
    assert names == {name for name, *_ in CASES}


def test_images_without_keypoints_are_refused_first():
    assert check_keypoints(20, Limits()).passed
    few = check_keypoints(19, Limits())
    assert not few.passed
    assert few.status is Status.TOO_FEW_KEYPOINTS
    assert '20 needed' in few.reason


#: A larger picture, in a scene where it is small.
SMALL = box(300, 1.4)
AROUND_SMALL = np.concatenate([SMALL, ring(300, 4.6, 2.1)])
#: Few landmarks of support far from the middle of the image.
BESIDE = support_at(5, pixel=(60.0, 60.0))


def raised(count, seen):
    """Return inliers of the picture, of which some are 40 cm in front of it."""
    return np.concatenate([PICTURE[: seen - count], PICTURE[:count] - [0.0, 0.0, 0.4]])


def bent(slope):
    """Return inliers of the picture, its right part folded back."""
    points = PICTURE[:150].copy()
    points[:, 2] += slope * np.maximum(points[:, 0] + 0.1, 0.0)
    return points


#: The picture with three points far before its right edge, which turn the first plane.
SKEWED = np.concatenate([PICTURE[:147], [[0.6, y, 2.0] for y in (-0.6, 0.0, 0.6)]])

OK = Status.LOCALIZED
FEW, CLOSE, MOVED = Status.TOO_FEW_INLIERS, Status.POOR_SPREAD, Status.MOVED_OBJECT
#: A limit changed, evidence that it decides about, the outcome by default, and the changed one.
DECISIONS: list[tuple[dict[str, Any], PoseEvidence, Status, Status]] = [
    (
        {'false_accept_rate': 0.5},
        evidence_of(box(28, 3.0, 2.0), used=100, chance_median=60.0, chance_scale=2.0),
        FEW,
        OK,
    ),
    ({'min_inliers': 10}, evidence_of(box(12, 3.0, 2.0)), Status.TOO_FEW_RELIABLE, OK),
    ({'min_support': 10}, evidence_of(box(20, 3.0, 2.0), support=support_at(10)), FEW, OK),
    (
        {'ample_support': 30},
        evidence_of(box(8, 3.0, 2.0), used=20, support=support_at(30)),
        FEW,
        OK,
    ),
    (
        {'min_inliers_with_ample_support': 5},
        evidence_of(box(6, 3.0, 2.0), used=20, support=support_at(40)),
        FEW,
        OK,
    ),
    (
        {'min_inliers_without_support': 14},
        evidence_of(box(20, 3.0, 2.0), support=support_at(0)),
        FEW,
        OK,
    ),
    ({'min_inlier_share': 0.2}, evidence_of(ROOM, used=270), Status.LOW_INLIER_SHARE, OK),
    (
        {'min_inlier_share_with_support': 0.15},
        evidence_of(ROOM, used=350, support=support_at(20)),
        Status.LOW_INLIER_SHARE,
        OK,
    ),
    (
        {'hypotheses_divisor': 7.0},
        evidence_of(ROOM, num_reliable=1600),
        Status.LOW_INLIER_SHARE,
        OK,
    ),
    ({'min_extent': 0.05}, evidence_of(box(200, 1.4), scene_depth=20.0), CLOSE, OK),
    ({'min_spread': 0.05}, evidence_of(box(200, 1.2), scene_depth=8.0), CLOSE, OK),
    ({'safe_extent': 0.15}, evidence_of(box(200, 1.2), scene_depth=8.0), CLOSE, OK),
    (
        {'min_spread_with_support': 0.05},
        evidence_of(box(200, 2.0, depth=6.5), support=support_at(15, 0.06, 2.0)),
        CLOSE,
        OK,
    ),
    (
        {'min_spread_of_safe_extent': 0.01},
        evidence_of(box(200, 2.0, depth=10.0)),
        CLOSE,
        OK,
    ),
    (
        {'support_spread': 0.1},
        evidence_of(box(60, 0.4), support=support_at(40, 0.12, 2.0)),
        CLOSE,
        OK,
    ),
    (
        {'support_extent': 0.3},
        evidence_of(box(60, 0.4), support=support_at(40, 0.3, 1.3)),
        CLOSE,
        OK,
    ),
    ({'max_rotation_sigma_deg': 4.0}, evidence_of(ROOM, sigma=0.06), Status.UNCERTAIN, OK),
    (
        {'max_relative_translation_sigma': 0.06},
        evidence_of(ROOM, sigma=[0, 0.21, 0, 0, 0, 0]),
        Status.UNCERTAIN,
        OK,
    ),
    ({'max_flat_extent': 0.0}, picture(), MOVED, OK),
    ({'flat_tolerance': 0.001}, evidence_of(box(150, 1.2, 0.1), landmarks=AROUND), MOVED, OK),
    ({'min_off_plane': 5}, evidence_of(raised(3, 100), landmarks=AROUND), OK, MOVED),
    ({'min_off_plane_share': 0.02}, evidence_of(raised(4, 150), landmarks=AROUND), MOVED, OK),
    ({'plane_rounds': 1}, evidence_of(SKEWED, landmarks=AROUND), MOVED, OK),
    ({'plane_quantile': 1.0}, evidence_of(SKEWED, landmarks=AROUND), MOVED, OK),
    ({'plane_tolerance_share': 1.0}, evidence_of(bent(0.35), landmarks=AROUND), OK, MOVED),
    ({'expected_from_depth': 1.5}, picture(), MOVED, OK),
    ({'expected_to_depth': 0.5}, picture(), MOVED, OK),
    ({'object_margin_px': 100.0}, picture(), MOVED, OK),
    (
        {'inside_object': 0.5},
        evidence_of(SMALL[:60], landmarks=AROUND_SMALL, scene_depth=8.0),
        OK,
        MOVED,
    ),
    ({'outside_object': 60.0}, picture(), MOVED, OK),
    ({'min_object_seen': 0.6}, picture(), MOVED, OK),
    ({'min_expected_around': 200.0}, picture(), MOVED, OK),
    ({'min_found_around': 0.1}, picture(support=BESIDE), OK, MOVED),
    (
        {'min_found_around_small': 0.02},
        evidence_of(SMALL[:150], landmarks=AROUND_SMALL, scene_depth=8.0, support=BESIDE),
        MOVED,
        OK,
    ),
    (
        {'max_intrinsics_error': 0.07},
        evidence_of(ROOM, intrinsics=intrinsics(0.0, -0.06, 0.0, 0.0, 0.0, sigma=0.01)),
        Status.CALIBRATION_MISMATCH,
        OK,
    ),
    (
        {'intrinsics_sigmas': 5.0},
        evidence_of(ROOM, intrinsics=intrinsics(0.0, 0.0, 0.0, 0.0, 0.2, sigma=0.05)),
        Status.CALIBRATION_MISMATCH,
        OK,
    ),
    (
        {'min_intrinsics_gain': 20.0},
        evidence_of(ROOM, intrinsics=intrinsics(0.0, 0.0, 0.1, 0.0, 0.0, sigma=0.01, gain=15.0)),
        Status.CALIBRATION_MISMATCH,
        OK,
    ),
    (
        {'max_focal_error': 0.06},
        evidence_of(ROOM, focal_error=(0.05, 0.001)),
        Status.CALIBRATION_MISMATCH,
        OK,
    ),
    (
        {'focal_sigmas': 60.0},
        evidence_of(ROOM, focal_error=(0.05, 0.001)),
        Status.CALIBRATION_MISMATCH,
        OK,
    ),
    (
        {'max_pose_focal_error': 0.15},
        evidence_of(ROOM, focal_error=(0.14, 0.058)),
        Status.UNCERTAIN,
        OK,
    ),
    (
        {'pose_focal_sigmas': 3.0},
        evidence_of(ROOM, focal_error=(0.14, 0.058)),
        Status.UNCERTAIN,
        OK,
    ),
    ({'min_inliers_with_prior': 14}, near_prior(box(20, 3.0, 2.0)), FEW, OK),
    ({'prior_sigmas': 6.0}, near_prior(away=0.25), Status.UNCERTAIN, OK),
]
#: Decided about elsewhere: `check_keypoints`, the search for hypotheses (test_localizer.py), the
#: choice of a map (test_place_choice.py).
ELSEWHERE = {'min_keypoints', 'doubtful_spread', 'max_rival_share'}


@pytest.mark.parametrize(
    ('change', 'evidence', 'by_default', 'changed'),
    DECISIONS,
    ids=[next(iter(change)) for change, *_ in DECISIONS],
)
def test_each_limit_decides(change, evidence, by_default, changed):
    assert outcome(evidence) is by_default
    assert outcome(evidence, Limits(**change)) is changed


def test_no_limit_does_nothing():
    decided = {name for change, *_ in DECISIONS for name in change}
    assert decided | ELSEWHERE == {field.name for field in dataclasses.fields(Limits)}


@pytest.mark.parametrize(
    ('support', 'needed'),
    [(None, 14), (0, 28), (19, 28), (20, 14), (39, 14), (40, 7), (400, 7)],
)
def test_the_inliers_needed_depend_on_support(support, needed):
    found = None if support is None else support_at(support)
    check = check_named('inliers', evidence_of(ROOM, support=found))
    assert check.limit == needed
    assert f'{needed} needed' in check.reason
    assert found is None or f'{support} landmarks' in check.reason
    few = evidence_of(box(needed - 1, 3.0, 2.0), used=40, support=found)
    assert outcome(few) is FEW
    assert outcome(evidence_of(box(needed, 3.0, 2.0), used=28, support=found)) is OK


@pytest.mark.parametrize(
    ('count', 'spread', 'extent', 'expected'),
    [
        (40, 0.3, 2.0, OK),
        # The same object, seen a little better.
        (40, 0.05, 0.5, CLOSE),
        # A few that are chance widen it.
        (5, 0.3, 2.0, CLOSE),
    ],
)
def test_support_all_over_the_image_shows_more_than_a_small_object(count, spread, extent, expected):
    evidence = evidence_of(box(60, 0.4), support=support_at(count, spread, extent))
    assert outcome(evidence) is expected
    # Without a scale of the scene the image alone decides.
    assert outcome(replace(evidence, scene_depth=0.0)) is CLOSE


def test_a_wide_object_may_fill_less_of_the_image():
    evidence = evidence_of(box(200, 2.0, depth=6.5))
    assert check_named('spread', evidence).limit == 0.045
    assert outcome(evidence) is OK
    assert outcome(replace(evidence, scene_depth=0.0)) is CLOSE
    # All that is found beside it lies on it: it may stand elsewhere, flat or not.
    evidence = evidence_of(box(200, 2.0, depth=6.5), support=support_at(15, 0.05, 2.0))
    assert outcome(evidence) is CLOSE


@pytest.mark.parametrize(
    ('evidence', 'expected'),
    [
        (picture(), MOVED),
        # Hardly seen: as little of what is around it would be found.
        (evidence_of(SMALL[:25], landmarks=AROUND_SMALL), OK),
        # It is not flat.
        (evidence_of(box(150, 1.2, 0.8), landmarks=AROUND), OK),
        # Others of its landmarks are found, and nothing around it.
        (picture(60, support=support_at(40), scene_depth=4.5), MOVED),
        # The same, and what is around it.
        (picture(support=support_at(30, pixel=(60.0, 60.0))), OK),
        # The depth of the scene is unknown.
        (evidence_of(SMALL[:150], landmarks=AROUND_SMALL, scene_depth=0.0), OK),
    ],
)
def test_a_moved_picture_is_refused(evidence, expected):
    assert outcome(evidence) is expected


def test_later_stages_are_not_evaluated_after_a_failure():
    def never():
        raise AssertionError('the covariance is not needed')

    evidence = evidence_of(box(200, 0.3), landmarks=AROUND)
    evidence = replace(
        evidence, estimate=replace(evidence.estimate, uncertainty=PoseUncertainty(never))
    )
    names = [check.name for check in checks(evidence, Limits())]
    assert names == ['correspondences', 'pose', 'inliers', 'inlier share', 'extent', 'spread']


def test_evidence_bounds_the_binomial_tail():
    chance = np.pi * 4.0**2 / (640 * 480)
    for used, count in ((80, 6), (80, 12), (500, 9), (500, 100)):
        found = inlier_evidence(count, used, CAMERA, 4.0)
        exact = -stats.binom.logsf(count - 4, used - 3, chance) / np.log(10)
        assert 0 < found <= exact
        assert found > 0.5 * exact
    assert inlier_evidence(3, 80, CAMERA, 4.0) == 0.0
    assert inlier_evidence(80, 80, CAMERA, 4.0) > 200


def test_the_needed_evidence_keeps_the_rate_of_an_exponential_tail(rng):
    values = rng.exponential(1.5, 200_000)
    median = float(np.median(values))
    for rate in (0.5, 0.1, 1e-3):
        accepted = (values >= needed_evidence(median, 1.5, rate)).mean()
        assert accepted == pytest.approx(rate, rel=0.2)


def test_points_off_a_plane_are_counted():
    flat = box(100, 2.0, 0.01)
    assert count_off_plane(flat, 0.1, Limits()) == 0
    assert count_off_plane(np.concatenate([flat, box(7, 2.0, depth=3.5)]), 0.1, Limits()) == 7


def test_what_is_not_a_number_does_not_pass():
    check = check_named('spread', evidence_of(ROOM))
    assert check.passed
    for at_least in (True, False):
        assert not replace(check, value=float('nan'), at_least=at_least).passed


def test_checks_are_in_the_report():
    made = checks(picture(), Limits())
    report = LocalizationResult(MOVED, checks=made).to_report('a.png', 0)
    assert [entry['name'] for entry in report['checks']] == [check.name for check in made]
    last = report['checks'][-1]
    assert (last['name'], last['status'], last['passed']) == ('moved object', 'moved_thing', False)
    assert last['value'] < last['limit']
    assert set(last) == {'name', 'value', 'limit', 'at_least', 'passed', 'status', 'reason'}


def test_each_limit_says_where_it_comes_from(repo_root):
    log = (repo_root / 'docs' / 'design' / 'experiments.md').read_text()
    rows = re.findall(r'^\| (E\d{3}): ', log, re.MULTILINE)
    assert len(rows) == len(set(rows))
    used = set()
    for field in dataclasses.fields(Limits):
        source = field.metadata['experiment']
        document, _, heading = source.partition(', ')
        if document.startswith('docs/'):
            assert re.search(rf'^#+ {heading}$', (repo_root / document).read_text(), re.MULTILINE)
        elif source != NOT_LOGGED:
            assert source in rows, field.name
            used.add(source)
    assert used <= set(rows)


def test_limits_that_contradict_each_other_are_refused():
    for change, words in (
        ({'min_inliers': 40}, 'min_inliers_without_support'),
        ({'min_support': 50}, 'ample_support'),
        ({'min_spread': 0.5}, 'support_spread'),
        ({'inside_object': 10.0}, 'outside_object'),
        ({'min_inliers': 3}, 'at least 4'),
    ):
        with pytest.raises(ConfigError, match=words):
            Limits(**change)


def test_a_limits_file_is_read(tmp_path):
    path = tmp_path / 'limits.yaml'
    path.write_text(yaml.safe_dump({'min_inliers': 12, 'min_extent': 0}))
    assert read_limits(path) == Limits(min_inliers=12, min_extent=0.0)
    assert read_limits(path, {'max_focal_error': 0.1}).max_focal_error == 0.1
    path.write_text('')
    assert read_limits(path) == Limits()
    for text, words in (
        ('min_inlier: 12', 'min_inlier.*known keys.*min_inliers'),
        ('min_inliers: many', 'min_inliers must be int'),
        ('min_inliers: 2', 'at least 4'),
        ('- 12', 'must be a mapping'),
        ('a: [', 'not YAML'),
        ('max_focal_error: 0.2', 'max_focal_error is a parameter of the node'),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words) as error:
            read_limits(path, {'max_focal_error': 0.1})
        assert str(path) in str(error.value)
    with pytest.raises(ConfigError, match='No such file'):
        read_limits(tmp_path / 'missing.yaml')
