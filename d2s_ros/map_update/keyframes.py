"""Which frames of a log are worth labelling: sharp, textured, and not like the one before."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from d2s_ros.data.frames import FrameSource
from d2s_ros.features.types import FeatureExtractor, LocalFeatures, to_grey
from d2s_ros.geometry.cameras import Camera
from d2s_ros.map_update.config import KeyframeConfig
from d2s_ros.reconstruction.matching import match_mutual
from d2s_ros.scene_models.base import View

#: Side length that sharpness is measured at.
_SHARPNESS_SIZE = 320
#: Strongest keypoints compared to see whether the camera moved.
_MOTION_KEYPOINTS = 400


@dataclass(frozen=True, eq=False)
class Keyframe:
    """A frame of a log with its features; whatever pose the log claims is not here.

    Attributes:
        log: Name of the log.
        name, stamp_ns: As in the log.
        camera: Intrinsics at the image's size.
        features: Local features.
        image: (H, W) uint8 grey, for scene models that look at pixels; never stored.
    """

    log: str
    name: str
    stamp_ns: int
    camera: Camera
    features: LocalFeatures
    image: NDArray[np.uint8] | None = None

    @property
    def view(self) -> View:
        """What a scene model is shown of the frame."""
        return View(self.features, self.camera, self.image)


@dataclass(frozen=True)
class FrameRecord:
    """What became of a frame: 'used', 'held_out' or 'dropped', with the reason."""

    log: str
    name: str
    stamp_ns: int
    outcome: str
    reason: str = ''
    num_labels: int = 0
    num_inliers: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return dict(vars(self))


def sharpness(image: NDArray[np.uint8]) -> float:
    """Return the spread of the Laplacian relative to the contrast, at a small size."""
    grey = to_grey(image)
    height, width = grey.shape
    scale = _SHARPNESS_SIZE / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
    # Sensor noise of dark images must not pass for sharpness.
    grey = np.asarray(cv2.GaussianBlur(grey, (3, 3), 0), np.uint8)
    contrast = float(grey.std())
    return float(cv2.Laplacian(grey, cv2.CV_32F).std()) / (contrast + 2.0)


def select_keyframes(
    source: FrameSource,
    log: str,
    extractor: FeatureExtractor,
    config: KeyframeConfig,
    *,
    keep_images: bool = False,
    progress: bool = False,
) -> tuple[list[Keyframe], list[FrameRecord]]:
    """Choose keyframes of a log and extract their features.

    The log is divided evenly; the sharpest usable frame of each part is a candidate. The log is
    read twice, one image in memory at a time.

    Returns:
        The keyframes in order of time, and a record of every frame that was dropped.
    """
    records: list[FrameRecord] = []
    readable: list[tuple[str, int, float]] = []
    for frame in tqdm(source, total=len(source), desc='frames', disable=not progress):
        if frame.image is None or frame.camera is None:
            reason = frame.error or 'no camera calibration'
            records.append(FrameRecord(log, frame.name, frame.stamp_ns, 'dropped', reason))
            continue
        readable.append((frame.name, frame.stamp_ns, sharpness(frame.image)))
    if not readable:
        return [], records
    values = np.array([value for _, _, value in readable])
    limit = config.min_sharpness * float(np.median(values))
    chosen: set[str] = set()
    parts = np.array_split(np.arange(len(readable)), min(len(readable), config.max_keyframes))
    for part in parts:
        best = int(part[np.argmax(values[part])])
        for index in part:
            name, stamp_ns, value = readable[index]
            if index == best and value >= limit:
                chosen.add(name)
            elif index == best or value < limit:
                records.append(FrameRecord(log, name, stamp_ns, 'dropped', 'blurred'))
            else:
                reason = 'not a keyframe: a neighbour is sharper'
                records.append(FrameRecord(log, name, stamp_ns, 'dropped', reason))
    keyframes: list[Keyframe] = []
    for frame in tqdm(source, total=len(source), desc='features', disable=not progress):
        if frame.name not in chosen or frame.image is None or frame.camera is None:
            continue
        features = extractor.extract(frame.image)
        reason = ''
        if len(features) < config.min_keypoints:
            reason = (
                f'{len(features)} keypoints, {config.min_keypoints} needed (dark, blurred or empty)'
            )
        elif keyframes and _motion(keyframes[-1].features, features) < config.min_motion:
            reason = 'the camera has not moved since the last keyframe'
        if reason:
            records.append(FrameRecord(log, frame.name, frame.stamp_ns, 'dropped', reason))
        else:
            image = to_grey(frame.image) if keep_images else None
            keyframes.append(
                Keyframe(log, frame.name, frame.stamp_ns, frame.camera, features, image)
            )
    return keyframes, records


def count_reasons(records: list[FrameRecord]) -> dict[str, int]:
    """Return how many frames were dropped for each reason; numbers in reasons do not count."""
    reasons = Counter(
        ' '.join('#' if part[:1].isdigit() else part for part in record.reason.split())
        for record in records
        if record.outcome == 'dropped'
    )
    return dict(reasons.most_common())


def _motion(before: LocalFeatures, after: LocalFeatures) -> float:
    """Return the median displacement of matches over the image diagonal; infinite without."""
    first = torch.from_numpy(before.descriptors[:_MOTION_KEYPOINTS])
    second = torch.from_numpy(after.descriptors[:_MOTION_KEYPOINTS])
    pairs, _ = match_mutual(first, second, ratio=0.9, min_similarity=0.8)
    if len(pairs) < 20:
        return float('inf')
    moved = before.keypoints[pairs[:, 0]] - after.keypoints[pairs[:, 1]]
    return float(np.median(np.linalg.norm(moved, axis=1))) / float(np.hypot(*after.image_size))
