"""The checks of acceptance as people see them: in the status topic and on the debug image."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from d2s_ros.localization.result import CameraShare, Check, LocalizationResult, LocalizationStatus
from d2s_ros.ros import debug_view
from d2s_ros.ros.diagnostics import frame_values, key_values
from d2s_ros.ros.frame_pipeline import FrameOutcome

CHECKS = (
    Check('inliers', 25.0, 14.0, True, LocalizationStatus.TOO_FEW_INLIERS, '25 inliers'),
    Check('spread', 0.0717, 0.09, True, LocalizationStatus.POOR_SPREAD, '7.17 %'),
    Check('rotation sigma', 4.25, 3.0, False, LocalizationStatus.UNCERTAIN, '4.2 deg'),
)


def test_the_status_has_every_check():
    result = LocalizationResult(LocalizationStatus.POOR_SPREAD, '7.17 %', checks=CHECKS)
    values = frame_values(FrameOutcome(0, 'camera', 'poor_spread', '7.17 %', result))
    assert values['check: inliers'] == '25 >= 14'
    assert values['check: spread'] == '0.0717 < 0.09 failed'
    assert values['check: rotation sigma'] == '4.25 > 3 failed'


def test_figures_are_plain_numbers():
    """The unit is in the key, so that programs read the value with float()."""
    result = LocalizationResult(
        LocalizationStatus.LOCALIZED,
        covariance=np.eye(6),
        num_keypoints=900,
        num_inliers=80,
        reprojection_error_px=0.7,
        latency_ms={'total': 31.0},
        cameras=(CameraShare('/left/image_raw', 'used', num_reliable=90, num_inliers=40),),
    )
    values = frame_values(FrameOutcome(0, 'camera', 'localized', '', result, latency_ms={'a': 1.5}))
    text = {item.key: item.value for item in key_values(values)}
    for key in ('keypoints', 'reliable', 'inliers', 'reprojection error [px]', 'a [ms]'):
        assert float(text[key]) == pytest.approx(float(values[key]))
    assert float(text['position sigma [m]']) == 1.0
    assert text['camera: /left/image_raw'] == 'used, 40 inliers of 90 reliable'


def test_the_debug_image_has_a_line_for_each_check():
    image = np.full((240, 320), 128, np.uint8)
    without = debug_view.draw(image, None, 'poor_spread', False, 320)
    changed_rows = []
    for count in range(1, len(CHECKS) + 1):
        picture = debug_view.draw(image, None, 'poor_spread', False, 320, CHECKS[:count])
        changed_rows.append(np.flatnonzero((picture != without).any(axis=(1, 2))))
    # The bar on top stays, and each line has rows of its own.
    assert changed_rows[0].min() > 20
    assert changed_rows[0].max() < changed_rows[1].max() < changed_rows[2].max()
    # A failure is red: bright in red alone.
    failed = debug_view.draw(image, None, '', False, 320, CHECKS[1:2]).astype(int)
    passed = debug_view.draw(image, None, '', False, 320, CHECKS[:1]).astype(int)
    below = slice(22, None)
    for picture, red in ((failed, True), (passed, False)):
        blue, _, bright = np.moveaxis(picture[below], 2, 0)
        assert bool(((bright - blue) > 100).any()) == red
