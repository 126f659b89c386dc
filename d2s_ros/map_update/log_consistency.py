"""What the labelled frames of one log tell together: a wrong focal length, a pose that jumps."""

from __future__ import annotations

import itertools
import logging

import numpy as np

from d2s_ros.geometry.transforms import pose_error
from d2s_ros.map_update.config import LabelConfig
from d2s_ros.map_update.label_database import LabelDatabase, LabelledFrame, solve_labels
from d2s_ros.maps.manifest import Calibration

_logger = logging.getLogger(__name__)

#: Focal lengths that are tried against the one that a log claims.
_FOCAL_FACTORS = (0.8, 0.86, 0.92, 0.96, 1.0, 1.04, 1.08, 1.16, 1.25)
#: Another focal length must explain this much more to be believed, and by so many roots of what the
#: given one explains: of few inliers some are chance.
_FOCAL_EVIDENCE, _FOCAL_EXCESS = 1.08, 1.5
#: How the reason of a frame begins whose log has a wrong calibration.
WRONG_CALIBRATION = 'the camera calibration does not fit'


def find_wrong_focal_lengths(
    frames: list[LabelledFrame],
    database: LabelDatabase,
    calibration: Calibration,
    config: LabelConfig,
    frames_per_log: int = 8,
) -> dict[str, str]:
    """Return the logs whose labels are explained clearly better by another focal length."""
    refused = {}
    for log in dict.fromkeys(frame.keyframe.log for frame in frames):
        candidates = [
            frame
            for frame in frames
            if frame.keyframe.log == log and frame.num_labels >= config.min_labels
        ]
        candidates.sort(key=lambda frame: -frame.num_inliers)
        counts = np.zeros(len(_FOCAL_FACTORS))
        for frame in candidates[:frames_per_log]:
            neighbours = database.nearest(frame.keyframe, config.neighbours)
            labels = database.copy_labels(frame.keyframe, neighbours, config.ratio)
            for position, factor in enumerate(_FOCAL_FACTORS):
                estimate, _ = solve_labels(frame.keyframe, labels, database, calibration, factor)
                counts[position] += 0 if estimate is None else estimate.inlier_mask.sum()
        if counts.max() < config.limits.min_inliers:
            continue
        best = _FOCAL_FACTORS[int(np.argmax(counts))]
        given = counts[_FOCAL_FACTORS.index(1.0)]
        needed = max(_FOCAL_EVIDENCE * given, given + _FOCAL_EXCESS * given**0.5)
        if abs(best - 1) >= config.max_focal_error and counts.max() > needed:
            refused[log] = (
                f'{WRONG_CALIBRATION}: the focal length seems wrong by {100 * abs(best - 1):.0f} %'
            )
            _logger.warning('%s: %s', log, refused[log])
    return refused


def find_unconnected(frames: list[LabelledFrame], config: LabelConfig) -> dict[int, str]:
    """Return frames that no believable motion connects with those that the live map confirms.

    Moved furniture can make a wrong pose look right in all frames that it fills. At the ends of
    such a stretch the pose jumps.
    """
    found = {}
    for log in dict.fromkeys(frame.keyframe.log for frame in frames):
        indices = [
            i for i, frame in enumerate(frames) if frame.keyframe.log == log and frame.usable
        ]
        poses = [pose for i in indices if (pose := frames[i].map_from_camera) is not None]
        if len(indices) < 3 or len(poses) < len(indices):
            continue
        seconds = np.array([frames[i].keyframe.stamp_ns for i in indices]) / 1e9
        steps = [pose_error(a, b) for a, b in itertools.pairwise(poses)]
        depth = float(np.median([frames[i].median_depth for i in indices]))
        # Where the camera stands still, a usual step of nothing must not forbid all motion.
        far = config.jump_factor * max(float(np.median([m for m, _ in steps])), 0.02 * depth)
        turned = config.jump_factor * max(float(np.median([d for _, d in steps])), 5.0)
        long = config.jump_factor * float(np.median(np.diff(seconds)))
        part = np.arange(len(indices))
        for skip in (1, 2):
            # Over one frame as well, so that a single wrong pose does not cut the log.
            for i in range(len(indices) - skip):
                metres, degrees = pose_error(poses[i], poses[i + skip])
                if seconds[i + skip] - seconds[i] <= long and metres <= far and degrees <= turned:
                    part[part == part[i + skip]] = part[i]
        names, sizes = np.unique(part, return_counts=True)
        confirmed = np.array([frames[i].confirmed for i in indices])
        votes = np.array([confirmed[part == name].sum() for name in names])
        largest = names[np.lexsort((sizes, votes))[-1]]
        for name, count in zip(names, votes, strict=True):
            if name != largest and count < config.min_confirmed:
                for row in np.flatnonzero(part == name):
                    found[indices[row]] = 'its pose jumps away from those of the rest of the log'
    return found
