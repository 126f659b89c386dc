"""Frozen dataclasses to and from plain dictionaries; unknown keys and wrong types are errors.

Each component keeps its options in one frozen dataclass, the only home of its defaults. The
command line, YAML files, map manifests and ROS parameters are derived from it through this module.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from d2s_ros.errors import ConfigError

T = TypeVar('T')


def option(
    default: Any,
    description: str,
    *,
    unit: str = '',
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    read_only: bool = False,
    experiment: str = '',
) -> Any:
    """Declare a dataclass field with the metadata that parameters and docs are made from.

    Args:
        default: Default value; its type must match the field's annotation.
        description: One sentence for people.
        unit: Physical unit, empty for none.
        minimum, maximum: Inclusive range of numbers.
        choices: Allowed strings.
        read_only: As a ROS parameter, not changeable while the node runs.
        experiment: Where its value comes from: an id of docs/design/experiments.md, or words.
    """
    metadata = {
        'description': description,
        'unit': unit,
        'minimum': minimum,
        'maximum': maximum,
        'choices': choices,
        'read_only': read_only,
        'experiment': experiment,
    }
    return dataclasses.field(default=default, metadata=metadata)


def same_option(cls: type[Any], name: str) -> Any:
    """Declare a field with the default and the metadata of an option of another dataclass."""
    declared = next(field for field in dataclasses.fields(cls) if field.name == name)
    return dataclasses.field(default=declared.default, metadata=declared.metadata)


def validate(config: Any, path: str = '') -> None:
    """Check every field of a dataclass instance against its type, range and choices.

    Raises:
        ConfigError: naming the field, the expected and the found value.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name = f'{path}{field.name}'
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            validate(value, f'{name}.')
            continue
        _check_type(value, hints[field.name], name)
        minimum = field.metadata.get('minimum')
        maximum = field.metadata.get('maximum')
        choices = field.metadata.get('choices')
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if minimum is not None and not value >= minimum:
                raise ConfigError(f'{name} is {_shown(value)}, it must be at least {minimum}')
            if maximum is not None and not value <= maximum:
                raise ConfigError(f'{name} is {_shown(value)}, it must be at most {maximum}')
        if choices and value not in choices:
            raise ConfigError(f'{name} is {_shown(value)}, it must be one of {", ".join(choices)}')


def from_dict(cls: type[T], values: dict[str, Any], path: str = '') -> T:
    """Build a config dataclass from a dictionary; missing keys take their defaults.

    Raises:
        ConfigError: on an unknown key, a wrong type or a value out of range, naming its path.
    """
    if not isinstance(values, dict):
        raise ConfigError(f'{path or cls.__name__} must be a mapping, found {values!r}')
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields), key=str)
    if unknown:
        known = ', '.join(sorted(fields))
        raise ConfigError(f'unknown key {path}{unknown[0]}; known keys: {known}')
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            arguments[key] = from_dict(hint, value, f'{path}{key}.')
        else:
            arguments[key] = _coerce(value, hint, f'{path}{key}')
    try:
        config = cls(**arguments)
    except TypeError as error:
        raise ConfigError(f'{path or cls.__name__}: {error}') from error
    validate(config, path)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Return a plain dictionary (JSON types only) from which `from_dict` restores the config."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            result[field.name] = to_dict(value)
        elif isinstance(value, tuple):
            result[field.name] = list(value)
        else:
            result[field.name] = value
    return result


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """Turn what JSON or YAML gives into the annotated type where that loses nothing."""
    origin = typing.get_origin(hint)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f'{name} is too large a number') from error
    if origin is tuple and isinstance(value, (list, tuple)):
        arguments = typing.get_args(hint)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_coerce(item, arguments[0], name) for item in value)
        if len(arguments) != len(value):
            raise ConfigError(f'{name} needs {len(arguments)} values, found {len(value)}')
        return tuple(
            _coerce(item, argument, name) for item, argument in zip(value, arguments, strict=True)
        )
    _check_type(value, hint, name)
    return value


def _check_type(value: Any, hint: Any, name: str) -> None:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for argument in typing.get_args(hint):
            try:
                _check_type(value, argument, name)
            except ConfigError:
                continue
            return
        raise ConfigError(f'{name} must be {hint}, found {_shown(value)}')
    if origin is tuple:
        if not isinstance(value, tuple):
            raise ConfigError(f'{name} must be a list, found {_shown(value)}')
        arguments = typing.get_args(hint)
        if Ellipsis not in arguments and len(value) != len(arguments):
            raise ConfigError(f'{name} needs {len(arguments)} values, found {len(value)}')
        for index, item in enumerate(value):
            _check_type(item, arguments[0] if Ellipsis in arguments else arguments[index], name)
        return
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(
                f'{name} must be one of {typing.get_args(hint)}, found {_shown(value)}'
            )
        return
    expected = type(None) if hint is None else hint
    if expected is Any:
        return
    wrong_bool = isinstance(value, bool) and expected is not bool
    if wrong_bool or not isinstance(value, (int, float) if expected is float else expected):
        raise ConfigError(
            f'{name} must be {getattr(expected, "__name__", hint)}, found {_shown(value)}'
        )


def _shown(value: Any) -> str:
    """Return a value for a message, cut; Python prints no number of thousands of digits."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return 'a value too long to be shown'
    return text if len(text) <= 200 else f'{text[:200]}...'
