"""pycolmap, imported when it is needed."""

from __future__ import annotations

import importlib
import signal
import threading
from typing import Any


def import_pycolmap() -> Any:
    """Import pycolmap and leave SIGTERM to who had it before.

    The logging library inside takes SIGTERM over to print a stack trace: a handler of ours would be
    lost, and an ordinary end would look like a crash. Only the main thread can give it back.
    """
    pycolmap = importlib.import_module('pycolmap')
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
    return pycolmap
