"""Printed tags (AprilTag, ArUco) in images: their numbers and exact corners."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Families that OpenCV detects, by the names that people print them under.
FAMILIES = ('36h11', '25h9', '16h5', '4x4_50', '5x5_100', '6x6_250')
#: What cameras encode light by, about.
_GAMMA = 2.2


class TagDetector:
    """Finds the tags of one family.

    Args:
        family: One of FAMILIES.
    """

    def __init__(self, family: str) -> None:
        parameters = cv2.aruco.DetectorParameters()
        parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
        self._detector = cv2.aruco.ArucoDetector(dictionary(family), parameters)

    def detect(self, image: NDArray[np.uint8]) -> dict[int, Array]:
        """Return the corners (4, 2) px of each tag: top left first, clockwise on its face.

        A number that occurs twice in an image is left out.
        """
        grey = image
        if image.ndim == 3:
            grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
        corners, ids, _ = self._detector.detectMarkers(grey)
        numbers = [] if ids is None else np.asarray(ids).ravel().tolist()
        return {
            int(number): refine_square(grey, np.asarray(found, np.float64).reshape(4, 2))
            for number, found in zip(numbers, corners, strict=True)
            if numbers.count(number) == 1
        }


def refine_square(grey: NDArray[np.uint8], corners: Array) -> Array:
    """Return the corners (4, 2) px of a black square on white, from lines along its sides.

    Corner detectors pull the corners of small tags inwards by half a pixel and more. Here each side
    is where light, which adds up linearly, is half of that inside and half of that outside.

    Args:
        grey: (H, W) image.
        corners: (4, 2) about where they are, a pixel or two off at most.
    """
    low = np.floor(corners.min(axis=0) - 8).astype(int).clip(0)
    high = np.ceil(corners.max(axis=0) + 9).astype(int)
    patch = (grey[low[1] : high[1], low[0] : high[0]].astype(np.float32) / 255.0) ** _GAMMA
    found = corners - low
    for _ in range(3):
        lines = []
        cell = float(np.linalg.norm(found - np.roll(found, 1, axis=0), axis=1).mean()) / 8
        reach = float(np.clip(0.75 * cell, 1.0, 4.0))
        across = np.linspace(-reach, reach, 33)
        for start, end in zip(found, np.roll(found, -1, axis=0), strict=True):
            along = (end - start) / np.linalg.norm(end - start)
            outward = np.array([along[1], -along[0]])
            samples = start + np.linspace(0.12, 0.88, 24)[:, None] * (end - start)
            at = (samples[:, None] + across[:, None] * outward).astype(np.float32)
            light = cv2.remap(
                patch, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            dark, bright = np.median(light[:, :2]), np.median(light[:, -2:])
            if bright - dark < 0.02:
                return corners
            shares = ((light - dark) / (bright - dark)).clip(0, 1).mean(axis=1)
            offsets = reach * (1 - 2 * shares)
            good = np.abs(offsets - np.median(offsets)) < 0.5
            on = samples[good] + offsets[good, None] * outward
            middle = on.mean(axis=0)
            direction = np.linalg.svd(on - middle, full_matrices=False)[2][0]
            normal = np.array([direction[1], -direction[0]])
            lines.append((normal, float(normal @ middle)))
        refined = np.stack(
            [
                np.linalg.solve(
                    np.stack([lines[i - 1][0], lines[i][0]]), [lines[i - 1][1], lines[i][1]]
                )
                for i in range(4)
            ]
        )
        if not np.isfinite(refined).all() or np.abs(refined - found).max() > 3.0:
            return corners
        found = refined
    return np.asarray(found + low)


def dictionary(family: str) -> cv2.aruco.Dictionary:
    """Return OpenCV's dictionary of one of FAMILIES."""
    name = f'DICT_{family.upper()}' if 'x' in family else f'DICT_APRILTAG_{family}'
    return cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, name))
