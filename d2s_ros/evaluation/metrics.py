"""Errors of estimated trajectories against the truth, as the field reports them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2s_ros.errors import InputError
from d2s_ros.geometry.transforms import RigidTransform, pose_error

#: (map units, degrees), from the finest to the coarsest.
RECALL_THRESHOLDS: tuple[tuple[float, float], ...] = (
    (0.01, 1.0),
    (0.02, 2.0),
    (0.05, 5.0),
    (0.10, 10.0),
    (0.25, 2.0),
    (0.50, 10.0),
)


@dataclass(frozen=True)
class TrajectoryMetrics:
    """Errors over all frames of the truth; frames without an estimate count as wrong.

    Attributes:
        num_frames: Frames of the truth.
        num_localized: Of them, those with an estimate.
        num_unmatched: Estimates without a truth of their own at their stamp; they are not compared.
        median_m, median_deg, p95_m, p95_deg: Over localized frames; NaN if there are none.
        max_m, max_deg: The worst localized frame.
        recalls: 'metres/degrees' to the share of all frames within both.
    """

    num_frames: int
    num_localized: int
    num_unmatched: int
    median_m: float
    median_deg: float
    p95_m: float
    p95_deg: float
    max_m: float
    max_deg: float
    recalls: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; NaN becomes None."""
        values = {
            name: (None if isinstance(value, float) and not np.isfinite(value) else value)
            for name, value in vars(self).items()
        }
        return values

    def table(self) -> str:
        """Return a table for people."""
        share = 100.0 * self.num_localized / max(1, self.num_frames)
        lines = [
            f'frames       {self.num_frames}',
            f'localized    {self.num_localized} ({share:.1f} %)',
            f'median error {self.median_m:.4f} m  {self.median_deg:.3f} deg',
            f'95 % error   {self.p95_m:.4f} m  {self.p95_deg:.3f} deg',
            f'worst        {self.max_m:.4f} m  {self.max_deg:.3f} deg',
        ]
        lines += [f'within {name:12s} {100 * value:.1f} %' for name, value in self.recalls.items()]
        if self.num_unmatched:
            lines.append(f'not judged   {self.num_unmatched} poses without truth at their stamp')
        return '\n'.join(lines)


def metrics_from_errors(
    errors: list[tuple[float, float]], num_frames: int, num_unmatched: int = 0
) -> TrajectoryMetrics:
    """Summarise the (metres, degrees) errors of localized frames out of `num_frames`."""
    if errors:
        metres, degrees = np.array(errors, dtype=np.float64).T
    else:
        metres = degrees = np.array([np.nan])
    recalls = {
        f'{limit_m:g}m/{limit_deg:g}deg': float(
            np.sum((metres <= limit_m) & (degrees <= limit_deg)) / max(1, num_frames)
        )
        for limit_m, limit_deg in RECALL_THRESHOLDS
    }
    return TrajectoryMetrics(
        num_frames,
        len(errors),
        num_unmatched,
        float(np.median(metres)),
        float(np.median(degrees)),
        float(np.percentile(metres, 95)),
        float(np.percentile(degrees, 95)),
        float(np.max(metres)),
        float(np.max(degrees)),
        recalls,
    )


def evaluate_trajectory(
    estimate: Mapping[int, RigidTransform],
    truth: Mapping[int, RigidTransform],
    *,
    max_difference_ns: int = 1_000_000,
) -> TrajectoryMetrics:
    """Compare map_from_camera by stamp.

    Args:
        estimate, truth: Stamp in nanoseconds to pose.
        max_difference_ns: Stamps this close are of one frame.

    Raises:
        InputError: if the truth is empty, or no stamp of the estimate is in it.
    """
    if not truth:
        raise InputError('the truth has no poses')
    stamps = np.array(sorted(truth), dtype=np.int64)
    nearest: dict[int, tuple[int, RigidTransform]] = {}
    for stamp, pose in estimate.items():
        position = int(np.searchsorted(stamps, stamp))
        near = [int(stamps[i]) for i in (position - 1, position) if 0 <= i < len(stamps)]
        best = min(near, key=lambda candidate: abs(candidate - stamp))
        difference = abs(best - stamp)
        if difference > max_difference_ns:
            continue
        # Every frame of the truth is judged once, by the estimate nearest in time.
        if best not in nearest or difference < nearest[best][0]:
            nearest[best] = (difference, pose)
    errors = [pose_error(pose, truth[stamp]) for stamp, (_, pose) in nearest.items()]
    if estimate and not errors:
        raise InputError(
            'no stamp of the trajectory is in the truth; are both of the same log and in seconds?'
        )
    return metrics_from_errors(errors, len(truth), len(estimate) - len(errors))


def rate_bound(count: int, total: int, confidence: float = 0.95) -> float:
    """Return the largest rate that so few events leave possible (Clopper and Pearson, one-sided).

    Args:
        count: Events seen, such as false accepts.
        total: Trials.
        confidence: That the true rate is not larger.
    """
    if count >= total:
        return 1.0
    seen = np.arange(count + 1)
    steps = np.concatenate([[0.0], np.cumsum(np.log((total - seen[:-1]) / (seen[:-1] + 1)))])
    low, high = count / total, 1.0
    for _ in range(60):
        rate = 0.5 * (low + high)
        # So few or fewer, at this rate.
        logs = steps + seen * np.log(rate) + (total - seen) * np.log1p(-rate)
        low, high = (rate, high) if np.exp(logs).sum() > 1 - confidence else (low, rate)
    return float(high)
