"""A log that is split into overlapping maps in one frame: it localizes as one map of all does."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import numpy as np
import pytest
from conftest import FrameList
from map_building.doubling import double, threads_of

from d2s_ros.data.array_log import StageLog
from d2s_ros.errors import D2SError, InputError, UsageError
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.area_localizer import AreaLocalizer
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.part_tasks import PlaceTask, build_place
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.map_building.split_building import build_split_area
from d2s_ros.map_building.splitting import SplitConfig, shared_points, split_images
from d2s_ros.map_building.tasks import LocalRunner, Task, TaskRunner, run_tasks
from d2s_ros.maps.area import read_area, verify_area
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.update_data import MappingData
from d2s_ros.reconstruction.reconstruction import part_of
from d2s_ros.scene_models.landmark.trainer import LandmarkTrainingConfig
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import frames

CONFIG = BuildConfig(
    features=FeatureConfig(name='rootsift', max_keypoints=700),
    training=LandmarkTrainingConfig(steps=15, images_per_step=2),
    num_layers=1,
    holdout_every=6,
)
SPLIT = SplitConfig(images_per_place=10)
WALK = SimulationConfig(seed=4, width=320, height=240, frames=22, rate_hz=1.0)


class KilledError(RuntimeError):
    """Ends a build at any moment, as a kill does."""


class Counting(TaskRunner):
    """Runs tasks here, keeps what they give, and is killed after so many."""

    def __init__(self, most: int) -> None:
        self.most, self.done = most, {}

    def run(self, tasks):
        for task in tasks:
            if len(self.done) >= self.most:
                raise KilledError
            records = task.function(*task.arguments)
            self.done |= records
            yield records


class Replaying(TaskRunner):
    """Gives what tasks gave before, and a failure for the map of one part."""

    def __init__(self, known, failed: int) -> None:
        self.known, self.failed, self.places = known, failed, 0

    def run(self, tasks):
        for task in tasks:
            if task.function is build_place:
                self.places += 1
                if self.places == self.failed:
                    yield build_place(replace_matches(task.arguments[0]), *task.arguments[1:])
                    continue
            yield {key: self.known[key] for key in task.keys}


def replace_matches(task: PlaceTask) -> PlaceTask:
    """Return a part whose images show nothing in common."""
    return replace(task, matches={})


@pytest.fixture(scope='module')
def log():
    return list(frames(WALK))


@pytest.fixture(scope='module')
def built(log, tmp_path_factory):
    """An area of a build that was killed twice, and what each run of it did."""
    path = tmp_path_factory.mktemp('areas') / 'split'
    runs = []
    for most in (1, 9, 10_000):
        runner = Counting(most)
        try:
            build_split_area(FrameList(log), path, CONFIG, SPLIT, runner, progress=False)
        except KilledError:
            assert path.with_name('split.building').exists()
            assert not (path / 'area.json').exists()
        runs.append(runner.done)
    return path, runs


def chain(count: int, reach: int = 4) -> dict[tuple[int, int], int]:
    """Images of a corridor: each shares the more with others the nearer they are."""
    return {
        (i, j): 40 * (reach + 1 - (j - i))
        for i in range(count)
        for j in range(i + 1, min(count, i + reach + 1))
    }


def test_a_corridor_is_cut_into_even_overlapping_parts():
    parts = split_images(90, chain(90), SplitConfig(images_per_place=30, overlap=0.2))
    assert len(parts) == 3
    assert sorted(set().union(*parts)) == list(range(90))
    for part in parts:
        assert part == list(range(part[0], part[-1] + 1))
        assert 30 <= len(part) <= 42
    for left, right in itertools.pairwise(parts):
        assert len(set(left) & set(right)) >= 4


def test_rooms_are_not_cut_where_a_door_joins_them():
    # Room of 26 images, door, room of 34: the cut is at the door and not in the middle.
    rooms = {
        (i, j): 100
        for first, last in ((0, 26), (26, 60))
        for i in range(first, last)
        for j in range(i + 1, last)
    }
    parts = split_images(60, {**rooms, (25, 26): 40}, SplitConfig(images_per_place=30, overlap=0.0))
    assert parts == [list(range(26)), list(range(26, 60))]


@pytest.mark.parametrize('shuffled', [False, True])
def test_large_logs_are_split_by_what_they_show_and_not_by_order(shuffled):
    count = 1200
    place = np.random.default_rng(0).permutation(count) if shuffled else np.arange(count)
    shared = {
        (min(a, b), max(a, b)): found
        for (i, j), found in chain(count).items()
        for a, b in [(int(place[i]), int(place[j]))]
    }
    parts = split_images(count, shared, SplitConfig(images_per_place=300, overlap=0.0))
    where = np.argsort(place)
    assert sorted(np.concatenate(parts)) == list(range(count))
    for part in parts:
        along = np.sort(where[part])
        assert along[-1] - along[0] == len(part) - 1
        assert 200 <= len(part) <= 400


def test_what_nothing_joins_is_split_too():
    islands = {**chain(20), **{(i + 20, j + 20): n for (i, j), n in chain(20).items()}}
    parts = split_images(40, islands, SplitConfig(images_per_place=20))
    assert parts == [list(range(20)), list(range(20, 40))]
    assert split_images(5, {}, SplitConfig(images_per_place=20)) == [list(range(5))]


def test_a_part_of_a_reconstruction_has_the_points_that_two_of_its_images_show(small_map):
    whole = small_map.result.reconstruction
    part = part_of(whole, [3, 4, 5, 6])
    assert [image.name for image in part.images] == [image.name for image in whole.images[3:7]]
    assert part.track_lengths.min() >= 2
    assert len(part.points_in_map) < len(whole.points_in_map)
    for image, before in zip(part.images, whole.images[3:7], strict=True):
        seen = image.point_idx >= 0
        assert (
            part.points_in_map[image.point_idx[seen]] == whole.points_in_map[before.point_idx[seen]]
        ).all()
    both = shared_points(whole.images, len(whole.points_in_map))
    first, second = (set(whole.images[k].point_idx[whole.images[k].point_idx >= 0]) for k in (3, 4))
    assert both[3, 4] == len(first & second) > 0


@pytest.mark.slow
def test_the_parts_localize_as_one_map_of_all_does(log, built, tmp_path):
    build_map(FrameList(log), tmp_path / 'one', CONFIG, device='cpu', progress=False)
    one = Localizer.from_map(tmp_path / 'one', device='cpu')
    parts = AreaLocalizer.from_area(built[0], device='cpu')
    assert list(parts.area.places) == ['p000', 'p001']
    assert parts.area.frames() == ['map']
    found = {'one': 0, 'parts': 0}
    places = set()
    for frame in frames(replace(WALK, frames=10, trajectory_seed=9)):
        for name, localizer in (('one', one), ('parts', parts)):
            result = localizer.localize(frame.image, frame.camera)
            if result.localized:
                metres, _ = pose_error(result.map_from_camera, frame.map_from_camera)
                assert metres < 0.25
                found[name] += 1
                places |= {result.place} - {''}
    assert found['one'] >= 5
    assert found['parts'] >= found['one'] - 1
    assert places == {'p000', 'p001'}


def test_the_parts_overlap_and_are_ordinary_maps(log, built):
    area = read_area(built[0])
    assert verify_area(built[0]) == []
    names = [
        {image.name for image in MappingData.from_map(SceneMap.open(area.folder(name))).images}
        for name in area.places
    ]
    assert set().union(*names) == {frame.name for frame in log}
    assert sum(map(len, names)) > len(log)
    assert area.read_index().num_places == 2


def test_nothing_that_was_done_is_done_again(log, built):
    path, runs = built
    done = [key for run in runs for key in run]
    assert len(done) == len(set(done))
    assert all(runs)
    assert not path.with_name('split.building').exists()
    with pytest.raises(UsageError, match='is there already'):
        build_split_area(FrameList(log), path, CONFIG, SPLIT, LocalRunner(1), progress=False)


def test_a_part_without_structure_is_left_out_and_named(log, built, tmp_path):
    known = {key: record for run in built[1] for key, record in run.items()}
    area, failed = build_split_area(
        FrameList(log), tmp_path / 'a', CONFIG, SPLIT, Replaying(known, 1), progress=False
    )
    assert list(area.places) == ['p001']
    assert 'no 3D point' in failed['p000']
    one = SplitConfig(images_per_place=22)
    with pytest.raises(InputError, match='no part of the log could be built'):
        build_split_area(
            FrameList(log), tmp_path / 'b', CONFIG, one, Replaying(known, 1), progress=False
        )


@pytest.mark.parametrize('processes', [1, 2])
def test_every_task_has_one_thread_and_this_process_its_own_again(processes):
    before = threads_of('x')['x']['threads']
    with LocalRunner(processes) as runner:
        records = list(runner.run([Task((str(n),), threads_of, (str(n),)) for n in range(2)]))
    for record in records:
        ((_, found),) = record.items()
        # OpenCV, PyTorch, and what they, NumPy, SciPy and pycolmap bring.
        assert len(found['threads']) >= 5
        assert set(found['threads']) == {1}
    assert threads_of('x')['x']['threads'][: len(before)].tolist() == before.tolist()


def test_local_processes_run_tasks_and_pass_errors_on(tmp_path):
    log = StageLog(tmp_path / 'done.log')
    tasks = [Task((str(n),), double, (str(n), np.arange(n + 1))) for n in range(12)]
    with LocalRunner(2) as runner:
        run_tasks(tasks[:3], LocalRunner(1), log, progress=False)
        run_tasks(tasks, runner, log, progress=False)
        assert sorted(log.keys(), key=int) == [str(n) for n in range(12)]
        here = {str(n) for n in range(12) if log.get(str(n))['pid'][0] == os.getpid()}
        assert here == {'0', '1', '2'}
        for n in range(12):
            assert (log.get(str(n))['doubled'] == 2 * np.arange(n + 1)).all()
        with pytest.raises(InputError, match='nothing to double'):
            run_tasks([Task(('x',), double, ('x', np.arange(0)))], runner, log, progress=False)
    with pytest.raises(D2SError, match='cannot be kept'):
        run_tasks(tasks[:1], LocalRunner(1), StageLog(None), progress=False)
