"""Intrinsics of an image from the fields of a sensor_msgs/CameraInfo, for logs and for nodes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from d2s_ros.errors import CalibrationError, InputError
from d2s_ros.geometry.cameras import Camera

#: Words in the names of topics whose images have no distortion.
_RECTIFIED = frozenset(('rect', 'rectify', 'rectified', 'undistort', 'undistorted', 'undist'))


@dataclass(frozen=True)
class CameraInfoValues:
    """The fields of a CameraInfo as plain values, hashable.

    Attributes:
        width, height: Size at which the camera was calibrated, px.
        distortion_model: ROS name.
        d, k, p: Distortion, (3, 3) intrinsics and (3, 4) projection of rectified images, by rows.
        roi: x_offset, y_offset, width, height of the region that is sent; zeros for all.
    """

    width: int
    height: int
    distortion_model: str
    d: tuple[float, ...]
    k: tuple[float, ...]
    p: tuple[float, ...] = ()
    roi: tuple[int, int, int, int] = (0, 0, 0, 0)

    @classmethod
    def from_message(cls, message: Any) -> CameraInfoValues:
        """Copy the fields of a message of rclpy or rosbags (any object that has them)."""
        roi = message.roi
        return cls(
            int(message.width),
            int(message.height),
            str(message.distortion_model),
            tuple(np.asarray(message.d, dtype=np.float64).tolist()),
            tuple(np.asarray(message.k, dtype=np.float64).tolist()),
            tuple(np.asarray(message.p, dtype=np.float64).tolist()),
            (int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height)),
        )

    def camera(self, width: int, height: int, rectified: bool = False) -> Camera:
        """Return the intrinsics of an image of the given size.

        The region of interest counts unless the image has the full size; an image that is scaled
        (or binned) with its aspect kept is accepted.

        Args:
            width, height: Size of the image, px.
            rectified: The image is rectified: use P without distortion instead of K and D.

        Raises:
            CalibrationError: zeros, an unknown model, another aspect ratio.
        """
        if rectified:
            projection = np.asarray(self.p, dtype=np.float64)
            if projection.shape != (12,) or not projection.any():
                raise CalibrationError('camera_info.p is all zeros: the images are not rectified')
            matrix = projection.reshape(3, 4)[:, :3].reshape(-1)
            camera = Camera.from_camera_info(self.width, self.height, '', (), matrix)
        else:
            camera = Camera.from_camera_info(
                self.width, self.height, self.distortion_model, self.d, self.k
            )
        if (camera.width, camera.height) == (width, height):
            return camera
        x, y, region_width, region_height = self.roi
        if region_width and region_height:
            camera = replace(
                camera,
                width=region_width,
                height=region_height,
                cx=camera.cx - x,
                cy=camera.cy - y,
            )
        return camera.resized(width, height)


def rectification_problem(image_topic: str, values: CameraInfoValues) -> str:
    """Return why D does not hold for the images of a topic; empty if nothing is wrong.

    image_proc publishes rectified images on topics named image_rect, beside the camera_info of
    the raw camera: its P holds for them, its K and D do not. Poses from D would be bent, and
    their covariance would not tell.

    Args:
        image_topic: Topic of the images.
        values: Calibration that would be used without `rectified`.
    """
    # Words in snake_case and in camelCase.
    words = {word.lower() for word in re.findall(r'[A-Z]*[a-z]+|[A-Z]+', image_topic)}
    if not any(values.d) or not _RECTIFIED & words:
        return ''
    return (
        f'{image_topic} is named like a topic of rectified images, but its camera_info has '
        'distortion (D is not zero), which holds for the raw images: set rectified '
        '(--rectified), so that P without distortion is used, or give another calibration'
    )


def write_camera_info(
    path: str | os.PathLike[str], camera: Camera, name: str = 'camera', comment: str = ''
) -> None:
    """Write a calibration as camera drivers of ROS read it (camera_info_manager, image_proc).

    Args:
        path: The YAML file.
        camera: The calibration.
        name: `camera_name` of the file.
        comment: A line for people.

    Raises:
        InputError: the file cannot be written.
    """
    model, coefficients = camera.model, list(camera.distortion)
    if model == 'pinhole':
        model, coefficients = 'plumb_bob', [0.0] * 5
    matrix = camera.matrix
    document = {
        'image_width': camera.width,
        'image_height': camera.height,
        'camera_name': name,
        'camera_matrix': _matrix(matrix),
        'distortion_model': model,
        'distortion_coefficients': _matrix(np.array([coefficients])),
        'rectification_matrix': _matrix(np.eye(3)),
        'projection_matrix': _matrix(np.hstack([matrix, np.zeros((3, 1))])),
    }
    head = f'# {comment}\n' if comment else ''
    text = head + yaml.safe_dump(document, sort_keys=False, default_flow_style=None)
    try:
        Path(path).write_text(text, encoding='utf-8')
    except OSError as error:
        raise InputError(f'cannot write {path}: {error.strerror}') from error


def _matrix(values: Any) -> dict[str, Any]:
    rows, columns = values.shape
    data = [float(value) for value in values.reshape(-1)]
    return {'rows': rows, 'cols': columns, 'data': data}
