"""The losses of the D2S paper against numbers worked out by hand or in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from d2s_ros.scene_models.regression.losses import (
    coordinate_loss,
    curriculum_tau,
    log_reprojection_loss,
    reliability_loss,
    reprojection_errors,
    reprojection_weight,
    robust_reprojection_loss,
)


def test_coordinates_by_hand():
    """Image 1: (3, 4, 0) counts, the other not; image 2: 1 and 2 along an axis."""
    predicted = torch.tensor([[[3.0, 4, 0], [9, 9, 9]], [[1, 0, 0], [0, 2, 0]]])
    z = torch.tensor([[1.0, 0], [1, 1]])
    zero = torch.zeros(2, 2, 3)
    assert coordinate_loss(predicted, zero, z).item() == pytest.approx((25 + 1 + 4) / 2)
    plain = coordinate_loss(predicted, zero, z, squared=False)
    assert plain.item() == pytest.approx((5 + 1 + 2) / 2)


def test_unlabelled_keypoints_give_no_gradient():
    predicted = torch.tensor([[[3.0, 4, 0], [9, 9, 9]]], requires_grad=True)
    z = torch.tensor([[1.0, 0]])
    coordinate_loss(predicted, torch.zeros(1, 2, 3), z).backward()
    assert predicted.grad.tolist() == [[[6, 8, 0], [0, 0, 0]]]


def test_reliability_by_hand():
    reliability = torch.tensor([[0.9, 0.2, 0.5], [0.6, 0.3, 0.0]])
    z = torch.tensor([[1.0, 0, 0], [1, 0, 0]])
    assert reliability_loss(reliability, z).item() == pytest.approx(
        (0.01 + 0.04 + 0.25 + 0.16 + 0.09) / 2
    )
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert reliability_loss(reliability, z, mask).item() == pytest.approx(
        (0.01 + 0.04 + 0.16 + 0.09) / 2
    )


def random_views(rng):
    rotations = np.linalg.qr(rng.normal(size=(2, 3, 3)))[0]
    rotations *= np.sign(np.linalg.det(rotations))[:, None, None]
    translations = rng.normal(size=(2, 3)) + np.array([0, 0, 6])
    intrinsics = np.array([[500.0, 510, 320, 240], [300, 300, 160, 120]])
    points = rng.normal(size=(2, 8, 3))
    pixels = rng.uniform(0, 300, size=(2, 8, 2))
    return points, rotations, translations, intrinsics, pixels


def test_reprojection_against_numpy(rng):
    points, rotations, translations, intrinsics, pixels = random_views(rng)
    expected = np.zeros((2, 8))
    for j in range(2):
        for i in range(8):
            x, y, depth = rotations[j] @ points[j, i] + translations[j]
            fx, fy, cx, cy = intrinsics[j]
            u = np.array([fx * x / depth + cx, fy * y / depth + cy])
            expected[j, i] = np.linalg.norm(u - pixels[j, i])
    tensors = [torch.from_numpy(v) for v in (points, rotations, translations, intrinsics, pixels)]
    tensors.append(torch.full((2, 8), 0.1, dtype=torch.float64))
    errors = reprojection_errors(*tensors)
    np.testing.assert_allclose(errors.numpy(), expected, rtol=1e-10)
    z = (rng.random((2, 8)) < 0.5).astype(float)
    tau = 30.0
    assert robust_reprojection_loss(errors, torch.from_numpy(z), tau).item() == pytest.approx(
        (z * tau * np.tanh(expected / tau)).sum() / 2
    )


def test_points_behind_the_camera_are_pulled_to_the_keypoint():
    """The clamp keeps error and gradient finite; without it the gradient points the wrong way."""
    point = torch.tensor([[[0.1, 0.0, -2.0]]], requires_grad=True)
    error = reprojection_errors(
        point,
        torch.eye(3)[None],
        torch.zeros(1, 3),
        torch.tensor([[100.0, 100, 50, 50]]),
        torch.tensor([[[50.0, 50]]]),
        torch.tensor([[0.5]]),
    )
    assert error.item() == pytest.approx(20.0)
    error.sum().backward()
    assert point.grad[0, 0].tolist() == pytest.approx([200.0, 0.0, 0.0])


def test_curriculum():
    """From tau_max + tau_min at the start to tau_min at the end, along a circle."""
    assert curriculum_tau(0.0, 50, 1) == pytest.approx(51)
    assert curriculum_tau(0.6, 50, 1) == pytest.approx(0.8 * 50 + 1)
    assert curriculum_tau(0.8, 50, 1) == pytest.approx(0.6 * 50 + 1)
    assert curriculum_tau(1.0, 50, 1) == pytest.approx(1)


def test_tanh_forgives_outliers():
    """Near zero the loss is the error itself; far away it is tau, with no gradient left."""
    z = torch.ones(1, 1)
    small = robust_reprojection_loss(torch.full((1, 1), 0.01), z, 20.0)
    assert small.item() == pytest.approx(0.01, rel=1e-5)
    far = torch.full((1, 1), 1000.0, requires_grad=True)
    loss = robust_reprojection_loss(far, z, 20.0)
    loss.backward()
    assert loss.item() == pytest.approx(20.0)
    assert far.grad.item() == pytest.approx(0.0, abs=1e-12)
    one_large = robust_reprojection_loss(torch.tensor([[1000.0, 5.0]]), torch.ones(1, 2), 20.0)
    assert one_large.item() == pytest.approx(20 + 20 * math.tanh(0.25))


def test_logarithm_of_the_error_by_hand():
    errors, z = torch.tensor([[0.0, 3.0, 9.0, 5.0]]), torch.tensor([[1.0, 1, 1, 0]])
    assert log_reprojection_loss(errors, z, 3.0).item() == pytest.approx(
        3 * math.log(2) + 3 * math.log(4)
    )


def test_reprojection_comes_late():
    weights = [reprojection_weight(step, 10) for step in range(1, 11)]
    assert weights == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
