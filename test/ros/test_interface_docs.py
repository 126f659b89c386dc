"""docs/reference says what the nodes really declare."""

from __future__ import annotations

import json
import py_compile
import re
import xml.etree.ElementTree as ElementTree

import pytest
import yaml
from ros import stub_localizer
from ros.helpers import wait_for

pytest.importorskip('rclpy', reason='rclpy is not installed')

from rclpy.parameter import Parameter

from d2s_ros.localization.result import LocalizationStatus
from d2s_ros.ros import diagnostics, parameter_docs
from d2s_ros.ros.frame_pipeline import NodeRefusal
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.localizer_node import LocalizerNode
from d2s_ros.ros.map_updater_node import MapUpdaterNode
from d2s_ros.ros.parameters import parameter_fields

pytestmark = pytest.mark.ros


@pytest.fixture(scope='module')
def document(repo_root):
    return (repo_root / 'docs' / 'reference' / 'ros_interface.md').read_text()


def table(document, first_column):
    """Return the rows of the table whose first heading is given, as lists of cells."""
    lines = document.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f'| {first_column} |'))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith('|'):
            break
        rows.append([cell.strip().strip('`') for cell in line.strip('|').split('|')])
    return rows


@pytest.fixture
def node(spinner, tf2_msgs, tmp_path):
    (tmp_path / 'current').write_text('1')
    result = LocalizerNode(
        localizer_factory=stub_localizer.factory(),
        context=spinner.context,
        namespace='/robot',
        parameter_overrides=[
            Parameter('map', value=str(tmp_path)),
            Parameter('image_transport', value='raw'),
        ],
    )
    spinner.add(result)
    assert result.start()
    yield result
    spinner.stop()
    assert result.close(10)


def absolute(rows):
    return {(name if name.startswith('/') else f'/robot/{name}', kind) for name, kind, *_ in rows}


def declared_by(client, node, what):
    """Return names and types of a node's publishers, subscribers or services, without rclpy's."""
    found = getattr(client, f'get_{what}_names_and_types_by_node')(node, '/robot')
    standard = re.compile(
        rf'/rosout|/parameter_events|/robot/{node}/(transition_event|get_|set_|list_|describe_|change_)'
    )
    return {(name, kind) for name, kinds in found for kind in kinds if not standard.match(name)}


def test_topics_and_services(node, client, document):
    published = absolute(table(document, 'Published topic'))
    wait_for(lambda: declared_by(client, 'localizer', 'publisher') == published)

    subscribed = absolute(table(document, 'Subscribed topic'))
    compressed = ('/camera/image_raw/compressed', 'sensor_msgs/msg/CompressedImage')
    assert compressed in subscribed
    wait_for(lambda: declared_by(client, 'localizer', 'subscriber') == subscribed - {compressed})

    services = absolute(table(document, 'Service'))
    wait_for(lambda: declared_by(client, 'localizer', 'service') == services)


def test_the_map_updater(spinner, client, document):
    spinner.add(MapUpdaterNode(context=spinner.context, namespace='/robot'))
    published = absolute(table(document, 'Published by map_updater'))
    wait_for(lambda: declared_by(client, 'map_updater', 'publisher') == published)
    assert not declared_by(client, 'map_updater', 'subscriber')
    services = absolute(table(document, 'Service of map_updater'))
    wait_for(lambda: declared_by(client, 'map_updater', 'service') == services)


def test_parameters(node, repo_root):
    page = (repo_root / 'docs' / 'reference' / 'parameters.md').read_text()
    assert parameter_docs.parameters_page() == page, (
        'write it again: python -m d2s_ros.ros.parameter_docs --write .'
    )
    names = {row[0] for row in table(page, 'Parameter')}
    declared = {
        name
        for name in node.get_parameters_by_prefix('')
        if not name.startswith(('qos_overrides.', 'use_sim_time', 'start_type_description'))
    }
    assert names == declared


def test_refusals(document):
    names = {row[0] for row in table(document, 'Status')}
    assert names == {item.value for kind in (LocalizationStatus, NodeRefusal) for item in kind}


def test_diagnostics(document):
    section = document[document.index('`/diagnostics` has these') :]
    assert [row[0] for row in table(section, 'Status')] == list(diagnostics.STATUS_NAMES)


def test_transform_modes(document):
    choices = next(
        field.metadata['choices']
        for name, field, *_ in parameter_fields(LocalizerNodeConfig)
        if name == 'tf_mode'
    )
    assert {row[0] for row in table(document, '`tf_mode`')} == set(choices)


def test_launch_files_compile_and_name_real_parameters(repo_root, tmp_path):
    names = {name for name, *_ in parameter_fields(LocalizerNodeConfig)} | {'use_sim_time'}
    for path in sorted((repo_root / 'launch').rglob('*.launch.py')):
        py_compile.compile(str(path), cfile=str(tmp_path / 'compiled'), doraise=True)
    text = (repo_root / 'launch' / 'localize.launch.py').read_text()
    block = text[text.index('PARAMETERS = {') : text.index('}\n')]
    used = set(re.findall(r"^    '(\w+)':", block, re.MULTILINE))
    assert {'map', 'image_topic', 'tf_mode'} <= used <= names


def test_examples_use_real_parameters(repo_root):
    from d2s_ros.config import from_dict

    text = (repo_root / 'config' / 'examples' / 'nav2_localizer.yaml').read_text()
    values = yaml.safe_load(text)['/**/localizer']['ros__parameters']
    assert from_dict(LocalizerNodeConfig, values).tf_mode == 'map_to_odom'
    text = (repo_root / 'config' / 'examples' / 'realtime.yaml').read_text()
    values = yaml.safe_load(text)['/**']['ros__parameters']
    assert from_dict(LocalizerNodeConfig, values).target_rate == 10.0
    for path in (repo_root / 'config' / 'examples').glob('*.yaml'):
        assert yaml.safe_load(path.read_text()), path


def published_topics(document):
    return {
        name if name.startswith('/') else f'/{name}'
        for name, *_ in table(document, 'Published topic')
    }


def test_foxglove_shows_topics_that_exist(repo_root, document):
    """Landmarks and coverage among them, and no panel is missing from the layout."""
    view = json.loads((repo_root / 'config' / 'foxglove' / 'd2s.json').read_text())
    scene = view['configById']['3D!d2s']['topics']
    assert {'/d2s/map_points', '/d2s/coverage', '/d2s/pose'} <= scene.keys()
    image = view['configById']['Image!keypoints']['imageMode']['imageTopic']
    assert {*scene, image} <= published_topics(document)
    named = set(re.findall(r'\w+!\w+', json.dumps(view['layout'])))
    assert named == view['configById'].keys()


def test_rviz_shows_topics_that_exist(repo_root, document):
    view = yaml.safe_load((repo_root / 'config' / 'rviz' / 'd2s.rviz').read_text())
    published = published_topics(document)
    topics = {
        display['Topic']['Value']
        for display in view['Visualization Manager']['Displays']
        if 'Topic' in display
    }
    assert {'/d2s/map_points', '/d2s/coverage'} <= topics
    assert topics <= published
    assert view['Visualization Manager']['Global Options']['Fixed Frame'] == 'map'


def test_the_security_policy_has_all_names(repo_root, document):
    """What the nodes publish, subscribe to and serve is what the example allows."""
    path = repo_root / 'config' / 'examples' / 'sros2' / 'localizer.policy.xml'
    root = ElementTree.parse(path).getroot()

    def allowed(enclave, kind, rule):
        (found,) = [item for item in root.iter('enclave') if item.get('path') == enclave]
        groups = [item for item in found.iter(f'{kind}s') if item.get(rule) == 'ALLOW']
        return {item.text.replace('~', enclave.strip('/')) for item in groups[0].iter(kind)}

    def names(heading):
        return {row[0].strip('/') for row in table(document, heading)}

    assert names('Published topic') <= allowed('/localizer', 'topic', 'publish')
    assert names('Subscribed topic') <= allowed('/localizer', 'topic', 'subscribe')
    assert names('Service') <= allowed('/localizer', 'service', 'reply')
    assert names('Published by map_updater') <= allowed('/map_updater', 'topic', 'publish')
    assert names('Service of map_updater') <= allowed('/map_updater', 'service', 'reply')
    every = names('Service') | names('Service of map_updater')
    assert every <= allowed('/operator', 'service', 'request')
