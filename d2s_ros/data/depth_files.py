"""Depth images beside photographs in a folder, as the TUM RGB-D benchmark lays them out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.image_times import times_from_names

#: The layout: photographs and 16-bit depth images, named after their times, and a list of each.
COLOUR_FOLDER, _DEPTH_FOLDER = 'rgb', 'depth'
#: Depth images hold this many units a metre.
_UNITS_PER_METRE = 5000.0
#: A depth image belongs to the photograph that is at most this far in time.
_TOLERANCE_NS = 25_000_000


class DepthFiles:
    """The registered depth images of a folder in the layout of TUM RGB-D.

    Args:
        paths: Of PNG files, 16-bit grey, 5000 units a metre, zero where nothing was measured.
        stamps_ns: Their times.
    """

    def __init__(self, paths: Sequence[Path], stamps_ns: Sequence[int]) -> None:
        order = np.argsort(stamps_ns, kind='stable')
        self._paths = [paths[index] for index in order]
        self._stamps = np.asarray(stamps_ns, np.int64)[order]

    def __len__(self) -> int:
        return len(self._paths)

    def at(self, stamps_ns: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield, for the times (N,) of images that have one, their index and depth.

        Depth is (H, W) float32 metres along the optical axis, NaN where nothing was measured.
        """
        for index, stamp in enumerate(np.asarray(stamps_ns).tolist()):
            after = int(np.searchsorted(self._stamps, stamp))
            near = [row for row in (after - 1, after) if 0 <= row < len(self._stamps)]
            row = min(near, key=lambda row: abs(int(self._stamps[row]) - stamp))
            if abs(int(self._stamps[row]) - stamp) > _TOLERANCE_NS:
                continue
            values = cv2.imread(str(self._paths[row]), cv2.IMREAD_UNCHANGED)
            if values is None or values.dtype != np.uint16 or values.ndim != 2:
                continue
            depth = values.astype(np.float32) / np.float32(_UNITS_PER_METRE)
            depth[values == 0] = np.nan
            yield index, depth


def depth_files(root: Path) -> DepthFiles | None:
    """Return the depth images of a folder in the layout of TUM RGB-D; None if it has another one.

    `rgb.txt` and `depth.txt` beside the folders tell the layout, and so the unit of the depth:
    other recorders write folders of these names in other units.
    """
    lists = [root / f'{name}.txt' for name in (COLOUR_FOLDER, _DEPTH_FOLDER)]
    if not all(path.is_file() for path in lists) or not (root / COLOUR_FOLDER).is_dir():
        return None
    paths = sorted((root / _DEPTH_FOLDER).glob('*.png'))
    stamps = times_from_names([path.name for path in paths])
    return DepthFiles(paths, stamps) if paths and stamps is not None else None
