"""Interrupted builds: what is kept, what goes on, and that the map is the same."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data.test_array_log import largest_file

from d2s_ros.data.array_log import ArrayLog
from d2s_ros.errors import InputError, UsageError
from d2s_ros.features.types import FeatureConfig
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.map_building.stages import BuildStages
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.verification import verify
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import simulate_log

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name('interrupted_build.py')


class FrameList:
    """Frames in memory; ends with an error after `limit` of them."""

    def __init__(self, frames, limit=None):
        self.frames = frames
        self.limit = limit

    def __len__(self):
        return len(self.frames)

    def __iter__(self):
        for index, frame in enumerate(self.frames):
            if index == self.limit:
                raise KeyboardInterrupt
            yield frame


def tiny(**changes):
    config = BuildConfig(features=FeatureConfig(max_keypoints=400), num_layers=1)
    training = replace(config.training, steps=8, images_per_step=2, keypoints_per_image=64)
    return replace(config, training=replace(training, **changes))


def build(source, target, config=None, **options):
    config = config or tiny()
    result = build_map(source, target, config, device='cpu', progress=False, **options)
    return result.scene_map.manifest.files


def work(target):
    return target.with_name(target.name + '.building')


@pytest.fixture(scope='module')
def reference(small_map, tmp_path_factory):
    """Frames, and the files of the map that an undisturbed build makes of them."""
    frames = small_map.frames[:8]
    target = tmp_path_factory.mktemp('reference') / 'map'
    files = build(FrameList(frames), target)
    assert not work(target).exists()
    return frames, files


def test_features_that_are_there_are_not_made_again(reference, tmp_path, caplog):
    frames, files = reference
    target = tmp_path / 'map'
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        build(FrameList(frames, limit=5), target)
    assert not target.exists()
    assert 'the same command goes on from there' in caplog.text
    kept = ArrayLog(work(target) / 'features.log', read_only=True)
    assert len(kept) == 5
    size = (work(target) / 'features.log').stat().st_size
    caplog.clear()
    # Interrupted again: what was there is used, not written a second time.
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        build(FrameList(frames, limit=5), target)
    assert 'going on with the interrupted build' in caplog.text
    assert (work(target) / 'features.log').stat().st_size == size
    assert build(FrameList(frames), target) == files
    assert not work(target).exists()
    assert MapStore(target).versions() == ['0001']


def fail_at_the_end(frames, target, config=None):
    """Build up to the writing of the map, which cannot be written, so that all stages are left."""
    target.mkdir(exist_ok=True)
    obstacle = target / 'versions'
    obstacle.write_text('in the way')
    with pytest.raises(OSError, match='versions'):
        build(FrameList(frames), target, config)
    obstacle.unlink()


def test_a_build_that_was_killed_when_its_map_was_written_is_not_written_twice(reference, tmp_path):
    frames, files = reference
    target = tmp_path / 'map'
    with pytest.raises(KeyboardInterrupt):
        build(FrameList(frames, limit=len(frames) - 1), target)
    left = shutil.copytree(work(target), tmp_path / 'left')
    assert build(FrameList(frames), target) == files
    left.rename(work(target))
    assert build(FrameList(frames), target) == files
    assert MapStore(target).versions() == ['0001']
    # Asked for anew, it is written anew.
    assert build(FrameList(frames), target) == files
    assert MapStore(target).versions() == ['0001', '0002']


@pytest.mark.parametrize('stage', ['features', 'matches', 'reconstruction', 'samples'])
def test_damaged_stages_are_made_again(reference, tmp_path, caplog, stage):
    frames, files = reference
    target = tmp_path / 'map'
    fail_at_the_end(frames, target)
    assert 'the same command goes on from there' in caplog.text
    path = work(target) / f'{stage}.log'
    if stage == 'matches':
        # They are only read where the reconstruction was not finished.
        (work(target) / 'reconstruction.log').unlink()
    data = bytearray(path.read_bytes())
    assert len(data) > 1000
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert build(FrameList(frames), target) == files
    assert f'{stage}.log is damaged' in caplog.text


def test_a_damaged_checkpoint_starts_the_training_again(reference, tmp_path, caplog):
    frames, files = reference
    target = tmp_path / 'map'
    config = tiny(checkpoint_seconds=0.0)
    fail_at_the_end(frames, target, config)
    path = work(target) / 'training.pt'
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert build(FrameList(frames), target, config) == files
    assert 'training.pt is damaged: training starts again' in caplog.text


def test_a_full_disk_does_not_stop_a_build_that_fits(reference, tmp_path, caplog):
    """The stages do not fit, the map does."""
    frames, files = reference
    with largest_file(1_200_000), caplog.at_level(logging.WARNING):
        assert build(FrameList(frames), tmp_path / 'map') == files
    assert 'features.log' in caplog.text
    assert 'if it is interrupted this stage starts again' in caplog.text
    assert verify(tmp_path / 'map') == []


def test_other_settings_and_other_images_start_afresh(reference, tmp_path, caplog):
    frames, files = reference
    target = tmp_path / 'map'
    fail_at_the_end(frames, target)
    with caplog.at_level(logging.WARNING):
        fail_at_the_end(frames, target, tiny(seed=5))
    assert 'had other settings (config): starting afresh' in caplog.text
    caplog.clear()
    # The same settings again, another pose of one image.
    changed = frames[3].map_from_camera
    moved = replace(changed, translation=changed.translation + np.array([1e-6, 0, 0]))
    others = [*frames[:3], replace(frames[3], map_from_camera=moved), *frames[4:]]
    with caplog.at_level(logging.WARNING):
        fail_at_the_end(others, target, tiny(seed=5))
    assert 'the input differs' in caplog.text
    assert '1 images have changed' in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert build(FrameList(frames), target, fresh=True) == files
    assert 'afresh' not in caplog.text


def test_two_builds_of_one_map_do_not_mix(reference, tmp_path):
    frames, _ = reference
    target = tmp_path / 'map'
    with BuildStages(target, {}), pytest.raises(UsageError, match='another process is building'):
        build(FrameList(frames), target)
    assert not target.exists()


def test_bad_input_leaves_nothing(small_map, tmp_path):
    target = tmp_path / 'map'
    with pytest.raises(InputError):
        build(FrameList(small_map.frames[:1]), target)
    assert list(tmp_path.iterdir()) == []


def start(log, target, *arguments):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(log), str(target), *arguments],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_when(process, condition):
    """SIGKILL a process as soon as a condition holds."""
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_while_matching_and_while_training(tmp_path):
    """Real processes and SIGKILL; the map has the same bytes as that of an undisturbed build."""
    log, target, other = tmp_path / 'log', tmp_path / 'map', tmp_path / 'undisturbed'
    simulate_log(SimulationConfig(seed=3, frames=24, width=480, height=360), log, progress=False)
    process = start(log, other)
    expected, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    # Killed while matching: some pairs are kept, not all.
    matches = work(target) / 'matches.log'
    process = start(log, target)
    kill_when(process, lambda: matches.exists() and matches.stat().st_size > 0)
    kept = ArrayLog(matches, read_only=True)
    pairs = sum(len(kept.read(key)['pairs']) for key in kept.keys())  # noqa: SIM118
    assert 0 < pairs < 24 * 23 / 2
    assert len(ArrayLog(work(target) / 'features.log', read_only=True)) == 24
    assert not target.exists()
    # Killed while training.
    process = start(log, target)
    kill_when(process, (work(target) / 'training.pt').exists)
    assert not target.exists()
    process = start(log, target)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert 'going on with the interrupted build' in err
    resumed = [line for line in err.splitlines() if 'training resumes at step' in line]
    assert len(resumed) == 1
    assert 0 < int(resumed[0].split('step ')[1].split()[0]) <= 150
    assert out == expected
    assert not work(target).exists()
    assert verify(target) == []
    a, b = (path / 'versions' / '0001' for path in (target, other))
    for name in ('localization.safetensors', 'update.safetensors'):
        assert (a / name).read_bytes() == (b / name).read_bytes()
