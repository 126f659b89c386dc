"""pycolmap, imported when it is needed."""

from __future__ import annotations

import importlib
import signal
import threading
from typing import Any

from d2s_ros.errors import InputError


def import_pycolmap() -> Any:
    """Import pycolmap and leave SIGTERM to who had it before.

    The logging library inside takes SIGTERM over to print a stack trace: a handler of ours would be
    lost, and an ordinary end would look like a crash. Only the main thread can give it back.

    Raises:
        InputError: it is not installed; localizing does not need it.
    """
    try:
        pycolmap = importlib.import_module('pycolmap')
    except ModuleNotFoundError as error:
        raise InputError(
            'building and updating maps needs pycolmap, which is not installed here: '
            'pip install "d2s_ros[mapping]", or build the map on a PC and copy it to the robot '
            '(there are no wheels for ARM)'
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
    return pycolmap
