"""What the steps of one update share: the live map, its options, its folder and its status."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2s_ros.config import from_dict
from d2s_ros.data.sources import LogOptions
from d2s_ros.errors import ConfigError
from d2s_ros.features.types import FeatureExtractor
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_update.config import UpdateConfig
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.update_data import MappingData
from d2s_ros.scene_models.view_updates import LearnsFromViews

#: Called with a JSON-typed status: state, step, percent, counts, figures, verdict, reasons.
Progress = Callable[[dict[str, Any]], None]


class UpdateStatus:
    """Keeps the status of a run and tells it on."""

    def __init__(self, tell: Progress | None) -> None:
        self._tell = tell
        self.values: dict[str, Any] = {
            'state': 'running',
            'step': '',
            'percent': 0.0,
            'counts': {},
            'figures': {},
            'verdict': '',
            'reasons': [],
        }
        self.seconds: dict[str, float] = {}
        self._clock = time.monotonic()

    def step(self, name: str, percent: float, **counts: Any) -> None:
        """Begin a step, or go on in it; counts add to those already there."""
        now = time.monotonic()
        last = self.values['step']
        if last and last != name:
            self.seconds[last] = round(self.seconds.get(last, 0.0) + now - self._clock, 2)
            self._clock = now
        elif not last:
            self._clock = now
        self.values.update(step=name, percent=round(percent, 1))
        self.values['counts'] = {**self.values['counts'], **counts}
        self.tell()

    def tell(self, **values: Any) -> None:
        """Change values and pass the status on."""
        self.values.update(values)
        if self._tell is not None:
            self._tell(dict(self.values))


@dataclass(frozen=True, eq=False)
class UpdateContext:
    """One update.

    Attributes:
        incumbent: The live map when the update began; its model can leave mapping images out.
        data: Its mapping images.
        extractor: Of its features.
        config: Options.
        log_options: Topics and calibration of the logs.
        device: 'cpu' or 'cuda'.
        folder: What a resumed run needs.
        status: Notes each step.
        show_progress: Whether to show progress bars.
    """

    incumbent: SceneMap
    data: MappingData
    extractor: FeatureExtractor
    config: UpdateConfig
    log_options: LogOptions
    device: str
    folder: Path
    status: UpdateStatus
    show_progress: bool

    @property
    def build_config(self) -> BuildConfig:
        """Return the options that the map was built with, the defaults if they are unknown."""
        try:
            return from_dict(BuildConfig, self.incumbent.manifest.build)
        except ConfigError:
            return BuildConfig(features=self.incumbent.manifest.features)

    @property
    def by_views(self) -> bool:
        """Whether the model is updated by images, and nothing of logs may be stored."""
        return isinstance(self.incumbent.model, LearnsFromViews)

    @property
    def checkpoint(self) -> Path:
        """Return the file from which an interrupted training goes on."""
        return self.folder / 'training.pt'
