"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()
if 'PYTEST_XDIST_WORKER_COUNT' in os.environ:
    # Cores are shared out to the processes that test, and to those that their tests start.
    share = len(os.sched_getaffinity(0)) // int(os.environ['PYTEST_XDIST_WORKER_COUNT'])
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, share)))
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def repo_root() -> Path:
    """Return the root of the checkout."""
    return ROOT


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Return the folder of real data sets, which are not part of the repository."""
    path = Path(os.environ.get('D2S_SHARED_DATA', ROOT.parent / 'shared' / 'data'))
    if not path.is_dir():
        pytest.skip(f'no real data at {path}; set D2S_SHARED_DATA')
    return path


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a seeded random generator."""
    return np.random.default_rng(7)


@pytest.fixture
def use_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Return a function that chooses 'reference' or 'compiled' kernels until the test ends."""
    from d2s_ros import kernels
    from d2s_ros.kernels import library

    def use(name: str) -> Any:
        if name == 'compiled' and not library.is_built():
            pytest.skip('the compiled kernels were not built')
        monkeypatch.setenv(kernels.SWITCH, name)
        kernels.active.cache_clear()
        return kernels.active()

    yield use
    kernels.active.cache_clear()


@pytest.fixture(params=['reference', 'compiled'])
def implementation(request: pytest.FixtureRequest) -> Any:
    """Return each implementation of the kernels."""
    import importlib

    from d2s_ros.kernels import library

    if request.param == 'compiled' and not library.is_built():
        pytest.skip('the compiled kernels were not built')
    return importlib.import_module(f'd2s_ros.kernels.{request.param}')


@pytest.fixture
def compiled_kernels() -> Any:
    """Return the compiled kernels, to compare with the reference."""
    from d2s_ros.kernels import library

    if not library.is_built():
        pytest.skip('the compiled kernels were not built')
    from d2s_ros.kernels import compiled

    return compiled


class FrameList:
    """A FrameSource over frames in memory."""

    def __init__(self, frames: list[Any]) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.frames)


@dataclass(frozen=True)
class SmallMap:
    """A map of a simulated room with the truth it was made from.

    Attributes:
        path: Map folder with one version.
        frames: Mapping frames.
        depths: (H, W) true depth of each.
        result: What `build_map` returned.
    """

    path: Path
    frames: list[Any]
    depths: list[np.ndarray]
    result: Any


@pytest.fixture(scope='session')
def small_map(tmp_path_factory: pytest.TempPathFactory) -> SmallMap:
    """Return a map of 24 simulated images. Copy its folder before changing it."""
    from dataclasses import replace

    from d2s_ros.features.types import FeatureConfig
    from d2s_ros.map_building.config import budget
    from d2s_ros.map_building.pipeline import build_map
    from d2s_ros.simulation.config import SimulationConfig
    from d2s_ros.simulation.simulate import rendered_frames

    rendered = list(rendered_frames(SimulationConfig(seed=3, frames=24, width=480, height=360)))
    config = budget('quick', features=FeatureConfig(max_keypoints=700))
    training = replace(config.training, steps=60, images_per_step=2, keypoints_per_image=256)
    path = tmp_path_factory.mktemp('maps') / 'map'
    frames = [frame for frame, _ in rendered]
    result = build_map(
        FrameList(frames),
        path,
        replace(config, training=training),
        device='cpu',
        progress=False,
    )
    return SmallMap(path, frames, [image.depth for _, image in rendered], result)


@pytest.fixture(scope='session')
def query_frames() -> list[Any]:
    """Return six images of the place of `small_map` that it was not made from."""
    from d2s_ros.simulation.config import SimulationConfig
    from d2s_ros.simulation.simulate import frames

    config = SimulationConfig(
        seed=3, frames=6, width=480, height=360, trajectory='random', trajectory_seed=1
    )
    return list(frames(config))


@pytest.fixture(scope='session')
def building_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with logs: map, dusk, other (another building).

    Small images of a simulated building; dusk and other have no poses.
    """
    from dataclasses import replace

    from d2s_ros.simulation.config import SimulationConfig
    from d2s_ros.simulation.simulate import simulate_log

    small = SimulationConfig(seed=4, width=320, height=240, frames=14, rate_hz=1.0)
    root = tmp_path_factory.mktemp('logs')
    unlabelled = replace(small, frames=8, trajectory_seed=3, poses=False)
    simulate_log(small, root / 'map', progress=False)
    simulate_log(replace(unlabelled, lighting='dusk'), root / 'dusk', progress=False)
    simulate_log(replace(unlabelled, other_place=True), root / 'other', progress=False)
    return root


@pytest.fixture(scope='session')
def day_map(building_logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a map of `building_logs` by day. Copy its folder before changing it."""
    from d2s_ros.data.sources import open_source
    from d2s_ros.features.types import FeatureConfig
    from d2s_ros.map_building.config import BuildConfig
    from d2s_ros.map_building.pipeline import build_map
    from d2s_ros.scene_models.landmark.trainer import LandmarkTrainingConfig

    path = tmp_path_factory.mktemp('maps') / 'map'
    config = BuildConfig(
        features=FeatureConfig(name='rootsift', max_keypoints=1024),
        training=LandmarkTrainingConfig(steps=30, images_per_step=2),
        num_layers=1,
    )
    build_map(open_source(building_logs / 'map'), path, config, device='cpu', progress=False)
    return path


@pytest.fixture(scope='session')
def small_area(building_logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an area of two places: hall (`building_logs` by day) and annex, another building.

    Copy its folder before changing it.
    """
    from functools import partial

    from d2s_ros.data.sources import open_source
    from d2s_ros.features.types import FeatureConfig
    from d2s_ros.map_building.area_building import build_area
    from d2s_ros.map_building.config import BuildConfig
    from d2s_ros.map_building.pipeline import BuildResult, build_map
    from d2s_ros.scene_models.landmark.trainer import LandmarkTrainingConfig
    from d2s_ros.simulation.config import SimulationConfig
    from d2s_ros.simulation.simulate import frames

    annex = SimulationConfig(
        seed=4, width=320, height=240, frames=12, rate_hz=1.0, other_place=True
    )
    config = BuildConfig(
        features=FeatureConfig(name='rootsift', max_keypoints=1024),
        training=LandmarkTrainingConfig(steps=30, images_per_step=2),
    )

    def build(path: Path, source: Any) -> BuildResult:
        return build_map(source, path, config, device='cpu', progress=False)

    root = tmp_path_factory.mktemp('areas') / 'area'
    builds = {
        'hall': partial(build, source=open_source(building_logs / 'map')),
        'annex': partial(build, source=FrameList(list(frames(annex)))),
    }
    _, failed = build_area(root, builds)
    assert not failed
    return root


@pytest.fixture(scope='session')
def label_map(building_logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a map of labels of `building_logs` by day, hardly trained."""
    from dataclasses import replace

    from d2s_ros.data.sources import open_source
    from d2s_ros.features.types import FeatureConfig
    from d2s_ros.map_building.config import budget
    from d2s_ros.map_building.pipeline import build_map
    from d2s_ros.scene_models.labels.network import LabelConfig

    path = tmp_path_factory.mktemp('labels') / 'map'
    features = FeatureConfig(name='rootsift', max_keypoints=1024)
    config = budget('quick', head='labels', features=features)
    config = replace(
        config,
        labels=LabelConfig(num_labels=32, hidden=32),
        label_training=replace(config.label_training, steps=20, votes=2),
    )
    build_map(open_source(building_logs / 'map'), path, config, device='cpu', progress=False)
    return path


@pytest.fixture
def benchmark_module(
    repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Any]]:
    """Return a function that imports a benchmark."""
    import importlib
    import sys

    monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], '__file__', None) and 'benchmarks' in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]
