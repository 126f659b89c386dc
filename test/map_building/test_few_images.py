"""Maps of ten images and their calibration: right poses, or why there is no map."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from conftest import FrameList

from d2s_ros.errors import InputError
from d2s_ros.evaluation.coverage_summary import summarize_coverage
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import build_map

#: Processor time of ten seconds on two cores.
_MAX_CPU_S = 20.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_images_in_ten_seconds(small_map, query_frames, tmp_path):
    """What is published is right, and something is; with the coverage that the command predicts."""
    frames = FrameList(small_map.frames[:10])
    started = time.process_time()
    built = build_map(frames, tmp_path / 'map', budget('quick'), device='cpu', progress=False)
    summarize_coverage(built.scene_map)
    seconds = time.process_time() - started
    localizer = Localizer.from_map(tmp_path / 'map', device='cpu')
    published = 0
    for frame in [*small_map.frames[10:14], *query_frames]:
        result = localizer.localize(frame.image, frame.camera)
        if result.map_from_camera is None:
            assert result.reason
            continue
        published += 1
        metres, degrees = pose_error(result.map_from_camera, frame.map_from_camera)
        assert metres < 0.1
        assert degrees < 1.0
    print(f'{seconds:.1f} s of processor time, {published} published')
    assert published >= 1
    assert seconds < _MAX_CPU_S


def test_images_from_one_place_are_no_map(small_map, tmp_path):
    """A camera that stands still shows no depth; that is told, and nothing is written."""
    first = replace(small_map.frames[0], map_from_camera=None)
    still = [replace(first, name=str(number), stamp_ns=number) for number in range(10)]
    with pytest.raises(InputError):
        build_map(FrameList(still), tmp_path / 'map', budget('quick'), device='cpu', progress=False)
    assert not (tmp_path / 'map' / 'current').exists()
