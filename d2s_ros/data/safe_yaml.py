"""YAML files that others wrote, read with limits.

The YAML library builds whatever a file describes: a few hundred bytes of aliases become 10^9
nodes, and deep nesting ends in the C stack. So the events are looked at first, one by one.
"""

from __future__ import annotations

from typing import Any

import yaml

from d2s_ros.errors import InputError

#: Real calibrations nest 3 deep, metadata.yaml of rosbag2 6 deep.
_MAX_DEPTH = 24
#: Longest number or text of one value, characters.
_MAX_SCALAR = 65_536
#: Python's own limit of digits of an integer, 4300, is an error of another kind.
_MAX_PLAIN_NUMBER = 1000


def load_yaml(text: str, name: str, max_bytes: int) -> Any:
    """Return what a YAML (or JSON) text holds.

    Args:
        text: The file's text.
        name: The file, for messages.
        max_bytes: Longest text that is read.

    Raises:
        InputError: the text is too long, is not YAML, nests too deep, or uses aliases.
    """
    if len(text) > max_bytes:
        raise InputError(f'{name} has {len(text)} characters; at most {max_bytes} are read')
    loader: Any = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise InputError(
                    f'{name} uses YAML aliases (*{event.anchor}); write the values out'
                )
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > _MAX_DEPTH:
                    raise InputError(f'{name} nests deeper than {_MAX_DEPTH} levels')
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            elif isinstance(event, yaml.ScalarEvent) and _too_long(event):
                raise InputError(f'{name} holds a value of {len(event.value)} characters')
        return yaml.load(text, Loader=loader)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        message = ' '.join(str(error).split())
        raise InputError(f'{name} is neither YAML nor JSON: {message}') from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        # An impossible date, a key that cannot be hashed, a number beyond all limits.
        raise InputError(f'{name} holds a value that cannot be read: {error}') from error


def _too_long(event: Any) -> bool:
    length = len(event.value)
    plain = event.style is None or event.style == ''
    return length > _MAX_SCALAR or (
        plain and length > _MAX_PLAIN_NUMBER and event.value[:1] in '+-.0123456789'
    )
