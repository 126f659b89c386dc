"""Approximate poses (robot odometry) made precise by bundle adjustment, in the frame they came in.

Points are triangulated with the given poses and a wide tolerance, then poses and points are
adjusted together, and both again with narrower tolerances. The given positions pull weakly, as they
are known to their own noise only; at the end the result is aligned robustly with the given poses
(rotation, translation and scale), so that the frame of the map stays where it was.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError
from d2s_ros.geometry.transforms import RigidTransform, pose_error, vector_from_rotation
from d2s_ros.pycolmap_import import import_pycolmap
from d2s_ros.reconstruction.adjustment import focal_of, px_at_focal, triangulate_again
from d2s_ros.reconstruction.colmap_database import (
    adjustment_options,
    colmap_camera,
    write_database,
)
from d2s_ros.reconstruction.reconstruction import ImageInput, ReconstructionConfig

_logger = logging.getLogger(__name__)

#: Largest reprojection errors in px at a focal length of 500 px, from round to round.
_LIMITS_PX = (24.0, 12.0, 6.0, 3.0)
#: Poses of images with fewer observations stay as they are given.
_MIN_OBSERVATIONS = 12


def refine_poses(
    images: Sequence[ImageInput],
    ideal: list[NDArray[np.float64]],
    matches: dict[tuple[int, int], NDArray[np.int64]],
    config: ReconstructionConfig,
) -> list[RigidTransform]:
    """Return refined map_from_camera of all images, in the frame of the given ones.

    Args:
        images: All with poses.
        ideal: (N, 2) undistorted px of each.
        matches: (M, 2) keypoint indices for pairs (i, j), i < j, found without the poses.
        config: Options of the reconstruction.

    Raises:
        InputError: if the images do not match, or no point can be triangulated.
    """
    given = [image.map_from_camera for image in images if image.map_from_camera is not None]
    if len(given) != len(images):
        raise InputError('poses can only be refined where every image has one')
    if not matches:
        raise InputError(
            'no two mapping images match; are they of one place, sharp, and is the calibration '
            'right?'
        )
    with tempfile.TemporaryDirectory(prefix='d2s_refine_') as folder:
        model = _adjust(images, ideal, matches, config, Path(folder))
    seen: dict[int, RigidTransform] = {}
    for record in model.images.values():
        if record.num_points3D >= _MIN_OBSERVATIONS:
            pose = RigidTransform.from_matrix(record.cam_from_world().matrix()).inverse()
            seen[int(record.name)] = pose
    if len(seen) < 3:
        raise InputError(
            f'only {len(seen)} images could be placed while poses were refined; add images that '
            'overlap, or leave out the refinement'
        )
    align = align_poses(list(seen.values()), [given[index] for index in seen])
    refined = [align(seen[index]) if index in seen else given[index] for index in range(len(given))]
    changes = np.array([pose_error(refined[index], given[index]) for index in seen])
    _logger.info(
        'poses of %d of %d images refined; they moved by %.3f and %.2f deg in the median',
        len(seen),
        len(images),
        *np.median(changes, axis=0),
    )
    return refined


def _adjust(
    images: Sequence[ImageInput],
    ideal: list[NDArray[np.float64]],
    matches: dict[tuple[int, int], NDArray[np.int64]],
    config: ReconstructionConfig,
    folder: Path,
) -> Any:
    database = folder / 'database.db'
    model = write_database(images, ideal, matches, database, verify=True)
    priors = {}
    for index, image in enumerate(images):
        assert image.map_from_camera is not None
        priors[index + 1] = image.map_from_camera.translation
    focal = focal_of(images)
    for round_, limit in enumerate(_LIMITS_PX):
        min_angle_deg = config.min_angle_deg if round_ else 0.5
        model = triangulate_again(model, database, folder, limit, focal, min_angle_deg)
        if model.num_points3D() < 20:
            raise InputError(
                f'{model.num_points3D()} points could be triangulated with the given poses, too '
                'few to refine them; are poses and calibration of these images?'
            )
        _bundle_adjust(model, priors, loss_px=px_at_focal(0.25 * limit, focal))
        if round_ < len(_LIMITS_PX) - 1:
            _place_left_out(images, ideal, matches, model, px_at_focal(limit, focal))
    return model


def _place_left_out(
    images: Sequence[ImageInput],
    ideal: list[NDArray[np.float64]],
    matches: dict[tuple[int, int], NDArray[np.int64]],
    model: Any,
    limit_px: float,
) -> None:
    """Give images that see no points, because their poses are far off, poses by PnP."""
    pycolmap = import_pycolmap()

    records = {int(record.name): record for record in model.images.values()}
    for index, record in records.items():
        if record.num_points3D >= _MIN_OBSERVATIONS:
            continue
        pixels, points = [], []
        for (i, j), found in matches.items():
            if index not in (i, j):
                continue
            own, others = (found[:, 0], found[:, 1]) if index == i else (found[:, 1], found[:, 0])
            observed = records[j if index == i else i].points2D
            for keypoint, other in zip(own.tolist(), others.tolist(), strict=True):
                if observed[other].has_point3D():
                    pixels.append(ideal[index][keypoint] + 0.5)
                    points.append(model.point3D(observed[other].point3D_id).xyz)
        if len(points) < _MIN_OBSERVATIONS:
            continue
        ransac = pycolmap.AbsolutePoseEstimationOptions()
        ransac.ransac.max_error = limit_px
        ransac.ransac.random_seed = 0
        found_pose = pycolmap.estimate_and_refine_absolute_pose(
            np.array(pixels), np.array(points), colmap_camera(images[index].camera, 1), ransac
        )
        if found_pose is not None and found_pose['num_inliers'] >= _MIN_OBSERVATIONS:
            record.frame.rig_from_world = found_pose['cam_from_world']


def _bundle_adjust(model: Any, priors: dict[int, NDArray[np.float64]], *, loss_px: float) -> None:
    """Adjust poses and points in place."""
    pycolmap = import_pycolmap()

    options = adjustment_options(loss_px, 1e-5)
    config = pycolmap.BundleAdjustmentConfig()
    positions, poses = [], []
    for image in model.images.values():
        if not image.has_pose or image.num_points3D < _MIN_OBSERVATIONS:
            continue
        config.add_image(image.image_id)
        poses.append(image.projection_center())
        positions.append((image.data_id, priors[image.image_id]))
    # The noise of the priors is what the adjusted poses say it is.
    moved = np.array(poses) - np.array([position for _, position in positions])
    sigma = max(1.4826 * float(np.median(np.abs(moved))), 0.02 * spread_of(np.array(poses)), 1e-6)
    pose_priors = [
        pycolmap.PosePrior(
            pose_prior_id=number + 1,
            corr_data_id=data_id,
            position=position,
            position_covariance=sigma**2 * np.eye(3),
            coordinate_system=pycolmap.PosePriorCoordinateSystem.CARTESIAN,
        )
        for number, (data_id, position) in enumerate(positions)
    ]
    prior_options = pycolmap.PosePriorBundleAdjustmentOptions()
    prior_options.ceres.prior_position_loss_function_type = pycolmap.LossFunctionType.CAUCHY
    prior_options.alignment_ransac.random_seed = 0
    prior_options.alignment_ransac.max_error = 4 * sigma
    adjuster = pycolmap.create_pose_prior_bundle_adjuster(
        options, prior_options, config, pose_priors, model
    )
    adjuster.solve()
    model.update_point_3d_errors()


def spread_of(positions: NDArray[np.float64]) -> float:
    """Return the usual distance of positions (N, 3) from their middle, in their unit."""
    distance = np.linalg.norm(positions - np.median(positions, axis=0), axis=1)
    return float(np.median(distance))


class Alignment:
    """A similarity of space that moves poses."""

    def __init__(
        self, scale: float, rotation: NDArray[np.float64], translation: NDArray[np.float64]
    ) -> None:
        self.scale = scale
        self.rotation = rotation
        self.translation = translation

    def __call__(self, pose: RigidTransform) -> RigidTransform:
        """Return the pose after the similarity."""
        return RigidTransform(
            self.rotation @ pose.rotation,
            self.scale * self.rotation @ pose.translation + self.translation,
        )


def align_poses(
    poses: Sequence[RigidTransform], targets: Sequence[RigidTransform], *, rounds: int = 30
) -> Alignment:
    """Return the similarity that brings poses onto targets, with outliers among both.

    Rotations count as well as positions, each by its own spread: along a straight line, positions
    alone would leave the turn about that line open. Cauchy weights, iterated.
    """
    moving = np.stack([pose.translation for pose in poses])
    fixed = np.stack([pose.translation for pose in targets])
    turns = np.stack([t.rotation @ p.rotation.T for p, t in zip(poses, targets, strict=True)])
    scale, rotation, translation = 1.0, np.eye(3), np.zeros(3)
    extent = max(spread_of(fixed), 1e-9)
    # The first round takes all alike: nothing is known about who is an outlier.
    weights_p = weights_r = np.ones(len(poses))
    sigma_p, sigma_r = extent, 1.0
    for _ in range(rounds):
        mean_m = np.average(moving, axis=0, weights=weights_p)
        mean_f = np.average(fixed, axis=0, weights=weights_p)
        m, f = moving - mean_m, fixed - mean_f
        by_position = np.einsum('n,ni,nj->ij', weights_p, f, scale * m) / sigma_p**2
        by_rotation = np.einsum('n,nij->ij', weights_r, turns) / (2 * sigma_r**2)
        u, _, vt = np.linalg.svd(by_position + by_rotation)
        rotation = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt
        power = float((weights_p[:, None] * m**2).sum())
        if power > 1e-12 * extent**2:
            scale = float((weights_p[:, None] * f * (m @ rotation.T)).sum()) / power
        translation = mean_f - scale * rotation @ mean_m
        residual_p = np.linalg.norm(scale * moving @ rotation.T + translation - fixed, axis=1)
        residual_r = np.array(
            [np.linalg.norm(vector_from_rotation(turn @ rotation.T)) for turn in turns]
        )
        # 1.55 medians of a Gaussian error in 3D are the usual 2.385 sigma of Cauchy weights.
        sigma_p = max(1.55 * float(np.median(residual_p)), 1e-6 * extent)
        sigma_r = max(1.55 * float(np.median(residual_r)), 1e-6)
        weights_p = 1.0 / (1.0 + np.square(residual_p / sigma_p))
        weights_r = 1.0 / (1.0 + np.square(residual_r / sigma_r))
    return Alignment(scale, rotation, translation)
