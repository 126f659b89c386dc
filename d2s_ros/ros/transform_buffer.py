"""A small transform buffer: edges over time, lookup through the tree with interpolation.

Used where tf2_ros is not installed. It knows no ROS types, is safe to use from several threads,
and its memory is bounded.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from d2s_ros.errors import D2SError
from d2s_ros.geometry.transforms import RigidTransform, interpolate

_MAX_DEPTH = 64
#: No robot is further from its origin, in metres.
_MAX_DISTANCE = 1e9


@dataclass(frozen=True, eq=False)
class Lookup:
    """Outcome of a lookup.

    Attributes:
        target_from_source: The transform, None if it is not known.
        reason: One line why it is not known, empty otherwise.
        may_arrive: Whether waiting can help: the frames are connected, but the data does not
            reach the stamp yet.
    """

    target_from_source: RigidTransform | None
    reason: str = ''
    may_arrive: bool = False


def is_usable(values: tuple[float, ...]) -> bool:
    """Return whether tx ty tz qx qy qz qw are finite, a rotation and no absurd distance."""
    array = np.asarray(values)
    return (
        array.shape == (7,)
        and bool(np.isfinite(array).all())
        and float(np.abs(array[:3]).max()) <= _MAX_DISTANCE
        and 1e-6 < float(np.abs(array[3:]).max()) <= _MAX_DISTANCE
    )


class _Edge:
    """The transforms from one child frame to its parent, ordered by stamp."""

    def __init__(self, parent: str, static: bool) -> None:
        self.parent = parent
        self.static = static
        self.touched = 0.0
        self.stamps: list[int] = []
        self.values: list[tuple[float, ...]] = []


class TransformBuffer:
    """Keeps the newest transforms of each frame to its parent.

    Args:
        cache_ns: History kept behind the newest stamp of each edge, in nanoseconds.
        jump_ns: A stamp this much before the newest one means that time started again.
        max_samples: Most samples kept per edge.
        max_frames: Most frames known; further ones are ignored and counted.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        cache_ns: int = 10_000_000_000,
        jump_ns: int = 1_000_000_000,
        max_samples: int = 5000,
        max_frames: int = 2000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache_ns = cache_ns
        self._jump_ns = jump_ns
        self._max_samples = max_samples
        self._max_frames = max_frames
        self._clock = clock
        self._edges: dict[str, _Edge] = {}
        self._changed = threading.Condition()
        self.ignored = 0

    def insert(
        self, parent: str, child: str, stamp_ns: int, values: tuple[float, ...], *, static: bool
    ) -> bool:
        """Add parent_from_child; False if it is not valid and was ignored.

        What would close a loop of frames is ignored, unless a moving transform of the loop was not
        sent for the length of the history: that one is forgotten instead.

        Args:
            parent, child: Frame names; a leading slash is dropped.
            stamp_ns: Time of the transform; ignored for static ones.
            values: tx ty tz qx qy qz qw; checked here, the quaternion need not have unit norm.
            static: Holds at all times.
        """
        parent, child = parent.removeprefix('/'), child.removeprefix('/')
        valid = parent != '' and child != '' and parent != child and is_usable(values)
        with self._changed:
            edge = self._edges.get(child)
            if not valid or (edge is None and len(self._edges) >= self._max_frames):
                self.ignored += 1
                return False
            if edge is None or edge.parent != parent or edge.static != static:
                if not self._opens(parent, child):
                    self.ignored += 1
                    return False
                edge = self._edges[child] = _Edge(parent, static)
            edge.touched = self._clock()
            if static:
                edge.stamps, edge.values = [0], [values]
            else:
                self._insert_sample(edge, stamp_ns, values)
            self._changed.notify_all()
        return True

    def _opens(self, parent: str, child: str) -> bool:
        """Return whether an edge from child to parent closes no loop; stale edges give way."""
        chain = self._chain(parent)
        if child not in chain:
            return True
        oldest = self._clock() - self._cache_ns / 1e9
        for frame in chain[: chain.index(child)]:
            edge = self._edges[frame]
            if not edge.static and edge.touched < oldest:
                del self._edges[frame]
                return True
        return False

    def _insert_sample(self, edge: _Edge, stamp_ns: int, values: tuple[float, ...]) -> None:
        if edge.stamps and stamp_ns < edge.stamps[-1] - self._jump_ns:
            # What was known belongs to the previous run.
            edge.stamps, edge.values = [], []
        index = bisect.bisect_left(edge.stamps, stamp_ns)
        if index < len(edge.stamps) and edge.stamps[index] == stamp_ns:
            edge.values[index] = values
        else:
            edge.stamps.insert(index, stamp_ns)
            edge.values.insert(index, values)
        oldest = edge.stamps[-1] - self._cache_ns
        drop = max(bisect.bisect_left(edge.stamps, oldest), len(edge.stamps) - self._max_samples)
        # Trimming in blocks keeps insertion cheap.
        if drop > len(edge.stamps) // 8:
            del edge.stamps[:drop], edge.values[:drop]

    def restart_at(self, stamp_ns: int) -> None:
        """Forget what lies clearly after a stamp to which time jumped back; static ones stay."""
        with self._changed:
            for edge in self._edges.values():
                if not edge.static:
                    keep = bisect.bisect_right(edge.stamps, stamp_ns + self._jump_ns)
                    del edge.stamps[keep:], edge.values[keep:]
            self._edges = {child: edge for child, edge in self._edges.items() if edge.stamps}

    def __len__(self) -> int:
        """Number of samples kept."""
        with self._changed:
            return sum(len(edge.stamps) for edge in self._edges.values())

    def lookup(
        self, target: str, source: str, stamp_ns: int | None, timeout: float = 0.0
    ) -> Lookup:
        """Find target_from_source at a stamp.

        Args:
            target, source: Frame names.
            stamp_ns: Time; None for the newest common time of the frames between.
            timeout: Seconds to wait for data that may still arrive.
        """
        target, source = target.removeprefix('/'), source.removeprefix('/')
        with self._changed:
            result = self._lookup(target, source, stamp_ns)
            if result.may_arrive and timeout > 0:

                def done() -> bool:
                    nonlocal result
                    result = self._lookup(target, source, stamp_ns)
                    return not result.may_arrive

                self._changed.wait_for(done, timeout)
            return result

    def newest_stamp(self, target: str, source: str) -> int | None:
        """Return up to which stamp target_from_source is known, in ns; None if it is not.

        Where all transforms between are static the stamp is that of no sample: 0.
        """
        with self._changed:
            edges = self._between(target.removeprefix('/'), source.removeprefix('/'))
            return None if edges is None else self._newest([*edges[0], *edges[1]])

    def _newest(self, children: list[str]) -> int:
        edges = [self._edges[child] for child in children]
        return min((edge.stamps[-1] for edge in edges if not edge.static), default=0)

    def _between(self, target: str, source: str) -> tuple[list[str], list[str]] | None:
        """Return the edges from the source, and from the target, to where they meet."""
        up_source, up_target = self._chain(source), self._chain(target)
        common = next((frame for frame in up_source if frame in up_target), None)
        if common is None:
            return None
        return up_source[: up_source.index(common)], up_target[: up_target.index(common)]

    def _chain(self, frame: str) -> list[str]:
        """Frames from `frame` to its root."""
        chain = [frame]
        while chain[-1] in self._edges and len(chain) < _MAX_DEPTH:
            chain.append(self._edges[chain[-1]].parent)
        return chain

    def _lookup(self, target: str, source: str, stamp_ns: int | None) -> Lookup:
        if target == source:
            return Lookup(RigidTransform.identity())
        between = self._between(target, source)
        if between is None:
            known = {*self._edges, *(edge.parent for edge in self._edges.values())}
            missing = [frame for frame in (source, target) if frame not in known]
            what = f'frame {missing[0]!r} is not known' if missing else 'they are not connected'
            return Lookup(None, f'no transform from {source!r} to {target!r}: {what}')
        if stamp_ns is None:
            stamp_ns = self._newest([*between[0], *between[1]])
        sides = []
        for edges in between:
            composed = RigidTransform.identity()
            for child in edges:
                step = self._at(child, stamp_ns)
                if step.target_from_source is None:
                    return step
                composed = step.target_from_source @ composed
            sides.append(composed)
        return Lookup(sides[1].inverse() @ sides[0])

    def _at(self, child: str, stamp_ns: int) -> Lookup:
        """Return parent_from_child of one edge at a stamp."""
        edge = self._edges[child]
        try:
            if edge.static:
                return Lookup(RigidTransform.from_tum(edge.values[0]))
            index = bisect.bisect_left(edge.stamps, stamp_ns)
            name = f'{edge.parent!r} to {child!r}'
            if index == len(edge.stamps):
                behind = (stamp_ns - edge.stamps[-1]) / 1e9
                return Lookup(None, f'the transform {name} ends {behind:.3f} s before', True)
            if edge.stamps[index] == stamp_ns:
                return Lookup(RigidTransform.from_tum(edge.values[index]))
            if index == 0:
                ahead = (edge.stamps[0] - stamp_ns) / 1e9
                return Lookup(None, f'the transform {name} starts {ahead:.3f} s later')
            before, after = edge.stamps[index - 1], edge.stamps[index]
            fraction = (stamp_ns - before) / (after - before)
            return Lookup(
                interpolate(
                    RigidTransform.from_tum(edge.values[index - 1]),
                    RigidTransform.from_tum(edge.values[index]),
                    fraction,
                )
            )
        except D2SError as error:
            return Lookup(None, f'the transform to {child!r} is not valid: {error}')
