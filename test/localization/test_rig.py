"""Several cameras localized together: one pose, and no camera can spoil it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from d2s_ros.geometry import ransac
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.ransac import CameraOfRig, RansacConfig, find_rig_pose
from d2s_ros.geometry.transforms import (
    RigidTransform,
    covariance_of_body,
    pose_error,
    rotation_from_vector,
)
from d2s_ros.localization.guided_refinement import CandidateMatches, close_beyond_chance
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.pose_solver import PoseSolverConfig, minimise, residuals_of
from d2s_ros.localization.result import LocalizationStatus
from d2s_ros.localization.rig_shot import RigShot
from d2s_ros.localization.rig_solver import RigResiduals
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import base_from_camera, rendered_frames
from d2s_ros.tracking.calibration_watch import CalibrationWatch

CAMERA = Camera('pinhole', 640, 480, 460.0, 460.0, 320.0, 240.0)
PLACES = (
    RigidTransform.identity(),
    RigidTransform(rotation_from_vector([0.1, 3.0, 0.0]), np.array([0.1, 0.0, 0.4])),
)
TRUTH = RigidTransform(rotation_from_vector([0.1, 0.2, 0.3]), np.array([0.4, -0.2, 0.3]))


def made_up(rng, count, noise_px, outliers=0):
    """Return the correspondences of each camera of PLACES."""
    cameras = []
    for place in PLACES:
        depth = rng.uniform(2, 6, count)
        pixels = rng.uniform([0, 0], [640, 480], (count, 2))
        rays = (pixels - [320, 240]) / 460
        points = np.column_stack([rays * depth[:, None], depth])
        seen = pixels + noise_px * rng.standard_normal(pixels.shape)
        # The most reliable ones come first.
        seen[count - outliers :] = rng.uniform([0, 0], [640, 480], (outliers, 2))
        points = (place @ TRUTH).inverse().apply(points)
        cameras.append(CameraOfRig(seen, points, CAMERA, place, 4.0))
    return cameras


@pytest.mark.parametrize('solver', ['poselib', 'opencv'])
def test_ransac_finds_the_pose_of_the_rig(rng, monkeypatch, solver):
    if solver == 'poselib':
        pytest.importorskip('poselib')
    monkeypatch.setattr(ransac, 'solver_name', lambda: solver)
    cameras = made_up(rng, 100, 0.3, outliers=40)
    pose, inliers = find_rig_pose(cameras, RansacConfig(4.0, 1000, 20, 0))
    metres, degrees = pose_error(pose, TRUTH)
    assert metres < 0.02
    assert degrees < 0.3
    for mask in inliers:
        assert mask[:60].mean() > 0.9
        assert mask[60:].mean() < 0.2
    # One camera that sees nothing is as good as none.
    blind = cameras[1]._replace(
        ideal_keypoints=cameras[1].ideal_keypoints[:0], points_in_map=cameras[1].points_in_map[:0]
    )
    pose, inliers = find_rig_pose([cameras[0], blind], RansacConfig(4.0, 1000, 20, 0))
    assert pose_error(pose, TRUTH)[0] < 0.05
    assert len(inliers[1]) == 0


def test_the_refinement_finds_the_optimum_and_its_covariance(rng):
    """The covariance is that of the errors of many noisy rigs, in every direction."""
    config = PoseSolverConfig(min_sigma_px=0.0)
    normalized = []
    for _ in range(120):
        parts = []
        for one in made_up(rng, 40, 0.5):
            residuals = residuals_of(
                one.ideal_keypoints,
                one.points_in_map,
                one.camera,
                np.full(40, 0.5),
                None,
                config,
            )
            parts.append((residuals, one.camera_from_rig))
        problem = RigResiduals(parts, config.cauchy_scale)
        start = RigidTransform(rotation_from_vector([0.001, 0, 0]), np.array([0.002, 0, 0])) @ TRUTH
        pose, uncertainty = minimise(problem, start, 80, config, rounds=2)
        found, truth = pose.inverse(), TRUTH.inverse()
        covariance, deficient = uncertainty.found
        assert not deficient
        turn = found.rotation @ truth.rotation.T
        vector = 0.5 * np.array(
            [turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]
        )
        error = np.concatenate([found.translation - truth.translation, vector])
        normalized.append(error @ np.linalg.inv(covariance) @ error / 6)
    assert 0.7 < np.mean(normalized) < 1.4


def test_pairs_that_are_close_by_chance_move_no_rig(rng):
    """A camera that sees nothing of the map finds some landmarks close to keypoints anyway."""
    right, _ = made_up(rng, 60, 0.5)
    points = right.points_in_map
    sigmas, similarity = np.full(60, 0.5), np.full((60, 1), 0.9, np.float32)

    def close(keypoints):
        matches = CandidateMatches(
            keypoints,
            sigmas,
            similarity,
            np.arange(60)[:, None],
            points,
            np.broadcast_to(1e-6 * np.eye(3), (60, 3, 3)),
            CAMERA,
        )
        return len(close_beyond_chance(matches, TRUTH, 6.0))

    assert close(right.ideal_keypoints) == 60
    scattered = 0
    for _ in range(20):
        radius = 6.0 * np.sqrt(rng.uniform(0, 1, 60))
        angle = rng.uniform(0, 2 * np.pi, 60)
        offset = radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
        scattered += close(right.ideal_keypoints + 0.99 * offset) > 0
    # Two sigmas: by chance one of fifty.
    assert scattered <= 3


def test_a_rig_of_one_camera_is_that_camera(rng):
    config = PoseSolverConfig()
    one = made_up(rng, 60, 0.5)[1]
    residuals = residuals_of(
        one.ideal_keypoints, one.points_in_map, CAMERA, np.full(60, 0.5), None, config
    )
    rig_pose, rig_uncertainty = minimise(
        RigResiduals([(residuals, PLACES[1])], config.cauchy_scale), TRUTH, 60, config, rounds=2
    )
    pose, uncertainty = minimise(residuals, PLACES[1] @ TRUTH, 60, config, rounds=2)
    assert pose_error(PLACES[1] @ rig_pose, pose)[0] < 1e-4
    moved = covariance_of_body(uncertainty.found[0], pose.inverse(), PLACES[1])
    assert np.allclose(rig_uncertainty.found[0], moved, rtol=0.05, atol=1e-3 * moved.max())


@pytest.fixture(scope='module')
def localizer(small_map):
    return Localizer.from_map(small_map.path, device='cpu')


CONFIG = SimulationConfig(
    seed=3, frames=5, width=480, height=360, trajectory='random', trajectory_seed=1, cameras=4
)
LEFT_IN_FRONT = base_from_camera(CONFIG, 0).inverse() @ base_from_camera(CONFIG, 1)


@pytest.fixture(scope='module')
def moments():
    """Return what a front and a left camera see, moment by moment."""
    return list(
        zip(
            *([frame for frame, _ in rendered_frames(CONFIG, None, i)] for i in (0, 1)), strict=True
        )
    )


def localized(localizer, moment, place=LEFT_IN_FRONT, blind=(), **options):
    places = (RigidTransform.identity(), place)
    return localizer.localize_rig(
        [
            RigShot(
                name,
                np.zeros_like(frame.image) if name in blind else frame.image,
                frame.camera,
                where,
            )
            for name, frame, where in zip(('front', 'left'), moment, places, strict=True)
        ],
        **options,
    )


def test_two_cameras_are_one_pose(localizer, moments):
    alone = [localizer.localize(front.image, front.camera) for front, _ in moments]
    together = [localized(localizer, moment) for moment in moments]
    assert sum(r.localized for r in together) >= sum(r.localized for r in alone)
    assert sum(r.localized for r in together) >= 4
    for result, (front, _) in zip(together, moments, strict=True):
        assert [share.name for share in result.cameras] == ['front', 'left']
        if result.localized:
            metres, degrees = pose_error(result.map_from_camera, front.map_from_camera)
            assert metres < 0.03
            assert degrees < 0.5
            assert result.num_inliers == sum(share.num_inliers for share in result.cameras)
    both = [r for r in together if [s.status for s in r.cameras] == ['used', 'used']]
    assert both


def test_blind_cameras_do_no_harm(localizer, moments):
    for moment in moments:
        front, _ = moment
        alone = localizer.localize(front.image, front.camera)
        result = localized(localizer, moment, blind=('left',), details=True)
        assert result.localized == alone.localized
        assert result.cameras[1].status == LocalizationStatus.TOO_FEW_KEYPOINTS.value
        if alone.localized:
            assert (result.map_from_camera.matrix == alone.map_from_camera.matrix).all()
            assert np.allclose(result.covariance, alone.covariance)
    neither = localized(localizer, moments[0], blind=('front', 'left'))
    assert neither.status is LocalizationStatus.TOO_FEW_KEYPOINTS
    missing = localizer.localize_rig([RigShot('front', None, None, RigidTransform.identity())])
    assert missing.status is LocalizationStatus.BAD_IMAGE
    assert localizer.localize_rig([]).status is LocalizationStatus.BAD_IMAGE


def test_a_wrong_extrinsic_is_measured_and_spoils_no_pose(localizer, moments):
    wrong = LEFT_IN_FRONT @ RigidTransform(
        rotation_from_vector([0, np.radians(4), 0]), np.array([0.1, 0, 0])
    )
    told = []
    for moment in moments:
        result = localized(localizer, moment, place=wrong)
        for share in result.cameras:
            if share.status == 'left_out':
                told.append(share.disagreement)
                assert 'from where its transform says' in share.reason
        if result.localized and result.cameras[0].status == 'used':
            metres, _ = pose_error(result.map_from_camera, moment[0].map_from_camera)
            assert metres < 0.05
    assert told
    assert np.median([one.degrees for one in told]) == pytest.approx(4.0, abs=1.0)


def test_right_extrinsics_cost_no_camera(localizer):
    """Weak cameras look far off to first order; four that stand where they should all count."""
    walk = replace(CONFIG, frames=14)
    views = [[frame for frame, _ in rendered_frames(walk, None, i)] for i in range(4)]
    places = [base_from_camera(CONFIG, 0).inverse() @ base_from_camera(CONFIG, i) for i in range(4)]
    names = ('front', 'left', 'back', 'right')
    for number in (1, 2, 8):
        moment = [view[number] for view in views]
        result = localizer.localize_rig(
            [
                RigShot(name, frame.image, frame.camera, place)
                for name, frame, place in zip(names, moment, places, strict=True)
            ]
        )
        assert [share.reason for share in result.cameras if share.status == 'left_out'] == []
        assert result.localized, result.reason
        metres, degrees = pose_error(result.map_from_camera, moment[0].map_from_camera)
        assert metres < 0.02
        assert degrees < 0.2


def test_a_wrong_calibration_of_one_camera_is_told(localizer, moments):
    """Cameras that agree on a pose, or prove one alone, say what is wrong with whose intrinsics."""

    def told(moved_px):
        results = []
        for front, left in moments:
            camera = replace(left.camera, cx=left.camera.cx + moved_px)
            results.append(localized(localizer, (front, replace(left, camera=camera))))
        shown = [
            share.intrinsics_error.change[2] * CAMERA.fx
            for result in results
            for share in result.cameras
            if share.name == 'left' and share.intrinsics_error is not None
        ]
        watch = CalibrationWatch()
        # Few images show enough: each is taken in twice.
        told = [watch.check(result, 0.02, 0.025) for result in results * 2]
        return told[-1], shown

    reason, shown = told(0.0)
    assert reason == ''
    assert np.abs(shown).max() < 10.0
    reason, shown = told(30.0)
    assert reason.startswith('left: ')
    assert min(shown) == pytest.approx(-30.0, abs=15.0)
