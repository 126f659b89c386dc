"""Diagnostics of the localizer node: counters, and statuses with levels from thresholds."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from d2s_ros.localization.protection import PROTECTION_PROBABILITY
from d2s_ros.ros.frame_pipeline import FrameOutcome, NodeRefusal
from d2s_ros.ros.localizer_config import LocalizerNodeConfig

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR

#: Names of the statuses, each published as '<node>: <name>'.
STATUS_NAMES = ('localization', 'input', 'map', 'latency', 'transforms')

_WINDOW = 100


class FrameStatistics:
    """Counts outcomes; safe to use from several threads.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._start = clock()
        self._arrivals: deque[float] = deque(maxlen=_WINDOW)
        self._latencies: deque[dict[str, float]] = deque(maxlen=_WINDOW)
        self._refused: Counter[str] = Counter()
        self._reasons: dict[str, str] = {}
        self._localized = 0
        self._consecutive = 0
        self._last: FrameOutcome | None = None
        self._time_jumps = 0

    def arrived(self) -> None:
        """Note that an image message came in."""
        with self._lock:
            self._arrivals.append(self._clock())

    def jumped(self) -> None:
        """Note that time jumped back."""
        with self._lock:
            self._time_jumps += 1

    def finished(self, outcome: FrameOutcome) -> None:
        """Note the outcome of an image."""
        with self._lock:
            # The pictures of a result are large and not needed here.
            result = None if outcome.result is None else replace(outcome.result, details=None)
            self._last = replace(outcome, image=None, result=result)
            self._latencies.append(dict(outcome.latency_ms))
            if outcome.localized:
                self._localized += 1
                self._consecutive = 0
            else:
                self._refused[outcome.status] += 1
                self._reasons[outcome.status] = outcome.reason
                self._consecutive += 1

    def snapshot(self) -> Snapshot:
        """Return the present figures."""
        with self._lock:
            now = self._clock()
            arrivals = list(self._arrivals)
            rate = 0.0
            if len(arrivals) > 1 and arrivals[-1] > arrivals[0]:
                rate = (len(arrivals) - 1) / (arrivals[-1] - arrivals[0])
            return Snapshot(
                localized=self._localized,
                refused=dict(self._refused),
                reasons=dict(self._reasons),
                consecutive_refusals=self._consecutive,
                last=self._last,
                rate_hz=rate,
                silence=now - (arrivals[-1] if arrivals else self._start),
                any_image=bool(arrivals),
                latencies_ms=list(self._latencies),
                time_jumps=self._time_jumps,
            )


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Figures of one moment.

    Attributes:
        localized: Images with a published pose.
        refused: Refused images by status.
        reasons: The last reason of each status.
        consecutive_refusals: Since the last published pose.
        last: The last outcome, without its image.
        rate_hz: Rate of arriving images.
        silence: Seconds since the last image, or since activation.
        any_image: Whether an image came at all.
        latencies_ms: Stage latencies of the last images.
        time_jumps: Backward jumps of time.
    """

    localized: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    consecutive_refusals: int = 0
    last: FrameOutcome | None = None
    rate_hz: float = 0.0
    silence: float = 0.0
    any_image: bool = False
    latencies_ms: list[dict[str, float]] = field(default_factory=list)
    time_jumps: int = 0


@dataclass
class NodeFacts:
    """What the node knows beside the figures of images.

    Attributes:
        state: Lifecycle state.
        fault: Why the node cannot work; empty if it can.
        image_topic, transport, info_topic: Where images come from; transport empty until chosen.
        publishers: Number of publishers of the images.
        received, dropped: Images received and replaced by newer ones.
        lost: Images lost between publisher and node.
        input_problem: What is suspicious about the calibration.
        calibration_problem: What the last images say is wrong with it: no pose is published.
        map_path, map_version, map_frame, device: The loaded map.
        map_problem: Why the map on disk cannot be used; the loaded one still works.
        reloading: A new version is being loaded.
        reloads: Number of maps loaded while running.
        metric: Whether the map is in metres.
        pose_frame: Body whose pose is published.
        tf_mode: Transform that is broadcast.
        transform_problem: Why no transform could be sent for the last image.
        transforms_sent, transforms_missed, transforms_resent: Counts.
        transform_end: Why map -> odom is not sent any more; empty while it is.
        conflict: Who else sends the same transform.
        budget: What a held rate leaves of the work; empty for all of it.
        rate_missed: The rate cannot be held with the least budget.
        hint: The last initial pose, for people.
        subscribers: Connected subscribers by output topic.
    """

    state: str = 'unconfigured'
    fault: str = ''
    image_topic: str = ''
    transport: str = ''
    info_topic: str = ''
    publishers: int = 0
    received: int = 0
    dropped: int = 0
    lost: int = 0
    input_problem: str = ''
    calibration_problem: str = ''
    map_path: str = ''
    map_version: str = ''
    map_frame: str = ''
    device: str = ''
    map_problem: str = ''
    reloading: bool = False
    reloads: int = 0
    metric: bool = True
    pose_frame: str = ''
    tf_mode: str = ''
    transform_problem: str = ''
    transforms_sent: int = 0
    transforms_missed: int = 0
    transforms_resent: int = 0
    transform_end: str = ''
    conflict: str = ''
    budget: str = ''
    rate_missed: bool = False
    hint: str = ''
    subscribers: dict[str, int] = field(default_factory=dict)


def statuses(
    node_name: str, config: LocalizerNodeConfig, facts: NodeFacts, figures: Snapshot
) -> list[DiagnosticStatus]:
    """Return the statuses of the node, one for each of `STATUS_NAMES`."""
    made = (
        _localization(config, facts, figures),
        _input(config, facts, figures),
        _map(facts),
        _latency(config, facts, figures),
        _transforms(facts),
    )
    result = []
    for name, (level, message, values) in zip(STATUS_NAMES, made, strict=True):
        result.append(
            DiagnosticStatus(
                level=level,
                name=f'{node_name}: {name}',
                message=message,
                hardware_id=facts.image_topic,
                values=key_values(values),
            )
        )
    return result


def key_values(values: dict[str, Any]) -> list[KeyValue]:
    """Return values as text; numbers with six digits."""

    def text(value: Any) -> str:
        return f'{value:.6g}' if isinstance(value, float) else str(value)

    return [KeyValue(key=key, value=text(value)) for key, value in values.items()]


def frame_values(outcome: FrameOutcome) -> dict[str, Any]:
    """Return the figures of one image: status, counts, checks, sigmas, latency."""
    values: dict[str, Any] = {'status': outcome.status, 'reason': outcome.reason}
    result = outcome.result
    if result is not None:
        values |= {
            'keypoints': result.num_keypoints,
            'reliable': result.num_reliable,
            'inliers': result.num_inliers,
            'reprojection error [px]': result.reprojection_error_px,
            'with prior': result.with_prior,
            **({'place': result.place} if result.place else {}),
            **{f'check: {check.name}': check.comparison for check in result.checks},
            **{f'camera: {share.name}': str(share) for share in result.cameras},
        }
        if result.covariance is not None:
            variances = np.diag(result.covariance)
            values['position sigma [m]'] = float(np.sqrt(max(0.0, variances[:3].max())))
            values['rotation sigma [deg]'] = float(
                np.degrees(np.sqrt(max(0.0, variances[3:].max())))
            )
        if outcome.localized and np.isfinite(outcome.protection_level):
            values['protection level [m]'] = outcome.protection_level
            values['protection probability'] = PROTECTION_PROBABILITY
    values |= {f'{stage} [ms]': value for stage, value in outcome.latency_ms.items()}
    if np.isfinite(outcome.age_ms):
        values['age [ms]'] = outcome.age_ms
    return values


_Status = tuple[bytes, str, dict[str, Any]]


def _localization(config: LocalizerNodeConfig, facts: NodeFacts, figures: Snapshot) -> _Status:
    values: dict[str, Any] = {
        'state': facts.state,
        'localized': figures.localized,
        'refused': sum(figures.refused.values()),
        'consecutive refusals': figures.consecutive_refusals,
        **{f'refused: {reason}': count for reason, count in sorted(figures.refused.items())},
        'time jumps': figures.time_jumps,
        'initial pose hint': facts.hint or 'none',
        **{f'subscribers of {topic}': count for topic, count in facts.subscribers.items()},
    }
    last = figures.last
    if last is not None:
        values['stamp'] = f'{last.stamp_ns / 1e9:.9f}'
        values |= frame_values(last)
    if facts.fault:
        return ERROR, facts.fault, values
    if facts.state != 'active':
        level = WARN if facts.state == 'unconfigured' else OK
        return level, facts.state, values
    if last is None:
        return WARN, 'no image processed yet', values
    if figures.consecutive_refusals == 0:
        return OK, 'localized', values
    why = f'{last.status}: {last.reason}' if last.reason else last.status
    if last.status == NodeRefusal.CAMERA_MOVED.value:
        return ERROR, why, values
    if figures.consecutive_refusals >= config.lost_after:
        return ERROR, f'lost: {why}', values
    return WARN, f'not localized: {why}', values


def _input(config: LocalizerNodeConfig, facts: NodeFacts, figures: Snapshot) -> _Status:
    values: dict[str, Any] = {
        'image topic': facts.image_topic,
        'transport': facts.transport or 'not chosen yet',
        'camera_info topic': facts.info_topic,
        'publishers': facts.publishers,
        'received': facts.received,
        'dropped': facts.dropped,
        'lost on the way': facts.lost,
        'rate [Hz]': figures.rate_hz,
        'silence [s]': figures.silence,
    }
    if facts.state != 'active':
        return OK, 'not active', values
    what = 'no image' if figures.any_image else 'no image yet'
    if facts.publishers == 0:
        what += f', nobody publishes {facts.image_topic}'
    message = f'{what} for {figures.silence:.1f} s'
    if figures.silence > config.error_no_image:
        return ERROR, message, values
    if figures.silence > config.warn_no_image:
        return WARN, message, values
    if facts.calibration_problem:
        return ERROR, facts.calibration_problem, values
    share = facts.dropped / facts.received if facts.received else 0.0
    if share > config.warn_drop_share:
        return WARN, f'{100 * share:.0f} % of the images are dropped', values
    if facts.lost > max(10, facts.received):
        return WARN, f'{facts.lost} images were lost on the way, {facts.received} came', values
    if facts.input_problem:
        return WARN, facts.input_problem, values
    if not figures.any_image:
        return OK, 'waiting for the first image', values
    return OK, f'{figures.rate_hz:.1f} Hz', values


def _map(facts: NodeFacts) -> _Status:
    values: dict[str, Any] = {
        'path': facts.map_path,
        'version': facts.map_version,
        'frame': facts.map_frame,
        'device': facts.device,
        'reloading': facts.reloading,
        'reloads': facts.reloads,
        'metric': facts.metric,
    }
    if not facts.map_version:
        return (OK if facts.state == 'unconfigured' else ERROR), 'no map loaded', values
    if facts.map_problem:
        return WARN, f'version {facts.map_version} stays in use: {facts.map_problem}', values
    if not facts.metric:
        what = (
            'its scale is arbitrary, poses are not in metres: no map->odom, no fusion with '
            'odometry, no check of speeds'
        )
        return WARN, f'version {facts.map_version}: {what}', values
    return OK, f'version {facts.map_version}', values


def _latency(config: LocalizerNodeConfig, facts: NodeFacts, figures: Snapshot) -> _Status:
    stages: dict[str, list[float]] = {}
    for latencies in figures.latencies_ms:
        for stage, value in latencies.items():
            stages.setdefault(stage, []).append(value)
    values: dict[str, Any] = {}
    if config.target_rate > 0:
        values['target rate [Hz]'] = config.target_rate
        values['effort'] = facts.budget or 'all'
    for stage, numbers in stages.items():
        values[f'{stage} median [ms]'] = float(np.median(numbers))
        values[f'{stage} 95 % [ms]'] = float(np.percentile(numbers, 95))
    if not stages.get('total'):
        return OK, 'no image processed yet', values
    median = values['total median [ms]']
    if median > 1e3 * config.warn_latency:
        return WARN, f'{median:.0f} ms, more than {1e3 * config.warn_latency:.0f} ms', values
    if facts.rate_missed:
        return WARN, f'{median:.0f} ms, {config.target_rate:g} Hz cannot be held', values
    if facts.budget:
        return OK, f'{median:.0f} ms with {facts.budget}', values
    return OK, f'{median:.0f} ms', values


def _transforms(facts: NodeFacts) -> _Status:
    values: dict[str, Any] = {
        'tf_mode': facts.tf_mode,
        'pose is of': facts.pose_frame,
        'sent': facts.transforms_sent,
        'missed': facts.transforms_missed,
        'sent again': facts.transforms_resent,
    }
    if facts.transform_end:
        return ERROR, facts.transform_end, values
    if facts.conflict:
        return WARN, facts.conflict, values
    if facts.transform_problem:
        return WARN, facts.transform_problem, values
    return OK, facts.tf_mode, values
