"""Opens what localizes images: one map, or an area of several."""

from __future__ import annotations

import os

from d2s_ros.localization.area_localizer import AreaLocalizer
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.localizer import Localizer
from d2s_ros.maps.area import is_area


def open_localizer(
    path: str | os.PathLike[str],
    *,
    device: str = 'auto',
    weights: str | None = None,
    config: LocalizerConfig | None = None,
    precision: str = 'auto',
) -> Localizer | AreaLocalizer:
    """Open the map or the area of a folder; arguments and errors as for `Localizer.from_map`."""
    if is_area(path):
        return AreaLocalizer.from_area(
            path, device=device, weights=weights, config=config, precision=precision
        )
    return Localizer.from_map(
        path, device=device, weights=weights, config=config, precision=precision
    )
