"""Which frames of a video a map is made of: sharp ones, with motion of the picture between them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

#: Median motion of the picture between two frames, as a share of its width, that mapping wants.
_SPACING = 0.025
#: A frame may come this much earlier or later than its turn, as shares of the spacing, if sharper.
_EARLY, _LATE = 0.7, 1.5
#: A frame with less than this share of the sharpness of its neighbours is blurred.
_BLURRED = 0.6
#: Sharpness is compared with this many frames on each side, where the picture moved by less than
#: this share of its width: they show the same things.
_NEIGHBOURS, _SAME_VIEW = 12, 0.15
#: Corners that are followed, and the fewest that tell the motion.
_CORNERS, _FEWEST = 150, 12
#: Frames that are chosen at most; longer videos are spaced wider.
_MAX_FRAMES = 400
#: After more motion than this between two kept frames they show too little of the same.
_LOST = 0.4


class FrameChooser:
    """Looks at each frame of a video once, then chooses.

    Attributes:
        count: Frames looked at.
        num_blurred: Frames that are blurred beside their neighbours; known after `choose`.
    """

    def __init__(self) -> None:
        self.num_blurred = 0
        self._before: NDArray[np.uint8] | None = None
        self._sharpness: list[float] = []
        self._motion: list[float] = []

    @property
    def count(self) -> int:
        """Frames looked at."""
        return len(self._sharpness)

    def look(self, grey: NDArray[np.uint8]) -> None:
        """Measure the next frame, (H, W) uint8: its sharpness, and the motion since the last."""
        self._sharpness.append(sharpness(grey))
        self._motion.append(0.0 if self._before is None else motion(self._before, grey))
        self._before = grey

    def choose(self) -> list[int]:
        """Return the numbers of the frames to use, counted from zero, in order."""
        if not self._sharpness:
            return []
        path = np.cumsum(self._motion)
        relative = _relative_to_neighbours(np.array(self._sharpness), path)
        blurred = relative < _BLURRED
        self.num_blurred = int(blurred.sum())
        spacing = max(_SPACING, float(path[-1]) / _MAX_FRAMES)
        chosen: list[int] = []
        turn = 0.0
        while turn <= path[-1]:
            # The first frame has its turn at zero and nothing before it.
            window = (path >= turn - (1 - _EARLY) * spacing) & (
                path <= turn + (_LATE - 1) * spacing
            )
            window[: chosen[-1] + 1 if chosen else 0] = False
            frames = np.flatnonzero(window & ~blurred)
            if len(frames) == 0:
                # All of this stretch is blurred, or the picture jumped: the next sharp frame.
                later = np.flatnonzero((path > turn) & ~blurred)
                later = later[later > (chosen[-1] if chosen else -1)]
                if len(later) == 0:
                    break
                frames = later[:1]
            best = int(frames[np.argmax(relative[frames])])
            chosen.append(best)
            turn = float(path[best]) + spacing
        return chosen


def sharpness(grey: NDArray[np.uint8]) -> float:
    """Return how sharp a picture is: large where edges are steep; comparable between neighbours."""
    # Noise has steep edges too; smoothing by a pixel takes most of it away.
    smooth = cv2.GaussianBlur(grey, (3, 3), 0)
    return float(cv2.Laplacian(smooth, cv2.CV_32F).var())


def motion(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> float:
    """Return the median motion of corners between two pictures, as a share of the width.

    Where corners cannot be followed the picture has changed as a whole: then it is 1.
    """
    if before.shape != after.shape:
        return 1.0
    corners = cv2.goodFeaturesToTrack(before, _CORNERS, 0.01, 7)
    if corners is None or len(corners) < _FEWEST:
        return 0.0
    moved, found, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, np.empty_like(corners))
    good = found.reshape(-1) == 1
    if good.sum() < _FEWEST:
        return 1.0
    steps = np.linalg.norm((moved - corners).reshape(-1, 2)[good], axis=1)
    return min(1.0, float(np.median(steps)) / before.shape[1])


def _relative_to_neighbours(
    values: NDArray[np.float64], path: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return each value as a share of a high quantile of those that show the same."""
    result = np.empty(len(values))
    for index, value in enumerate(values):
        rows = slice(max(0, index - _NEIGHBOURS), index + _NEIGHBOURS + 1)
        around = values[rows][np.abs(path[rows] - path[index]) <= _SAME_VIEW]
        result[index] = value / max(float(np.percentile(around, 75)), 1e-9)
    return result


class LiveChooser:
    """Chooses frames of a camera as they come, since they cannot be looked at again.

    Of the frames around the next turn it keeps the sharpest, so that a decision may be about the
    frame before.

    Attributes:
        count: Frames looked at.
        num_blurred: Frames that were too blurred to be kept when it was their turn.
        too_fast: Whether the picture moved so far since the last kept frame that the build may not
            find how they belong together.
    """

    def __init__(self) -> None:
        self.count = self.num_blurred = 0
        self.too_fast = False
        self._before: NDArray[np.uint8] | None = None
        self._path = 0.0
        self._recent: list[float] = []
        self._best: tuple[float, Any] | None = None

    def look(self, grey: NDArray[np.uint8], frame: Any) -> Any | None:
        """Take the next frame; return the one to keep, or None.

        Args:
            grey: (H, W) uint8 small picture of it.
            frame: What is returned if it is kept.
        """
        first = self._before is None
        self._path += 0.0 if self._before is None else motion(self._before, grey)
        self._before = grey
        self.count += 1
        sharp = sharpness(grey)
        self._recent = [*self._recent[-2 * _NEIGHBOURS :], sharp]
        relative = sharp / max(float(np.percentile(self._recent, 75)), 1e-9)
        if relative < _BLURRED:
            self.num_blurred += 1
        elif (first or self._path >= _EARLY * _SPACING) and (
            self._best is None or relative > self._best[0]
        ):
            self._best = relative, frame
        self.too_fast = self._path > _LOST
        if self._best is None or not (first or self._path >= _SPACING):
            return None
        kept, self._best, self._path = self._best[1], None, 0.0
        return kept
