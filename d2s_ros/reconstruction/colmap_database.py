"""What pycolmap is given: a database of keypoints and matches, cameras, options.

pycolmap sees ideal (undistorted) pixels and pinhole cameras, so every distortion model of `Camera`
works.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import D2SError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.pycolmap_import import import_pycolmap
from d2s_ros.reconstruction.reconstruction import ImageInput

#: Largest distance of a match from its epipolar line, px (Sampson's).
_EPIPOLAR_PX = 3.0
#: Matches that obey one geometry are chance where they are fewer than this, or a smaller share of
#: all. The share was chosen on castle-P30, where it leaves a third of the pairs that the true poses
#: refute, and nine in ten of the others; two simulated buildings lose none.
_MIN_VERIFIED = 15
_MIN_VERIFIED_SHARE = 0.45


def write_database(
    images: Sequence[ImageInput],
    ideal: list[NDArray[np.float64]],
    matches: dict[tuple[int, int], NDArray[np.int64]],
    path: Path,
    *,
    verify: bool,
    calibrated: bool = True,
) -> Any:
    """Write keypoints and matches into a new pycolmap database.

    Args:
        images: Images with features.
        ideal: (N, 2) undistorted px of each.
        matches: (M, 2) keypoint indices for pairs (i, j), i < j, of images.
        path: The database.
        verify: Keep only matches that obey one epipolar geometry; otherwise all are taken as right.
        calibrated: Cameras are right; otherwise focal length and radial distortion are to be found.

    Returns:
        A pycolmap reconstruction of the posed images, without points.

    Raises:
        D2SError: if the database cannot be written.
    """
    pycolmap = import_pycolmap()

    pycolmap.logging.minloglevel = 2
    try:
        database = pycolmap.Database.open(str(path))
    except RuntimeError as error:
        raise D2SError(
            f'no database can be made in {path.parent}: is the disk full? make room, or set TMPDIR'
        ) from error
    cameras: dict[Camera, int] = {}
    posed_model = pycolmap.Reconstruction()
    try:
        for index, image in enumerate(images):
            if image.camera not in cameras:
                cameras[image.camera] = len(cameras) + 1
                camera = colmap_camera(image.camera, cameras[image.camera], calibrated)
                database.write_camera(camera, use_camera_id=True)
                rig = pycolmap.Rig(rig_id=cameras[image.camera])
                rig.add_ref_sensor(camera.sensor_id)
                database.write_rig(rig, use_rig_id=True)
                posed_model.add_camera_with_trivial_rig(camera)
            image_id, camera_id = index + 1, cameras[image.camera]
            # Names are made unique and sortable here; COLMAP never opens the files.
            record = pycolmap.Image(
                name=f'{index:06d}',
                keypoints=np.nan_to_num(ideal[index], nan=-1e6) + 0.5,
                camera_id=camera_id,
                image_id=image_id,
            )
            if image.map_from_camera is not None:
                camera_from_map = image.map_from_camera.inverse()
                pose = pycolmap.Rigid3d(camera_from_map.matrix[:3])
                posed_model.add_image_with_trivial_frame(record, pose)
            database.write_image(
                pycolmap.Image(name=f'{index:06d}', camera_id=camera_id, image_id=image_id),
                use_image_id=True,
            )
            frame = pycolmap.Frame(frame_id=image_id, rig_id=camera_id)
            frame.add_data_id(record.data_id)
            database.write_frame(frame, use_frame_id=True)
            keypoints = np.nan_to_num(ideal[index], nan=-1e6) + 0.5
            database.write_keypoints(image_id, keypoints.astype(np.float32))
        for (i, j), found in matches.items():
            pairs = found.astype(np.uint32)
            database.write_matches(i + 1, j + 1, pairs)
            if verify:
                pairs = verified_matches(images, ideal, (i, j), found, calibrated).astype(np.uint32)
                if not len(pairs):
                    continue
            geometry = pycolmap.TwoViewGeometry()
            kinds = pycolmap.TwoViewGeometryConfiguration
            geometry.config = kinds.CALIBRATED if calibrated else kinds.UNCALIBRATED
            geometry.inlier_matches = pairs
            database.write_two_view_geometry(i + 1, j + 1, geometry)
    finally:
        database.close()
    return posed_model


def pipeline_options(min_angle_deg: float) -> Any:
    """Return pycolmap's options of triangulation and mapping with known intrinsics."""
    pycolmap = import_pycolmap()

    options = pycolmap.IncrementalPipelineOptions()
    options.extract_colors = False
    options.random_seed = 0
    options.triangulation.random_seed = 0
    options.mapper.random_seed = 0
    options.triangulation.ignore_two_view_tracks = False
    options.triangulation.min_angle = min_angle_deg
    options.mapper.filter_min_tri_angle = min_angle_deg
    options.ba_refine_focal_length = False
    options.ba_refine_extra_params = False
    options.ba_refine_principal_point = False
    options.mapper.abs_pose_refine_focal_length = False
    options.mapper.abs_pose_refine_extra_params = False
    # Half of pycolmap's: its matches have passed a narrower test here, and what is placed wrongly
    # loses its observations in the adjustment.
    options.mapper.abs_pose_min_num_inliers = 15
    return options


def limit_errors(options: Any, limit_px: float) -> None:
    """Set the largest reprojection error of an observation."""
    options.mapper.filter_max_reproj_error = limit_px
    options.triangulation.complete_max_reproj_error = limit_px
    options.triangulation.merge_max_reproj_error = limit_px


def adjustment_options(loss_px: float, tolerance: float) -> Any:
    """Return pycolmap's options of a bundle adjustment with known intrinsics.

    Args:
        loss_px: Scale of the Cauchy loss of an observation.
        tolerance: Relative change of the cost at which it ends.
    """
    pycolmap = import_pycolmap()

    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length = False
    options.refine_principal_point = False
    options.refine_extra_params = False
    options.refine_sensor_from_rig = False
    options.print_summary = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = loss_px
    options.ceres.solver_options.max_num_iterations = 50
    options.ceres.solver_options.function_tolerance = tolerance
    return options


def colmap_camera(camera: Camera, camera_id: int, calibrated: bool = True) -> Any:
    """Return pycolmap's camera of the undistorted image; its pixels begin at 0.5.

    One that is not calibrated has a focal length and two coefficients of distortion to be found.
    """
    pycolmap = import_pycolmap()

    if not calibrated:
        return pycolmap.Camera(
            camera_id=camera_id,
            model='RADIAL',
            width=camera.width,
            height=camera.height,
            params=[camera.fx, camera.cx + 0.5, camera.cy + 0.5, 0.0, 0.0],
        )
    return pycolmap.Camera(
        camera_id=camera_id,
        model='PINHOLE',
        width=camera.width,
        height=camera.height,
        params=[camera.fx, camera.fy, camera.cx + 0.5, camera.cy + 0.5],
    )


def verified_matches(
    images: Sequence[ImageInput],
    ideal: list[NDArray[np.float64]],
    pair: tuple[int, int],
    found: NDArray[np.int64],
    calibrated: bool,
) -> NDArray[np.int64]:
    """Return the matches (M, 2) of a pair that obey one epipolar geometry; none if too few do.

    OpenCV's USAC: an eighth of the time of pycolmap's three models for each pair, as many right
    matches, and on castle-P30 half as many pairs of different places. Its draws are the same each
    time.

    Args:
        images: Images with features.
        ideal: (N, 2) px of each, undistorted if calibrated.
        pair: Indices of the two images.
        found: (M, 2) keypoint indices.
        calibrated: Cameras are right: five points make a geometry instead of seven.
    """
    none = np.zeros((0, 2), np.int64)
    if len(found) < _MIN_VERIFIED:
        return none
    pixels = [ideal[index][found[:, side]] for side, index in enumerate(pair)]
    if not calibrated:
        _, mask = cv2.findFundamentalMat(
            pixels[0], pixels[1], cv2.USAC_ACCURATE, _EPIPOLAR_PX, 0.999, 10000
        )
    else:
        cameras = [images[index].camera for index in pair]
        rays = [
            (seen - [camera.cx, camera.cy]) / [camera.fx, camera.fy]
            for seen, camera in zip(pixels, cameras, strict=True)
        ]
        focal = float(np.mean([[camera.fx, camera.fy] for camera in cameras]))
        _, mask = cv2.findEssentialMat(
            rays[0], rays[1], np.eye(3), cv2.USAC_ACCURATE, 0.999, _EPIPOLAR_PX / focal
        )
    if mask is None or mask.sum() < max(_MIN_VERIFIED, _MIN_VERIFIED_SHARE * len(found)):
        return none
    return found[mask.ravel() > 0]
