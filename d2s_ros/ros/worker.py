"""Hand-over from ROS callbacks to one worker thread: the newest frame wins."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar('T')

logger = logging.getLogger(__name__)


class LatestSlot(Generic[T]):
    """Holds at most one item; a newer one replaces it, and the replaced one is counted."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._item: T | None = None
        self._closed = False
        self._received = 0
        self._dropped = 0

    def put(self, item: T) -> bool:
        """Offer an item; return whether an older one was dropped for it."""
        with self._condition:
            if self._closed:
                return False
            dropped = self._item is not None
            self._received += 1
            self._dropped += dropped
            self._item = item
            self._condition.notify()
            return dropped

    def take(self, timeout: float | None = None) -> T | None:
        """Wait for an item and remove it; None after the timeout or once closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._closed or self._item is not None, timeout)
            item, self._item = self._item, None
            return None if self._closed else item

    def clear(self) -> None:
        """Forget the waiting item without counting it as dropped."""
        with self._condition:
            self._item = None

    def close(self) -> None:
        """Wake up who waits; later items are ignored."""
        with self._condition:
            self._closed = True
            self._item = None
            self._condition.notify_all()

    @property
    def counts(self) -> tuple[int, int]:
        """Items received and items dropped so far."""
        with self._condition:
            return self._received, self._dropped


class Worker(Generic[T]):
    """A thread that handles the newest item of a slot, one at a time.

    Args:
        slot: Where items come from.
        handle: Called with each item; an exception is logged and does not end the thread.
        idle: Called between items and at least every `idle_period` seconds.
        failed: Called with what `handle` or `idle` raised, to tell the operator.
    """

    def __init__(
        self,
        slot: LatestSlot[T],
        handle: Callable[[T], None],
        idle: Callable[[], None] | None = None,
        *,
        idle_period: float = 0.1,
        failed: Callable[[Exception], None] | None = None,
        name: str = 'worker',
    ) -> None:
        self._slot = slot
        self._handle = handle
        self._idle = idle
        self._idle_period = idle_period
        self._failed = failed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """End after the current item; return whether the thread ended in time."""
        self._stop.set()
        self._slot.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            item = self._slot.take(self._idle_period if self._idle else None)
            if self._stop.is_set():
                return
            try:
                if self._idle is not None:
                    self._idle()
                if item is not None:
                    self._handle(item)
            except Exception as error:
                logger.exception('the worker failed on an item and continues')
                if self._failed is not None:
                    self._failed(error)
