"""Parts of a build that need nothing but their arguments: run elsewhere, kept when they are done.

A task is a function of this package's modules with arguments, which gives records of arrays. It
may run on any machine and more than once. What is done is kept in a `StageLog` by key, and is not
done again.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from numpy.typing import NDArray
from tqdm import tqdm

from d2s_ros.data.array_log import StageLog
from d2s_ros.errors import D2SError
from d2s_ros.pycolmap_import import import_pycolmap
from d2s_ros.threads import one_thread

#: Named arrays by key: what a task gives.
Records = dict[str, dict[str, NDArray[Any]]]
#: Tasks for each that runs, so that nobody waits for arguments.
AHEAD = 2


@dataclass(frozen=True, eq=False)
class Task:
    """One part of a build.

    Attributes:
        keys: Of the records that it gives; it is done if all of them are kept.
        function: Of a module, with arguments that can be sent to another process.
        arguments: Of the function.
    """

    keys: tuple[str, ...]
    function: Callable[..., Records]
    arguments: tuple[Any, ...]


def do_task(task: Task) -> Records:
    """Do a task with one thread, so that what it gives is the same with any number of cores.

    Sums over several threads are rounded in another order. All runners do their tasks with this.
    """
    with _one_core():
        return task.function(*task.arguments)


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Let all libraries that compute use one thread; afterwards as many as before."""
    import cv2
    from threadpoolctl import threadpool_limits

    # What is loaded later would not be limited.
    import_pycolmap()
    importlib.import_module('scipy.linalg')
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with one_thread(), threadpool_limits(1):
            yield
    finally:
        cv2.setNumThreads(before)


class TaskRunner(ABC):
    """Runs tasks somewhere, each by `do_task`; a context."""

    @abstractmethod
    def run(self, tasks: Iterable[Task]) -> Iterator[Records]:
        """Yield what tasks give as it comes; they are taken as fast as they can be done.

        Raises:
            D2SError: a task failed, or what it ran on.
        """

    def __enter__(self) -> TaskRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


class LocalRunner(TaskRunner):
    """Runs tasks in processes of this machine.

    Args:
        processes: How many; 0 one for each core. One runs in this process.
    """

    def __init__(self, processes: int = 0) -> None:
        self.processes = processes or len(os.sched_getaffinity(0))
        self._pool: ProcessPoolExecutor | None = None

    def run(self, tasks: Iterable[Task]) -> Iterator[Records]:
        """Run tasks; see `TaskRunner`."""
        if self.processes == 1:
            for task in tasks:
                yield do_task(task)
            return
        if self._pool is None:
            # Forked processes hang where the parent has used threads of OpenMP.
            self._pool = ProcessPoolExecutor(
                self.processes, mp_context=multiprocessing.get_context('spawn')
            )
        waiting: set[Future[Records]] = set()
        try:
            for task in tasks:
                waiting.add(self._pool.submit(do_task, task))
                if len(waiting) >= AHEAD * self.processes:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (one.result() for one in done)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in done)
        except BrokenProcessPool as error:
            raise D2SError(
                'a process of the build was killed, most likely for want of memory; the same '
                'command goes on from there: give it fewer --processes'
            ) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def run_tasks(
    tasks: Iterable[Task], runner: TaskRunner, log: StageLog, *, desc: str = '', progress: bool
) -> None:
    """Run the tasks that are not done yet, and keep what they give.

    Args:
        tasks: Taken one after the other while there is room.
        runner: Where they run.
        log: Keeps what is done.
        desc: Of the progress bar.
        progress: Show it.

    Raises:
        D2SError: a task failed, or what it gave cannot be kept.
    """
    missing = (task for task in tasks if not all(key in log for key in task.keys))
    for records in tqdm(runner.run(missing), desc=desc, unit='task', disable=not progress):
        for key, arrays in records.items():
            if not log.keep(key, arrays):
                raise D2SError(
                    f'what is done of the build cannot be kept in {log.path or "its folder"}: make '
                    'room, or make the folder of the map writable; the same command goes on'
                )
