"""Parameters from the dataclass, and the files that are derived from it."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

pytest.importorskip('rclpy', reason='rclpy is not installed')

from rclpy.node import Node
from rclpy.parameter import Parameter

from d2s_ros.config import option, to_dict
from d2s_ros.errors import ConfigError
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.limits import Limits
from d2s_ros.ros import parameter_docs
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.localizer_parameters import SHOWN_LIMITS, LocalizerParameters
from d2s_ros.ros.parameters import (
    ParameterUpdates,
    declare_from_dataclass,
    parameter_fields,
    read_dataclass,
    unknown_overrides,
)


@dataclasses.dataclass(frozen=True)
class Inner:
    sigma: float = option(0.5, 'A width.', unit='px', minimum=0.0, maximum=2.0)


@dataclasses.dataclass(frozen=True)
class Example:
    count: int = option(3, 'A count.', minimum=1, maximum=9)
    kind: str = option('a', 'A kind.', choices=('a', 'b'), read_only=True)
    active: bool = option(True, 'A switch.')
    pose: tuple[float, ...] = option((), 'A pose.')
    inner: Inner = dataclasses.field(default_factory=Inner)


def overrides(**values):
    return [Parameter(name.replace('__', '.'), value=value) for name, value in values.items()]


@pytest.fixture
def make_node(spinner):
    nodes = []

    def make(**values):
        node = Node('example', context=spinner.context, parameter_overrides=overrides(**values))
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.destroy_node()


def declare_and_read(node):
    declare_from_dataclass(node, Example)
    return read_dataclass(node, Example)


def test_defaults_and_overrides(make_node):
    node = make_node()
    declare_from_dataclass(node, Example)
    assert read_dataclass(node, Example) == Example()
    node = make_node(count=5, inner__sigma=1, pose=[1.0, 2.5])
    declare_from_dataclass(node, Example)
    expected = Example(count=5, pose=(1.0, 2.5), inner=Inner(sigma=1.0))
    found = read_dataclass(node, Example)
    assert found == expected
    # An integer for a float becomes one.
    assert isinstance(found.inner.sigma, float)


def test_wrong_overrides_are_named(make_node):
    for values, words in (
        ({'count': 10}, 'count'),
        ({'count': 'many'}, 'count'),
        ({'kind': 'c'}, 'one of a, b'),
        ({'inner__sigma': 3.0}, 'inner.sigma'),
        ({'inner__sigma': 'wide'}, 'inner.sigma'),
    ):
        node = make_node(**values)
        with pytest.raises(ConfigError, match=words):
            declare_and_read(node)


@pytest.mark.parametrize('dumped', ['null', 'None', ''])
def test_what_dump_writes_can_be_loaded_again(make_node, dumped):
    """`ros2 param dump` writes null for a list that is not set, which is read as text."""
    assert declare_and_read(make_node(pose=dumped)) == Example()


def test_unknown_names_are_told(make_node):
    node = make_node(cuont=4, count=5)
    declare_from_dataclass(node, Example)
    assert unknown_overrides(node) == ['unknown parameter cuont is ignored; did you mean count?']


def test_descriptors_tell_people_everything(make_node):
    node = make_node()
    declare_from_dataclass(node, Example)
    count = node.describe_parameter('count')
    assert (count.integer_range[0].from_value, count.integer_range[0].to_value) == (1, 9)
    sigma = node.describe_parameter('inner.sigma')
    assert sigma.description == 'A width. [px]'
    assert sigma.floating_point_range[0].to_value == 2.0
    kind = node.describe_parameter('kind')
    assert "one of 'a', 'b'" in kind.additional_constraints
    assert 'configured' in kind.additional_constraints


def test_updates_are_validated_and_committed(make_node):
    node, commits, configured = make_node(), [], [False]
    declare_from_dataclass(node, Example)
    ParameterUpdates(node, Example, lambda: configured[0], commits.append)

    def change(**values):
        return node.set_parameters_atomically(overrides(**values))

    assert change(count=4).successful
    assert commits[-1].count == 4
    assert not change(count=40).successful
    assert not change(inner__sigma=-1.0).successful
    result = change(kind='c')
    assert not result.successful
    assert "kind is 'c'" in result.reason
    assert change(kind='b').successful
    configured[0] = True
    result = change(kind='a')
    assert not result.successful
    assert 'unconfigured' in result.reason
    # The same value is no change, as parameter files are loaded again.
    assert change(kind='b', count=5).successful
    assert commits[-1] == Example(count=5, kind='b')
    assert read_dataclass(node, Example) == commits[-1]


def test_yaml_file_is_what_the_options_say(repo_root):
    text = (repo_root / 'config' / 'localizer.yaml').read_text()
    assert text == parameter_docs.yaml_text(), (
        'write it again: python -m d2s_ros.ros.parameter_docs --write .'
    )
    values = yaml.safe_load(text)['/**']['ros__parameters']

    def flatten(group, prefix=''):
        for key, value in group.items():
            if isinstance(value, dict):
                yield from flatten(value, f'{prefix}{key}.')
            else:
                yield f'{prefix}{key}', value

    assert dict(flatten(values)) == dict(flatten(to_dict(LocalizerNodeConfig())))


def test_limits_file_is_what_the_limits_say(repo_root):
    text = (repo_root / 'config' / 'limits.yaml').read_text()
    assert text == parameter_docs.limits_text(), (
        'write it again: python -m d2s_ros.ros.parameter_docs --write .'
    )
    expected = to_dict(Limits())
    shown = {name: expected.pop(name) for name in SHOWN_LIMITS}
    assert yaml.safe_load(text) == expected
    # The file as it is changes nothing.
    path = str(repo_root / 'config' / 'limits.yaml')
    assert LocalizerParameters(limits_file=path).localizer_config() == LocalizerConfig()
    assert set(shown) <= {field.name for field in dataclasses.fields(LocalizerParameters)}


def test_limits_come_from_parameters_and_the_file(make_node, tmp_path):
    path = tmp_path / 'limits.yaml'
    path.write_text('min_inliers: 10\n')
    node = make_node(localizer__limits_file=str(path), localizer__max_focal_error=0.1)
    declare_from_dataclass(node, LocalizerNodeConfig)
    config = read_dataclass(node, LocalizerNodeConfig).localizer.localizer_config()
    assert config.limits == Limits(min_inliers=10, max_focal_error=0.1)
    ParameterUpdates(node, LocalizerNodeConfig, lambda: True, lambda config: None)
    for text, words in (
        ('min_inlier: 10', 'unknown key min_inlier'),
        ('max_focal_error: 0.1', 'parameter of the node'),
    ):
        wrong = tmp_path / 'wrong.yaml'
        wrong.write_text(text)
        result = node.set_parameters_atomically(overrides(localizer__limits_file=str(wrong)))
        assert not result.successful
        assert words in result.reason
    result = node.set_parameters_atomically(overrides(localizer__limits_file='/nowhere.yaml'))
    assert not result.successful
    assert 'cannot read the limits file /nowhere.yaml' in result.reason
    assert node.set_parameters_atomically(overrides(localizer__limits_file='')).successful


@pytest.mark.parametrize('name', ['min_keypoints', 'min_inliers', 'min_support', 'plane_rounds'])
def test_limits_that_are_no_parameters_are_told_where_they_are(make_node, name):
    node = make_node(**{f'localizer__{name}': 9})
    with pytest.raises(
        ConfigError, match=rf'localizer\.{name}: {name} is a field of Limits now.*limits_file'
    ):
        declare_from_dataclass(node, LocalizerNodeConfig)
    assert not node.has_parameter(f'localizer.{name}')


def test_every_option_is_described():
    for name, field, *_ in parameter_fields(LocalizerNodeConfig):
        assert field.metadata['description'].endswith('.'), name


def test_contradictions_are_refused():
    for values, words in (
        ({'base_from_camera': (1.0, 2.0)}, '7 numbers'),
        ({'base_from_camera': (0.0,) * 7}, 'quaternion'),
        ({'warn_no_image': 5.0, 'error_no_image': 1.0}, 'error_no_image'),
        ({'image_topic': ''}, 'image_topic'),
    ):
        with pytest.raises(ConfigError, match=words):
            LocalizerNodeConfig(**values)


def test_camera_info_is_the_sibling_of_the_image():
    for image, expected in (
        ('/camera/image_raw', '/camera/camera_info'),
        ('/camera/image_raw/compressed', '/camera/camera_info'),
        ('left/image', 'left/camera_info'),
        ('image', 'camera_info'),
        ('/image', '/camera_info'),
    ):
        assert LocalizerNodeConfig(image_topic=image).cameras[0].info_topic == expected
    assert LocalizerNodeConfig(camera_info_topic='/calib').cameras[0].info_topic == '/calib'
