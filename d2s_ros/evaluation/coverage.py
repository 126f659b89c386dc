"""How well a map localizes where: predicted for views all around the places it was mapped from.

A view is predicted from what mapping images say: which of their points it would show and how much
like they saw them (`view_prediction`), how many of those a new image finds (measured on held-out
mapping images), and what covariance their rays give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError
from d2s_ros.evaluation.view_prediction import BAD_INLIERS, PlannedView, ViewPredictor
from d2s_ros.geometry.statistics import subsample
from d2s_ros.localization.localizer import Localizer
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.update_data import MappingData

Array = NDArray[np.float64]

#: Headings of a place that are predicted, evenly around.
HEADINGS = 12
#: Held-out mapping images that are localized to learn what share of the points is found.
_HELD_OUT = 24
#: A cell is this share of the median depth of the scene wide, where nothing else is asked for.
_CELL_OF_DEPTH = 0.2
_MAX_CELLS = 4000
#: A path through one place has so many cells, however wide they are.
_FEWEST_CELLS = 16


@dataclass(frozen=True, eq=False)
class CoverageCell:
    """A place and what a camera would see from it.

    Attributes:
        middle: (3,) in the map frame, at the height of the mapping cameras nearby.
        views: By heading, HEADINGS of them.
    """

    middle: Array
    views: tuple[PlannedView, ...]


@dataclass(frozen=True, eq=False)
class Coverage:
    """How well a map localizes where.

    Attributes:
        cell: Width of a cell, unit of the map.
        unit: 'm' or 'units'.
        cells: All that were predicted.
        path: (I, 3) mapping cameras, map frame.
        found_share: Share of the weights of the points in a view that become inliers, by held-out
            images.
        held_out, localized: Mapping images that were localized in the map without them.
    """

    cell: float
    unit: str
    cells: tuple[CoverageCell, ...]
    path: Array
    found_share: float
    held_out: int
    localized: int

    @cached_property
    def shares(self) -> dict[str, float]:
        """Share of the views that are good, fair and bad."""
        verdicts = [view.verdict for cell in self.cells for view in cell.views]
        return {
            name: verdicts.count(name) / max(1, len(verdicts)) for name in ('good', 'fair', 'bad')
        }

    def view_at(self, position: Array, heading_deg: float) -> PlannedView | None:
        """Return what is predicted for a place (3,) and heading; None outside of all cells."""
        middles = np.stack([cell.middle for cell in self.cells])
        offsets = np.abs(middles[:, :2] - position[:2]).max(axis=1)
        nearest = int(np.argmin(offsets))
        if offsets[nearest] > 0.5 * self.cell + 1e-9:
            return None
        turn = round(heading_deg / (360 / HEADINGS)) % HEADINGS
        return self.cells[nearest].views[turn]

    def to_json(self) -> dict[str, Any]:
        """Return all of it, JSON types."""
        return {
            'cell': round(self.cell, 4),
            'unit': self.unit,
            'found_share': round(self.found_share, 4),
            'held_out': self.held_out,
            'localized': self.localized,
            'shares': {name: round(share, 4) for name, share in self.shares.items()},
            'cells': [
                {
                    'middle': [round(float(value), 4) for value in cell.middle],
                    'views': [
                        {
                            'heading_deg': view.heading_deg,
                            'inliers': round(view.inliers, 1),
                            'most_inliers': round(view.most_inliers, 1),
                            'sigma': _rounded(view.sigma),
                            'sigma_deg': _rounded(view.sigma_deg),
                            'verdict': view.verdict,
                        }
                        for view in cell.views
                    ],
                }
                for cell in self.cells
            ],
        }


def _rounded(value: float) -> float | None:
    return round(value, 5) if np.isfinite(value) else None


def measure_coverage(
    scene_map: SceneMap,
    *,
    cell: float | None = None,
    held_out: int = _HELD_OUT,
    most_cells: int | None = None,
) -> Coverage:
    """Predict views all around the places that a map was made from.

    Cells cover the mapping path and a cell's width around it, in the plane of x and y, at the
    height and with the downward tilt of the mapping cameras near by.

    Args:
        scene_map: A map with update data.
        cell: Width of a cell, unit of the map; None chooses one by the depth of the scene.
        held_out: Mapping images that are localized in the map without them.
        most_cells: Make the cells wider until there are no more.

    Raises:
        MapFormatError: the map has no update data.
        InputError: cells are too small, or the map cannot leave images out.
    """
    measured = measured_predictor(scene_map, held_out)
    predictor, share = measured.predictor, measured.found_share
    manifest = scene_map.manifest
    depth = manifest.calibration.scene_depth or scene_map.model.extent
    width = cell or _CELL_OF_DEPTH * depth
    poses = [image.map_from_camera for image in measured.data.images]
    path = np.stack([pose.translation for pose in poses])
    tilt = float(np.median(np.arcsin([np.clip(pose.rotation[2, 2], -1, 1) for pose in poses])))
    middles = _cells_around(path, width)
    while most_cells is not None and len(middles) > max(most_cells, _FEWEST_CELLS):
        width *= 1.2
        middles = _cells_around(path, width)
    if len(middles) > _MAX_CELLS:
        raise InputError(f'{len(middles)} cells are too many: give wider ones with --cell')
    cells = [
        CoverageCell(middle + scene_map.origin, _views_from(predictor, middle, tilt, share))
        for middle in middles
    ]
    unit = 'm' if manifest.metric else 'units'
    path = path + scene_map.origin
    asked, localized = measured.held_out, measured.localized
    return Coverage(width, unit, tuple(cells), path, share, asked, localized)


@dataclass(frozen=True, eq=False)
class MeasuredPredictor:
    """What predicts views of a map, and what its own images say of the predictions.

    Attributes:
        predictor: In the frame of the map without its origin.
        data: The mapping images, in the same frame.
        found_share: Inliers of a held-out image over the weights of the points in its view.
        held_out, localized: Mapping images that were localized in the map without them.
    """

    predictor: ViewPredictor
    data: MappingData
    found_share: float
    held_out: int
    localized: int


def measured_predictor(scene_map: SceneMap, held_out: int = _HELD_OUT) -> MeasuredPredictor:
    """Return what predicts views of a map.

    Raises:
        MapFormatError: the map has no update data.
        InputError: the map cannot leave images out.
    """
    local = scene_map.in_local_frame()
    data = MappingData.from_map(local)
    local = replace(local, model=local.model.with_mapping(data.reconstruction()))
    manifest = local.manifest
    predictor = ViewPredictor(data, manifest.cameras[0], manifest.calibration.sigma_px)
    share, asked, localized = _found_share(local, data, predictor, held_out)
    return MeasuredPredictor(predictor, data, share, asked, localized)


def _views_from(
    predictor: ViewPredictor, middle: Array, tilt: float, found_share: float
) -> tuple[PlannedView, ...]:
    """Return the views of one cell; each stands for directions up to halfway to the next.

    What is good in the middle and bad halfway is neither, and so the other way round.
    """
    around = predictor.around(middle)
    found = [
        predictor.predict(level_rotation(180 * turn / HEADINGS, tilt), around, found_share)
        for turn in range(2 * HEADINGS)
    ]
    views = []
    for turn in range(0, 2 * HEADINGS, 2):
        view = found[turn]
        beside = {found[turn - 1].verdict, found[turn + 1].verdict}
        mixed = (view.verdict == 'good' and 'bad' in beside) or (
            view.verdict == 'bad' and beside != {'bad'}
        )
        views.append(replace(view, verdict='fair') if mixed else view)
    return tuple(views)


def _found_share(
    scene_map: SceneMap, data: MappingData, predictor: ViewPredictor, count: int
) -> tuple[float, int, int]:
    """Return inliers over predicted weights of images left out; how many; how many localized."""
    localizer = Localizer(scene_map, data.extractor(scene_map.manifest))
    chosen = subsample(list(range(len(data.images))), count)
    shares, localized = [], 0
    for index in chosen:
        image = data.images[index]
        result = localizer.localize_view(
            localizer.observer.mapping_view(image),
            observation=localizer.observer.observe_without(index),
        )
        localized += result.localized
        pose = image.map_from_camera
        around = predictor.around(pose.translation, index)
        weight = float(around.anyway[predictor.in_view(pose.rotation, around)[0]].sum())
        if weight > 1.0:
            shares.append(result.num_inliers / weight)
    if not shares:
        raise InputError('no mapping image shows points that others show: build the map again')
    # Images of a video have neighbours that are nearly the same, and so more inliers than others.
    # Of points that are looked at, each counts for those that are not.
    return min(1 / predictor.share, float(np.median(shares))), len(chosen), localized


def _cells_around(path: Array, width: float) -> list[Array]:
    """Return the middles of the cells on and beside a path (I, 3)."""
    keys: dict[tuple[int, int], list[float]] = {}
    for x, y, z in path:
        i, j = int(np.floor(x / width)), int(np.floor(y / width))
        for a in (-1, 0, 1):
            for b in (-1, 0, 1):
                keys.setdefault((i + a, j + b), []).append(float(z))
    return [
        np.array([(i + 0.5) * width, (j + 0.5) * width, float(np.median(heights))])
        for (i, j), heights in sorted(keys.items())
    ]


def level_rotation(heading_deg: float, tilt: float) -> Array:
    """Return the rotation map_from_camera (3, 3) of a camera without roll.

    Args:
        heading_deg: Of the optical axis in the plane of x and y.
        tilt: Of the optical axis above the plane, radians.
    """
    turn = np.radians(heading_deg)
    ahead = np.array([np.cos(turn) * np.cos(tilt), np.sin(turn) * np.cos(tilt), np.sin(tilt)])
    right = np.array([np.sin(turn), -np.cos(turn), 0.0])
    return np.stack([right, np.cross(ahead, right), ahead], axis=1)


def coverage_advice(coverage: Coverage, most: int = 5) -> list[str]:
    """Return advice in words on where to walk again, the largest weak places first."""
    half = 360 / HEADINGS
    on_path = [
        cell
        for cell in coverage.cells
        if np.abs(coverage.path[:, :2] - cell.middle[:2]).max(axis=1).min() <= coverage.cell / 2
    ]
    by_heading: dict[int, list[CoverageCell]] = {}
    for cell in on_path:
        for turn, view in enumerate(cell.views):
            # Of fair views too those that only flat surfaces can save.
            if view.verdict != 'good' and view.inliers < BAD_INLIERS:
                by_heading.setdefault(turn // 3, []).append(cell)
    advice: list[tuple[int, str]] = []
    for quarter, cells in by_heading.items():
        for group in _connected(cells, coverage.cell):
            low, high = group.min(axis=0) - coverage.cell / 2, group.max(axis=0) + coverage.cell / 2
            facing = quarter * 90 + half
            advice.append(
                (
                    len(group),
                    f'walk x {low[0]:.1f} to {high[0]:.1f}, y {low[1]:.1f} to {high[1]:.1f} '
                    f'{coverage.unit} again, facing {facing:.0f} deg ({_side(facing)})',
                )
            )
    advice.sort(key=lambda item: -item[0])
    return [text for _, text in advice[:most]]


def _side(heading_deg: float) -> str:
    return ('towards +x', 'towards +y', 'towards -x', 'towards -y')[round(heading_deg / 90) % 4]


def _connected(cells: Sequence[CoverageCell], width: float) -> list[Array]:
    """Return the middles (C, 2) of cells in groups that touch each other."""
    left = {tuple(np.rint(cell.middle[:2] / width - 0.5).astype(int)) for cell in cells}
    groups = []
    while left:
        group, border = [], [left.pop()]
        while border:
            i, j = border.pop()
            group.append((i, j))
            for a in (-1, 0, 1):
                for b in (-1, 0, 1):
                    if (i + a, j + b) in left:
                        left.discard((i + a, j + b))
                        border.append((i + a, j + b))
        groups.append((np.array(group) + 0.5) * width)
    return groups
