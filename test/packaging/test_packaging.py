"""What colcon and pip make of the package, by really calling them."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

PACKAGE = 'd2s_ros'
EXECUTABLES = ('d2s', 'localizer')


def run(*command, cwd: Path, timeout_s: float = 300, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f'{command}\n{done.stdout}\n{done.stderr}'
    return done.stdout + done.stderr


@pytest.fixture(scope='module')
def sources(repo_root, tmp_path_factory) -> Path:
    """Return a copy of what a clone holds, so that nothing is built in the checkout."""
    target = tmp_path_factory.mktemp('workspace') / 'src' / PACKAGE
    target.mkdir(parents=True)
    for name in (
        'setup.py',
        'setup.cfg',
        'package.xml',
        'README.md',
        'LICENSE',
        'resource',
        'launch',
        'config',
        PACKAGE,
    ):
        source = repo_root / name
        if source.is_dir():
            ignore = shutil.ignore_patterns('__pycache__', '*.so')
            shutil.copytree(source, target / name, ignore=ignore)
        elif source.is_file():
            shutil.copy(source, target / name)
    return target


def shared_files(root: Path) -> list[Path]:
    """Return launch and config files, relative to the root of the sources."""
    return [
        path.relative_to(root)
        for folder in ('launch', 'config')
        for path in (root / folder).rglob('*')
        if path.is_file() and path.suffix in ('.py', '.yaml', '.rviz', '.json')
    ]


@pytest.fixture(scope='module')
def colcon_prefix(sources) -> Path:
    """Build the workspace with colcon and return the package's install prefix."""
    scripts = Path(sysconfig.get_path('scripts'))
    colcon = scripts / 'colcon'
    if not colcon.is_file():
        pytest.skip('colcon is not installed (requirements/dev.txt)')
    workspace = sources.parent.parent
    run(
        colcon,
        'build',
        '--packages-select',
        PACKAGE,
        cwd=workspace,
        PATH=f'{scripts}{os.pathsep}{os.environ["PATH"]}',
    )
    return workspace / 'install' / PACKAGE


def launch_executables(root: Path) -> set[str]:
    """Return the executables of this package that launch files start."""
    found = set()
    for path in (root / 'launch').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            named = {
                keyword.arg: keyword.value.value
                for keyword in node.keywords
                if isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, str)
            }
            if named.get('package') == PACKAGE and 'executable' in named:
                found.add(named['executable'])
    return found


@pytest.mark.slow
def test_colcon_installs_what_ros_looks_for(colcon_prefix, sources):
    share = colcon_prefix / 'share'
    assert (share / 'ament_index' / 'resource_index' / 'packages' / PACKAGE).is_file()
    installed = (share / PACKAGE / 'package.xml').read_text()
    assert installed == (sources / 'package.xml').read_text()
    for path in shared_files(sources):
        assert (share / PACKAGE / path).read_bytes() == (sources / path).read_bytes()
    executables = colcon_prefix / 'lib' / PACKAGE
    for name in {*EXECUTABLES, *launch_executables(sources)}:
        assert os.access(executables / name, os.X_OK), f'no executable {name} in {executables}'
    # Nothing outside lib/<package>: a bin folder would shadow other packages' executables.
    assert not (colcon_prefix / 'bin').exists()


@pytest.mark.slow
def test_colcon_installs_every_module_and_weight(colcon_prefix, sources):
    (site,) = colcon_prefix.glob('lib/python3*/site-packages')
    for path in (sources / PACKAGE).rglob('*'):
        if path.suffix in ('.py', '.safetensors'):
            copy = site / path.relative_to(sources)
            assert copy.read_bytes() == path.read_bytes()


WHETHER_COMPILED = 'from d2s_ros.kernels.library import is_built; print(is_built())'


@pytest.mark.slow
def test_colcon_builds_the_compiled_part(colcon_prefix):
    (site,) = colcon_prefix.glob('lib/python3*/site-packages')
    output = run(sys.executable, '-c', WHETHER_COMPILED, cwd=site, PYTHONPATH=str(site))
    assert output.strip() == 'True'


def run_installed(prefix: Path, name: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run an executable as after `source install/setup.sh`, outside of the sources."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'COLCON_TRACE')
    }
    script = f'. {prefix.parent}/setup.sh && exec {prefix}/lib/{PACKAGE}/{name} "$@"'
    return subprocess.run(
        ['sh', '-c', script, name, *arguments],
        cwd=prefix,
        env={**environment, 'COLCON_CURRENT_PREFIX': str(prefix.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_the_command_of_colcon_runs(colcon_prefix, repo_root):
    if not (repo_root / PACKAGE / 'cli' / 'main.py').is_file():
        pytest.skip('d2s_ros/cli/main.py is not there')
    done = run_installed(colcon_prefix, 'd2s', '--help')
    assert done.returncode == 0, done.stderr
    assert 'build-map' in done.stdout


@pytest.mark.slow
@pytest.mark.ros
def test_the_node_of_colcon_runs(colcon_prefix, repo_root):
    pytest.importorskip('rclpy')
    if not (repo_root / PACKAGE / 'ros' / 'localizer_node.py').is_file():
        pytest.skip('d2s_ros/ros/localizer_node.py is not there')
    # Launched alone it configures itself, and without a map says what is missing.
    done = run_installed(colcon_prefix, 'localizer')
    assert done.returncode == 3, done.stderr
    assert 'map' in done.stderr


@pytest.mark.slow
def test_pip_puts_d2s_on_the_path(sources, tmp_path, repo_root):
    """Install a wheel into a fresh environment that sees the packages of this one."""
    wheels = tmp_path / 'wheels'
    run(
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '--no-deps',
        '--no-build-isolation',
        '--wheel-dir',
        wheels,
        sources,
        cwd=tmp_path,
    )
    (wheel,) = wheels.glob('*.whl')
    fresh = tmp_path / 'fresh'
    venv.create(fresh, with_pip=False, symlinks=True)
    python = fresh / 'bin' / 'python'
    run(
        sys.executable,
        '-m',
        'pip',
        '--python',
        python,
        'install',
        '--no-deps',
        '--no-index',
        wheel,
        cwd=tmp_path,
    )
    for name in EXECUTABLES:
        assert os.access(fresh / 'bin' / name, os.X_OK)
    assert not (fresh / 'lib' / PACKAGE).exists()
    assert (fresh / 'share' / PACKAGE / 'package.xml').is_file()
    packages = sysconfig.get_path('purelib')
    where = run(
        python,
        '-c',
        'import d2s_ros; print(d2s_ros.__file__)',
        cwd=tmp_path,
        PYTHONPATH='',
    )
    assert str(fresh) in where
    compiled = run(python, '-c', WHETHER_COMPILED, cwd=tmp_path, PYTHONPATH=packages)
    assert compiled.strip() == 'True'
    if not (repo_root / PACKAGE / 'cli' / 'main.py').is_file():
        pytest.skip('d2s_ros/cli/main.py is not there')
    output = run(
        'bash',
        '-c',
        'd2s --help',
        cwd=tmp_path,
        PATH=f'{fresh / "bin"}{os.pathsep}{os.environ["PATH"]}',
        PYTHONPATH=packages,
    )
    assert 'build-map' in output


LOCALIZE = """
import sys
from importlib.util import find_spec
from d2s_ros.data.sources import open_source
from d2s_ros.localization.localizer import Localizer
assert find_spec('torch') is None
localizer = Localizer.from_map(sys.argv[1])
for frame in open_source(sys.argv[2]):
    pose = localizer.localize(frame.image, frame.camera).map_from_camera
    print(frame.stamp_ns, *([] if pose is None else pose.to_tum()))
"""


@pytest.mark.slow
def test_a_robot_localizes_without_torch(sources, tmp_path, repo_root, building_logs):
    """The wheel with [robot] in a fresh environment of its own, with what pip installs alone."""
    from d2s_ros.data.sources import open_source
    from d2s_ros.localization.localizer import Localizer

    fresh = tmp_path / 'robot'
    venv.create(fresh, with_pip=True, symlinks=True)
    done = subprocess.run(
        [fresh / 'bin' / 'pip', 'install', '--quiet', f'{sources}[robot]'],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != 'PYTHONPATH'},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    offline = ('Failed to establish', 'Name or service not known', 'Network is unreachable')
    if done.returncode and any(word in done.stderr for word in offline):
        pytest.skip('the package registry cannot be reached')
    assert done.returncode == 0, done.stderr
    path, log = repo_root / 'test' / 'data' / 'map_format_2', building_logs / 'map'
    python = fresh / 'bin' / 'python'
    output = run(python, '-c', LOCALIZE, path, log, cwd=tmp_path, PYTHONPATH='')
    found = {int(row[0]): row[1:] for row in map(str.split, output.splitlines())}
    localizer, localized = Localizer.from_map(path, device='cpu'), 0
    for frame in open_source(log):
        pose = localizer.localize(frame.image, frame.camera).map_from_camera
        assert bool(found[frame.stamp_ns]) == (pose is not None)
        if pose is not None:
            localized += 1
            numbers = [float(number) for number in found[frame.stamp_ns]]
            # Other versions of NumPy and OpenCV may be the newest.
            assert numbers == pytest.approx(pose.to_tum(), rel=1e-4, abs=1e-3)
    assert localized >= 5
    assert 'build-map' in run(fresh / 'bin' / 'd2s', '--help', cwd=tmp_path, PYTHONPATH='')


@pytest.mark.slow
def test_pip_installs_without_a_compiler(sources, tmp_path):
    copy = tmp_path / 'sources'
    shutil.copytree(sources, copy, ignore=shutil.ignore_patterns('build'))
    target = tmp_path / 'target'
    run(
        sys.executable,
        '-m',
        'pip',
        'install',
        '--no-deps',
        '--no-build-isolation',
        '--target',
        target,
        copy,
        cwd=tmp_path,
        CC='false',
    )
    output = run(sys.executable, '-c', WHETHER_COMPILED, cwd=target, PYTHONPATH=str(target))
    assert output.strip() == 'False'


def test_package_xml_names_every_ros_package_in_use(repo_root):
    """What d2s_ros/ros and launch/ import is declared for rosdep."""
    root = ElementTree.parse(repo_root / 'package.xml').getroot()
    declared = {element.text for element in root if element.tag.endswith('depend')}
    used = set()
    for path in [
        *(repo_root / PACKAGE / 'ros').rglob('*.py'),
        *(repo_root / 'launch').glob('*.py'),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.partition('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                used.add(node.module.partition('.')[0])
    ros = {
        name
        for name in used
        if name.endswith(('_msgs', '_srvs', '_interfaces'))
        or name in ('rclpy', 'launch', 'launch_ros', 'ament_index_python')
    }
    # The Python module tf2_ros, imported where it is installed, is in a package of another name.
    ros.add('tf2_ros_py')
    assert ros <= declared, f'add to package.xml: {sorted(ros - declared)}'


def test_localizing_needs_no_package_without_wheels_for_arm(repo_root):
    command = (
        'import sys; sys.modules.update(poselib=None, pycolmap=None); '
        'import d2s_ros.localization.localizer, d2s_ros.cli.main, d2s_ros.cli.evaluate; '
        'import importlib.util as u; u.find_spec = lambda name, *_: None; '
        'from d2s_ros.geometry import ransac; assert ransac.solver_name() == "opencv"'
    )
    run(sys.executable, '-c', command, cwd=repo_root)


def test_catkin_reads_the_manifest(repo_root):
    catkin_pkg = pytest.importorskip('catkin_pkg.package')
    warnings: list[str] = []
    package = catkin_pkg.parse_package(str(repo_root / 'package.xml'), warnings=warnings)
    package.validate()
    assert warnings == []
    package.evaluate_conditions(
        {'ROS_DISTRO': 'humble', 'ROS_VERSION': '2', 'ROS_PYTHON_VERSION': '3'}
    )
    torch = next(item for item in package.exec_depends if item.name == 'python3-torch')
    assert not torch.evaluated_condition


def test_requirements_are_pinned_plainly(repo_root):
    """Exact versions, no indexes, no local versions, nothing twice with different pins."""
    files = sorted((repo_root / 'requirements').glob('*.txt'))
    assert [path.stem for path in files] == ['dev', 'docs', 'ros', 'runtime']
    environments: dict[bool, dict[str, str]] = {False: {}, True: {}}
    for path in files:
        # The site is built in an environment of its own.
        pins = environments[path.stem == 'docs']
        for line in path.read_text().splitlines():
            if not line or line.startswith('#'):
                continue
            match = re.fullmatch(r'([A-Za-z0-9_.-]+)(\[[a-z,]+\])?==([0-9][0-9a-z.]*)', line)
            assert match, f'{path.name}: {line}'
            name = re.sub(r'[-_.]+', '-', match.group(1)).lower()
            assert pins.setdefault(name, match.group(3)) == match.group(3)


def test_install_requires_allows_the_pinned_versions(repo_root):
    requirements = pytest.importorskip('packaging.requirements')
    tree = ast.parse((repo_root / 'setup.py').read_text())
    call = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'setup'
    )
    wanted = next(
        ast.literal_eval(keyword.value)
        for keyword in call.keywords
        if keyword.arg == 'install_requires'
    )
    pins = dict(
        line.lower().split('==')
        for line in (repo_root / 'requirements' / 'runtime.txt').read_text().splitlines()
        if '==' in line
    )
    for text in wanted:
        requirement = requirements.Requirement(text)
        assert requirement.name.lower() in pins, f'{requirement.name} is not in runtime.txt'
        assert requirement.specifier.contains(pins[requirement.name.lower()]), text
