"""The layers of docs/design/architecture.md: who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = 'd2s_ros'
MAX_LINES = 400
#: The building of the simulator, in one piece.
LONG = {'simulation/scene.py'}
#: From the bottom to the top, as in docs/design/architecture.md: a layer may import itself and
#: every layer below it, and no file may import itself, also not through others.
LAYERS = (
    'errors',
    'config',
    'device',
    'cuda_graph',
    'threads',
    'memory',
    'distributed',
    'pycolmap_import',
    'kernels',
    'geometry',
    'data',
    'simulation',
    'features',
    'reconstruction',
    'scene_models',
    'maps',
    'localization',
    'tracking',
    'evaluation',
    'map_building',
    'map_update',
    'privacy',
    'api',
    'ros',
    'cli',
)
#: Importable only in d2s_ros/ros (and, through it, nowhere else).
ROS_PACKAGES = {
    'rclpy',
    'tf2_ros',
    'cv_bridge',
    'rosbag2_py',
    'launch',
    'launch_ros',
    'ament_index_python',
    'rosidl_runtime_py',
}
#: Layers that work without torch.
WITHOUT_TORCH = ('errors', 'config', 'kernels', 'geometry', 'data', 'simulation')
#: Implementations behind a door of these layers, which are imported when they are needed.
WITH_TORCH_INSIDE = ('kernels/reference.py', 'kernels/tensors.py')


def modules(root: Path) -> list[Path]:
    return sorted((root / PACKAGE).rglob('*.py'))


def layer_of(module: Path, root: Path) -> str:
    first = module.relative_to(root / PACKAGE).parts[0]
    return first.removesuffix('.py')


def imports(module: Path, root: Path) -> set[str]:
    """Return the absolute names that a module imports anywhere, functions included."""
    names = set()
    package = ('.'.join(module.relative_to(root).with_suffix('').parts)).split('.')[:-1]
    for node in ast.walk(ast.parse(module.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = '.'.join([*base, *([node.module] if node.module else [])])
            # `from d2s_ros import data` imports the module d2s_ros.data.
            names.update(f'{prefix}.{alias.name}' for alias in node.names)
    return names


def is_ros(name: str) -> bool:
    top = name.partition('.')[0]
    return top in ROS_PACKAGES or top.endswith(('_msgs', '_srvs', '_interfaces'))


def test_every_folder_is_a_layer(repo_root):
    found = {layer_of(module, repo_root) for module in modules(repo_root)} - {'__init__'}
    assert found <= set(LAYERS), 'add the new folder to LAYERS and docs/design/architecture.md'


def test_layers_import_downwards_only(repo_root):
    wrong = []
    for module in modules(repo_root):
        layer = layer_of(module, repo_root)
        if layer == '__init__':
            continue
        for name in imports(module, repo_root):
            parts = name.split('.')
            if parts[0] != PACKAGE or len(parts) < 2 or parts[1] not in LAYERS:
                continue
            if LAYERS.index(parts[1]) > LAYERS.index(layer):
                wrong.append(f'{module.relative_to(repo_root)} imports {name}')
    assert not wrong, '\n'.join(wrong)


def imported_files(module: Path, root: Path) -> set[Path]:
    """Return the files of the package that a module imports anywhere, functions included."""
    found = set()
    for name in imports(module, root):
        parts = name.split('.')
        # The last part may be something in a module.
        for path in (root.joinpath(*parts), root.joinpath(*parts[:-1])):
            file = path.with_suffix('.py')
            if parts[0] == PACKAGE and file.is_file() and file != module:
                found.add(file)
                break
    return found


def circles(root: Path) -> list[list[str]]:
    """Return groups of files that import each other, directly or through others of the group."""
    graph = {module: imported_files(module, root) for module in modules(root)}
    reached: dict[Path, set[Path]] = {}
    for start in graph:
        seen: set[Path] = set()
        waiting = list(graph[start])
        while waiting:
            file = waiting.pop()
            if file not in seen:
                seen.add(file)
                waiting += graph[file]
        reached[start] = seen
    groups = {
        tuple(sorted(other for other in reached[file] if file in reached[other]))
        for file in graph
        if file in reached[file]
    }
    return [[str(file.relative_to(root)) for file in group] for group in sorted(groups)]


def test_modules_stay_short(repo_root):
    lengths = {
        module.relative_to(repo_root / PACKAGE).as_posix(): len(module.read_text().splitlines())
        for module in modules(repo_root)
    }
    long = {name for name, length in lengths.items() if length > MAX_LINES}
    assert long == LONG, 'split a module by subject'
    # The chain of a frame is read on one screen or two.
    assert lengths['localization/localizer.py'] <= 200


def test_the_document_has_the_layers_in_their_order(repo_root):
    text = (
        (repo_root / 'docs' / 'design' / 'architecture.md')
        .read_text()
        .partition('## From a log')[0]
    )
    rows = re.findall(r'^\| (`.*?`) \|', text, re.M)
    assert [name for row in rows for name in re.findall(r'`(\w+)`', row)] == list(LAYERS)


def test_no_files_import_each_other(repo_root):
    assert circles(repo_root) == []


def test_circles_are_seen(tmp_path):
    """Through a function, through a third file, and by the name of a module."""
    package = tmp_path / PACKAGE / 'data'
    package.mkdir(parents=True)
    (package / 'a.py').write_text('from d2s_ros.data.b import thing\n')
    (package / 'b.py').write_text('def late():\n    from d2s_ros.data import c\n')
    (package / 'c.py').write_text('from . import a\n')
    (package / 'd.py').write_text('from d2s_ros.data.a import thing\n')
    assert circles(tmp_path) == [[f'{PACKAGE}/data/{name}.py' for name in 'abc']]


def test_only_ros_imports_ros(repo_root):
    wrong = [
        f'{module.relative_to(repo_root)} imports {name}'
        for module in modules(repo_root)
        if layer_of(module, repo_root) != 'ros'
        for name in imports(module, repo_root)
        if is_ros(name)
    ]
    assert not wrong, '\n'.join(wrong)


def test_lower_layers_do_not_import_torch(repo_root):
    wrong = [
        f'{module.relative_to(repo_root)} imports {name}'
        for module in modules(repo_root)
        if layer_of(module, repo_root) in WITHOUT_TORCH
        and str(module.relative_to(repo_root / PACKAGE)) not in WITH_TORCH_INSIDE
        for name in imports(module, repo_root)
        if name.partition('.')[0] in ('torch', 'torchvision', 'kornia')
    ]
    assert not wrong, '\n'.join(wrong)


def loaded_by(statement: str, root: Path) -> set[str]:
    """Return the top-level names in sys.modules after a statement in a fresh interpreter."""
    code = f'{statement}; import sys; print("\\n".join(sys.modules))'
    environment = {**os.environ, 'PYTHONPATH': str(root)}
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return {line.partition('.')[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize(
    'statement',
    [
        'import d2s_ros',
        'import d2s_ros.errors, d2s_ros.config',
        'import d2s_ros.geometry.cameras, d2s_ros.geometry.transforms',
        'import d2s_ros.data.sources, d2s_ros.data.datasets',
        'import d2s_ros.kernels.interface, d2s_ros.kernels.compiled',
        'import d2s_ros.localization.localizer, d2s_ros.maps.scene_map',
        'import d2s_ros.features.superpoint.compiled, d2s_ros.scene_models.landmark.model',
    ],
)
def test_importing_the_core_loads_neither_torch_nor_ros(repo_root, statement):
    loaded = loaded_by(statement, repo_root)
    assert 'd2s_ros' in loaded
    assert not loaded & {'torch', 'rclpy', 'pycolmap', 'rosbags'}


def test_every_module_is_importable_without_side_effects_on_logging(repo_root):
    """No handler is installed by importing: that is for entry points."""
    core = [
        '.'.join(module.relative_to(repo_root).with_suffix('').parts).removesuffix('.__init__')
        for module in modules(repo_root)
        if layer_of(module, repo_root) in WITHOUT_TORCH
    ]
    statement = (
        'import logging, importlib\n'
        f'for name in {core!r}: importlib.import_module(name)\n'
        'assert not logging.getLogger().handlers\n'
        'assert not logging.getLogger("d2s_ros").handlers\n'
        'pass'
    )
    loaded_by(statement, repo_root)


def test_the_walk_sees_what_it_must_see(tmp_path):
    """A violation of each kind is found, wherever the import stands."""
    module = tmp_path / PACKAGE / 'data' / 'bad.py'
    module.parent.mkdir(parents=True)
    module.write_text(
        'import rclpy.node\n'
        'from sensor_msgs.msg import Image\n'
        'from ..ros import node\n'
        'from d2s_ros import cli\n'
        'def late():\n'
        '    import torch.nn as nn\n'
    )
    found = imports(module, tmp_path)
    assert found == {
        'rclpy.node',
        'sensor_msgs.msg.Image',
        'd2s_ros.ros.node',
        'd2s_ros.cli',
        'torch.nn',
    }
    assert is_ros('rclpy.node')
    assert is_ros('sensor_msgs.msg.Image')
    assert not is_ros('rosbags.rosbag2')
