"""The losses of the D2S paper, equations (8) to (11), as pure functions.

Shapes: B images, N keypoints each. z (B, N) is 1 for keypoints with a 3D label and 0 for all
others, padding included. As in the paper, sums run over the keypoints and means over the images.
Where the paper leaves something open, docs/design/paper_decisions.md says what was decided.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def coordinate_loss(points: Tensor, targets: Tensor, z: Tensor, *, squared: bool = True) -> Tensor:
    """Return L_m, equation (8): the distance of labelled coordinates from their targets.

    Args:
        points, targets: (B, N, 3) predicted and true coordinates.
        z: (B, N).
        squared: As in the paper; otherwise the plain distance, which gives outliers less weight.
    """
    difference = points - targets
    if squared:
        distance = difference.square().sum(dim=-1)
    else:
        distance = torch.linalg.vector_norm(difference, dim=-1)
    return (z * distance).sum(dim=-1).mean()


def reliability_loss(reliability: Tensor, z: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return L_u, equation (9): the squared error of the reliability.

    Args:
        reliability: (B, N) from equation (2).
        z: (B, N).
        mask: (B, N) bool, False for padding.
    """
    squared = (z - reliability).square()
    if mask is not None:
        squared = squared * mask
    return squared.sum(dim=-1).mean()


def reprojection_errors(
    points: Tensor,
    rotations: Tensor,
    translations: Tensor,
    intrinsics: Tensor,
    pixels: Tensor,
    min_depths: Tensor,
) -> Tensor:
    """Return |pi(R y + t) - u| (B, N) in px.

    Args:
        points: (B, N, 3) predicted coordinates y.
        rotations, translations: (B, 3, 3) and (B, 3) of camera_from_map.
        intrinsics: (B, 4) fx, fy, cx, cy of the camera without distortion.
        pixels: (B, N, 2) undistorted keypoints u.
        min_depths: (B, N) positive; a smaller depth is replaced by this one, so that points near or
            behind the camera give finite errors that pull them to the right side of the axis.
    """
    in_camera = points @ rotations.transpose(1, 2) + translations[:, None, :]
    depth = torch.maximum(in_camera[..., 2], min_depths)
    projected = in_camera[..., :2] / depth[..., None] * intrinsics[:, None, :2]
    projected = projected + intrinsics[:, None, 2:]
    return torch.linalg.vector_norm(projected - pixels, dim=-1)


def linear_errors(
    points: Tensor,
    targets: Tensor,
    rotations: Tensor,
    translations: Tensor,
    intrinsics: Tensor,
    *,
    ray_share: float = 0.1,
) -> Tensor:
    """Return the distance (B, N) of points from their targets in px, as seen by the camera.

    The projection is taken as linear about the target: an error far from it, or behind the camera,
    has a gradient that points to the target. Not of the paper.

    Args:
        points, targets: (B, N, 3) predicted and true coordinates.
        rotations, translations: (B, 3, 3) and (B, 3) of camera_from_map.
        intrinsics: (B, 4) fx, fy, cx, cy of the camera without distortion.
        ray_share: What an error along the ray counts, share of the same error across it.
    """
    in_camera = targets @ rotations.transpose(1, 2) + translations[:, None, :]
    error = (points - targets) @ rotations.transpose(1, 2)
    # Targets of keypoints without a label may be anywhere; z removes them.
    depth = in_camera[..., 2:].abs().clamp_min(1e-6)
    across = error[..., :2] - error[..., 2:] * in_camera[..., :2] / depth
    across = across / depth * intrinsics[:, None, :2]
    along = ray_share * error[..., 2:] / depth * intrinsics[:, None, :1]
    return torch.linalg.vector_norm(torch.cat([across, along], dim=-1), dim=-1)


def annealed(progress: float, first: float, last: float) -> float:
    """Return a value that falls from `first` to `last` by the same share each step."""
    return float(first * (last / first) ** min(1.0, max(0.0, progress)))


def curriculum_tau(t: float, tau_max: float, tau_min: float) -> float:
    """Return tau(t) = sqrt(1 - t^2) tau_max + tau_min in px, t in [0, 1] the training progress."""
    return math.sqrt(max(0.0, 1.0 - t * t)) * tau_max + tau_min


def robust_reprojection_loss(errors: Tensor, z: Tensor, tau: float) -> Tensor:
    """Return the third term of equation (11) without alpha_r: tau tanh(e / tau) per keypoint.

    Args:
        errors: (B, N) in px.
        z: (B, N).
        tau: From `curriculum_tau`, px: errors far above it have no influence.
    """
    return (z * tau * torch.tanh(errors / tau)).sum(dim=-1).mean()


def log_reprojection_loss(errors: Tensor, z: Tensor, scale: float) -> Tensor:
    """Return scale log(1 + e / scale) per keypoint, summed as in (8); not of the paper.

    The gradient of an error falls as its inverse: keypoints whose coordinates are unknown do not
    outweigh those that are known to a pixel.

    Args:
        errors: (B, N) in px.
        z: (B, N).
        scale: px.
    """
    return (z * scale * torch.log1p(errors / scale)).sum(dim=-1).mean()


def reprojection_weight(step: int, total: int, start: float = 0.8) -> float:
    """Return alpha_r: 1 once more than `start` of all steps are done, 0 before."""
    return 1.0 if step > start * total else 0.0
