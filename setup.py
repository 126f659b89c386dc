"""The one source of the package's metadata, for colcon (ament_python) and for pip."""

import hashlib
import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

PACKAGE = 'd2s_ros'
ROOT = Path(__file__).resolve().parent
# Before 2.6, torch.load(weights_only=True) can run code of the file (CVE-2025-32434).
TORCH = 'torch>=2.6'


def version() -> str:
    text = (ROOT / PACKAGE / '__init__.py').read_text(encoding='utf-8')
    match = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    if match is None:
        raise RuntimeError(f'{PACKAGE}/__init__.py has no __version__')
    return match.group(1)


def compiled_part() -> Extension:
    """Return the compiled part; the package works without it where there is no compiler."""
    folder = ROOT / PACKAGE / 'kernels' / 'c'
    sources = sorted(path for path in folder.iterdir() if path.suffix in ('.c', '.h', '.inc'))
    # As `d2s_ros/kernels/library.py` computes it.
    digest = hashlib.sha256(b''.join(path.read_bytes() for path in sources)).hexdigest()[:16]
    names = [path.relative_to(ROOT).as_posix() for path in sources]
    return Extension(
        f'{PACKAGE}.kernels._kernels',
        [name for name in names if name.endswith('.c')],
        depends=[*names, 'setup.py'],
        define_macros=[('D2S_SOURCE_DIGEST', f'"{digest}"')],
        extra_compile_args=[
            '-std=c11',
            '-O3',
            '-fno-math-errno',
            '-fno-trapping-math',
            '-fopenmp',
            '-fvisibility=hidden',
            # No function passes vectors on.
            '-Wno-psabi',
        ],
        extra_link_args=['-fopenmp'],
        libraries=['m'],
        optional=True,
    )


#: Of files in launch/ and config/ that are installed.
SHARED_SUFFIXES = ('.py', '.yaml', '.rviz', '.json', '.xml', '.service')


def shared_files(*folders: str) -> list:
    """Return data_files that lay the folders out below share/d2s_ros as they are here."""
    by_folder: dict = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob('*')):
            if path.is_file() and path.suffix in SHARED_SUFFIXES:
                relative = path.relative_to(ROOT)
                by_folder.setdefault(relative.parent.as_posix(), []).append(relative.as_posix())
    return [(f'share/{PACKAGE}/{folder}', names) for folder, names in sorted(by_folder.items())]


setup(
    name=PACKAGE,
    version=version(),
    description='Camera relocalization from one image: D2S maps and ROS 2 nodes',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    url='https://example.org/d2s_ros',
    author='The d2s_ros authors',
    maintainer='The d2s_ros authors',
    maintainer_email='maintainers@example.org',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={
        PACKAGE: ['py.typed'],
        f'{PACKAGE}.features': ['weights/*.safetensors'],
        f'{PACKAGE}.evaluation': ['pages/*.html'],
        # The loader compares the sources with those that the compiled part was made from.
        f'{PACKAGE}.kernels': ['c/*.c', 'c/*.h', 'c/*.inc'],
    },
    ext_modules=[compiled_part()],
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
        *shared_files('launch', 'config'),
    ],
    python_requires='>=3.10',
    # Lower bounds; the versions that everything is tested with are in requirements/.
    install_requires=[
        'numpy>=1.21.6',
        'opencv-python-headless>=4.5.4',
        'safetensors>=0.4',
        # No wheels for ARM: OpenCV's RANSAC does there.
        'poselib>=2.0.4; platform_machine != "aarch64"',
        'rosbags>=0.11',
        'tqdm>=4.60',
        'pyyaml>=5.4.1',
        'matplotlib>=3.5',
    ],
    extras_require={
        # To localize in maps with landmarks on a CPU: nothing beyond the above, no PyTorch.
        'robot': [],
        # `d2s build-map`, `d2s update-map`; no wheels for ARM: build on a PC, copy the map.
        'mapping': [TORCH, 'pycolmap>=4.1', 'scipy>=1.8', 'threadpoolctl>=3.1'],
        # `d2s build-map --cluster`.
        'cluster': [
            TORCH,
            'pycolmap>=4.1',
            'scipy>=1.8',
            'threadpoolctl>=3.1',
            'ray>=2.40',
        ],
        # GPUs, 8-bit integers, and maps with the regression and the labels head.
        'torch': [TORCH, 'scipy>=1.8'],
        # Videos (.mp4 and others) as input.
        'video': ['av>=12'],
        # `d2s simulate` and `d2s demo` take their textures from the photographs in these.
        'simulation': ['scikit-image>=0.19', 'scikit-learn>=1.0'],
        # `d2s export`; where onnxruntime-gpu is wanted, install it instead of onnxruntime.
        'export': [TORCH, 'onnx>=1.16', 'onnxscript>=0.5', 'onnxruntime>=1.18'],
        # `--features aliked`, to compare with; the weights are a file of yours.
        'aliked': [TORCH, 'kornia>=0.9'],
        # `d2s --print-completion`.
        'completion': ['shtab>=1.7'],
        # ROS 2 without a ROS installation; CPython 3.11 and 3.12 on Linux.
        'ros': ['ros-jazzy-rclpy[fastrtps]', 'ros-jazzy-common-interfaces'],
    },
    zip_safe=False,
    entry_points={
        'console_scripts': [
            'd2s = d2s_ros.cli.main:main',
            'localizer = d2s_ros.ros.start:localizer',
            'map_updater = d2s_ros.ros.start:map_updater',
        ]
    },
)
