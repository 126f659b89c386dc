"""The map itself as messages: all landmarks, and where it localizes."""

from __future__ import annotations

import array
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from geometry_msgs.msg import Point, Pose, Quaternion
from nav_msgs.msg import MapMetaData, OccupancyGrid
from numpy.typing import NDArray
from sensor_msgs.msg import PointCloud2

from d2s_ros.errors import MapFormatError
from d2s_ros.maps.files import COVERAGE_FILE, read_regular
from d2s_ros.ros import conversions

logger = logging.getLogger(__name__)

_MAX_COVERAGE_BYTES = 64 << 20
#: A grid of more cells is none that was measured.
_MAX_CELLS = 16 << 20


@dataclass(frozen=True, eq=False)
class CoverageGrid:
    """Where a map localizes, seen from above.

    Attributes:
        cell: Width of a cell, m.
        corner: (2,) lowest x and y, m in the map frame.
        values: (rows along y, columns along x) int8: 0 where all headings are good, 100 where none
            is, -1 where nothing was predicted.
    """

    cell: float
    corner: NDArray[np.float64]
    values: NDArray[np.int8]


def read_coverage(version_folder: Path | None) -> CoverageGrid | None:
    """Return what has been predicted of a version, from beside it; None without.

    A file that cannot be used is told and ignored: it is no part of the map.
    """
    if version_folder is None or not (version_folder / COVERAGE_FILE).exists():
        return None
    path = version_folder / COVERAGE_FILE
    try:
        document = json.loads(read_regular(path, _MAX_COVERAGE_BYTES))
        cell = float(document['cell'])
        middles = np.array([entry['middle'] for entry in document['cells']], np.float64)
        good = [
            np.mean([view['verdict'] == 'good' for view in entry['views']])
            for entry in document['cells']
        ]
        costs = np.rint(100 * (1 - np.array(good))).astype(np.int8)
        place = np.rint((middles[:, :2] - middles[:, :2].min(axis=0)) / cell).astype(np.int64)
        columns, rows = (place.max(axis=0) + 1).tolist()
        if not cell > 0 or columns * rows > _MAX_CELLS:
            raise ValueError(f'{columns} x {rows} cells of {cell}')
    except (MapFormatError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        logger.warning('%s cannot be used (%s): run d2s map coverage again', path, error)
        return None
    values = np.full((rows, columns), -1, np.int8)
    values[place[:, 1], place[:, 0]] = costs
    return CoverageGrid(cell, middles[:, :2].min(axis=0) - cell / 2, values)


def coverage_time(version_folder: Path) -> int:
    """Return when the coverage beside a version was written, ns; 0 without."""
    try:
        return (version_folder / COVERAGE_FILE).stat().st_mtime_ns
    except OSError:
        return 0


def coverage_message(grid: CoverageGrid, stamp_ns: int, frame_id: str) -> OccupancyGrid:
    """Return a grid as planners read it: the higher, the less likely a robot is localized."""
    rows, columns = grid.values.shape
    x, y = (float(value) for value in grid.corner)
    return OccupancyGrid(
        header=conversions.header(stamp_ns, frame_id),
        info=MapMetaData(
            resolution=grid.cell,
            width=columns,
            height=rows,
            origin=Pose(position=Point(x=x, y=y), orientation=Quaternion(w=1.0)),
        ),
        data=array.array('b', grid.values.tobytes()),
    )


def landmarks_message(
    points_in_map: NDArray[np.float64], stamp_ns: int, frame_id: str
) -> PointCloud2:
    """Return all landmarks (M, 3); their intensity is the height."""
    return conversions.point_cloud(points_in_map, points_in_map[:, 2], stamp_ns, frame_id)
