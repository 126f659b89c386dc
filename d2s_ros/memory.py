"""How the process gets its memory."""

from __future__ import annotations

import ctypes
import os
import sys

#: Options of glibc's `mallopt`.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MMAP_BYTES = 1 << 30
_TRIM_BYTES = (1 << 31) - 1


def tune_malloc() -> bool:
    """Let the process keep freed memory for its next frame; call once, early in a process.

    By default glibc gives large blocks back when they are freed: each frame then faults in every
    page of its feature maps again (docs/design/performance.md). Blocks of 1 GiB and more are still
    given back. One arena for all threads: what one thread freed serves the others. Settings made in
    the environment are kept.

    Returns:
        Whether the settings were made; False where the C library is not glibc.
    """
    chosen = ('MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_', 'MALLOC_ARENA_MAX')
    if not sys.platform.startswith('linux'):
        return False
    if any(name in os.environ for name in chosen) or 'malloc' in os.environ.get(
        'GLIBC_TUNABLES', ''
    ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, 'gnu_get_libc_version') or not hasattr(library, 'mallopt'):
        return False
    return bool(
        library.mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
        and library.mallopt(_TRIM_THRESHOLD, _TRIM_BYTES)
        and library.mallopt(_ARENA_MAX, 1)
    )
