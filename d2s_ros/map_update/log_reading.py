"""Keyframes of the logs of an update, kept in its folder so that a resumed run reads no log again.

FOLDER/log-000.log    features of each keyframe of the first log; at its end what became of frames
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from d2s_ros.data.array_log import StageLog
from d2s_ros.data.sources import open_source
from d2s_ros.errors import BagError, CalibrationError, D2SError, UnsupportedImageError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.map_building.stages import keep_features, load_features
from d2s_ros.map_update.context import UpdateContext
from d2s_ros.map_update.keyframes import FrameRecord, Keyframe, select_keyframes

_logger = logging.getLogger(__name__)

#: Record that is written last: without it the log was not read to its end.
_FRAMES_KEY = 'frames'


@dataclass(frozen=True, eq=False)
class ReadLogs:
    """What the logs of an update hold.

    Attributes:
        keyframes: Of all logs.
        records: The frames that were dropped, and the logs.
        used: Positions of the logs that could be read.
        bad: Positions of the logs that are damaged, or lack what is needed; no other time or place
            would make them readable.
        problems: Why each log that could not be read could not.
    """

    keyframes: list[Keyframe] = field(default_factory=list)
    records: list[FrameRecord] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    bad: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_logs(context: UpdateContext, logs: Sequence[Path]) -> ReadLogs:
    """Select the keyframes of all logs; a log that cannot be read is left out."""
    result = ReadLogs()
    for position, log in enumerate(logs):
        context.status.step('frames', 30 * position / len(logs), logs=len(logs))
        try:
            found, dropped = _read_log(context, position, log)
        except Exception as error:  # whatever one log does, the others must be used
            text = str(error) if isinstance(error, D2SError) else f'{type(error).__name__}: {error}'
            if not isinstance(error, D2SError):
                _logger.exception('%s is not used: unexpected error', log)
            else:
                _logger.warning('%s is not used: %s', log, text)
            if isinstance(error, (BagError, CalibrationError, UnsupportedImageError)):
                result.bad.append(position)
            result.problems.append(f'{log}: {text}')
            result.records.append(FrameRecord(_log_name(log), '', 0, 'dropped', text))
            continue
        result.used.append(position)
        result.keyframes.extend(found)
        result.records.extend(dropped)
    return result


def choose_held_out(keyframes: Sequence[Keyframe], every: int) -> list[bool]:
    """Choose every n-th keyframe of each log, from the middle of the stride."""
    seen: Counter[str] = Counter()
    result = []
    for keyframe in keyframes:
        result.append(seen[keyframe.log] % every == every // 2)
        seen[keyframe.log] += 1
    return result


def _read_log(
    context: UpdateContext, position: int, log: Path
) -> tuple[list[Keyframe], list[FrameRecord]]:
    # Descriptors of a place that labels alone may be kept of are not put on the disk.
    kept = StageLog(None if context.by_views else context.folder / f'log-{position:03d}.log')
    try:
        known = _load_keyframes(kept)
        if known is not None:
            return known
        source = open_source(log, options=context.log_options, partial=True, want_poses=False)
        found, dropped = select_keyframes(
            source,
            _log_name(log),
            context.extractor,
            context.config.keyframes,
            keep_images=context.by_views,
            progress=context.show_progress,
        )
        _keep_keyframes(kept, found, dropped)
        return found, dropped
    finally:
        kept.close()


def _log_name(log: Path) -> str:
    return Path(os.path.realpath(log)).name


def _keep_keyframes(log: StageLog, keyframes: list[Keyframe], records: list[FrameRecord]) -> None:
    described: list[dict[str, Any]] = []
    for index, keyframe in enumerate(keyframes):
        if not keep_features(log, str(index), keyframe.features):
            return
        described.append(
            {
                'log': keyframe.log,
                'name': keyframe.name,
                'stamp_ns': keyframe.stamp_ns,
                'camera': keyframe.camera.to_dict(),
            }
        )
    text = json.dumps({'keyframes': described, 'records': [r.to_dict() for r in records]})
    log.keep(_FRAMES_KEY, {'document': np.frombuffer(text.encode(), np.uint8)})


def _load_keyframes(log: StageLog) -> tuple[list[Keyframe], list[FrameRecord]] | None:
    """Return what was kept of a log, None if it was not read to its end."""
    arrays = log.get(_FRAMES_KEY)
    if arrays is None:
        return None
    document = json.loads(arrays['document'].tobytes())
    keyframes = []
    for index, item in enumerate(document['keyframes']):
        features = load_features(log, str(index))
        if features is None:
            return None
        camera = Camera.from_dict(item['camera'])
        keyframes.append(Keyframe(item['log'], item['name'], item['stamp_ns'], camera, features))
    return keyframes, [FrameRecord(**record) for record in document['records']]
