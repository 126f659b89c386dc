"""ROS parameters from a frozen configuration dataclass, and back.

A field becomes the parameter of its name, a nested dataclass a group `name.field`. Floats accept
integers, as people write `0` in launch files, and an empty list stands for the default.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from d2s_ros.config import from_dict, to_dict
from d2s_ros.errors import ConfigError

T = TypeVar('T')

_INT_LIMIT = 2**31 - 1
#: What `ros2 param dump` writes for a list that was not set, as it is read again.
_NOTHING = ('null', 'None', '~', '')


def parameter_fields(
    config: type[Any] | Any, prefix: str = ''
) -> Iterator[tuple[str, dataclasses.Field[Any], Any, Any]]:
    """Yield (parameter name, field, annotation, default) of each leaf field."""
    cls = config if isinstance(config, type) else type(config)
    instance = cls() if isinstance(config, type) else config
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        value = getattr(instance, field.name)
        if dataclasses.is_dataclass(value):
            yield from parameter_fields(value, f'{prefix}{field.name}.')
        else:
            yield f'{prefix}{field.name}', field, hints[field.name], value


def descriptor(field: dataclasses.Field[Any], hint: Any) -> ParameterDescriptor:
    """Describe a field for `ros2 param describe`: text, unit, range, choices."""
    metadata = field.metadata
    text = metadata.get('description', '')
    if metadata.get('unit'):
        text += f' [{metadata["unit"]}]'
    constraints = []
    if metadata.get('choices'):
        constraints.append('one of ' + ', '.join(repr(item) for item in metadata['choices']))
    if metadata.get('read_only'):
        constraints.append('not changeable while the node is configured')
    result = ParameterDescriptor(
        description=text,
        additional_constraints='; '.join(constraints),
        # A float may be given as an integer, and an empty list has no type.
        dynamic_typing=hint is float or typing.get_origin(hint) is tuple,
    )
    minimum, maximum = metadata.get('minimum'), metadata.get('maximum')
    if minimum is None and maximum is None:
        return result
    if hint is int:
        low = -_INT_LIMIT if minimum is None else int(minimum)
        high = _INT_LIMIT if maximum is None else int(maximum)
        result.integer_range = [IntegerRange(from_value=low, to_value=high, step=0)]
    elif hint is float:
        low_float = -1e300 if minimum is None else float(minimum)
        high_float = 1e300 if maximum is None else float(maximum)
        result.floating_point_range = [
            FloatingPointRange(from_value=low_float, to_value=high_float, step=0.0)
        ]
    return result


def declare_from_dataclass(node: Node, config: type[T]) -> None:
    """Declare a parameter for each leaf field, with the field's default.

    Raises:
        ConfigError: an override from the command line or a file has a wrong type or range, or is
            of a name that the dataclass says is set elsewhere (`ELSEWHERE`).
    """
    for name, where in getattr(config, 'ELSEWHERE', {}).items():
        # ROS ignores overrides of what is not declared.
        given = node.declare_parameter(name, descriptor=ParameterDescriptor(dynamic_typing=True))
        node.undeclare_parameter(name)
        if given.value is not None:
            raise ConfigError(f'parameter {name}: {where}')
    for name, field, hint, default in parameter_fields(config):
        if node.has_parameter(name):
            continue
        value = list(default) if isinstance(default, tuple) else default
        try:
            node.declare_parameter(name, value, descriptor(field, hint))
        except Exception as error:
            raise ConfigError(f'parameter {name}: {error}') from error


def unknown_overrides(node: Node) -> list[str]:
    """Return a sentence about each parameter that was given and that the node does not have."""
    known = set(node.get_parameters_by_prefix(''))
    sentences = []
    # rclpy has no public access to overrides that nobody declared.
    for name in sorted(getattr(node, '_parameter_overrides', {})):
        if name in known or name.startswith('qos_overrides.'):
            continue
        close = difflib.get_close_matches(name, known, 1)
        hint = f'; did you mean {close[0]}?' if close else ''
        sentences.append(f'unknown parameter {name} is ignored{hint}')
    return sentences


def read_dataclass(node: Node, config: type[T], changes: Iterable[Parameter] = ()) -> T:
    """Build the config from the node's parameters, with `changes` applied.

    Raises:
        ConfigError: naming the parameter, the expected and the found value.
    """
    changed = {parameter.name: parameter.value for parameter in changes}
    values: dict[str, Any] = {}
    for name, _, _, default in parameter_fields(config):
        value = changed[name] if name in changed else node.get_parameter(name).value
        if value is None or (isinstance(default, tuple) and value in _NOTHING):
            value = default
        if not isinstance(value, (str, bytes)) and hasattr(value, '__len__'):
            value = list(value)
        *groups, leaf = name.split('.')
        target = values
        for group in groups:
            target = target.setdefault(group, {})
        target[leaf] = value
    return from_dict(config, values)


class ParameterUpdates:
    """Validates parameter changes while a node runs and commits accepted ones.

    Args:
        node: Node whose parameters were declared with `declare_from_dataclass`.
        config: The dataclass.
        is_configured: Whether read-only options must not be changed now.
        commit: Called with the new config after a change was accepted.
        when: When read-only options can be changed, for people.
    """

    def __init__(
        self,
        node: Node,
        config: type[T],
        is_configured: Callable[[], bool],
        commit: Callable[[T], None],
        when: str = 'while the node is unconfigured; clean it up, set it, configure it again',
    ) -> None:
        self._node = node
        self._config = config
        self._is_configured = is_configured
        self._commit = commit
        self._when = when
        self._read_only = {
            name for name, field, _, _ in parameter_fields(config) if field.metadata['read_only']
        }
        self._names = {name for name, *_ in parameter_fields(config)}
        node.add_on_set_parameters_callback(self._check)
        # Humble has no post-set callback; there the change is committed with the check.
        self._has_post_set = hasattr(node, 'add_post_set_parameters_callback')
        if self._has_post_set:
            node.add_post_set_parameters_callback(self._after)

    def _check(self, parameters: list[Parameter]) -> SetParametersResult:
        ours = [parameter for parameter in parameters if parameter.name in self._names]
        if not ours:
            return SetParametersResult(successful=True)
        if self._is_configured():
            for parameter in ours:
                current = self._node.get_parameter(parameter.name).value
                if parameter.name in self._read_only and parameter.value != current:
                    return SetParametersResult(
                        successful=False,
                        reason=f'{parameter.name} can only be changed {self._when}',
                    )
        try:
            config = read_dataclass(self._node, self._config, ours)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if not self._has_post_set:
            self._commit(config)
        return SetParametersResult(successful=True)

    def _after(self, parameters: list[Parameter]) -> None:
        if any(parameter.name in self._names for parameter in parameters):
            self._commit(read_dataclass(self._node, self._config))


def as_ros_parameters(config: Any) -> dict[str, Any]:
    """Return the flat parameter names and values of a config instance."""
    flat: dict[str, Any] = {}

    def add(values: dict[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                add(value, f'{prefix}{key}.')
            else:
                flat[f'{prefix}{key}'] = value

    add(to_dict(config), '')
    return flat
