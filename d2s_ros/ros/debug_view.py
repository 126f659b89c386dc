"""The picture on d2s/debug_image: keypoints by reliability, inliers, the outcome and its checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.localization.result import Check, FrameDetails

_GREEN, _RED, _CYAN = (60, 200, 60), (60, 60, 220), (255, 220, 60)
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def draw(
    image: NDArray[np.uint8],
    details: FrameDetails | None,
    text: str,
    good: bool,
    max_size: int,
    checks: Sequence[Check] = (),
) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) BGR.

    Reliable keypoints are green, unreliable ones red; inliers of the pose have a ring. Checks that
    failed are red.

    Args:
        image: (H, W) grey or (H, W, 3) BGR.
        details: Keypoints; None draws none.
        text: Written on top.
        good: Colour of the bar on top.
        max_size: Longest side of the picture.
        checks: Of acceptance, one line each on the left.
    """
    height, width = image.shape[:2]
    scale = min(1.0, max_size / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image.copy()
    if picture.ndim == 2 or picture.shape[2] == 1:
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    if details is not None:
        # Pixel centres are integers before and after the resize.
        points = np.round((details.keypoints + 0.5) * scale - 0.5).astype(int)
        for wanted, colour in ((False, _RED), (True, _GREEN)):
            for x, y in points[details.reliable == wanted]:
                cv2.circle(picture, (int(x), int(y)), 2, colour, -1, cv2.LINE_AA)
        for x, y in points[details.inlier]:
            cv2.circle(picture, (int(x), int(y)), 4, _CYAN, 1, cv2.LINE_AA)
    cv2.rectangle(picture, (0, 0), (size[0], 20), _GREEN if good else _RED, -1)
    cv2.putText(picture, text, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _WHITE, 1, cv2.LINE_AA)
    for row, check in enumerate(checks):
        colour = _WHITE if check.passed else _RED
        _write(picture, f'{check.name} {check.comparison}', (4, 36 + 15 * row), colour)
    return np.asarray(picture, dtype=np.uint8)


def _write(
    picture: NDArray[Any], text: str, corner: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    """Write one line that can be read on any background."""
    for thickness, ink in ((3, _BLACK), (1, colour)):
        cv2.putText(
            picture, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.4, ink, thickness, cv2.LINE_AA
        )
