"""The map in use: loaded when the node is configured, replaced when there is a new version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from d2s_ros.errors import ConfigError
from d2s_ros.ros import map_loader
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.map_loader import LoadedMap, LocalizerFactory, MapLoader
from d2s_ros.ros.map_messages import CoverageGrid, coverage_time, read_coverage


class MapKeeper:
    """Loads the map, looks for new versions, and takes them between two frames.

    Args:
        factory: Makes the localizer.
        config: The node's options; `apply` changes them.
        logger: Of the node.
        on_swap: Called after another map came into use; told whether lengths are others now.

    Attributes:
        loaded: The map in use; None before `open` and after `close`.
        reloads: Number of maps loaded since `open`.
        gone: Whether the map folder was not there when it was last looked at.

    Raises:
        D2SError: the map cannot be used.
    """

    def __init__(
        self,
        factory: LocalizerFactory,
        config: LocalizerNodeConfig,
        logger: Any,
        on_swap: Callable[[bool], None],
    ) -> None:
        self._factory = factory
        self._config = config
        self._logger = logger
        self._on_swap = on_swap
        self._device = config.device
        self._token = map_loader.version_token(config.map)
        self.reloads = 0
        self.gone = False
        self._coverage: tuple[Path, int] | None = None
        self.loaded: LoadedMap | None = self._load()
        self._loader = MapLoader(self._load)

    def _load(self) -> LoadedMap:
        loaded = self._open()
        config = self._config
        for option, wanted in (
            (f'tf_mode {config.tf_mode}', config.tf_mode in ('map_to_odom', 'map_to_base')),
            ('fuse_odometry', config.fuse_odometry),
            ('pose_frame base', config.pose_frame == 'base'),
        ):
            if wanted and not loaded.metric:
                raise ConfigError(
                    f'{option} needs a map in metres, and the scale of {config.map} is arbitrary: '
                    'bring it into metres (d2s map scale), build it with poses, or set tf_mode '
                    'map_to_camera and pose_frame camera'
                )
        return loaded

    def _open(self) -> LoadedMap:
        try:
            return self._factory(self._config, self._device)
        except Exception as error:
            failed = map_loader.is_device_failure(error)
            if not (failed and self._config.allow_cpu_fallback and self._device != 'cpu'):
                raise
            self._logger.error(f'the GPU cannot be used ({error}); continuing on the CPU')
            self._device = 'cpu'
            return self._factory(self._config, 'cpu')

    @property
    def path(self) -> str:
        """Folder of the map."""
        return self._config.map

    @property
    def reloading(self) -> bool:
        """Whether a map is being loaded."""
        return self._loader.busy

    @property
    def problem(self) -> str:
        """Why the map on disk cannot be used; empty if it can."""
        return f'{self._config.map} is gone' if self.gone else self._loader.error

    def apply(self, config: LocalizerNodeConfig) -> None:
        """Take changed options; a map whose localizer has others is loaded again."""
        rebuild = config.localizer != self._config.localizer
        self._config = config
        if rebuild and not self.reload():
            # What is being loaded may have the old options; the next check loads again.
            self._token = None

    def reload(self) -> bool:
        """Begin to load the map again; return whether that was possible."""
        if self._loader.busy:
            return False
        self._token = map_loader.version_token(self._config.map)
        return self._loader.start()

    def check(self, on_coverage: Callable[[CoverageGrid, str], None]) -> None:
        """Look whether there is a new version, and begin to load it.

        Args:
            on_coverage: Called with coverage that was predicted after the map was loaded, as builds
                and updates do, and the frame of the map.
        """
        token = map_loader.version_token(self._config.map)
        self.gone = token is None
        if token is not None and token != self._token:
            self._logger.info('the map has a new version')
            self.reload()
        loaded = self.loaded
        if loaded is None or loaded.folder is None:
            return
        coverage = loaded.folder, coverage_time(loaded.folder)
        if coverage != self._coverage:
            self._coverage = coverage
            grid = read_coverage(loaded.folder)
            if grid is not None:
                on_coverage(grid, loaded.map_frame)

    def swap(self) -> None:
        """Take a newly loaded map; called by the worker between two frames."""
        loaded = self._loader.take()
        if loaded is None:
            return
        # `d2s map scale`: what is known of where the robot was is of another size.
        rescaled = self.loaded is not None and loaded.scale != self.loaded.scale
        self.loaded = loaded
        self.reloads += 1
        self._on_swap(rescaled)
        self._logger.info(f'map version {loaded.version} is in use')

    def fall_back(self, error: Exception) -> bool:
        """Go on without the GPU, which failed, where that is allowed; return whether it is."""
        if not self._config.allow_cpu_fallback or self._device == 'cpu':
            return False
        self._device = 'cpu'
        self._logger.error(f'the GPU failed ({error}); continuing on the CPU')
        self.reload()
        return True

    def close(self, timeout: float) -> None:
        """Release the map and discard what is being loaded."""
        self._loader.close(timeout)
        self.loaded = None
