"""Images without poses: which matches are believed, and what is made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scene_models.made_up_scene import made_up_reconstruction

from d2s_ros.data.array_log import StageLog
from d2s_ros.errors import InputError
from d2s_ros.reconstruction import unposed
from d2s_ros.reconstruction.colmap_database import verified_matches
from d2s_ros.reconstruction.pipeline import reconstruct
from d2s_ros.reconstruction.pose_refinement import align_poses
from d2s_ros.reconstruction.reconstruction import ImageInput, ReconstructionConfig
from d2s_ros.reconstruction.self_calibration import focal_sigma_px
from d2s_ros.reconstruction.triangulation import triangulate


@pytest.fixture(scope='module')
def truth():
    return made_up_reconstruction(num_images=14, num_points=300, num_clutter=60, noise_px=0.4)


@pytest.fixture(scope='module')
def images(truth):
    return [ImageInput(i.name, i.stamp_ns, i.camera, None, i.features) for i in truth.images]


def shared(truth, i, j):
    """Return the right matches (M, 2) of two images."""
    a, b = truth.images[i].point_idx, truth.images[j].point_idx
    points = np.intersect1d(a[a >= 0], b[b >= 0])
    rows = [np.array([np.flatnonzero(of == point)[0] for point in points]) for of in (a, b)]
    return np.stack(rows, axis=1)


@pytest.mark.parametrize('calibrated', [True, False])
def test_matches_that_obey_one_geometry_are_kept(truth, images, rng, calibrated):
    """Right ones are; of random ones hardly any, and none at all where none are right."""
    seen = [image.ideal_keypoints for image in truth.images]
    right = shared(truth, 0, 1)
    size = len(right) // 2
    wrong = np.stack([rng.integers(0, len(seen[of]), size) for of in (0, 1)], axis=1)
    found = np.concatenate([right, wrong])
    kept = verified_matches(images, seen, (0, 1), found, calibrated)
    of_right = (kept[:, None] == right[None]).all(axis=2).any(axis=1)
    assert of_right.sum() > 0.95 * len(right)
    assert (~of_right).sum() < 0.15 * size
    again = verified_matches(images, seen, (0, 1), found, calibrated)
    np.testing.assert_array_equal(kept, again)
    assert not len(verified_matches(images, seen, (0, 1), wrong, calibrated))
    assert not len(verified_matches(images, seen, (0, 1), right[:10], calibrated))


def centres_off(found, truth):
    """Return how far cameras are off after the best similarity, as a share of their spread."""
    true = {image.name: image.map_from_camera for image in truth.images}
    own = [image.map_from_camera for image in found.images]
    align = align_poses(own, [true[image.name] for image in found.images])
    right = np.stack([true[image.name].translation for image in found.images])
    off = np.stack([align(pose).translation for pose in own]) - right
    return np.linalg.norm(off, axis=1).max() / np.linalg.norm(right - right.mean(0), axis=1).mean()


@pytest.mark.parametrize('at_once', [False, True])
def test_poses_are_found(truth, images, at_once, caplog):
    found = reconstruct(images, ReconstructionConfig(global_mapping=at_once))
    assert 'may be wrong' not in caplog.text
    assert not found.metric
    assert len(found.images) == len(images)
    assert centres_off(found, truth) < 0.03
    assert found.focal_sigma_px is None


def test_a_bent_model_is_straightened(truth, images, monkeypatch):
    """What incremental mapping leaves of the matches does not limit what is made of them."""
    rounds = unposed._adjusted

    def with_few_points(model, database, *args, **options):
        """Throw away nine of ten points, and move every camera by a twentieth of the spread."""
        draw = np.random.default_rng(1)
        if database.with_name('model').exists() and not (database.parent / 'model_12').exists():
            for number, point in enumerate(sorted(model.point3D_ids())):
                if number % 10:
                    model.delete_point3D(point)
            for image in model.images.values():
                pose = image.frame.rig_from_world
                pose.translation = pose.translation + 0.03 * draw.normal(size=3)
                image.frame.rig_from_world = pose
        return rounds(model, database, *args, **options)

    monkeypatch.setattr(unposed, '_adjusted', with_few_points)
    found = reconstruct(images)
    assert len(found.images) == len(images)
    assert centres_off(found, truth) < 0.03


def test_an_interrupted_run_goes_on(images, tmp_path, monkeypatch):
    """From the poses that it had found: mapping does not run again, and the points are the same."""
    log = StageLog(tmp_path / 'matches')
    first = reconstruct(images, stage=log)
    log.close()

    def not_again(*_args, **_options):
        raise AssertionError('mapped again')

    monkeypatch.setattr(unposed, '_map', not_again)
    again = reconstruct(images, stage=StageLog(tmp_path / 'matches'))
    assert [image.name for image in again.images] == [image.name for image in first.images]
    assert len(again.points_in_map) == len(first.points_in_map)


def test_the_camera_is_found_with_the_poses(truth, images):
    """From a focal length that is 15 % off, without distortion."""
    camera = truth.images[0].camera
    guess = replace(
        camera, model='pinhole', fx=1.15 * camera.fx, fy=1.15 * camera.fx, distortion=()
    )
    found = reconstruct([replace(image, camera=guess) for image in images], calibrated=False)
    own = found.images[0].camera
    assert own.fx == pytest.approx(camera.fx, rel=0.03)
    assert found.focal_sigma_px == pytest.approx(focal_sigma_px(found))
    other = replace(guess, width=guess.width + 2)
    mixed = [replace(image, camera=guess) for image in images[:-1]]
    with pytest.raises(InputError, match='2 sizes'):
        reconstruct([*mixed, replace(images[-1], camera=other)], calibrated=False)


def test_points_that_two_images_see_are_doubtful(images, caplog, monkeypatch):
    """In hallways that were wrong nearly all points were seen by two images."""

    def in_pairs(*args):
        found = triangulate(*args)
        return replace(found, track_lengths=np.minimum(found.track_lengths, 2))

    monkeypatch.setattr(unposed, 'triangulate', in_pairs)
    reconstruct(images)
    assert 'may be wrong' in caplog.text
    assert '--global-mapping' in caplog.text


def test_places_that_share_nothing_are_refused(images):
    config = ReconstructionConfig(min_similarity=1.0)
    with pytest.raises(InputError, match='no two mapping images match'):
        reconstruct(images, config)
