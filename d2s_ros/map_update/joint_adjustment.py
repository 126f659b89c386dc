"""Poses of new frames and new points made precise together; what the map knows stays fixed.

A new frame gets its pose from the labels that were copied to it. After growth it sees more: other
old points, and new ones that it shares with other new frames. Bundle adjustment uses all of this.
Old images and old points do not move, so that the frame of the map stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.pycolmap_import import import_pycolmap
from d2s_ros.reconstruction.colmap_database import adjustment_options, colmap_camera
from d2s_ros.reconstruction.reconstruction import MappedImage

#: Scale of the Cauchy loss in px at a focal length of 1000 px: residuals of right observations.
_LOSS_PX = 1.0
#: A frame with fewer observations keeps its pose.
_MIN_OBSERVATIONS = 12
#: A pose that moves by more than this share of the depth of what it sees was not nearly right.
_MOST_MOTION = 0.05


def adjust_new_frames(
    images: Sequence[MappedImage],
    num_old: int,
    points: NDArray[np.float64],
    num_old_points: int,
) -> tuple[list[MappedImage], NDArray[np.float64]]:
    """Adjust poses of new images and coordinates of new points to all observations of both.

    Args:
        images: Old images first; the `point_idx` of all say what they see.
        num_old: Images that stay as they are.
        points: (P, 3) in the map frame.
        num_old_points: The first so many points stay as they are.

    Returns:
        Images and points; those that too little is known of, or that would move far, as given.
    """
    pycolmap = import_pycolmap()
    pycolmap.logging.minloglevel = 2
    involved = np.zeros(len(points), bool)
    for image in images[num_old:]:
        involved[image.point_idx[image.point_idx >= 0]] = True
    model = pycolmap.Reconstruction()
    cameras: dict[Camera, int] = {}
    tracks: dict[int, list[Any]] = {}
    adjusted: list[int] = []
    for index, image in enumerate(images):
        seen = (image.point_idx >= 0) & np.isfinite(image.ideal_keypoints).all(axis=1)
        # Point -1 is the last one here; `seen` is false for it.
        keypoints = np.flatnonzero(seen & involved[image.point_idx])
        if len(keypoints) == 0:
            continue
        if image.camera not in cameras:
            cameras[image.camera] = len(cameras) + 1
            model.add_camera_with_trivial_rig(colmap_camera(image.camera, cameras[image.camera]))
        record = pycolmap.Image(
            name=f'{index:06d}',
            keypoints=image.ideal_keypoints[keypoints] + 0.5,
            camera_id=cameras[image.camera],
            image_id=index + 1,
        )
        pose = pycolmap.Rigid3d(image.map_from_camera.inverse().matrix[:3])
        model.add_image_with_trivial_frame(record, pose)
        for row, point in enumerate(image.point_idx[keypoints].tolist()):
            tracks.setdefault(point, []).append(pycolmap.TrackElement(index + 1, row))
        if index >= num_old and len(keypoints) >= _MIN_OBSERVATIONS:
            adjusted.append(index)
    if not adjusted:
        return list(images), points
    config = pycolmap.BundleAdjustmentConfig()
    new_points: dict[int, int] = {}
    for point, track in tracks.items():
        if len(track) < 2:
            continue  # pycolmap takes no point that one image sees
        point_id = model.add_point3D(points[point], pycolmap.Track(track))
        if point < num_old_points:
            config.add_constant_point(point_id)
        else:
            new_points[point] = point_id
    variable = {index + 1 for index in adjusted}
    for image_id in model.images:
        config.add_image(image_id)
        if image_id not in variable:
            config.set_constant_rig_from_world_pose(model.images[image_id].frame_id)
    focal = float(np.median([0.5 * (camera.fx + camera.fy) for camera in cameras]))
    options = adjustment_options(_LOSS_PX * focal / 1000.0, 1e-6)
    pycolmap.create_default_bundle_adjuster(options, config, model).solve()
    return _taken_over(images, points, model, adjusted, new_points)


def _taken_over(
    images: Sequence[MappedImage],
    points: NDArray[np.float64],
    model: Any,
    adjusted: list[int],
    new_points: dict[int, int],
) -> tuple[list[MappedImage], NDArray[np.float64]]:
    """Return images and points with what was adjusted."""
    images, points = list(images), points.copy()
    for index in adjusted:
        image = images[index]
        record = model.images[index + 1]
        pose = RigidTransform.from_matrix(record.cam_from_world().matrix()).inverse()
        seen = points[image.point_idx[image.point_idx >= 0]]
        depth = float(np.median(image.map_from_camera.inverse().apply(seen)[:, 2]))
        moved, _ = pose_error(pose, image.map_from_camera)
        if moved <= _MOST_MOTION * depth:
            images[index] = replace(image, map_from_camera=pose)
    for point, point_id in new_points.items():
        points[point] = model.point3D(point_id).xyz
    return images, points
