"""Camera relocalization from one image: D2S maps, pose with covariance, ROS 2 nodes.

The public Python API are the names in `__all__`. They are imported when they are first used, so
`import d2s_ros` loads neither torch nor rclpy.

    >>> import d2s_ros
    >>> localizer = d2s_ros.Localizer.from_map('MAP')  # doctest: +SKIP
    >>> result = localizer.localize(image, camera)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d2s_ros.api import build_map as build_map
    from d2s_ros.api import evaluate as evaluate
    from d2s_ros.api import load_map as load_map
    from d2s_ros.api import update_map as update_map
    from d2s_ros.geometry.cameras import Camera as Camera
    from d2s_ros.geometry.transforms import RigidTransform as RigidTransform
    from d2s_ros.localization.localizer import Localizer as Localizer
    from d2s_ros.localization.opening import open_localizer as open_localizer
    from d2s_ros.localization.result import LocalizationResult as LocalizationResult

__version__ = '0.2.0'

#: Public name to the module that defines it.
_HOMES = {
    'Camera': 'd2s_ros.geometry.cameras',
    'LocalizationResult': 'd2s_ros.localization.result',
    'Localizer': 'd2s_ros.localization.localizer',
    'RigidTransform': 'd2s_ros.geometry.transforms',
    'build_map': 'd2s_ros.api',
    'evaluate': 'd2s_ros.api',
    'load_map': 'd2s_ros.api',
    'open_localizer': 'd2s_ros.localization.opening',
    'update_map': 'd2s_ros.api',
}

__all__ = [
    'Camera',
    'LocalizationResult',
    'Localizer',
    'RigidTransform',
    'build_map',
    'evaluate',
    'load_map',
    'open_localizer',
    'update_map',
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
