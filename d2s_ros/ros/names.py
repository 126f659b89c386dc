"""Names as people give them to nodes: paths with a tilde, frames with a leading slash."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any


def clean_names(config: Any, *, paths: Sequence[str] = (), frames: Sequence[str] = ()) -> None:
    """Expand paths and drop leading slashes of frames, in the fields of a frozen dataclass.

    No shell expands what launch files and parameter files hand on, and tf2 refuses frames with a
    leading slash.

    Args:
        config: The dataclass, while it is made.
        paths, frames: Names of its fields.
    """
    for name in paths:
        object.__setattr__(config, name, os.path.expanduser(getattr(config, name)))
    for name in frames:
        object.__setattr__(config, name, getattr(config, name).lstrip('/'))
