"""Updates and builds to which something happens at a moment that is counted.

Moments are the changes that a run makes to the disk below a folder (files that are opened to be
written, renamed or removed, folders that are made or removed), and the steps that it tells. Each
run is a process of its own, forked from one that has imported everything and computed nothing.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from d2s_ros.data.sources import open_source
from d2s_ros.errors import D2SError
from d2s_ros.features.types import FeatureConfig
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.map_update.config import (
    LABEL_LIMITS,
    GateConfig,
    KeyframeConfig,
    LabelConfig,
    UpdateConfig,
)
from d2s_ros.map_update.pipeline import update_map
from d2s_ros.maps.store import MapStore
from d2s_ros.scene_models.landmark.trainer import LandmarkTrainingConfig

_CHANGES = ('os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.truncate')
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
UPDATE = UpdateConfig(
    keyframes=KeyframeConfig(min_keypoints=100),
    labels=LabelConfig(limits=replace(LABEL_LIMITS, min_inliers=20)),
    gate=GateConfig(min_new_frames=1),
    steps=15,
    min_free_megabytes=1,
)
BUILD = BuildConfig(
    features=FeatureConfig(name='rootsift', max_keypoints=600),
    training=LandmarkTrainingConfig(steps=8, images_per_step=2, checkpoint_seconds=0.0),
    num_layers=1,
)


@dataclass
class Outcome:
    """What became of a run.

    Attributes:
        exit_code: Of the process; negative for a signal.
        ended: The verdict, 'cancelled', or the error in the words of its user.
        moments: What was counted, up to the end.
        said: Warnings.
    """

    exit_code: int | None = None
    ended: str = ''
    moments: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def run(work: Callable[..., str], folder: Path, at: int, event: str, *arguments: Any) -> Outcome:
    """Run `update` or `build` in a process, in which `event` happens at moment `at` (from 1).

    Args:
        work: What to run.
        folder: Changes below it count.
        at: The moment; 0 for an undisturbed run.
        event: 'kill', 'cancel', 'full disk' or 'rollback'.
        arguments: Of `work`.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([__name__])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(there, work, folder, at, event, arguments))
    process.start()
    there.close()
    outcome = Outcome()
    with contextlib.suppress(EOFError):
        outcome = here.recv()
    process.join()
    outcome.exit_code = process.exitcode
    return outcome


def update(tell: Callable[[str], None], map_path: Path, log: Path) -> str:
    """Update a map; return the verdict and its reasons."""
    result = update_map(
        map_path, [log], UPDATE, device='cpu', progress=lambda status: tell(status['step'])
    )
    return f'{result.verdict}: {"; ".join(result.reasons)}'


def build(tell: Callable[[str], None], map_path: Path, log: Path) -> str:
    """Build a map; return its version."""
    result = build_map(open_source(log), map_path, BUILD, device='cpu', progress=False)
    return result.scene_map.manifest.version


class _Moments:
    def __init__(self, folder: Path, at: int, event: str) -> None:
        self.names: list[str] = []
        self._folder, self._at, self._event = str(folder), at, event
        self._busy = False

    def look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == 'open':
            if not isinstance(arguments[2], int) or not arguments[2] & _WRITING:
                return
        elif event not in _CHANGES:
            return
        if isinstance(arguments[0], int):
            return
        path = os.fsdecode(arguments[0])
        if not os.path.isabs(path) and event in ('os.remove', 'os.rmdir') and arguments[1] >= 0:
            # Of a folder that is being removed, names come with its descriptor.
            path = os.path.join(os.readlink(f'/proc/self/fd/{arguments[1]}'), path)
        if path.startswith(self._folder):
            self.count(f'{event} {path.removeprefix(self._folder)}')

    def count(self, name: str) -> None:
        if self._busy:
            return
        self.names.append(name)
        if len(self.names) == self._at:
            self._busy = True
            self._happen()
            self._busy = False

    def _happen(self) -> None:
        if self._event == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._event == 'cancel':
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._event == 'full disk':
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
            )
        else:
            MapStore(Path(self._folder) / 'map').rollback()


def _child(
    connection: Any,
    work: Callable[..., str],
    folder: Path,
    at: int,
    event: str,
    arguments: tuple[Any, ...],
) -> None:
    outcome, moments = Outcome(), _Moments(folder, at, event)

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            outcome.said.append(record.getMessage())

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    # What pytest captures is a file, too, and would be full.
    with open(os.devnull, 'w') as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    logging.basicConfig(level=logging.WARNING, handlers=[Listener()], force=True)
    # As the command does.
    signal.signal(signal.SIGTERM, end)
    steps_only = event == 'rollback'
    if not steps_only:
        sys.addaudithook(moments.look)
    last = ''

    def tell(step: str) -> None:
        nonlocal last
        if step != last:
            last = step
            moments.count(f'step {step}')

    try:
        outcome.ended = work(tell, *arguments)
    except KeyboardInterrupt:
        outcome.ended = 'cancelled'
    except (D2SError, OSError) as error:
        outcome.ended = f'{type(error).__name__}: {error}'
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    outcome.moments = moments.names
    connection.send(outcome)
