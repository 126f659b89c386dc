"""A localizer for tests of the node: it reads the answer off the image.

Pixel (0, 0) is x in centimetres, (0, 1) y in centimetres; a black image is refused, 255 in (0, 2)
raises, 254 there is a GPU out of memory, 253 a pose without its covariance, 252 an image that
proves nothing: it is taken where the prior says, 251 one during which the process is told to end,
250 one whose pose is written in its second row, and is exact, 249 one that fits a principal point
30 px further left, as far as one image can tell.
"""

from __future__ import annotations

import os
import pathlib
import signal
import time
from dataclasses import replace

import numpy as np

from d2s_ros.errors import DeviceError, MapFormatError
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.localization.intrinsics_error import IntrinsicsError
from d2s_ros.localization.result import (
    CameraShare,
    FrameDetails,
    LocalizationResult,
    LocalizationStatus,
)
from d2s_ros.ros.map_loader import LoadedMap

COVARIANCE = np.diag([0.01, 0.02, 0.03, 0.001, 0.002, 0.003])
EXACT = np.diag([1e-4] * 3 + [1e-6] * 3)
ROTATION = rotation_from_vector([0.1, -0.2, 0.3])


def pose(x_cm, y_cm):
    """Return the pose that the stub gives for the two pixel values."""
    return RigidTransform(ROTATION, np.array([x_cm / 100, y_cm / 100, 0.5]))


def picture(x_cm, y_cm, command=0, size=(64, 48)):
    """Return an image (H, W) that the stub localizes at the given place."""
    image = np.full((size[1], size[0]), 7, np.uint8)
    image[0, :3] = x_cm, y_cm, command
    return image


def exact_picture(map_from_camera):
    """Return an image that the stub localizes exactly there."""
    image = picture(0, 0, 250)
    image[1, :56] = np.frombuffer(
        np.array(map_from_camera.to_tum(), np.float64).tobytes(), np.uint8
    )
    return image


class StubLocalizer:
    """Localizes `picture`s."""

    def __init__(self, device, delay=0.0):
        self.device = device
        self.delay = delay
        self.cameras = []

    def localize(self, image, camera, *, details=False, budget=None, prior=None):
        self.cameras = [*self.cameras[-9:], camera]
        time.sleep(self.delay)
        if image.ndim == 3:
            image = image[:, :, 0]
        if image[0, 2] == 255:
            raise ValueError('a bug')
        if image[0, 2] == 251:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
        if image[0, 2] == 254 and self.device != 'cpu':
            raise DeviceError('CUDA out of memory')
        if not image.any():
            return LocalizationResult(
                LocalizationStatus.TOO_FEW_KEYPOINTS, 'the image is black', num_keypoints=0
            )
        if image[0, 2] == 252:
            known = prior() if prior is not None else None
            if known is None:
                return LocalizationResult(LocalizationStatus.TOO_FEW_INLIERS, 'it proves nothing')
            return LocalizationResult(
                LocalizationStatus.LOCALIZED,
                map_from_camera=known.map_from_camera,
                covariance=COVARIANCE,
                with_prior=True,
            )
        if image[0, 2] == 250:
            written = np.frombuffer(image[1, :56].tobytes(), np.float64)
            return LocalizationResult(
                LocalizationStatus.LOCALIZED,
                map_from_camera=RigidTransform.from_tum(written),
                covariance=EXACT,
            )
        fits = None
        if image[0, 2] == 249:
            known = np.diag([1e4, 1e4, 1e3, 1e3, 1e2])
            fits = IntrinsicsError(
                known, known @ [0.0, 0.0, -30.0 / camera.fx, 0.0, 0.0], camera.fx
            )
        parts = None
        if details:
            keypoints = np.array([[5, 5], [20, 20], [40, 30]], np.float32)
            parts = FrameDetails(
                keypoints,
                np.array([0.9, 0.8, 0.1], np.float32),
                np.array([True, True, False]),
                np.array([True, False, False]),
                np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32),
            )
        return LocalizationResult(
            LocalizationStatus.LOCALIZED,
            map_from_camera=pose(int(image[0, 0]), int(image[0, 1])),
            covariance=None if image[0, 2] == 253 else COVARIANCE,
            num_keypoints=3,
            num_reliable=2,
            num_inliers=1,
            reprojection_error_px=0.5,
            latency_ms={'features': 1.0, 'network': 2.0, 'pose': 3.0, 'total': 6.0},
            details=parts,
            intrinsics_error=fits,
        )

    def localize_rig(self, shots, *, details=False, budget=None, prior=None):
        """Take the first camera whose image can be localized; tell how many could."""
        found = []
        for shot in shots:
            result = self.localize(shot.image, shot.camera, details=details)
            found.append((shot, result))
        shares = tuple(
            CameraShare(
                shot.name,
                'used' if result.localized else result.status.value,
                result.reason,
                num_inliers=result.num_inliers,
                intrinsics_error=result.intrinsics_error,
            )
            for shot, result in found
        )
        shot, result = next((pair for pair in found if pair[1].localized), found[0])
        if result.localized:
            map_from_rig = result.map_from_camera @ shot.rig_from_camera.inverse()
            result = replace(result, map_from_camera=map_from_rig)
        return replace(result, cameras=shares)


def factory(delay=0.0, metric=True):
    """Return a localizer factory; the version is the text of the folder's `current`."""

    def make(config, device):
        current = pathlib.Path(config.map) / 'current'
        if not current.is_file():
            raise MapFormatError(f'{config.map} is not a map folder')
        version = current.read_text().strip()
        if version == 'broken':
            raise MapFormatError('the map is damaged')
        device = 'cuda' if device == 'auto' else device
        frame = config.map_frame or 'map'
        return LoadedMap(StubLocalizer(device, delay), frame, version, device, metric)

    return make
