"""A rate that is held: the pipeline gives less work, and diagnostics say so."""

from __future__ import annotations

import time

import pytest
from ros import stub_localizer
from ros.helpers import image_msg, info_msg

pytest.importorskip('rclpy', reason='rclpy is not installed')

from d2s_ros.localization.compute_budget import FULL, STEPS
from d2s_ros.ros import diagnostics
from d2s_ros.ros.camera_reader import CameraInfos, CameraReader, QueuedImage
from d2s_ros.ros.frame_pipeline import FramePipeline, StampCheck
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.map_loader import LoadedMap

SECOND = 10**9


class Slow(stub_localizer.StubLocalizer):
    """Takes longer the more it is asked to do."""

    def __init__(self):
        super().__init__('cpu')
        self.budgets = []

    def localize(self, image, camera, *, details=False, budget=FULL, prior=None):
        self.budgets.append(budget)
        # The last steps are for nothing: only their being slow counts.
        time.sleep(0.05 if budget.keypoints > 0.6 else 0.0)
        return super().localize(image, camera, details=details)


def show(pipeline, loaded, count, first=0):
    for index in range(first, first + count):
        stamp = (100 + index) * SECOND
        message = image_msg(stub_localizer.picture(1, 2), stamp)
        outcome, _ = pipeline.process((QueuedImage(message, time.monotonic(), stamp),), loaded)
        assert outcome.localized


def test_less_work_holds_the_rate():
    infos = CameraInfos()
    infos.put(info_msg(0))
    pipeline = FramePipeline(
        [CameraReader(infos, '/camera/camera_info', False)], StampCheck(1.0, 0.0, 0.0)
    )
    pipeline.camera_info_timeout = 0.0
    localizer = Slow()
    loaded = LoadedMap(localizer, 'map', '1', 'cpu')
    show(pipeline, loaded, 6)
    assert set(localizer.budgets) == {FULL}
    pipeline.set_target_rate(30.0)
    show(pipeline, loaded, 12, 6)
    assert pipeline.rate.budget in STEPS[2:]
    assert localizer.budgets[-1] == pipeline.rate.budget
    controller = pipeline.rate
    pipeline.set_target_rate(30.0)
    assert pipeline.rate is controller
    pipeline.set_target_rate(0.0)
    show(pipeline, loaded, 1, 18)
    assert localizer.budgets[-1] == FULL


@pytest.mark.parametrize(
    ('facts', 'level', 'words'),
    [
        ({}, diagnostics.OK, '100 ms'),
        ({'budget': str(STEPS[3])}, diagnostics.OK, '100 ms with 50 % of the keypoints, 80 %'),
        ({'budget': str(STEPS[-1]), 'rate_missed': True}, diagnostics.WARN, '10 Hz cannot be held'),
    ],
)
def test_diagnostics_say_what_is_left_out(facts, level, words):
    figures = diagnostics.Snapshot(latencies_ms=[{'total': 100.0}])
    made = diagnostics.statuses(
        'localizer', LocalizerNodeConfig(target_rate=10.0), diagnostics.NodeFacts(**facts), figures
    )
    status = next(s for s in made if s.name == 'localizer: latency')
    assert status.level == level
    assert words in status.message
    values = {item.key: item.value for item in status.values}
    assert values['target rate [Hz]'] == '10'
    assert values['effort'] == facts.get('budget', 'all')
