"""Whether the robot knows where it is, for others and on the console."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from d2s_ros.ros.diagnostics import NodeFacts, Snapshot
from d2s_ros.ros.frame_pipeline import FrameOutcome
from d2s_ros.ros.localizer_config import LocalizerNodeConfig

#: States as published on d2s/state.
UNKNOWN, LOCALIZED, LOST = 'unknown', 'localized', 'lost'
#: How often the console repeats what is wrong, in seconds.
_REPEAT = 5.0
_TRANSFORM_REPEAT = 10.0


class StateReporter:
    """Follows the outcomes of images and tells changes.

    Args:
        logger: Of the node.
        config: Names and thresholds; `apply` changes them.
        on_state: Publishes a new state.
        image_topics: Returns the topics of images that exist.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        logger: Any,
        config: LocalizerNodeConfig,
        on_state: Callable[[str], None],
        image_topics: Callable[[], list[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._config = config
        self._on_state = on_state
        self._image_topics = image_topics
        self._clock = clock
        self._lock = threading.Lock()
        self._refused = 0
        self._any_pose = False
        self._last_logged: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self.state = UNKNOWN
        on_state(UNKNOWN)

    def apply(self, config: LocalizerNodeConfig) -> None:
        """Take changed options."""
        self._config = config

    def forget(self) -> None:
        """Know nothing, as after a start."""
        with self._lock:
            self._refused = 0
            self._become(UNKNOWN)

    def frame(self, outcome: FrameOutcome) -> None:
        """Take in the outcome of an image; called by the worker."""
        with self._lock:
            if not outcome.localized:
                self._refused += 1
                if self._refused >= self._config.lost_after and self.state != LOST:
                    self._become(LOST)
                    self._logger.warning(
                        f'lost: {self._refused} images in a row were refused, the last one for '
                        f'{outcome.status} ({outcome.reason})'
                    )
                return
            self._refused = 0
            before = self.state
            if before == LOCALIZED:
                return
            self._become(LOCALIZED)
            result = outcome.result
            if result is None or result.map_from_camera is None:
                return
            x, y, z = result.map_from_camera.translation
            what = 'found again' if self._any_pose and before == LOST else 'first pose'
            self._any_pose = True
            self._logger.info(
                f'{what}: the camera is at x {x:.2f} y {y:.2f} z {z:.2f} '
                f'({result.num_inliers} inliers)'
            )

    def look(self, facts: NodeFacts, figures: Snapshot) -> None:
        """Tell what is wrong, each now and then; called about once a second."""
        config = self._config
        if figures.silence > config.error_no_image:
            with self._lock:
                if self.state == LOCALIZED:
                    self._become(LOST)
                    self._logger.warning(f'lost: no image for {figures.silence:.1f} s')
        if figures.silence > config.warn_no_image:
            self._tell('input', self._no_image(facts, figures))
        elif facts.calibration_problem or facts.input_problem:
            self._tell('input', facts.calibration_problem or facts.input_problem)
        self._tell_refusals(figures)
        for problem in (facts.conflict, facts.transform_end):
            if problem:
                self._tell(problem[:20], problem, _TRANSFORM_REPEAT)

    def _no_image(self, facts: NodeFacts, figures: Snapshot) -> str:
        text = f'no image on {facts.image_topic} for {figures.silence:.1f} s'
        if facts.publishers:
            return f'{text}, though it is published'
        topics = ', '.join(self._image_topics()) or 'none'
        return f'{text}: nobody publishes it; topics of images here: {topics}'

    def _tell_refusals(self, figures: Snapshot) -> None:
        new = {
            status: count - self._counts.get(status, 0)
            for status, count in figures.refused.items()
            if count > self._counts.get(status, 0)
        }
        if not new:
            return
        commonest = max(new, key=lambda status: new[status])
        reason = figures.reasons.get(commonest, '')
        text = f'{sum(new.values())} images refused, most of them {commonest}'
        if self._tell('refused', f'{text} ({reason})' if reason else text):
            self._counts = dict(figures.refused)

    def _tell(self, kind: str, text: str, repeat: float = _REPEAT) -> bool:
        """Warn unless that was done a short while ago; return whether it was done now."""
        now = self._clock()
        if now - self._last_logged.get(kind, float('-inf')) < repeat:
            return False
        self._last_logged[kind] = now
        self._logger.warning(text)
        return True

    def _become(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self._on_state(state)
