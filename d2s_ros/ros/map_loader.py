"""Loading a map for the node, and loading a new version in the background."""

from __future__ import annotations

import logging
import pathlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import ConfigError, D2SError, DeviceError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.compute_budget import FULL, ComputeBudget
from d2s_ros.localization.pose_prior import PriorSource
from d2s_ros.localization.result import LocalizationResult
from d2s_ros.localization.rig_shot import RigShot
from d2s_ros.maps.files import AREA_FILE, PLACES_FOLDER
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.map_messages import CoverageGrid, read_coverage

logger = logging.getLogger(__name__)

_MAX_TOKEN_BYTES = 4096


class SupportsLocalize(Protocol):
    """What the node needs of a localizer."""

    def localize(
        self,
        image: NDArray[np.uint8],
        camera: Camera,
        *,
        details: bool = False,
        budget: ComputeBudget = FULL,
        prior: PriorSource | None = None,
    ) -> LocalizationResult:
        """Localize one image."""
        ...

    def localize_rig(
        self,
        shots: Sequence[RigShot],
        *,
        details: bool = False,
        budget: ComputeBudget = FULL,
        prior: PriorSource | None = None,
    ) -> LocalizationResult:
        """Localize the images of several cameras together."""
        ...


@dataclass(frozen=True, eq=False)
class LoadedMap:
    """A localizer with what the node publishes about its map.

    Attributes:
        localizer: Ready to use.
        map_frame: Frame the map's coordinates are in.
        version: Version of the map, as in its manifest.
        device: Where the network runs.
        metric: Whether one unit of the map is a metre; else its scale is arbitrary.
        own_frame: The name that the map itself gives that frame; empty if it gives none.
        scale: By what `d2s map scale` has multiplied the lengths of the map since it was built.
        points_in_map: (M, 3) landmarks, map frame; None if there are none to show.
        coverage: Where the map localizes; None if that was not predicted.
        folder: Of the version; None of an area.
        place_frames: Further frames that poses may be in: of the places of an area.
    """

    localizer: SupportsLocalize
    map_frame: str
    version: str
    device: str = ''
    metric: bool = True
    own_frame: str = ''
    scale: float = 1.0
    points_in_map: NDArray[np.float64] | None = None
    coverage: CoverageGrid | None = None
    folder: pathlib.Path | None = None
    place_frames: tuple[str, ...] = ()

    def frame_of(self, result: LocalizationResult | None) -> str:
        """Return the frame of a result: that of the map, or of a place of an area."""
        frame = '' if result is None else result.frame
        return renamed(frame, self.own_frame, self.map_frame) if frame else self.map_frame


def renamed(frame: str, own: str, given: str) -> str:
    """Return the name of a frame where the map's own frame was given another name.

    Places without a known transform have the area's frame with their name behind it.
    """
    return given + frame.removeprefix(own)


#: Makes a localizer from the node's options; a test may give its own.
LocalizerFactory = Callable[[LocalizerNodeConfig, str], LoadedMap]


def load_map(config: LocalizerNodeConfig, device: str) -> LoadedMap:
    """Open the map and make its localizer.

    Args:
        config: The node's options.
        device: 'auto', 'cpu' or 'cuda'; it overrides config.device.

    Raises:
        D2SError: the map, the weights or the device cannot be used.
    """
    if not config.map:
        raise ConfigError('parameter map is empty; give the folder of a map, map:=/path/to/map')
    # torch takes seconds to import; the node needs it only here.
    from d2s_ros.localization.localizer import Localizer
    from d2s_ros.localization.opening import open_localizer
    from d2s_ros.threads import limit_threads

    limit_threads(config.threads)
    localizer = open_localizer(
        config.map,
        device=device,
        weights=config.weights or None,
        config=config.localizer.localizer_config(),
        precision=config.precision,
    )
    facts = localizer.facts
    # Of an area nothing is shown: its maps are opened as they are needed.
    own = localizer.scene_map if isinstance(localizer, Localizer) else None
    # tf2 refuses names with a leading slash.
    own_frame = facts.frame.lstrip('/')
    map_frame = config.map_frame or own_frame
    return LoadedMap(
        localizer,
        map_frame=map_frame,
        version=facts.version,
        device=localizer.device,
        metric=facts.metric,
        own_frame=own_frame,
        scale=facts.scale,
        points_in_map=None if own is None else own.model.points_in_map + own.origin,
        coverage=None if own is None else read_coverage(own.path),
        folder=None if own is None else own.path,
        place_frames=tuple(renamed(name, own_frame, map_frame) for name in facts.place_frames),
    )


def version_token(path: str) -> str | None:
    """Return what identifies the current version of a map or area; None if it is not there.

    A map folder is replaced, or its `current` entry changed, by one atomic rename.
    """
    folder = pathlib.Path(path).expanduser()
    area = folder / AREA_FILE
    try:
        if area.is_file():
            tokens = [version_token(str(place)) for place in (folder / PLACES_FOLDER).iterdir()]
            stat = area.stat()
            return f'{stat.st_ino}:{stat.st_mtime_ns} {sorted(map(str, tokens))}'
        current = folder / 'current'
        if current.is_symlink():
            return f'{current.readlink()}'
        if current.is_file():
            with open(current, 'rb') as file:
                return file.read(_MAX_TOKEN_BYTES).decode(errors='replace').strip()
        if current.exists():
            # Reading a pipe or a device could take for ever.
            return None
        stat = folder.stat()
        return f'{stat.st_ino}:{stat.st_mtime_ns}'
    except OSError:
        return None


def is_device_failure(error: BaseException) -> bool:
    """Return whether an error means that the GPU is out of memory or not usable."""
    return (
        isinstance(error, DeviceError)
        or type(error).__name__ == 'OutOfMemoryError'
        or (isinstance(error, RuntimeError) and 'CUDA' in str(error))
    )


class MapLoader:
    """Loads a map in a background thread, to be taken between two frames.

    Args:
        load: Opens the map; called in the background thread.
    """

    def __init__(self, load: Callable[[], LoadedMap]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loaded: LoadedMap | None = None
        self._closed = False
        #: Why the last load failed; empty after a success.
        self.error = ''

    @property
    def busy(self) -> bool:
        """Whether a load is in progress."""
        with self._lock:
            return self._thread is not None

    def start(self) -> bool:
        """Begin to load; False if a load is in progress already."""
        with self._lock:
            if self._thread is not None or self._closed:
                return False
            self._thread = threading.Thread(target=self._run, name='map_loader', daemon=True)
            self._thread.start()
            return True

    def take(self) -> LoadedMap | None:
        """Return a newly loaded map once."""
        with self._lock:
            loaded, self._loaded = self._loaded, None
            return loaded

    def close(self, timeout: float = 5.0) -> None:
        """Discard what is being loaded."""
        with self._lock:
            self._closed = True
            self._loaded = None
            thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def _run(self) -> None:
        loaded, message = None, ''
        try:
            loaded = self._load()
        except D2SError as error:
            message = str(error)
        except Exception as error:
            logger.exception('loading the map failed')
            message = f'{type(error).__name__}: {error}'
        with self._lock:
            self._thread = None
            self.error = message
            if not self._closed and loaded is not None:
                self._loaded = loaded
