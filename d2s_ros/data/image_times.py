"""Times that the names of images are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

#: Digits of an integer name that is a time in milli-, micro- or nanoseconds since 1970.
_EPOCH_UNITS_NS = {13: 10**6, 16: 10**3, 19: 1}


def times_from_names(names: Sequence[str]) -> list[int] | None:
    """Return the times (ns) that the names are, or None unless all are distinct numbers.

    A name is a time if its stem is a number: seconds, or milli-, micro- or nanoseconds since
    1970 when it is an integer of 13, 16 or 19 digits.
    """
    stamps: list[int] = []
    for name in names:
        stem = Path(name).stem
        if not re.fullmatch(r'\d+(\.\d+)?', stem):
            return None
        if stem.isdigit():
            stamps.append(int(stem) * _EPOCH_UNITS_NS.get(len(stem), 10**9))
        else:
            whole, fraction = stem.split('.')
            stamps.append(int(whole) * 10**9 + int(f'{fraction:0<9}'[:9]))
    if len(set(stamps)) != len(stamps) or any(stamp >= 2**63 for stamp in stamps):
        return None
    return stamps
