"""Entry points of the nodes: a signal that comes while modules are being imported ends them too."""

from __future__ import annotations

import importlib
import os
import signal
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def localizer() -> int:
    """Run the localizer node; return the exit status."""
    return _run('localizer_node')


def map_updater() -> int:
    """Run the map updater node; return the exit status."""
    return _run('map_updater_node')


def _run(module: str) -> int:
    usual = {number: signal.signal(number, _leave) for number in _SIGNALS}
    main = importlib.import_module(f'd2s_ros.ros.{module}').main
    # rclpy has handlers of its own and passes on to those it finds.
    for number, handler in usual.items():
        signal.signal(number, handler)
    return int(main())


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(0)
