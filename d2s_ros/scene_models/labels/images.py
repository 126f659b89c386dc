"""Images as labels see them: small, and without distortion."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.features.network_images import resize_to_fit
from d2s_ros.features.types import to_grey
from d2s_ros.geometry.cameras import Camera


@dataclass(frozen=True, eq=False)
class LabelImage:
    """An image that labels are told of.

    Attributes:
        grey: (h, w) uint8 without distortion, black where the camera saw nothing.
        camera: Its intrinsics, without distortion.
    """

    grey: NDArray[np.uint8]
    camera: Camera

    def pixels(self, ideal_keypoints: NDArray[np.float64], camera: Camera) -> NDArray[np.float64]:
        """Return where keypoints (N, 2) in undistorted px of a camera lie in this image."""
        ratio = [self.camera.width / camera.width, self.camera.height / camera.height]
        return (ideal_keypoints + 0.5) * ratio - 0.5


class Undistorter:
    """Makes label images; keeps the tables of the last cameras.

    Args:
        max_size: Longest side of the images it makes, px.
    """

    _KEPT = 4

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._tables: OrderedDict[Camera, NDArray[np.float32]] = OrderedDict()
        self._lock = Lock()

    def __call__(self, image: NDArray[np.uint8], camera: Camera) -> LabelImage:
        """Return the label image of an image and its camera."""
        grey = resize_to_fit(to_grey(image), self._max_size)
        height, width = grey.shape
        small = camera.resized(width, height)
        if small.model != 'pinhole':
            table = self._table(small)
            grey = np.asarray(cv2.remap(grey, table, None, cv2.INTER_LINEAR), np.uint8)  # type: ignore[call-overload]
        return LabelImage(grey, small.ideal)

    def _table(self, camera: Camera) -> NDArray[np.float32]:
        """Return (h, w, 2) where in the distorted image each pixel comes from."""
        with self._lock:
            if camera not in self._tables:
                rows, columns = np.mgrid[0 : camera.height, 0 : camera.width]
                pixels = np.stack([columns.ravel(), rows.ravel()], axis=1)
                rays = (pixels - [camera.cx, camera.cy]) / [camera.fx, camera.fy]
                source = camera.project(np.column_stack([rays, np.ones(len(rays))]))
                source = np.nan_to_num(source, nan=-1e4).clip(-1e4, 1e4)
                self._tables[camera] = source.reshape(*rows.shape, 2).astype(np.float32)
                while len(self._tables) > self._KEPT:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(camera)
            return self._tables[camera]
