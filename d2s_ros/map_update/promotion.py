"""Whether a candidate may replace the incumbent: both localize the same frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.features.types import FeatureExtractor
from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.result import LocalizationResult
from d2s_ros.map_update.config import GateConfig
from d2s_ros.map_update.label_database import LabelledFrame
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.reconstruction.reconstruction import MappedImage
from d2s_ros.scene_models.base import View

#: Logs that are counted as one.
_EARLIER = 'earlier logs'
#: All old frames, where figures are kept by log.
ALL_LOGS = 'all logs'


@dataclass(frozen=True)
class PromotionDecision:
    """The verdict on a candidate.

    Attributes:
        promote: Whether it replaces the incumbent.
        reasons: Why, one line each.
        metrics: Figures of both maps on 'old' and 'new' frames, JSON types.
    """

    promote: bool
    reasons: tuple[str, ...]
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def lost_frames(self) -> bool:
        """Whether recall fell anywhere."""
        compared = (self.metrics['old'], self.metrics['new'], *self.metrics['old_logs'].values())
        return any((figures['gain'] or 0.0) < 0 for figures in compared)


@dataclass(frozen=True)
class FrameScore:
    """How one map did on one frame.

    Attributes:
        localized: It gave a pose.
        error_m, error_deg: Against the reference; infinite without a pose, NaN without reference.
        inliers: Of the pose, 0 without.
    """

    localized: bool
    error_m: float
    error_deg: float
    inliers: int


class MapUnderTest:
    """A map whose mapping images can be left out of it."""

    def __init__(
        self,
        scene_map: SceneMap,
        extractor: FeatureExtractor,
        images: Sequence[MappedImage],
        known: Mapping[tuple[str, str], LocalizationResult] | None = None,
    ) -> None:
        """Prepare a map.

        Args:
            scene_map: The map; its model can leave images out.
            extractor: Of the map's features.
            images: Its mapping images with their labels; the old ones come first.
            known: What it says of frames, by log and name, as far as they were localized before.
        """
        self.localizer = Localizer(scene_map, extractor)
        self._images = images
        self._known = known or {}
        self._scores: dict[int, FrameScore] = {}

    def mapping_image(self, index: int) -> FrameScore:
        """Localize a mapping image without its own observations; later calls know the answer."""
        if index not in self._scores:
            image = self._images[index]
            observation = self.localizer.observer.observe_without(index, move_points=False)
            result = self.localizer.localize_view(View.of(image), observation=observation)
            self._scores[index] = score(result, image.map_from_camera)
        return self._scores[index]

    def frame(self, frame: LabelledFrame) -> FrameScore:
        """Localize a frame of a log; its verified pose is the reference."""
        keyframe = frame.keyframe
        result = self._known.get((keyframe.log, keyframe.name))
        if result is None:
            result = self.localizer.localize_view(keyframe.view)
        return score(result, frame.map_from_camera)


def score(result: LocalizationResult, reference: RigidTransform | None) -> FrameScore:
    """Compare a result with a reference pose, if there is one."""
    if result.map_from_camera is None:
        missing = float('nan') if reference is None else float('inf')
        return FrameScore(False, missing, missing, 0)
    if reference is None:
        return FrameScore(True, float('nan'), float('nan'), result.num_inliers)
    error_m, error_deg = pose_error(result.map_from_camera, reference)
    return FrameScore(True, error_m, error_deg, result.num_inliers)


def bootstrap_interval(
    differences: NDArray[np.float64], confidence: float, resamples: int, seed: int = 0
) -> tuple[float, float]:
    """Return the interval of the mean of paired differences (N,); (nan, nan) without any."""
    if len(differences) == 0:
        return float('nan'), float('nan')
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, len(differences), (resamples, len(differences)))
    means = differences[rows].mean(axis=1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def compare(
    incumbent: Sequence[FrameScore],
    candidate: Sequence[FrameScore],
    config: GateConfig,
    max_error_m: float,
) -> dict[str, Any]:
    """Return the figures of two maps on the same frames.

    Recall counts the frames with a reference that are localized within the limits of promotion.
    """

    def good(scores: Sequence[FrameScore]) -> NDArray[np.float64]:
        return np.array(
            [
                float(s.error_m <= max_error_m and s.error_deg <= config.max_error_deg)
                for s in scores
                if not np.isnan(s.error_m)
            ]
        )

    def side(scores: Sequence[FrameScore]) -> dict[str, Any]:
        errors = [s.error_m for s in scores if np.isfinite(s.error_m)]
        recall = good(scores)
        return {
            'localized': int(sum(s.localized for s in scores)),
            'recall': round(float(recall.mean()), 4) if len(recall) else None,
            'median_m': round(float(np.median(errors)), 5) if errors else None,
            'median_inliers': float(np.median([s.inliers for s in scores])) if scores else 0.0,
        }

    # A frame with a reference for one map has one for the other: it belongs to the frame.
    with_reference = [
        not (np.isnan(a.error_m) or np.isnan(b.error_m))
        for a, b in zip(incumbent, candidate, strict=True)
    ]
    before = [s for s, known in zip(incumbent, with_reference, strict=True) if known]
    after = [s for s, known in zip(candidate, with_reference, strict=True) if known]
    difference = good(after) - good(before)
    low, high = bootstrap_interval(difference, config.confidence, config.resamples)
    has_any = len(difference) > 0
    return {
        'frames': len(incumbent),
        'max_error': max_error_m,
        'with_reference': len(difference),
        'incumbent': side(incumbent),
        'candidate': side(candidate),
        'won_frames': int(np.sum(difference > 0)),
        'lost_frames': int(np.sum(difference < 0)),
        'gain': round(float(difference.mean()), 4) if has_any else None,
        'gain_low': round(low, 4) if has_any else None,
        'gain_high': round(high, 4) if has_any else None,
    }


def decide(
    old: dict[str, Any],
    new: dict[str, Any],
    config: GateConfig,
    old_logs: Mapping[str, dict[str, Any]] | None = None,
    missing: Mapping[str, int] | None = None,
) -> PromotionDecision:
    """Decide by the figures of `compare` on old and on new frames.

    One frame lost is chance, one more with every update is not: old frames are counted against the
    best that the map ever did on them.

    Args:
        old: On all old frames.
        new: On held-out new frames.
        config: Limits.
        old_logs: On the old frames of each log that earlier updates took: what the map learned of
            another light must not be lost for what it learns of this one.
        missing: How many frames of a log the incumbent is below its best, see `missing_frames`.
    """
    against: list[str] = []
    missing = missing or {}
    old = {**old, 'missing_frames': _missing(old, missing.get(ALL_LOGS, 0))}
    old_logs = {
        log: {**figures, 'missing_frames': _missing(figures, missing.get(log, 0))}
        for log, figures in (old_logs or {}).items()
    }
    metrics = {'old': old, 'new': new, 'old_logs': old_logs}
    if not old['with_reference']:
        against.append('no frame of the old map could be tried')
    else:
        if problem := _too_much_lost(old, config):
            against.append(f'recall on the old map {problem}')
        elif old['lost_frames'] > 1 and old['gain_low'] < -config.max_old_loss_bound:
            against.append(
                f'recall on the old map may fall by {-100 * old["gain_low"]:.1f} points '
                f'({100 * config.max_old_loss_bound:.1f} allowed)'
            )
        before, after = old['incumbent']['median_m'], old['candidate']['median_m']
        # Far below the limit, growth is noise.
        floor = 0.2 * old['max_error']
        if before and after and after > max(floor, config.max_error_growth * before):
            against.append(
                f'the median error on the old map grows from {before:.4f} to {after:.4f}'
            )
    for log, figures in old_logs.items():
        if problem := _too_much_lost(figures, config):
            name = f'frames of {log}' if log else 'frames of the first mapping'
            against.append(f'recall on {name} {problem}')
    if not new['with_reference']:
        against.append('no held-out frame of the logs has a verified pose to compare with')
    elif new['with_reference'] < config.min_new_frames:
        against.append(
            f'{new["with_reference"]} held-out frames of the logs have a verified pose to compare '
            f'with, {config.min_new_frames} needed'
        )
    elif new['gain'] < 0:
        against.append(f'recall on the new frames falls by {-100 * new["gain"]:.1f} points')
    elif new['gain'] == 0:
        before_side, after_side = new['incumbent'], new['candidate']
        better = (
            after_side['localized'] > before_side['localized']
            or after_side['median_inliers'] > 1.05 * before_side['median_inliers']
        )
        if not better:
            against.append('the new frames are localized as well as before: nothing gained')
    if against:
        return PromotionDecision(False, tuple(against), metrics)
    reason = (
        f'recall on new frames {_percent(new["incumbent"]["recall"])} to '
        f'{_percent(new["candidate"]["recall"])}, on old frames '
        f'{_percent(old["incumbent"]["recall"])} to {_percent(old["candidate"]["recall"])}'
    )
    return PromotionDecision(True, (reason,), metrics)


def _missing(figures: Mapping[str, Any], before: int) -> int:
    return max(0, before + figures['lost_frames'] - figures['won_frames'])


def _too_much_lost(figures: Mapping[str, Any], config: GateConfig) -> str:
    """Say how far a candidate is below the best that its map did, if that is not to be allowed."""
    count = figures['with_reference']
    allowed = max(config.max_old_loss * count, float(count >= config.min_frames_for_chance))
    if figures['missing_frames'] <= allowed or figures['lost_frames'] <= figures['won_frames']:
        return ''
    below = 100 * figures['missing_frames'] / count
    return f'falls to {below:.1f} points below its best ({100 * allowed / count:.1f} allowed)'


def missing_frames(gate: Mapping[str, Any] | None, logs: Sequence[str]) -> dict[str, int]:
    """Return how many old frames of each log a map is below the best that it ever did.

    Args:
        gate: `PromotionDecision.metrics` of the update that made the map; None without.
        logs: The logs that are kept apart now, see `images_to_try`.

    Returns:
        Frames by log, and of all logs by `ALL_LOGS`; logs that lack none are left out.
    """
    if gate is None:
        return {}
    result: dict[str, int] = {}
    for log, figures in gate.get('old_logs', {}).items():
        name = log if log in logs else _EARLIER
        result[name] = result.get(name, 0) + figures.get('missing_frames', 0)
    result[ALL_LOGS] = gate.get('old', {}).get('missing_frames', 0)
    return {log: count for log, count in result.items() if count}


def decide_promotion(
    incumbent: MapUnderTest,
    candidate: MapUnderTest,
    old_logs: Sequence[str],
    held_out: Sequence[LabelledFrame],
    config: GateConfig,
) -> PromotionDecision:
    """Let both maps localize old mapping images and held-out new frames, and decide.

    Args:
        incumbent, candidate: The maps; they begin with the same old mapping images.
        old_logs: The log of each old mapping image.
        held_out: New frames that taught the candidate nothing.
        config: Limits.
    """
    chosen = images_to_try(old_logs, config)
    manifest = incumbent.localizer.scene_map.manifest
    max_error = config.max_error_m
    if not manifest.metric:
        max_error = config.relative_error * incumbent.localizer.scene_map.model.extent
    before = {log: [incumbent.mapping_image(i) for i in rows] for log, rows in chosen.items()}
    after = {log: [candidate.mapping_image(i) for i in rows] for log, rows in chosen.items()}
    old = compare(
        list(chain.from_iterable(before.values())),
        list(chain.from_iterable(after.values())),
        config,
        max_error,
    )
    by_log = {log: compare(before[log], after[log], config, max_error) for log in chosen}
    new = compare(
        [incumbent.frame(frame) for frame in held_out],
        [candidate.frame(frame) for frame in held_out],
        config,
        max_error,
    )
    made_by = manifest.metrics.get('update', {}).get('gate')
    missing = missing_frames(made_by, list(chosen))
    return decide(old, new, config, by_log if len(by_log) > 1 else None, missing)


def images_to_try(logs: Sequence[str], config: GateConfig) -> dict[str, list[int]]:
    """Choose old images evenly from each log, as many of one as of the other; at least one.

    Args:
        logs: The log of each image, '' for the first mapping, in the order they were learned in.
        config: How many.

    Returns:
        Indices of images by log. Of many logs, those between the first and the latest are one.
    """
    names = list(dict.fromkeys(logs))
    pooled = names[1 : len(names) - config.max_old_logs + 2] if len(names) > 1 else []
    if len(pooled) > 1:
        logs = [_EARLIER if log in pooled else log for log in logs]
        names = list(dict.fromkeys(logs))
    share = max(1, config.max_old_images // max(1, len(names)))
    chosen = {}
    for name in names:
        rows = np.flatnonzero([log == name for log in logs])
        evenly = np.linspace(0, len(rows) - 1, min(share, len(rows))).round().astype(int)
        chosen[name] = rows[np.unique(evenly)].tolist()
    return chosen


def _percent(value: float | None) -> str:
    return '-' if value is None else f'{100 * value:.1f} %'
