"""Localize a whole log and report every frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from d2s_ros.data.frames import Frame, FrameSource
from d2s_ros.localization.area_localizer import AreaLocalizer
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.result import LocalizationResult, LocalizationStatus

_STAGES = ('features', 'network', 'pose', 'total')


def localize_log(
    localizer: Localizer | AreaLocalizer,
    source: FrameSource,
    *,
    details: bool = False,
    progress: bool = False,
) -> Iterator[tuple[Frame, LocalizationResult]]:
    """Localize frame by frame; a frame that cannot be read is a refusal with its reason."""
    bar = tqdm(source, total=len(source), desc='localizing', unit='image', disable=not progress)
    for frame in bar:
        result = localizer.localize(frame.image, frame.camera, details=details)
        if frame.error and result.status in (
            LocalizationStatus.BAD_IMAGE,
            LocalizationStatus.NO_CALIBRATION,
        ):
            result = LocalizationResult(result.status, frame.error)
        yield frame, result


def summarise(results: list[LocalizationResult]) -> dict[str, Any]:
    """Return counts by status, latency and inlier statistics (JSON types)."""
    refused = Counter(result.status.value for result in results if not result.localized)
    localized = [result for result in results if result.localized]
    latency = {}
    for stage in _STAGES:
        values = [result.latency_ms[stage] for result in results if stage in result.latency_ms]
        if values:
            latency[stage] = {
                'median': round(float(np.median(values)), 3),
                'p95': round(float(np.percentile(values, 95)), 3),
            }
    shares = [result.num_inliers / max(1, result.num_used) for result in localized]
    return {
        'frames': len(results),
        'localized': len(localized),
        'refused': dict(refused),
        'median_inliers': float(np.median([r.num_inliers for r in localized])) if localized else 0,
        'median_inlier_share': round(float(np.median(shares)), 4) if shares else None,
        'latency_ms': latency,
    }
