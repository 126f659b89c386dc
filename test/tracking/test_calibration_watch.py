"""Several images together tell what is wrong with a calibration."""

from __future__ import annotations

import numpy as np

from d2s_ros.localization.intrinsics_error import IntrinsicsError, together
from d2s_ros.localization.result import CameraShare, LocalizationResult, LocalizationStatus
from d2s_ros.tracking.calibration_watch import CalibrationWatch


def seen(change, sigma, status=LocalizationStatus.LOCALIZED):
    return LocalizationResult(status, focal_error=(change, sigma))


def test_several_images_tell_a_wrong_focal_length(rng):
    watch = CalibrationWatch()
    reasons = [watch.check(seen(0.05 + rng.normal(0, 0.012), 0.012), 0.02, 0.02) for _ in range(12)]
    assert reasons[:4] == [''] * 4
    assert reasons[-1]
    assert '+5' in reasons[-1] or '+4' in reasons[-1]
    assert 'camera_info' in reasons[-1]
    watch.reset()
    assert watch.check(seen(0.05, 0.001), 0.02, 0.02) == ''


def test_images_that_disagree_or_tell_nothing_accuse_nobody(rng):
    watch = CalibrationWatch()
    for index in range(40):
        assert watch.check(seen(0.2 if index % 10 == 0 else 0.0, 0.004), 0.02, 0.02) == ''
        assert watch.check(seen(0.0, float('inf')), 0.02, 0.02) == ''
        assert watch.check(seen(0.5, 1e-4, LocalizationStatus.TOO_FEW_INLIERS), 0.02, 0.02) == ''


def test_a_camera_that_fits_again_is_believed():
    watch = CalibrationWatch()
    for _ in range(20):
        reason = watch.check(seen(0.1, 0.005), 0.02, 0.02)
    assert reason
    for _ in range(20):
        reason = watch.check(seen(0.0, 0.005), 0.02, 0.02)
    assert reason == ''


#: Log focal length, log fx over fy, cx and cy in focal lengths, k1.
SIGMAS = np.array([0.02, 0.01, 0.03, 0.03, 0.06])


def fitted(change, rng=None, sigmas=SIGMAS):
    noise = 0.0 if rng is None else rng.normal(0.0, sigmas)
    information = np.diag(1.0 / np.square(sigmas))
    error = IntrinsicsError(information, information @ (np.array(change) + noise), 500.0)
    return LocalizationResult(LocalizationStatus.LOCALIZED, intrinsics_error=error)


def reasons(change, rng, count=20):
    watch = CalibrationWatch()
    return [watch.check(fitted(change, rng), 0.02, 0.025) for _ in range(count)]


def test_several_images_name_what_is_wrong(rng):
    shifted = reasons((0, 0, -0.06, 0, 0), rng)
    assert shifted[:2] == [''] * 2
    assert shifted[4]
    assert 'cx by -' in shifted[-1]
    assert 'px' in shifted[-1]
    assert 'cy' not in shifted[-1]
    assert 'fx over fy by -' in reasons((0, -0.1, 0, 0, 0), rng)[-1]
    raw, rectified = (reasons((0, 0, 0, 0, k1), rng)[-1] for k1 in (-0.2, 0.2))
    assert 'k1 by -0.' in raw
    assert 'raw images' in raw
    assert 'k1 by +0.' in rectified
    assert 'rectified already' in rectified


def test_noise_and_small_errors_of_intrinsics_accuse_nobody(rng):
    for _ in range(10):
        assert not any(reasons((0, 0, 0, 0, 0), rng))
    assert not any(reasons((0.01, 0.005, 0.008, -0.008, 0.01), rng))


def test_images_that_disagree_say_less_together(rng):
    alike = [fitted((0, 0, 0.05, 0, 0)).intrinsics_error for _ in range(10)]
    unlike = [fitted((0, 0, 0.3 * (i % 2) - 0.1, 0, 0)).intrinsics_error for i in range(10)]
    assert np.allclose(together(alike).change, together(unlike).change, atol=0.01)
    assert together(unlike).sigmas[2] > 2 * together(alike).sigmas[2]


def test_what_no_image_knows_stays_unknown():
    unknown = IntrinsicsError(np.zeros((5, 5)), np.zeros(5), 500.0)
    assert np.allclose(together([unknown] * 8).change, 0.0)
    known = fitted((0, 0, 0.05, 0, 0)).intrinsics_error
    assert np.allclose(
        together([unknown, known] * 8).change, together([known] * 8).change, atol=1e-6
    )


def of_rig(front, left, status=LocalizationStatus.LOCALIZED, used=40):
    """Return the result of a rig whose cameras say this of their intrinsics; None: not asked."""
    told = {'front': front, 'left': left}
    shares = tuple(
        CameraShare(
            name,
            'used',
            num_inliers=40 if name == 'front' else used,
            intrinsics_error=fitted(change).intrinsics_error,
        )
        for name, change in told.items()
        if change is not None
    )
    return LocalizationResult(status, cameras=shares)


def test_each_camera_of_a_rig_is_watched():
    right, wrong = (0, 0, 0, 0, 0), (0, 0, -0.06, 0, 0)
    watch = CalibrationWatch()
    told = [watch.check(of_rig(right, wrong), 0.02, 0.025) for _ in range(20)]
    assert told[:2] == ['', '']
    assert told[-1].startswith('left: ')
    assert 'cx by -' in told[-1]
    assert 'front' not in told[-1]
    assert watch.accused == {'left'}
    assert watch.accuses(of_rig(right, wrong))
    # A pose that the accused camera has no part in is as good as ever; nothing clears it either.
    assert not watch.accuses(of_rig(right, wrong, used=0))
    assert not watch.accuses(of_rig(right, None))
    assert watch.check(of_rig(right, None), 0.02, 0.025) == told[-1]
    assert watch.check(of_rig(right, right, LocalizationStatus.NO_POSE), 0.02, 0.025) == told[-1]
    watch.reset()
    assert watch.accused == set()
    assert watch.check(of_rig(right, right), 0.02, 0.025) == ''
