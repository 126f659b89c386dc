"""The hand-over between callbacks and the worker."""

from __future__ import annotations

import threading
import time

from d2s_ros.ros.worker import LatestSlot, Worker


def until(condition, timeout=20.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, 'the condition did not come true'
        time.sleep(0.001)


def test_the_newest_item_wins_and_drops_are_counted():
    slot = LatestSlot()
    assert [slot.put(item) for item in range(5)] == [False, True, True, True, True]
    assert slot.take(0) == 4
    assert slot.counts == (5, 4)
    assert slot.take(0.001) is None


def test_clear_is_not_a_drop():
    slot = LatestSlot()
    slot.put(1)
    slot.clear()
    assert slot.take(0) is None
    assert slot.counts == (1, 0)


def test_close_wakes_who_waits():
    slot = LatestSlot()
    found = []
    thread = threading.Thread(target=lambda: found.append(slot.take()))
    thread.start()
    slot.close()
    thread.join(10)
    assert found == [None]
    slot.put(1)
    assert slot.take(0) is None


def test_a_slow_worker_handles_the_newest_and_every_item_is_accounted_for():
    gate, handled = threading.Semaphore(0), []

    def handle(item):
        gate.acquire(timeout=20)
        handled.append(item)

    slot = LatestSlot()
    worker = Worker(slot, handle)
    worker.start()
    slot.put(0)
    until(lambda: slot._item is None)
    for item in range(1, 100):
        slot.put(item)
    gate.release()
    gate.release()
    until(lambda: len(handled) == 2)
    assert handled == [0, 99]
    assert slot.counts == (100, 98)
    assert worker.stop(10)


def test_an_exception_does_not_end_the_worker(caplog):
    handled = []

    def handle(item):
        if item == 'bad':
            raise ValueError('oops')
        handled.append(item)

    slot = LatestSlot()
    failures = []
    worker = Worker(slot, handle, failed=failures.append)
    worker.start()
    slot.put('bad')
    until(lambda: slot._item is None and 'oops' in caplog.text and failures)
    assert [str(failure) for failure in failures] == ['oops']
    slot.put('good')
    until(lambda: handled == ['good'])
    assert worker.stop(10)


def test_idle_runs_without_items_and_between_them():
    order = []
    slot = LatestSlot()
    worker = Worker(slot, order.append, lambda: order.append('idle'), idle_period=0.001)
    worker.start()
    until(lambda: 'idle' in order)
    slot.put('item')
    until(lambda: 'item' in order)
    assert order[order.index('item') - 1] == 'idle'
    assert worker.stop(10)


def test_stop_says_whether_the_thread_ended():
    gate = threading.Event()
    slot = LatestSlot()

    def wait(item):
        gate.wait(20)

    worker = Worker(slot, wait)
    worker.start()
    slot.put(1)
    until(lambda: slot._item is None)
    assert not worker.stop(0.01)
    gate.set()
    assert worker.stop(10)
