"""The calibration of a camera from pictures of a printed board: checkerboard, ChArUco or tags."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.frames import Frame
from d2s_ros.data.tag_detection import TagDetector, dictionary
from d2s_ros.errors import CalibrationError, UsageError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.statistics import subsample

#: Forms of a board, as `parse_board` reads them.
BOARD_FORMS = (
    'checkerboard:COLUMNSxROWS:SQUARE (inner corners), charuco:COLUMNSxROWS:SQUARE:MARKER '
    '(squares), or tags:COLUMNSxROWS:EDGE:GAP; lengths in metres'
)
#: Views that are used at most: more of them take time and tell nothing new.
_MAX_VIEWS = 60
#: A calibration from fewer views is not one.
_MIN_VIEWS = 6
#: Corners that a view needs.
_MIN_CORNERS = 8
#: A view whose error is so many times the median is of a bent board or a wrong corner.
_MAX_ERROR_FACTOR = 3.0
#: Cells of the image that corners should be in.
_GRID = (8, 6)


@dataclass(frozen=True)
class Board:
    """A printed board.

    Attributes:
        kind: 'checkerboard', 'charuco' or 'tags'.
        columns, rows: Inner corners of a checkerboard, squares of a ChArUco board, or tags.
        square: Edge of a square or tag, m.
        other: Edge of a ChArUco marker, or gap between tags, m; 0 for a checkerboard.
    """

    kind: str
    columns: int
    rows: int
    square: float
    other: float = 0.0


@dataclass(frozen=True, eq=False)
class BoardCalibration:
    """What pictures of a board tell of a camera.

    Attributes:
        camera: The calibration.
        rms_px: Root mean square of the reprojection errors.
        focal_sigma_px: Standard deviation of the focal length; NaN where it is not known.
        coverage: Share of the image (in cells of an 8 by 6 grid) that a corner was in.
        views: Pictures used.
        left_out: Pictures whose corners fit badly.
        without_board: Pictures that show no whole board.
    """

    camera: Camera
    rms_px: float
    focal_sigma_px: float
    coverage: float
    views: int
    left_out: int
    without_board: int

    def advice(self) -> list[str]:
        """Return what would make it better, in words."""
        found = []
        if self.coverage < 0.6:
            found.append(
                f'corners were seen in {self.coverage:.0%} of the image only: hold the board into '
                'all corners of the image, near and far'
            )
        if self.rms_px > 1.0:
            found.append(
                f'the error of {self.rms_px:.2f} px is large: is the board flat, its size right, '
                'and were the pictures sharp?'
            )
        if self.focal_sigma_px > 0.005 * self.camera.fx:
            found.append('the focal length is not certain: tilt the board by 30 to 45 degrees')
        if self.views < 15:
            found.append(f'{self.views} pictures are few: take 20 to 40')
        return found


def parse_board(text: str) -> Board:
    """Read a board as a user writes it.

    Raises:
        UsageError: it has none of BOARD_FORMS.
    """
    kind, *parts = text.split(':')
    lengths = {'checkerboard': 1, 'charuco': 2, 'tags': 2}
    try:
        columns, rows = (int(part) for part in parts[0].split('x'))
        numbers = [float(part) for part in parts[1:]]
    except (ValueError, IndexError):
        columns = rows = 0
        numbers = []
    good = kind in lengths and len(numbers) == lengths[kind] and min(columns, rows) >= 2
    if not good or not all(0 < number < 10 for number in numbers):
        raise UsageError(f'board {text!r} is not understood: give {BOARD_FORMS}')
    if kind == 'charuco' and numbers[1] >= numbers[0]:
        raise UsageError(f'board {text!r}: a marker is smaller than its square')
    return Board(kind, columns, rows, *numbers)


class BoardFinder:
    """Finds the corners of a board.

    Args:
        board: The board; tags are AprilTags 36h11 or, on a ChArUco board, ArUco 4x4, numbered row
            by row from the top left.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        size = (board.columns, board.rows)
        self._printed: Any = None
        if board.kind == 'charuco':
            markers = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_250)
            self._printed = cv2.aruco.CharucoBoard(size, board.square, board.other, markers)
            self._charuco = cv2.aruco.CharucoDetector(self._printed)
        elif board.kind == 'tags':
            tags = dictionary('36h11')
            self._printed = cv2.aruco.GridBoard(size, board.square, board.other, tags)
            self._tags = TagDetector('36h11')

    def find(
        self, grey: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return corners on the board (C, 3) m and in the image (C, 2) px; None without a board."""
        board = self._board
        if board.kind == 'checkerboard':
            found, inner = cv2.findChessboardCornersSB(grey, (board.columns, board.rows))
            if not found:
                return None
            grid = np.mgrid[: board.columns, : board.rows].T.reshape(-1, 2) * board.square
            on_board = np.column_stack([grid, np.zeros(len(grid))])
            return on_board.astype(np.float32), inner.reshape(-1, 2).astype(np.float32)
        corners: Any
        if board.kind == 'charuco':
            corners, ids, _, _ = self._charuco.detectBoard(grey)
        else:
            tags = self._tags.detect(grey)
            ids = np.array(list(tags), np.int32)
            corners = [found.astype(np.float32)[None] for found in tags.values()]
        if ids is None or not len(ids):
            return None
        on_board, in_image = self._printed.matchImagePoints(corners, ids)
        if on_board is None or len(on_board) < _MIN_CORNERS:
            return None
        return (
            np.asarray(on_board, np.float32).reshape(-1, 3),
            np.asarray(in_image, np.float32).reshape(-1, 2),
        )


def calibrate_camera(
    frames: Iterable[Frame], board: Board, *, model: str = 'plumb_bob'
) -> BoardCalibration:
    """Calibrate a camera from pictures of a board.

    Args:
        frames: All of one size.
        board: The board.
        model: 'plumb_bob', or 'equidistant' for fisheye lenses.

    Raises:
        CalibrationError: too few pictures show the board, they have several sizes, or nothing fits.
    """
    finder = BoardFinder(board)
    size: tuple[int, int] | None = None
    views = []
    without = 0
    for frame in frames:
        if frame.image is None:
            continue
        grey = frame.image
        if grey.ndim == 3:
            grey = np.asarray(cv2.cvtColor(grey, cv2.COLOR_BGR2GRAY), np.uint8)
        here = (grey.shape[1], grey.shape[0])
        if size is not None and here != size:
            raise CalibrationError(
                f'the pictures have several sizes ({size[0]}x{size[1]}, {here[0]}x{here[1]}); a '
                'calibration is of one'
            )
        size = here
        found = finder.find(grey)
        if found is None:
            without += 1
        else:
            views.append(found)
    if size is None or len(views) < _MIN_VIEWS:
        raise CalibrationError(
            f'{len(views)} pictures show the board, at least {_MIN_VIEWS} are needed ({without} do '
            'not): is the board as given, whole and sharp in the pictures?'
        )
    views = [views[index] for index in subsample(list(range(len(views))), _MAX_VIEWS)]
    fitted = _fit(views, size, model)
    limit = _MAX_ERROR_FACTOR * float(np.median(fitted[2]))
    kept = [view for view, error in zip(views, fitted[2], strict=True) if error <= limit]
    left_out = len(views) - len(kept)
    if left_out and len(kept) >= _MIN_VIEWS:
        fitted = _fit(kept, size, model)
    else:
        kept, left_out = views, 0
    camera, rms, _, focal_sigma = fitted
    return BoardCalibration(
        camera, rms, focal_sigma, _covered(kept, size), len(kept), left_out, without
    )


def _fit(
    views: list[tuple[NDArray[np.float32], NDArray[np.float32]]], size: tuple[int, int], model: str
) -> tuple[Camera, float, NDArray[np.float64], float]:
    """Return camera, RMS, error of each view (px), and the deviation of the focal length."""
    objects = [on_board[:, None] for on_board, _ in views]
    pictures = [in_image[:, None] for _, in_image in views]
    try:
        if model == 'equidistant':
            flags = _fisheye_flags()
            rms, k, d, turns, moves = cv2.fisheye.calibrate(
                [points.astype(np.float64).reshape(1, -1, 3) for points in objects],
                [points.astype(np.float64).reshape(1, -1, 2) for points in pictures],
                size,
                np.eye(3),
                np.zeros((4, 1)),
                flags=flags,
            )
            errors = []
            for points, seen, turn, move in zip(objects, pictures, turns, moves, strict=True):
                again, _ = cv2.fisheye.projectPoints(points.astype(np.float64), turn, move, k, d)
                errors.append(float(np.sqrt(np.mean(np.sum((again - seen) ** 2, axis=-1)))))
            sigma = float('nan')
        else:
            rms, k, d, _, _, deviations, _, per_view = cv2.calibrateCameraExtended(
                objects, pictures, size, np.eye(3), np.zeros(5)
            )
            errors = np.ravel(per_view).tolist()
            sigma = float(np.ravel(deviations)[0])
    except cv2.error as error:
        raise CalibrationError(
            f'no calibration fits the pictures of the board ({error.err}); take more of them, from '
            'all sides'
        ) from error
    camera = Camera(
        model,
        size[0],
        size[1],
        float(k[0, 0]),
        float(k[1, 1]),
        float(k[0, 2]),
        float(k[1, 2]),
        tuple(float(value) for value in np.ravel(d)),
    )
    return camera, float(rms), np.array(errors), sigma


def _fisheye_flags() -> int:
    """Return CALIB_RECOMPUTE_EXTRINSIC and CALIB_FIX_SKEW, which OpenCV 5 has moved."""
    names = ('CALIB_RECOMPUTE_EXTRINSIC', 'CALIB_FIX_SKEW')
    home = cv2.fisheye if hasattr(cv2.fisheye, names[0]) else cv2
    return int(getattr(home, names[0]) | getattr(home, names[1]))


def _covered(
    views: list[tuple[NDArray[np.float32], NDArray[np.float32]]], size: tuple[int, int]
) -> float:
    corners = np.concatenate([in_image for _, in_image in views])
    cells = np.floor(corners / np.array(size) * _GRID).clip(0, np.array(_GRID) - 1)
    return len(np.unique(cells, axis=0)) / (_GRID[0] * _GRID[1])
