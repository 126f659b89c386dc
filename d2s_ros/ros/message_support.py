"""Messages beside a rclpy that comes from wheels, without a ROS distribution: tf2_msgs and bond.

A ROS distribution brings tf2_msgs and bond. The wheels of rclpy do not, but they carry the
interface generators, so the type support of the messages that the nodes need is generated and
compiled here with the C compiler, into the running virtual environment:

    python -m d2s_ros.ros.message_support

Nothing happens where a package can be imported already, and a ROS distribution is never written to.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib
import importlib.util
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from d2s_ros.errors import D2SError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interface:
    """A package of one message.

    Attributes:
        package: Its name.
        message: Name of the message.
        idl: What it looks like.
        dependencies: Interface packages whose type support the generated one calls.
    """

    package: str
    message: str
    idl: str
    dependencies: tuple[str, ...]


TF2_MSGS = Interface(
    'tf2_msgs',
    'TFMessage',
    """\
#include "geometry_msgs/msg/TransformStamped.idl"

module tf2_msgs {
  module msg {
    struct TFMessage {
      sequence<geometry_msgs::msg::TransformStamped> transforms;
    };
  };
};
""",
    ('geometry_msgs', 'std_msgs', 'builtin_interfaces'),
)
BOND = Interface(
    'bond',
    'Status',
    """\
#include "std_msgs/msg/Header.idl"

module bond {
  module msg {
    struct Status {
      std_msgs::msg::Header header;
      string id;
      string instance_id;
      boolean active;
      float heartbeat_timeout;
      float heartbeat_period;
    };
  };
};
""",
    ('std_msgs', 'builtin_interfaces'),
)
INTERFACES = (TF2_MSGS, BOND)
_GENERATORS = (
    ('rosidl_generator_c.cli', 'GenerateC', 'c'),
    ('rosidl_typesupport_c.cli', 'GenerateCTypesupport', 'c'),
    (
        'rosidl_typesupport_introspection_c.cli',
        'GenerateIntrospectionCTypesupport',
        'introspection_c',
    ),
    ('rosidl_typesupport_fastrtps_c.cli', 'GenerateFastRTPSCTypesupport', 'fastrtps_c'),
    ('rosidl_generator_py.cli', 'GeneratePython', 'py'),
)


class TypeSupportError(D2SError):
    """The type support of a message is missing and cannot be made here."""


def is_available(interface: Interface = TF2_MSGS) -> bool:
    """Return whether a message can be used, with its compiled type support."""
    try:
        module = importlib.import_module(f'{interface.package}.msg')
        kind = getattr(module, interface.message).__class__
        kind.__import_type_support__()
        return kind._TYPE_SUPPORT is not None
    except (ImportError, AttributeError):
        return False


def ensure(interface: Interface = TF2_MSGS, *, force: bool = False) -> bool:
    """Make a message importable if it is not.

    Args:
        interface: The message.
        force: Build again even if it is there (never over a ROS distribution's).

    Returns:
        Whether something was built.

    Raises:
        TypeSupportError: it is missing and cannot be built; the message says what to install.
    """
    if not force and is_available(interface):
        return False
    prefix = pathlib.Path(sys.prefix)
    site_packages = pathlib.Path(sysconfig.get_paths()['purelib'])
    _check_environment(interface, prefix, site_packages)
    with _lock(prefix):
        importlib.invalidate_caches()
        _forget_modules(interface)
        if not force and is_available(interface):
            return False
        with tempfile.TemporaryDirectory(prefix='.message_build_', dir=prefix / 'lib') as folder:
            libraries, package = _build(interface, pathlib.Path(folder), prefix)
            _install(interface, libraries, package, prefix, site_packages)
    importlib.invalidate_caches()
    _forget_modules(interface)
    return True


def _forget_modules(interface: Interface) -> None:
    for name in [name for name in sys.modules if name.split('.')[0] == interface.package]:
        del sys.modules[name]


def _check_environment(
    interface: Interface, prefix: pathlib.Path, site_packages: pathlib.Path
) -> None:
    spec = importlib.util.find_spec('geometry_msgs')
    if spec is None or spec.origin is None:
        raise TypeSupportError(
            'geometry_msgs is missing: source a ROS 2 distribution, or install '
            '"ros-jazzy-rclpy[fastrtps]" and ros-jazzy-common-interfaces into this environment'
        )
    in_environment = pathlib.Path(spec.origin).resolve().is_relative_to(site_packages.resolve())
    if not in_environment or not (prefix / 'include' / 'geometry_msgs').is_dir():
        distribution = os.environ.get('ROS_DISTRO', '<distro>')
        raise TypeSupportError(
            f'{interface.package} is missing from the ROS 2 distribution; install '
            f'ros-{distribution}-{interface.package.replace("_", "-")} and source the '
            'distribution again'
        )
    for module, _, _ in _GENERATORS:
        if importlib.util.find_spec(module.split('.')[0]) is None:
            raise TypeSupportError(
                f'{module.split(".")[0]} is missing: reinstall ros-jazzy-common-interfaces'
            )
    for compiler in ('gcc', 'g++'):
        if shutil.which(compiler) is None:
            raise TypeSupportError(
                f'{compiler} is missing, it compiles message types; on Debian or Ubuntu: '
                f'apt install g++'
            )
    header = pathlib.Path(sysconfig.get_paths()['include']) / 'Python.h'
    if not header.is_file():
        version = f'{sys.version_info.major}.{sys.version_info.minor}'
        raise TypeSupportError(
            f'{header} is missing, it is needed to compile message types; on Debian or '
            f'Ubuntu: apt install python{version}-dev'
        )
    if not os.access(prefix / 'lib', os.W_OK) or not os.access(site_packages, os.W_OK):
        raise TypeSupportError(f'no permission to write into {prefix}')


@contextlib.contextmanager
def _lock(prefix: pathlib.Path) -> Iterator[None]:
    """Let one process build at a time."""
    with open(prefix / 'lib' / '.message_support.lock', 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(
    interface: Interface, folder: pathlib.Path, prefix: pathlib.Path
) -> tuple[pathlib.Path, pathlib.Path]:
    """Generate and compile in `folder`; return the folder of libraries and the Python package."""
    source = folder / interface.package
    (folder / 'idl' / 'msg').mkdir(parents=True)
    (folder / 'idl' / 'msg' / f'{interface.message}.idl').write_text(interface.idl)
    _generate(interface, folder, source, prefix)

    include = prefix / 'include'
    numpy = importlib.import_module('numpy')
    includes = [folder, include, *sorted(path for path in include.iterdir() if path.is_dir())]
    includes += [pathlib.Path(sysconfig.get_paths()['include']), numpy.get_include()]
    flags = ['-fPIC', '-O2', *(f'-I{path}' for path in includes)]
    libraries = folder / 'lib'
    libraries.mkdir()
    message = source / 'msg'
    c_base = ['rosidl_runtime_c', 'rcutils']

    def twins(kind: str) -> list[str]:
        return [f'{package}__{kind}' for package in interface.dependencies]

    def library(kind: str, pattern: str, links: list[str]) -> None:
        files = sorted(message.glob(pattern))
        if kind == 'rosidl_generator_c':
            files = [path for path in files if 'type_support' not in path.name]
        name = libraries / f'lib{interface.package}__{kind}.so'
        _compile(files, name, flags, [libraries, prefix / 'lib'], links)

    generator = f'{interface.package}__rosidl_generator_c'
    library('rosidl_generator_c', 'detail/*.c', [*twins('rosidl_generator_c'), *c_base])
    library(
        'rosidl_typesupport_introspection_c',
        'detail/*__type_support.c',
        [generator, *twins('rosidl_typesupport_introspection_c'), *c_base],
    )
    library(
        'rosidl_typesupport_fastrtps_c',
        'detail/*__type_support_c.cpp',
        [
            generator,
            *twins('rosidl_typesupport_fastrtps_c'),
            *('rosidl_typesupport_fastrtps_c', 'rosidl_typesupport_fastrtps_cpp', 'fastcdr'),
            *c_base,
        ],
    )
    library(
        'rosidl_typesupport_c',
        '*__type_support.cpp',
        [
            generator,
            f'{interface.package}__rosidl_typesupport_introspection_c',
            f'{interface.package}__rosidl_typesupport_fastrtps_c',
            *twins('rosidl_typesupport_c'),
            *('rosidl_typesupport_c', *c_base),
        ],
    )
    library(
        'rosidl_generator_py',
        '_*_s.c',
        [
            generator,
            f'{interface.package}__rosidl_typesupport_c',
            *twins('rosidl_generator_py'),
            *twins('rosidl_generator_c'),
            *c_base,
        ],
    )
    for kind in ('rosidl_typesupport_c', 'rosidl_typesupport_fastrtps_c'):
        _compile(
            [source / f'_{interface.package}_s.ep.{kind}.c'],
            source / f'{interface.package}_s__{kind}.so',
            flags,
            [libraries, prefix / 'lib'],
            [
                f'{interface.package}__rosidl_generator_py',
                f'{interface.package}__{kind}',
                generator,
                *c_base,
            ],
        )
    return libraries, source


def _generate(
    interface: Interface, folder: pathlib.Path, output: pathlib.Path, prefix: pathlib.Path
) -> None:
    previous = os.environ.get('AMENT_PREFIX_PATH')
    # The generators find their templates through the ament index of the environment.
    os.environ['AMENT_PREFIX_PATH'] = str(prefix)
    try:
        for module, cls, name in _GENERATORS:
            generator = getattr(importlib.import_module(module), cls)(name)
            # They write progress to stdout; that belongs in the log.
            with contextlib.redirect_stdout(sys.stderr):
                generator.generate(
                    interface.package,
                    [f'{folder / "idl"}:msg/{interface.message}.idl'],
                    [str(prefix / 'share')],
                    output,
                )
    except Exception as error:
        raise TypeSupportError(f'the generators of the ROS wheels failed: {error}') from error
    finally:
        if previous is None:
            del os.environ['AMENT_PREFIX_PATH']
        else:
            os.environ['AMENT_PREFIX_PATH'] = previous
    (output / '__init__.py').touch()


def _compile(
    files: list[pathlib.Path],
    output: pathlib.Path,
    flags: list[str],
    folders: list[pathlib.Path],
    links: list[str],
) -> None:
    if not files:
        raise TypeSupportError(f'the generators of the ROS wheels gave no source for {output.name}')
    compiler = 'g++' if any(path.suffix == '.cpp' for path in files) else 'gcc'
    command = [compiler, '-shared', *flags, *map(str, files), '-o', str(output)]
    command += [f'-L{folder}' for folder in folders]
    command += [f'-Wl,-rpath-link,{folder}' for folder in folders]
    # Found at run time beside each other, or from the package folder in site-packages.
    command += ['-Wl,-rpath,$ORIGIN', '-Wl,-rpath,$ORIGIN/../../..']
    command += [f'-l{name}' for name in links]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise TypeSupportError(
            f'{compiler} could not compile {output.name}: '
            f'{(done.stderr.strip().splitlines() or ["no message"])[0]}'
        )


def _install(
    interface: Interface,
    libraries: pathlib.Path,
    package: pathlib.Path,
    prefix: pathlib.Path,
    site: pathlib.Path,
) -> None:
    """Move into place; the Python package comes last, so that an import finds all or nothing."""
    kept = package.parent / 'package'
    (kept / 'msg').mkdir(parents=True)
    (kept / '__init__.py').touch()
    for path in package.glob('*.so'):
        shutil.copy2(path, kept / path.name)
    for path in (package / 'msg').glob('*.py'):
        shutil.copy2(path, kept / 'msg' / path.name)
    for path in libraries.iterdir():
        os.replace(path, prefix / 'lib' / path.name)
    target = site / interface.package
    if target.exists():
        old = package.parent / 'old'
        os.replace(target, old)
    os.replace(kept, target)


def main(arguments: list[str] | None = None) -> int:
    """Build what is missing; the exit status is 0 if all can be used afterwards."""
    parser = argparse.ArgumentParser(prog='message_support', description=__doc__.split('\n')[0])
    parser.add_argument('--force', action='store_true', help='build again what is there')
    options = parser.parse_args(arguments)
    for interface in INTERFACES:
        try:
            built = ensure(interface, force=options.force)
        except TypeSupportError as error:
            sys.stderr.write(f'error: {error}\n')
            return error.exit_code
        sys.stderr.write(f'{interface.package}: {"built" if built else "already available"}\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
