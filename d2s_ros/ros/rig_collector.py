"""Puts the images of several cameras together that show the same moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from d2s_ros.ros.camera_reader import QueuedImage

#: A camera that gave no image for so long is not waited for, in seconds.
_SILENT = 2.0


class RigCollector:
    """Collects one image of each camera.

    A moment is given out when every camera that lives has given its image, when the next moment
    begins, or when the wait is over: a camera that died costs no more than that.

    Args:
        count: Number of cameras.
        tolerance: Stamps within this are of one moment, in seconds.
        wait: Longest wait for the other cameras, in seconds.
        take: Called with the images of a moment, by camera.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        count: int,
        tolerance: float,
        wait: float,
        take: Callable[[tuple[QueuedImage, ...]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count = count
        self._tolerance_ns = int(1e9 * tolerance)
        self._wait = wait
        self._take = take
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: dict[int, QueuedImage] = {}
        self._began = 0.0
        # All are waited for at the start.
        self._last = dict.fromkeys(range(count), clock())
        self._given_ns: int | None = None

    def put(self, queued: QueuedImage) -> None:
        """Take an image."""
        if self._count == 1:
            self._take((queued,))
            return
        now, given = self._clock(), []
        with self._lock:
            self._last[queued.camera] = now
            if self._pending:
                stamp_ns = next(iter(self._pending.values())).stamp_ns
                if (
                    abs(queued.stamp_ns - stamp_ns) > self._tolerance_ns
                    or queued.camera in self._pending
                ):
                    given.append(self._taken())
            elif (
                self._given_ns is not None
                and abs(queued.stamp_ns - self._given_ns) <= self._tolerance_ns
            ):
                # Too late: its moment was given out without it.
                return
            if not self._pending:
                self._began = now
            self._pending[queued.camera] = queued
            living = {camera for camera, last in self._last.items() if now - last < _SILENT}
            if living <= set(self._pending):
                given.append(self._taken())
        for images in given:
            self._take(images)

    def look(self) -> None:
        """Give out what has waited long enough; called now and then."""
        images = None
        with self._lock:
            if self._pending and self._clock() - self._began > self._wait:
                images = self._taken()
        if images is not None:
            self._take(images)

    def _taken(self) -> tuple[QueuedImage, ...]:
        images = tuple(self._pending[camera] for camera in sorted(self._pending))
        self._pending.clear()
        self._given_ns = images[0].stamp_ns
        return images
