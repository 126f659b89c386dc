"""Dataclasses to dictionaries and back, and what is refused on the way."""

from __future__ import annotations

import dataclasses
import json

import pytest

from d2s_ros import errors
from d2s_ros.config import from_dict, option, to_dict, validate
from d2s_ros.device import resolve_device
from d2s_ros.errors import ConfigError, UsageError
from d2s_ros.map_building.config import BuildConfig


@dataclasses.dataclass(frozen=True)
class Inner:
    gain: float = option(1.0, 'A gain.', minimum=0.0, maximum=10.0)


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int = option(3, 'A count.', minimum=1)
    name: str = option('a', 'A name.', choices=('a', 'b'))
    on: bool = option(True, 'A switch.')
    pair: tuple[int, int] = option((1, 2), 'Two numbers.')
    many: tuple[float, ...] = option((), 'Numbers.')
    maybe: int | None = option(None, 'A number or nothing.')
    inner: Inner = dataclasses.field(default_factory=Inner)


def test_round_trip_through_json():
    config = Outer(5, 'b', False, (7, 8), (1.5, 2.0), 4, Inner(2.5))
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config
    assert from_dict(Outer, {}) == Outer()
    build = BuildConfig()
    assert from_dict(BuildConfig, json.loads(json.dumps(to_dict(build)))) == build


def test_integers_become_floats_and_lists_become_tuples():
    config = from_dict(Outer, {'inner': {'gain': 3}, 'many': [1, 2.5], 'pair': [4, 5]})
    assert isinstance(config.inner.gain, float)
    assert config.many == (1.0, 2.5)
    assert config.pair == (4, 5)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'cuont': 3}, 'unknown key cuont'),
        ({'inner': {'gian': 3}}, r'unknown key inner\.gian'),
        ({'count': 0}, 'count is 0, it must be at least 1'),
        ({'count': 2.5}, 'count must be int'),
        ({'count': True}, 'count must be int'),
        ({'count': '3'}, 'count must be int'),
        ({'on': 1}, 'on must be bool'),
        ({'name': 'c'}, 'must be one of a, b'),
        ({'pair': [1]}, 'pair needs 2 values'),
        ({'pair': [1, 2.5]}, 'pair must be int'),
        ({'many': 3.0}, 'many must be a list'),
        ({'maybe': 'x'}, 'maybe must be'),
        ({'inner': 3}, r'inner\. must be a mapping'),
        ({'inner': {'gain': 11.0}}, r'inner\.gain is 11.0, it must be at most 10'),
        ({'inner': {'gain': float('nan')}}, 'it must be at least'),
        ({3: 1, 'x': 2}, 'unknown key'),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        from_dict(Outer, values)
    assert '\n' not in str(caught.value)


def test_objects_made_by_hand_are_checked_too():
    validate(Outer())
    for wrong in (
        Outer(count=0),
        Outer(pair=(1, 2, 3)),  # type: ignore[arg-type]
        Outer(inner=Inner(-1.0)),
    ):
        with pytest.raises(ConfigError):
            validate(wrong)


def test_devices():
    assert resolve_device('cpu') == 'cpu'
    assert resolve_device('auto') in ('cpu', 'cuda')
    with pytest.raises(UsageError, match='auto, cpu or cuda'):
        resolve_device('tpu')


def test_a_missing_gpu_is_an_error():
    import torch

    if torch.cuda.is_available():
        assert resolve_device('cuda') == 'cuda'
        return
    with pytest.raises(errors.DeviceError, match='cpu'):
        resolve_device('cuda')


def test_exit_codes():
    codes = {
        kind.__name__: kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.D2SError)
    }
    assert {name for name, code in codes.items() if code == 2} == {'UsageError', 'ConfigError'}
    assert {name for name, code in codes.items() if code == 4} == {'NothingLocalizedError'}
    assert set(codes.values()) == {2, 3, 4}


@pytest.mark.parametrize(
    'values',
    [
        {'inner': {'gain': 10**400}},
        {'inner': {'gain': -(10**400)}},
        {'count': -(10**5000)},
        {'count': 10**5000, 'maybe': 'x'},
        {'name': 'x' * 10**6},
        {'many': [10**400]},
        {'pair': [1, 2] * 10**5},
    ],
)
def test_values_beyond_all_limits_are_told_shortly(values):
    with pytest.raises(ConfigError) as error:
        from_dict(Outer, values)
    assert len(str(error.value)) < 400
