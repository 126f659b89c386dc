"""The pose solver against synthetic truth: accuracy, honest covariances, degenerate input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from d2s_ros.geometry import ransac
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.statistics import first_of_each
from d2s_ros.geometry.transforms import (
    RigidTransform,
    pose_error,
    rotation_from_vector,
    vector_from_rotation,
)
from d2s_ros.localization.acceptance import PoseEvidence, checks
from d2s_ros.localization.covariance import covariance_of_pose
from d2s_ros.localization.focal_length import focal_error
from d2s_ros.localization.guided_refinement import (
    CandidateMatches,
    find_support,
    refine_guided,
)
from d2s_ros.localization.intrinsics_fit import with_intrinsics_error
from d2s_ros.localization.limits import Limits
from d2s_ros.localization.pose_solver import (
    PoseSolverConfig,
    reprojection_errors,
    solve_pose,
)
from d2s_ros.localization.result import first_failure

CAMERA = Camera('pinhole', 640, 480, 500.0, 505.0, 325.0, 236.0)


@pytest.fixture(autouse=True, params=sorted(ransac.SOLVERS))
def solver(request, monkeypatch):
    """Run every test with each implementation of RANSAC."""
    if request.param == 'poselib':
        pytest.importorskip('poselib')
    monkeypatch.setattr(ransac, 'solver_name', lambda: request.param)
    return request.param


def random_pose(rng):
    return RigidTransform(rotation_from_vector(rng.normal(0, 0.8, 3)), rng.normal(0, 5, 3))


def scene(rng, count=80, near=2.0, far=8.0):
    """Return map_from_camera, points in the map and their exact pixels."""
    pose = random_pose(rng)
    pixels = rng.uniform([0, 0], [639, 479], (count, 2))
    depth = rng.uniform(near, far, (count, 1))
    in_camera = np.concatenate([CAMERA.normalize(pixels), np.ones((count, 1))], axis=1) * depth
    return pose, pose.apply(in_camera), pixels


def difference(estimate, truth):
    """Return the error in ROS order, rotation about the fixed axes of the map."""
    rotation = vector_from_rotation(estimate.rotation @ truth.rotation.T)
    return np.concatenate([estimate.translation - truth.translation, rotation])


def test_exact_without_noise(rng):
    for count in (6, 20, 300):
        pose, points, pixels = scene(rng, count)
        found = solve_pose(pixels, points, CAMERA, sigmas_px=np.ones(count))
        metres, degrees = pose_error(found.camera_from_map.inverse(), pose)
        assert metres < 1e-6
        assert degrees < 1e-6
        assert found.inlier_mask.all()
        assert found.reprojection_errors_px.max() < 1e-4
        assert not found.rank_deficient
        depth = pose.inverse().apply(points)[:, 2]
        assert np.isclose(found.median_depth, np.median(depth))


def trials(rng, *, count, sigma, point_sigma=0.0, number=250, outliers=0.0):
    """Return the normalised squared errors (number, 3): all six, translation, rotation."""
    values = []
    for _ in range(number):
        pose, points, pixels = scene(rng, count)
        noise = np.exp(rng.normal(np.log(sigma), 0.3, count)) if sigma else np.full(count, 1e-3)
        covariances = None
        seen = points
        if point_sigma:
            roots = point_sigma * rng.normal(0, 1, (count, 3, 3)) / np.sqrt(3)
            covariances = roots @ roots.transpose(0, 2, 1) + 1e-8 * np.eye(3)
            seen = points + np.einsum('nij,nj->ni', roots, rng.normal(0, 1, (count, 3)))
        noisy = pixels + noise[:, None] * rng.normal(0, 1, (count, 2))
        wrong = rng.random(count) < outliers
        noisy[wrong] = rng.uniform([0, 0], [639, 479], (int(wrong.sum()), 2))
        found = solve_pose(
            noisy,
            seen,
            CAMERA,
            sigmas_px=noise,
            point_covariances=covariances,
            config=PoseSolverConfig(min_sigma_px=0.0),
        )
        error = difference(found.camera_from_map.inverse(), pose)
        covariance = found.covariance
        values.append(
            [
                error @ np.linalg.solve(covariance, error),
                error[:3] @ np.linalg.solve(covariance[:3, :3], error[:3]),
                error[3:] @ np.linalg.solve(covariance[3:, 3:], error[3:]),
            ]
        )
    return np.array(values)


def matches_of(pixels, points, landmark_idx, sigma):
    """Return candidates of which the first is the most similar, of landmarks that are exact."""
    count = landmark_idx.shape[1]
    return CandidateMatches(
        pixels,
        np.full(len(pixels), sigma),
        np.tile(0.95 - 0.05 * np.arange(count), (len(pixels), 1)),
        landmark_idx,
        points,
        np.zeros((len(points), 3, 3)),
        CAMERA,
    )


def test_guided_refinement_uses_what_ransac_was_not_given(rng):
    """RANSAC gets a tenth of the keypoints; the candidates of all include the right ones."""
    config = PoseSolverConfig()
    before, after = [], []
    for _ in range(40):
        pose, points, pixels = scene(rng, 200)
        noisy = pixels + rng.normal(0, 0.7, pixels.shape)
        sigmas = np.full(200, 0.7)
        landmark_idx = np.stack([np.arange(200), rng.integers(0, 200, 200)], axis=1)
        # For a third of the keypoints a wrong landmark is more similar than the right one.
        swapped = rng.random(200) < 0.33
        landmark_idx[swapped] = landmark_idx[swapped][:, ::-1]
        found = solve_pose(noisy[:20], points[:20], CAMERA, sigmas_px=sigmas[:20], config=config)
        guided = refine_guided(found, matches_of(noisy, points, landmark_idx, 0.7), config)
        before.append(pose_error(found.camera_from_map.inverse(), pose)[0])
        after.append(pose_error(guided.camera_from_map.inverse(), pose)[0])
        assert np.trace(guided.covariance) < np.trace(found.covariance)
        # The evidence stays that of RANSAC.
        assert guided.inlier_mask is found.inlier_mask
    assert np.median(after) < 0.6 * np.median(before)


def test_guided_refinement_goes_on_until_it_finds_the_same(rng):
    """A pose some px off finds a part of the landmarks first, and the rest when refined on it."""
    pose, points, pixels = scene(rng, 300)
    noisy = pixels + rng.normal(0, 0.5, pixels.shape)
    found = solve_pose(noisy, points, CAMERA, sigmas_px=np.full(300, 0.5))
    turn = RigidTransform(rotation_from_vector(np.array([0.0, 0.012, 0.03])), np.zeros(3))
    start = dataclasses.replace(
        found,
        camera_from_map=turn @ found.camera_from_map,
        inlier_mask=np.arange(300) < 10,
    )
    matches = matches_of(noisy, points, np.arange(300)[:, None], 0.5)
    guided = refine_guided(start, matches, PoseSolverConfig())
    best = pose_error(found.camera_from_map.inverse(), pose)
    error = pose_error(guided.camera_from_map.inverse(), pose)
    assert error[1] < 1.5 * best[1] + 1e-3, (error, best)


def test_the_right_pose_finds_support_and_a_wrong_one_none(rng):
    pose, points, pixels = scene(rng, 300)
    landmark_idx = np.stack([rng.integers(0, 300, 300), np.arange(300)], axis=1)
    inlier_idx = np.arange(20)
    turn = RigidTransform(rotation_from_vector(np.array([0.0, 0.3, 0.0])), np.zeros(3))
    right, wrong = (
        find_support(
            camera_from_map,
            matches_of(pixels, points, landmark_idx, 1.0),
            inlier_idx,
            inlier_idx,
            PoseSolverConfig(),
        )
        for camera_from_map in (pose.inverse(), turn @ pose.inverse())
    )
    # All but the inliers.
    assert 275 <= right.count <= 280
    assert wrong.count <= 5
    # All over the image, as the keypoints are.
    assert right.spread > 0.5


def test_guided_refinement_needs_more_than_there_was(rng):
    _, points, pixels = scene(rng, 60)
    found = solve_pose(pixels, points, CAMERA, sigmas_px=np.ones(60))
    matches = matches_of(pixels[:30], points, np.arange(30)[:, None], 1.0)
    assert refine_guided(found, matches, PoseSolverConfig()) is found
    # Nor is anything known of the focal length then.
    assert with_intrinsics_error(found, matches, PoseSolverConfig()) is found


def test_the_first_of_each_value_is_told(rng):
    values = rng.integers(0, 30, 200)
    _, expected = np.unique(values, return_index=True)
    assert np.flatnonzero(first_of_each(values, 40)).tolist() == sorted(expected)


def focal_of(rng, factor, noise=0.5, flat=False, outliers=0):
    """Return what `focal_error` says where camera_info is off by a factor."""
    pose, points, pixels = scene(rng, 150)
    if flat:
        # A wall seen straight: further away or a shorter lens, nobody knows.
        in_camera = pose.inverse().apply(points)
        points = pose.apply(in_camera / in_camera[:, 2:] * 4.0)
    pixels = pixels + rng.normal(0, noise, pixels.shape)
    pixels[:outliers] += rng.uniform(-20, 20, (outliers, 2))
    given = dataclasses.replace(CAMERA, fx=CAMERA.fx / factor, fy=CAMERA.fy / factor)
    sigmas = np.full(len(pixels), noise)
    config = PoseSolverConfig()
    found = solve_pose(pixels, points, given, sigmas_px=sigmas, config=config)
    return focal_error(found.camera_from_map, pixels, points, given, sigmas, None, config)


@pytest.mark.parametrize('factor', [0.8, 0.95, 1.0, 1.05, 1.2])
def test_a_wrong_focal_length_is_told(rng, factor):
    errors = []
    for _ in range(5):
        change, sigma = focal_of(rng, factor, outliers=15)
        assert 0 < sigma < 0.01
        errors.append((change - np.log(factor)) / sigma)
    assert np.abs(errors).max() < 4.5


def test_focal_errors_are_as_large_as_their_sigmas(rng):
    normalised = [change / sigma for change, sigma in (focal_of(rng, 1.0) for _ in range(60))]
    assert 0.7 < np.std(normalised) < 1.4
    assert abs(np.mean(normalised)) < 0.5


def test_a_wall_seen_straight_tells_no_focal_length(rng):
    for factor in (0.8, 1.0, 1.2):
        change, sigma = focal_of(rng, factor, flat=True)
        assert abs(change) < 8 * sigma


def assert_consistent(values):
    """The mean of n chi-square values of k degrees of freedom lies in its 95 % band."""
    number = len(values)
    for column, degrees in enumerate((6, 3, 3)):
        low, high = stats.chi2.ppf([0.025, 0.975], degrees * number) / number
        assert low <= values[:, column].mean() <= high, (column, values[:, column].mean())


def test_covariance_is_honest_for_pixel_noise():
    assert_consistent(trials(np.random.default_rng(1), count=100, sigma=0.7))


def test_covariance_follows_noise_that_nobody_told_of(rng):
    """Twice the noise in the left half of the image, and half of it in the right one."""
    values = []
    for _ in range(150):
        pose, points, pixels = scene(rng, 600)
        noise = np.where(pixels[:, 0] < 320, 1.0, 0.25)
        noisy = pixels + noise[:, None] * rng.normal(0, 1, (600, 2))
        found = solve_pose(noisy, points, CAMERA, sigmas_px=np.full(600, 0.5))
        error = difference(found.camera_from_map.inverse(), pose)
        values.append(error @ np.linalg.solve(found.covariance, error))
    assert 5.0 <= np.mean(values) <= 7.5


def test_few_correspondences_have_the_noise_they_were_given():
    for sigma in (0.5, 2.0):
        _, points, pixels = scene(np.random.default_rng(4), 12)
        found = [
            solve_pose(pixels, points, CAMERA, sigmas_px=np.full(12, value))
            for value in (sigma, 2 * sigma)
        ]
        # Residuals of nothing do not make the pose certain.
        traces = [np.trace(item.covariance) for item in found]
        assert traces[1] > 3.0 * traces[0] > 0.0


def test_covariance_is_honest_for_uncertain_points():
    values = trials(np.random.default_rng(2), count=100, sigma=0.5, point_sigma=0.006)
    assert_consistent(values)


def test_covariance_with_outliers_is_not_too_small():
    values = trials(np.random.default_rng(3), count=150, sigma=0.5, outliers=0.4, number=120)
    low, high = stats.chi2.ppf([0.025, 0.975], 6 * len(values)) / len(values)
    # Random pixels that happen to lie near are taken for true: a little less sure is fine.
    assert 0.75 * low <= values[:, 0].mean() <= high


def test_covariance_axes_are_those_of_the_map(rng):
    """A far scene leaves the position along the view uncertain: in map axes, not camera axes."""
    pose = RigidTransform(rotation_from_vector([0, np.pi / 2, 0]), np.array([1.0, 2.0, 3.0]))
    pixels = rng.uniform([220, 140], [420, 340], (60, 2))
    depth = rng.uniform(9, 10, (60, 1))
    points = pose.apply(
        np.concatenate([CAMERA.normalize(pixels), np.ones((60, 1))], axis=1) * depth
    )
    found = solve_pose(pixels, points, CAMERA, sigmas_px=np.ones(60))
    # The optical axis lies along x of the map; sideways motion is mixed up with turning.
    np.testing.assert_allclose(pose.rotation[:, 2], [1, 0, 0], atol=1e-12)
    covariance = found.covariance
    turned = pose.rotation.T @ covariance[:3, :3] @ pose.rotation
    assert turned[2, 2] < turned[0, 0]
    # About the optical axis the rotation is known best: that is x of the map.
    assert covariance[3, 3] < 0.2 * min(covariance[4, 4], covariance[5, 5])


def test_covariance_against_finite_differences(rng):
    """J^T J by numbers, in the coordinates that the covariance is said to have."""
    pose, points, _ = scene(rng, 50)

    def residual(change):
        moved = RigidTransform(
            rotation_from_vector(change[3:]) @ pose.rotation, pose.translation + change[:3]
        )
        return CAMERA.project(moved.inverse().apply(points)).ravel()

    step = 1e-6
    jacobian = np.stack(
        [(residual(e * step) - residual(-e * step)) / (2 * step) for e in np.eye(6)], axis=1
    )
    expected = np.linalg.inv(jacobian.T @ jacobian)
    camera_from_map = pose.inverse()
    in_camera = camera_from_map.apply(points)

    def left(change):
        rotation = rotation_from_vector(change[:3])
        return CAMERA.project(in_camera @ rotation.T + change[3:]).ravel()

    jacobian = np.stack([(left(e * step) - left(-e * step)) / (2 * step) for e in np.eye(6)], 1)
    found, deficient = covariance_of_pose(camera_from_map, jacobian.T @ jacobian)
    assert not deficient
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_outliers_do_not_move_the_pose(rng):
    for _ in range(10):
        pose, points, pixels = scene(rng, 200)
        noisy = pixels + 0.3 * rng.normal(size=pixels.shape)
        clean = solve_pose(noisy, points, CAMERA, sigmas_px=np.full(200, 0.3))
        wrong = rng.permutation(200)[:120]
        spoiled = noisy.copy()
        spoiled[wrong] = rng.uniform([0, 0], [639, 479], (120, 2))
        found = solve_pose(spoiled, points, CAMERA, sigmas_px=np.full(200, 0.3))
        metres, degrees = pose_error(found.camera_from_map.inverse(), pose)
        clean_metres, _ = pose_error(clean.camera_from_map.inverse(), pose)
        assert metres < max(3 * clean_metres, 0.02)
        assert degrees < 0.2
        far = np.linalg.norm(spoiled - pixels, axis=1) > 10
        assert not found.inlier_mask[far].any()
        assert found.inlier_mask[~far].mean() > 0.9


def test_noisy_keypoints_weigh_less(rng):
    errors = {True: [], False: []}
    for _ in range(60):
        pose, points, pixels = scene(rng, 60)
        noise = np.where(np.arange(60) % 2, 0.2, 3.0)
        noisy = pixels + noise[:, None] * rng.normal(size=(60, 2))
        for told in (True, False):
            sigmas = noise if told else np.full(60, 1.0)
            found = solve_pose(noisy, points, CAMERA, sigmas_px=sigmas)
            errors[told].append(pose_error(found.camera_from_map.inverse(), pose)[0])
    assert np.mean(errors[True]) < 0.75 * np.mean(errors[False])


def test_deterministic(rng):
    _, points, pixels = scene(rng, 120)
    pixels = pixels + rng.normal(0, 1, pixels.shape)
    pixels[:60] = rng.uniform([0, 0], [639, 479], (60, 2))
    first = solve_pose(pixels, points, CAMERA, sigmas_px=np.ones(120))
    for _ in range(3):
        again = solve_pose(pixels, points, CAMERA, sigmas_px=np.ones(120))
        assert (again.camera_from_map.matrix == first.camera_from_map.matrix).all()
        assert (again.covariance == first.covariance).all()
        assert (again.inlier_mask == first.inlier_mask).all()


def is_refused(estimate):
    """No pose, or one that is not accepted."""
    count = 0 if estimate is None else int(estimate.inlier_mask.sum())
    evidence = PoseEvidence(CAMERA, estimate, num_used=count, threshold_px=8.0)
    return first_failure(checks(evidence, Limits())) is not None


def test_too_few_points(rng):
    for count in range(4):
        _, points, pixels = scene(rng, count)
        assert solve_pose(pixels, points, CAMERA, sigmas_px=np.ones(count)) is None


def test_four_points_are_never_enough_for_the_localizer(rng):
    for _ in range(20):
        _, points, pixels = scene(rng, 4)
        assert is_refused(solve_pose(pixels, points, CAMERA, sigmas_px=np.ones(4)))


def test_nothing_explains_random_points(rng):
    for _ in range(5):
        pixels = rng.uniform([0, 0], [639, 479], (60, 2))
        points = rng.normal(0, 5, (60, 3))
        assert is_refused(solve_pose(pixels, points, CAMERA, sigmas_px=np.ones(60)))


def test_collinear_points_are_refused(rng):
    for _ in range(10):
        pose = random_pose(rng)
        start, direction = np.array([-1.0, -0.5, 4.0]), np.array([1.0, 0.6, 0.4])
        in_camera = start + rng.uniform(0, 2, (60, 1)) * direction
        pixels = CAMERA.project(in_camera)
        for noise in (0.0, 0.5):
            noisy = pixels + noise * rng.normal(size=pixels.shape)
            found = solve_pose(noisy, pose.apply(in_camera), CAMERA, sigmas_px=np.full(60, 0.5))
            assert is_refused(found)


def test_one_point_many_times_is_refused(rng):
    _, points, pixels = scene(rng, 1)
    found = solve_pose(
        np.repeat(pixels, 60, axis=0), np.repeat(points, 60, axis=0), CAMERA, sigmas_px=np.ones(60)
    )
    assert is_refused(found)


def test_a_distant_small_patch_is_refused_or_uncertain(rng):
    for _ in range(10):
        pose = random_pose(rng)
        patch = np.array([0.2, -0.1, 60.0]) + rng.uniform(-1, 1, (60, 3)) * [1.5, 1.5, 0.0]
        pixels = CAMERA.project(patch) + 0.5 * rng.normal(size=(60, 2))
        found = solve_pose(pixels, pose.apply(patch), CAMERA, sigmas_px=np.full(60, 0.5))
        assert is_refused(found)
        if found is not None:
            assert np.sqrt(np.trace(found.covariance[:3, :3])) > 1.0


def test_a_plane_that_fills_the_view_is_fine(rng):
    pose = random_pose(rng)
    pixels = rng.uniform([0, 0], [639, 479], (80, 2))
    rays = np.concatenate([CAMERA.normalize(pixels), np.ones((80, 1))], axis=1)
    normal = np.array([0.3, 0.2, 1.0])
    in_camera = rays * (5.0 / (rays @ normal))[:, None]
    found = solve_pose(pixels, pose.apply(in_camera), CAMERA, sigmas_px=np.full(80, 0.5))
    metres, _ = pose_error(found.camera_from_map.inverse(), pose)
    assert metres < 1e-5
    assert not is_refused(found)


def test_points_behind_the_camera_are_no_inliers(rng):
    pose, points, pixels = scene(rng, 100)
    in_camera = pose.inverse().apply(points)
    in_camera[:40] *= -1
    found = solve_pose(pixels, pose.apply(in_camera), CAMERA, sigmas_px=np.ones(100))
    metres, _ = pose_error(found.camera_from_map.inverse(), pose)
    assert metres < 1e-5
    assert not found.inlier_mask[:40].any()
    assert found.inlier_mask[40:].all()
    assert np.isinf(found.reprojection_errors_px[:40]).all()
    errors, _ = reprojection_errors(pose.inverse(), pixels, pose.apply(in_camera), CAMERA)
    assert np.isinf(errors[:40]).all()


def test_rank_deficient_information_gives_a_huge_covariance():
    information = np.diag([1e6, 1e6, 1e6, 1e4, 1e4, 0.0])
    covariance, deficient = covariance_of_pose(RigidTransform.identity(), information)
    assert deficient
    assert np.linalg.eigvalsh(covariance)[-1] > 1e6
    covariance, deficient = covariance_of_pose(RigidTransform.identity(), np.zeros((6, 6)))
    assert deficient
    assert np.isfinite(covariance).all()
    assert np.diag(covariance).min() > 1e6


def test_spread(rng):
    _, points, pixels = scene(rng, 400)
    found = solve_pose(pixels, points, CAMERA, sigmas_px=np.ones(400))
    # Uniform over the image: 4 pi sqrt(1/12 * 1/12) of its area.
    assert found.spread(CAMERA) == pytest.approx(4 * np.pi / 12, rel=0.15)


def test_scale_of_the_map_does_not_matter(rng):
    _, points, pixels = scene(rng, 80)
    pixels = pixels + 0.5 * rng.normal(size=pixels.shape)
    one = solve_pose(pixels, points, CAMERA, sigmas_px=np.full(80, 0.5))
    for scale in (1e-3, 1e3):
        other = solve_pose(pixels, scale * points, CAMERA, sigmas_px=np.full(80, 0.5))
        a, b = one.camera_from_map.inverse(), other.camera_from_map.inverse()
        np.testing.assert_allclose(b.translation / scale, a.translation, atol=1e-3)
        np.testing.assert_allclose(
            other.covariance[:3, :3] / scale**2, one.covariance[:3, :3], rtol=0.05, atol=1e-9
        )
        np.testing.assert_allclose(
            other.covariance[3:, 3:], one.covariance[3:, 3:], rtol=0.05, atol=1e-9
        )


def test_bad_options():
    from d2s_ros.errors import ConfigError

    with pytest.raises(ConfigError):
        PoseSolverConfig(max_reprojection_error_px=0.0)


def test_candidates_close_by_are_the_same_with_both_kernels(rng, use_kernels):
    pose, points, pixels = scene(rng, 200)
    pixels[:5] = np.nan
    landmark_idx = rng.integers(0, 200, (200, 4))
    landmark_idx[::3, 2] = np.arange(200)[::3]
    matches = matches_of(pixels + rng.normal(0, 1, pixels.shape), points, landmark_idx, 1.0)
    points[7] = pose.apply(np.array([[0.0, 0.0, -3.0]]))[0]
    taken, skipped = rng.random(200) < 0.1, rng.random(200) < 0.1
    options = ({}, {'skipped': skipped}, {'taken': taken}, {'skipped': skipped, 'taken': taken})
    camera_from_map = pose.inverse()
    use_kernels('compiled')
    compiled = [matches.first_close(camera_from_map, 3.0, **option) for option in options]
    use_kernels('reference')
    for option, expected in zip(options, compiled, strict=True):
        found = matches.first_close(camera_from_map, 3.0, **option)
        np.testing.assert_array_equal(found, expected)
        assert (found[:5] == -1).all()
        assert (found >= 0).sum() > 30
