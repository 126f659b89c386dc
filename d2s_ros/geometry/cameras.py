"""Pinhole and fisheye cameras with distortion.

Pixel convention: (0, 0) is the centre of the first pixel, as in OpenCV and ROS. COLMAP puts it at
(0.5, 0.5); `Camera.from_colmap` and `Camera.colmap_params` are the only places that convert.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from d2s_ros.errors import CalibrationError

Array = NDArray[np.float64]

#: Number of coefficients each model may have, in ROS order.
_COEFFICIENTS = {
    'pinhole': (0,),
    'plumb_bob': (4, 5),
    'rational_polynomial': (8, 12, 14),
    'equidistant': (4,),
}
#: Other names of the models, in lower case with _ between the words; '' is no distortion.
_MODEL_NAMES = {
    '': '',
    'none': '',
    'no_distortion': '',
    'undistorted': '',
    'rectified': '',
    'perspective': '',
    'pinhole': '',
    'plumb_bob': 'plumb_bob',
    'radtan': 'plumb_bob',
    'radial_tangential': 'plumb_bob',
    'brown_conrady': 'plumb_bob',
    'rational_polynomial': 'rational_polynomial',
    'equidistant': 'equidistant',
    'equi': 'equidistant',
    'fisheye': 'equidistant',
    'kannala_brandt': 'equidistant',
    'kannala_brandt4': 'equidistant',
    # With all coefficients zero, and only then, these are no distortion either.
    'inverse_brown_conrady': '',
    'modified_brown_conrady': '',
}
_MAX_SIDE_PX = 2**20
#: Skew of the pixel axes that moves no keypoint by as much as it is uncertain, px per unit.
_MAX_SKEW = 0.01
_HAS_CRITERIA = tuple(int(part) for part in cv2.__version__.split('.')[:2]) >= (4, 7)
#: Rays further than this from the optical axis have no useful pinhole image.
_MAX_RAY_TANGENT = 10.0


@dataclass(frozen=True)
class Camera:
    """Intrinsics of one camera at one image size.

    Attributes:
        model: 'pinhole', 'plumb_bob', 'rational_polynomial' or 'equidistant' (ROS names).
        width, height: Image size in px.
        fx, fy, cx, cy: Focal lengths and principal point in px, (0, 0) = centre of first pixel.
        distortion: Coefficients in ROS order: plumb_bob k1 k2 p1 p2 k3, rational_polynomial
            k1 k2 p1 p2 k3 k4 k5 k6, equidistant k1 k2 k3 k4.
    """

    model: str
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.model not in _COEFFICIENTS:
            raise CalibrationError(
                f'distortion model {self.model!r} is not supported; supported: '
                f'{", ".join(_COEFFICIENTS)}'
            )
        if len(self.distortion) not in _COEFFICIENTS[self.model]:
            raise CalibrationError(
                f'{self.model} needs {" or ".join(map(str, _COEFFICIENTS[self.model]))} '
                f'distortion coefficients, found {len(self.distortion)}'
            )
        if self.width <= 0 or self.height <= 0:
            raise CalibrationError(f'image size {self.width}x{self.height} is not positive')
        if max(self.width, self.height) > _MAX_SIDE_PX:
            raise CalibrationError(f'image sides of more than {_MAX_SIDE_PX} px are not supported')
        numbers = (self.fx, self.fy, self.cx, self.cy, *self.distortion)
        if not np.isfinite(numbers).all() or self.fx <= 0 or self.fy <= 0:
            raise CalibrationError(
                f'focal lengths ({self.fx}, {self.fy}) must be positive and all intrinsics '
                f'finite; is the camera calibrated?'
            )

    @classmethod
    def from_camera_info(
        cls,
        width: int,
        height: int,
        distortion_model: str,
        d: ArrayLike,
        k: ArrayLike,
    ) -> Camera:
        """Build from the fields of a sensor_msgs/CameraInfo (its raw image, K and D).

        Drivers name models in several ways and send more coefficients than the model has; what
        means the same to the last bit is taken.

        Raises:
            CalibrationError: zeros (an uncalibrated camera), an unknown model, skew, coefficients
                that the model does not have.
        """
        matrix = np.asarray(k, dtype=np.float64).reshape(-1)
        if matrix.shape != (9,):
            raise CalibrationError(f'camera_info.k needs 9 numbers, found {matrix.size}')
        if not matrix.any():
            raise CalibrationError('camera_info.k is all zeros: the camera is not calibrated')
        if abs(matrix[1]) > _MAX_SKEW:
            raise CalibrationError(
                f'camera_info.k has skewed pixel axes (k[1] is {matrix[1]:g}), which is not '
                'supported; calibrate without skew'
            )
        coefficients = tuple(float(value) for value in np.asarray(d, dtype=np.float64).reshape(-1))
        model, coefficients = _exact_model(str(distortion_model), coefficients)
        return cls(
            model,
            int(width),
            int(height),
            float(matrix[0]),
            float(matrix[4]),
            float(matrix[2]),
            float(matrix[5]),
            coefficients,
        )

    @classmethod
    def from_colmap(cls, model: str, width: int, height: int, params: ArrayLike) -> Camera:
        """Build from a line of COLMAP's cameras.txt (its pixel centre at 0.5 is shifted here)."""
        p = [float(value) for value in np.asarray(params, dtype=np.float64).reshape(-1)]
        expected = {
            'SIMPLE_PINHOLE': 3,
            'PINHOLE': 4,
            'SIMPLE_RADIAL': 4,
            'RADIAL': 5,
            'OPENCV': 8,
            'FULL_OPENCV': 12,
            'OPENCV_FISHEYE': 8,
        }
        if model not in expected:
            raise CalibrationError(
                f'COLMAP camera model {model} is not supported; supported: {", ".join(expected)}'
            )
        if len(p) != expected[model]:
            raise CalibrationError(f'{model} needs {expected[model]} parameters, found {len(p)}')
        if model in ('SIMPLE_PINHOLE', 'SIMPLE_RADIAL', 'RADIAL'):
            p = [p[0], *p]
        fx, fy, cx, cy, *rest = p
        ros_model = 'pinhole'
        distortion: tuple[float, ...] = ()
        if model in ('SIMPLE_RADIAL', 'RADIAL'):
            radial = [*rest, 0.0][:2]
            ros_model, distortion = 'plumb_bob', (*radial, 0.0, 0.0, 0.0)
        elif model == 'OPENCV':
            ros_model, distortion = 'plumb_bob', (*rest, 0.0)
        elif model == 'FULL_OPENCV':
            ros_model, distortion = 'rational_polynomial', tuple(rest)
        elif model == 'OPENCV_FISHEYE':
            ros_model, distortion = 'equidistant', tuple(rest)
        return cls(ros_model, int(width), int(height), fx, fy, cx - 0.5, cy - 0.5, distortion)

    @property
    def matrix(self) -> Array:
        """The (3, 3) intrinsic matrix."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])

    @property
    def ideal(self) -> Camera:
        """The same camera without distortion: what `undistort` maps to."""
        return replace(self, model='pinhole', distortion=())

    def project(self, points_in_camera: ArrayLike) -> Array:
        """Project points (N, 3) in the camera's optical frame to pixels (N, 2).

        Points at or behind the image plane give NaN.
        """
        points = np.asarray(points_in_camera, dtype=np.float64).reshape(-1, 3)
        pixels = np.full((len(points), 2), np.nan)
        front = points[:, 2] > 1e-9
        if not front.any():
            return pixels
        visible = points[front]
        if self.model == 'pinhole':
            normalized = visible[:, :2] / visible[:, 2:]
            pixels[front] = normalized * [self.fx, self.fy] + [self.cx, self.cy]
            return pixels
        zero = np.zeros((1, 3))
        coefficients = np.asarray(self.distortion, dtype=np.float64)
        if self.model == 'equidistant':
            projected, _ = cv2.fisheye.projectPoints(
                visible.reshape(-1, 1, 3), zero, zero, self.matrix, coefficients
            )
        else:
            projected, _ = cv2.projectPoints(
                visible.reshape(-1, 1, 3), zero, zero, self.matrix, coefficients
            )
        pixels[front] = projected.reshape(-1, 2)
        return pixels

    def normalize(self, keypoints: ArrayLike) -> Array:
        """Return undistorted image-plane coordinates (N, 2), x/z and y/z, of pixels (N, 2).

        Pixels whose ray cannot be recovered, or lies beyond 84 degrees off axis, give NaN.
        """
        pixels = np.asarray(keypoints, dtype=np.float64).reshape(-1, 2)
        if self.model == 'pinhole' or len(pixels) == 0:
            return (pixels - [self.cx, self.cy]) / [self.fx, self.fy]
        normalized = self._undistort_iteratively(pixels.reshape(-1, 1, 2))
        normalized = np.array(normalized, dtype=np.float64).reshape(-1, 2)
        # Strong distortion folds the image plane over: only keep what projects back.
        rays = np.concatenate([normalized, np.ones((len(normalized), 1))], axis=1)
        bad = ~np.isfinite(normalized).all(axis=1)
        bad |= np.linalg.norm(np.nan_to_num(normalized), axis=1) > _MAX_RAY_TANGENT
        rays[bad] = [0, 0, 1]
        bad |= np.linalg.norm(self.project(rays) - pixels, axis=1) > 0.1
        normalized[bad] = np.nan
        return normalized

    def _undistort_iteratively(self, source: Array) -> Any:
        """Invert the distortion with OpenCV, to convergence rather than its default 5 steps."""
        coefficients = np.asarray(self.distortion, dtype=np.float64)
        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-10)
        # OpenCV before 4.7 (ROS 2 Humble) has no `criteria` here: it has another name for the one
        # function and 10 Newton steps, which are enough, in the other.
        opencv: Any = cv2  # the stubs know one version only
        if self.model == 'equidistant':
            options = {'criteria': criteria} if _HAS_CRITERIA else {}
            return opencv.fisheye.undistortPoints(source, self.matrix, coefficients, **options)
        if _HAS_CRITERIA:
            return cv2.undistortPoints(source, self.matrix, coefficients, criteria=criteria)
        return opencv.undistortPointsIter(source, self.matrix, coefficients, None, None, criteria)

    def undistort(self, keypoints: ArrayLike) -> Array:
        """Return where pixels (N, 2) would lie in the `ideal` camera; NaN where unrecoverable."""
        return self.normalize(keypoints) * [self.fx, self.fy] + [self.cx, self.cy]

    def distortion_jacobian(self, ideal_keypoints: ArrayLike) -> Array:
        """Return d pixel / d ideal pixel, (N, 2, 2): what the lens does to small distances.

        Args:
            ideal_keypoints: (N, 2) undistorted px of `ideal`; NaN gives the identity.
        """
        ideal = np.asarray(ideal_keypoints, dtype=np.float64).reshape(-1, 2)
        jacobian = np.tile(np.eye(2), (len(ideal), 1, 1))
        known = np.isfinite(ideal).all(axis=1)
        if self.model == 'pinhole' or not known.any():
            return jacobian
        steps = 0.5 * np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        around = (ideal[known] + steps[:, None] - [self.cx, self.cy]) / [self.fx, self.fy]
        rays = np.concatenate([around, np.ones((*around.shape[:2], 1))], axis=2)
        right, left, below, above = self.project(rays).reshape(around.shape)
        jacobian[known] = np.stack([right - left, below - above], axis=2)
        return jacobian

    def resized(self, width: int, height: int) -> Camera:
        """Return the camera of the image resampled to another size of about the same aspect.

        Raises:
            CalibrationError: if the aspect ratio differs by more than one pixel's worth.
        """
        scale_x, scale_y = width / self.width, height / self.height
        if abs(scale_x * self.height - height) > 1.0 and abs(scale_y * self.width - width) > 1.0:
            raise CalibrationError(
                f'a {width}x{height} image does not have the aspect ratio of the calibration '
                f'({self.width}x{self.height}); recalibrate or fix camera_info'
            )
        return replace(
            self,
            width=int(width),
            height=int(height),
            fx=self.fx * scale_x,
            fy=self.fy * scale_y,
            cx=(self.cx + 0.5) * scale_x - 0.5,
            cy=(self.cy + 0.5) * scale_y - 0.5,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, the inverse of `from_dict`."""
        return {
            'model': self.model,
            'width': self.width,
            'height': self.height,
            'fx': float(self.fx),
            'fy': float(self.fy),
            'cx': float(self.cx),
            'cy': float(self.cy),
            'distortion': [float(value) for value in self.distortion],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Camera:
        """Build from `to_dict`'s result.

        Raises:
            CalibrationError: on missing or wrong values.
        """
        try:
            return cls(
                str(values['model']),
                int(values['width']),
                int(values['height']),
                float(values['fx']),
                float(values['fy']),
                float(values['cx']),
                float(values['cy']),
                tuple(float(value) for value in values.get('distortion', ())),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CalibrationError(f'calibration has no valid {error}') from error


def _exact_model(name: str, d: tuple[float, ...]) -> tuple[str, tuple[float, ...]]:
    """Return the model and coefficients that a driver's name and D are, without any loss.

    Raises:
        CalibrationError: naming what has no exact counterpart.
    """
    known = re.sub(r'[\s_-]+', '_', name.strip().lower())
    if known not in _MODEL_NAMES:
        raise CalibrationError(
            f'distortion model {name!r} is not supported; supported: {", ".join(_COEFFICIENTS)}'
        )
    model = _MODEL_NAMES[known]
    if not any(d) and model != 'equidistant':
        return 'pinhole', ()
    if model == '':
        raise CalibrationError(
            f'distortion model {name!r} is not supported with coefficients other than zero, found '
            f'{_shown(d)}; supported: {", ".join(_COEFFICIENTS)}'
        )
    # The first five of rational_polynomial are those of plumb_bob, the others add to them.
    lengths = sorted({*_COEFFICIENTS[model], *_COEFFICIENTS['plumb_bob']})
    if model != 'rational_polynomial':
        lengths = list(_COEFFICIENTS[model])
    length = next((n for n in reversed(lengths) if n <= len(d)), 0)
    if not length or any(d[length:]):
        more = (
            f', and {_shown(d[length:])} after the first {length} are not all zero'
            if length
            else ''
        )
        hint = (
            '; if they are those of rational_polynomial, set distortion_model so'
            if model == 'plumb_bob' and len(d) in _COEFFICIENTS['rational_polynomial']
            else ''
        )
        raise CalibrationError(
            f'{model} needs {" or ".join(map(str, _COEFFICIENTS[model]))} distortion '
            f'coefficients, found {len(d)}{more}{hint}'
        )
    if model == 'rational_polynomial' and not any(d[5:]):
        length, model = min(length, 5), 'plumb_bob'
    return model, d[:length]


def _shown(values: tuple[float, ...]) -> str:
    text = ', '.join(f'{value:g}' for value in values[:8])
    return f'{text}, ...' if len(values) > 8 else text


def projection_jacobian(in_camera: Array, camera: Camera) -> Array:
    """Return d pixel / d point, (N, 2, 3), of points (N, 3) in the camera; ideal camera."""
    depth = np.maximum(in_camera[:, 2], 1e-6)
    jacobian = np.zeros((len(in_camera), 2, 3))
    jacobian[:, 0, 0] = camera.fx / depth
    jacobian[:, 1, 1] = camera.fy / depth
    jacobian[:, 0, 2] = -camera.fx * in_camera[:, 0] / depth**2
    jacobian[:, 1, 2] = -camera.fy * in_camera[:, 1] / depth**2
    return jacobian
