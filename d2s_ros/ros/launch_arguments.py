"""Arguments of launch files: text, checked before a node is started with it."""

from __future__ import annotations

import dataclasses
import os
import typing
from typing import Any

import yaml

from d2s_ros.errors import ConfigError
from d2s_ros.ros.localizer_config import LocalizerNodeConfig

_SPELLINGS = {
    **dict.fromkeys(('true', '1', 'yes', 'on'), True),
    **dict.fromkeys(('false', '0', 'no', 'off'), False),
}
_DEFAULTS = {
    'use_sim_time': False,
    **{
        field.name: field.default
        for field in dataclasses.fields(LocalizerNodeConfig)
        if field.default is not dataclasses.MISSING
    },
}

_HINTS = typing.get_type_hints(LocalizerNodeConfig)


def boolean(name: str, value: str) -> bool:
    """Return a switch as people write it.

    Raises:
        ConfigError: it is neither on nor off.
    """
    if value.lower() not in _SPELLINGS:
        raise ConfigError(f'{name} is {value!r}, it must be true or false')
    return _SPELLINGS[value.lower()]


def typed(name: str, value: str) -> Any:
    """Return an argument with the type of the localizer's parameter of that name.

    Raises:
        ConfigError: it is not of that type.
    """
    default = _DEFAULTS[name]
    kind: Any = type(default)
    what = kind.__name__
    if isinstance(default, tuple):
        kind = typing.get_args(_HINTS[name])[0]
        what = 'a list of names' if kind is str else 'a list of numbers'
    if isinstance(default, bool):
        return boolean(name, value)
    try:
        if isinstance(default, tuple):
            return [kind(item) for item in yaml.safe_load(value)]
        return kind(value)
    except (ValueError, TypeError, yaml.YAMLError):
        raise ConfigError(f'{name} is {value!r}, it must be {what}') from None


def parameter_file(name: str, value: str) -> str:
    """Return the path of a file of parameters.

    Raises:
        ConfigError: there is no such file; ROS would go on with the defaults.
    """
    path = os.path.expanduser(value)
    if not os.path.isfile(path):
        raise ConfigError(f'{name}: there is no file {value}')
    return path


def names_a_map(path: str) -> bool:
    """Return whether a file of parameters gives a map to any node."""
    with open(path, encoding='utf-8') as file:
        nodes = yaml.safe_load(file)

    def found(group: Any) -> bool:
        if not isinstance(group, dict):
            return False
        parameters = group.get('ros__parameters')
        if isinstance(parameters, dict) and parameters.get('map'):
            return True
        return any(found(value) for value in group.values())

    return found(nodes)
