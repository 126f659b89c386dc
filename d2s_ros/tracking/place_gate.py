"""Whether a pose in another place of an area is believed: a second one must agree.

Places without a common frame cannot be compared by distance. A robot changes places seldom, and a
place that looks alike may be taken for another in single images.
"""

from __future__ import annotations

#: A place is forgotten, and the next one believed, after so long without a pose, in seconds.
_FRESH_SECONDS = 30.0


class PlaceGate:
    """Compares the place of each pose with that of the last accepted one.

    Attributes:
        place: Of the last accepted pose; empty if there is none, and with a single map.
        changed: Whether that pose is in another frame than the one before.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Believe the next pose, wherever it is."""
        self.place, self.changed = '', False
        self._frame: str | None = None
        self._last_ns = 0
        self._held = ''

    def check(self, stamp_ns: int, place: str, frame: str) -> str:
        """Accept or hold back a pose.

        Args:
            stamp_ns: Its time.
            place: Its place; empty of a single map.
            frame: Its frame.

        Returns:
            Empty if the pose is accepted, else why it is not, for people.
        """
        known = self._frame is not None
        moved = known and frame != self._frame
        fresh = abs(stamp_ns - self._last_ns) <= 1e9 * _FRESH_SECONDS
        if moved and fresh and self._held != place:
            self._held, self.changed = place, False
            return f'in {place}, the last pose was in {self.place}: a second image must agree'
        self.place, self._frame, self.changed = place, frame, moved
        self._last_ns, self._held = stamp_ns, ''
        return ''
