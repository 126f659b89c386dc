"""What changed in the place since it was mapped: what is not seen any more, and what is new.

Points say it: an old one that several frames of the logs should see and do not is lost, one that
was triangulated from the logs where the map had none is new. Lost points stay in the map until
several logs missed them, as something may only stand in front; the report has them at once.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Cells along the widest direction of the place, and the fewest points of one that is named.
_CELLS, _FEWEST = 8, 5
#: Regions that are named, those with most changes.
_MOST_REGIONS = 8
#: Share of the points of a region that must have changed.
_LEAST_SHARE = 0.1


@dataclass(frozen=True)
class Region:
    """A part of the place in which something changed.

    Attributes:
        center: Middle of its changed points, map frame.
        known, lost, new: Points that the map had, of these lost, and new ones.
    """

    center: tuple[float, float, float]
    known: int
    lost: int
    new: int

    def __str__(self) -> str:
        """Return one line for people."""
        x, y, z = self.center
        return (
            f'around x {x:.1f} y {y:.1f} z {z:.1f}: {self.lost} of {self.known} points lost, '
            f'{self.new} new'
        )

    def to_report(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            'center': [round(value, 3) for value in self.center],
            'known': self.known,
            'lost': self.lost,
            'new': self.new,
        }


@dataclass(frozen=True, eq=False)
class PlaceChanges:
    """Points of the place, map frame.

    Attributes:
        known: (K, 3) what the map had.
        lost: (K,) bool, of these what the logs should show and do not.
        removed: How many of the lost ones were taken out of the map.
        new: (N, 3).
    """

    known: Array
    lost: NDArray[np.bool_]
    removed: int
    new: Array

    def moved(self, origin: Any) -> PlaceChanges:
        """Return the same, moved by an offset (3,)."""
        offset = np.asarray(origin, dtype=np.float64)
        return PlaceChanges(self.known + offset, self.lost, self.removed, self.new + offset)

    def regions(self) -> list[Region]:
        """Return where most changed, first what changed most."""
        every = np.concatenate([self.known, self.new])
        if not len(every):
            return []
        axes, low, edge = self._grid(every)
        cells = np.floor((every[:, axes] - low) / edge).astype(np.int64)
        _, index = np.unique(cells, axis=0, return_inverse=True)
        index = np.asarray(index).reshape(-1)
        count = int(index.max()) + 1
        of_known, of_new = index[: len(self.known)], index[len(self.known) :]
        known = np.bincount(of_known, minlength=count)
        lost = np.bincount(of_known[self.lost], minlength=count)
        new = np.bincount(of_new, minlength=count)
        changed = np.concatenate([self.lost, np.ones(len(self.new), bool)])
        found = []
        for cell in np.argsort(-(lost + new), kind='stable')[:_MOST_REGIONS]:
            amount = int(lost[cell] + new[cell])
            if amount < _FEWEST or amount < _LEAST_SHARE * (known[cell] + new[cell]):
                continue
            middle = np.median(every[(index == cell) & changed], axis=0)
            x, y, z = (float(value) for value in middle)
            found.append(Region((x, y, z), int(known[cell]), int(lost[cell]), int(new[cell])))
        return found

    @staticmethod
    def _grid(every: Array) -> tuple[NDArray[np.int64], Array, float]:
        """Return the two widest directions, the lower corner and the edge of a cell."""
        # Single points far out must not make all cells as large as the place.
        low, high = np.percentile(every, [2, 98], axis=0)
        axes = np.sort(np.argsort(-(high - low), kind='stable')[:2])
        return axes, low[axes], float(max((high - low).max() / _CELLS, 1e-6))

    def sentences(self) -> list[str]:
        """Return what changed, for people."""
        lines = [
            f'the place: {int(self.lost.sum())} of {len(self.known)} points are not seen any more '
            f'({self.removed} of them taken out of the map), {len(self.new)} are new'
        ]
        return lines + [str(region) for region in self.regions()]

    def to_report(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            'known': len(self.known),
            'lost': int(self.lost.sum()),
            'removed': self.removed,
            'new': len(self.new),
            'regions': [region.to_report() for region in self.regions()],
        }

    def picture(self) -> bytes:
        """Return a PNG: the place from above, what stayed, what is lost and what is new."""
        from matplotlib.figure import Figure

        every = np.concatenate([self.known, self.new])
        figure = Figure(figsize=(7, 5.2))
        panel = figure.add_subplot()
        if len(every):
            axes, _, edge = self._grid(every)
            for points, colour, size, label in (
                (self.known[~self.lost], '#bbbbbb', 2, 'as before'),
                (self.known[self.lost], '#b03a2e', 6, 'lost'),
                (self.new, '#2a7f3f', 6, 'new'),
            ):
                panel.scatter(
                    points[:, axes[0]],
                    points[:, axes[1]],
                    s=size,
                    c=colour,
                    label=f'{label} ({len(points)})',
                )
            for region in self.regions():
                x, y = (region.center[axis] for axis in axes)
                panel.annotate(
                    f'-{region.lost} +{region.new}', (x, y), ha='center', fontsize=8, weight='bold'
                )
            low, high = np.percentile(every, [1, 99], axis=0)
            panel.set_xlim(low[axes[0]] - edge, high[axes[0]] + edge)
            panel.set_ylim(low[axes[1]] - edge, high[axes[1]] + edge)
            panel.set_xlabel('xyz'[axes[0]])
            panel.set_ylabel('xyz'[axes[1]])
            panel.set_aspect('equal', adjustable='box')
            panel.legend(loc='best', fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format='png', dpi=110, bbox_inches='tight')
        return buffer.getvalue()
