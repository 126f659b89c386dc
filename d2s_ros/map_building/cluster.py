"""Tasks of a build on a Ray cluster, which places them, repeats what is lost, spills memory."""

from __future__ import annotations

import importlib
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from d2s_ros import __version__
from d2s_ros.errors import D2SError, InputError
from d2s_ros.map_building.tasks import AHEAD, Records, Task, TaskRunner, do_task

#: How often Ray repeats a task whose machine was lost.
_MAX_RETRIES = 5
#: For a first answer of the cluster, s.
_ANSWER_SECONDS = 10.0


def _run_task(version: str, task: Task) -> Records:
    """Do a task on a machine of the cluster."""
    if version != __version__:
        raise D2SError(
            f'a machine of the cluster has d2s_ros {__version__}, this one {version}: install the '
            'same version on all'
        )
    return do_task(task)


def _check_answer(address: str) -> None:
    """Check that something listens at the address of a cluster: Ray itself tries for minutes.

    Raises:
        OSError: nothing does.
        ValueError: it is no address.
    """
    found = os.environ.get('RAY_ADDRESS', '') if address == 'auto' else address
    if not found:
        services: Any = importlib.import_module('ray._private.services')
        # Ray remembers the cluster that this machine joined last, also when it is gone.
        found = services.canonicalize_bootstrap_address_or_die('auto')
    where = urlsplit(found if '://' in found else f'//{found}')
    if not where.hostname or not where.port:
        raise ValueError(f'{found} is not HOST:PORT')
    try:
        socket.create_connection((where.hostname, where.port), _ANSWER_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f'{found} does not answer: {error}') from error


class RayRunner(TaskRunner):
    """Runs tasks on a cluster of Ray; each takes one core, or one GPU.

    What a task gives is fetched as soon as it is done: a machine that is lost afterwards takes
    nothing along.

    Args:
        address: 'auto' for the cluster that this machine belongs to, or HOST:PORT, ray://HOST:PORT.
        use_gpu: Tasks need a GPU each.

    Raises:
        InputError: Ray is not installed.
        D2SError: no cluster is there.
    """

    def __init__(self, address: str, *, use_gpu: bool = False) -> None:
        # Nobody is told of a build.
        os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
        try:
            self._ray: Any = importlib.import_module('ray')
        except ModuleNotFoundError as error:
            raise InputError(
                'builds on a cluster need Ray, which is not installed here: '
                'pip install "d2s_ros[cluster]", or leave --cluster out'
            ) from error
        try:
            _check_answer(address)
            self._ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).partition('\n')[0]
            raise D2SError(
                f'no Ray cluster at {address} ({reason}): start one with "ray start --head" and '
                'give its HOST:PORT, or leave --cluster out; see docs/operate/areas.md'
            ) from error
        needs = {'num_gpus': 1} if use_gpu else {'num_cpus': 1}
        self._kind = 'GPU' if use_gpu else 'CPU'
        self._remote = self._ray.remote(max_retries=_MAX_RETRIES, **needs)(_run_task)

    def run(self, tasks: Iterable[Task]) -> Iterator[Records]:
        """Run tasks; see `TaskRunner`."""
        waiting: list[Any] = []
        try:
            for task in tasks:
                waiting.append(self._remote.remote(__version__, task))
                # Machines come and go.
                room = int(self._ray.cluster_resources().get(self._kind, 1))
                if len(waiting) >= AHEAD * max(1, room):
                    done, waiting = self._ray.wait(waiting, num_returns=1)
                    yield self._ray.get(done[0])
            while waiting:
                done, waiting = self._ray.wait(waiting, num_returns=1)
                yield self._ray.get(done[0])
        except self._ray.exceptions.RayTaskError as error:
            # Ray's own type wraps what a task raised.
            cause = error.cause
            if isinstance(cause, D2SError):
                raise cause from error
            raise
        except self._ray.exceptions.RayError as error:
            reason = str(error).partition('\n')[0]
            raise D2SError(
                f'the cluster lost a task of the build {_MAX_RETRIES + 1} times ({reason}); the '
                'same command goes on from there'
            ) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ray.shutdown()
