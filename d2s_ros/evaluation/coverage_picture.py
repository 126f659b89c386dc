"""A floor plan of where a map localizes: each cell a rose of the headings that work."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.evaluation.coverage import HEADINGS, Coverage

_COLOURS = {'good': '#1a9641', 'fair': '#fdae61', 'bad': '#d7191c'}


def draw_coverage(coverage: Coverage, points_in_map: NDArray[Any]) -> bytes:
    """Return a PNG of the plane of x and y: landmarks, mapping path, and a rose for each cell.

    Args:
        coverage: What was predicted.
        points_in_map: (N, 3) landmarks, map frame.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Wedge

    figure = Figure(figsize=(8.5, 8.0), layout='constrained')
    axes = figure.add_subplot()
    middles = np.stack([cell.middle for cell in coverage.cells])
    low, high = middles.min(axis=0), middles.max(axis=0)
    margin = 0.4 * float((high - low)[:2].max()) + 2 * coverage.cell
    if len(points_in_map):
        axes.scatter(points_in_map[:, 0], points_in_map[:, 1], s=1, c='#c9c9c9', lw=0)
    step = 360 / HEADINGS
    for verdict, colour in _COLOURS.items():
        wedges = [
            Wedge(
                (float(cell.middle[0]), float(cell.middle[1])),
                0.48 * coverage.cell,
                step * (turn - 0.5),
                step * (turn + 0.5),
            )
            for cell in coverage.cells
            for turn, view in enumerate(cell.views)
            if view.verdict == verdict
        ]
        axes.add_collection(PatchCollection(wedges, facecolor=colour, edgecolor='none', alpha=0.9))
    axes.plot(coverage.path[:, 0], coverage.path[:, 1], '-', color='#2c7bb6', lw=1.2)
    axes.set_xlim(low[0] - margin, high[0] + margin)
    axes.set_ylim(low[1] - margin, high[1] + margin)
    axes.set_aspect('equal')
    axes.set_xlabel(f'x [{coverage.unit}]')
    axes.set_ylabel(f'y [{coverage.unit}]')
    shares = coverage.shares
    handles = [
        Patch(color=colour, label=f'{verdict}: {shares[verdict]:.0%} of the views')
        for verdict, colour in _COLOURS.items()
    ]
    handles.append(Patch(color='#2c7bb6', label='mapping path'))
    axes.legend(handles=handles, loc='upper right')
    axes.set_title('each slice: a camera at the middle of the cell that looks that way')
    stream = io.BytesIO()
    figure.savefig(stream, format='png', dpi=110)
    return stream.getvalue()
