"""The images of a log that a map is built from, with their features."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from d2s_ros.data.array_log import StageLog
from d2s_ros.data.frames import Frame, FrameSource
from d2s_ros.errors import InputError
from d2s_ros.features.types import FeatureExtractor, LocalFeatures
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.stages import (
    BuildStages,
    frame_digest,
    keep_features,
    load_features,
)
from d2s_ros.reconstruction.reconstruction import ImageInput

_logger = logging.getLogger(__name__)

#: Given the digest and the pixels of images, keeps their features in a log.
ExtractAll = Callable[[Iterable[tuple[str, NDArray[np.uint8]]], StageLog], None]
#: Images with fewer keypoints show nothing to map.
_MIN_KEYPOINTS = 50


def collect_images(
    source: FrameSource,
    extractor: FeatureExtractor,
    config: BuildConfig,
    *,
    use_poses: bool = True,
    require_poses: bool = False,
    stages: BuildStages | None = None,
    progress: bool = False,
    extract: ExtractAll | None = None,
) -> tuple[list[ImageInput], dict[str, int]]:
    """Extract features of the log's usable images, subsampled evenly to `max_images`.

    Images without a pose are dropped where others have one.

    Args:
        source: The log.
        extractor: Extracts the features.
        config: Options.
        use_poses: Use the poses of the log.
        require_poses: Having none is an error.
        stages: Where features are kept.
        progress: Show a progress bar.
        extract: Extracts and keeps the features of images that have none; `extractor` does, one
            image after the other, if None.

    Returns:
        The images and, by reason, how many were dropped.

    Raises:
        InputError: fewer than two usable images, or too few with a pose.
    """
    total = len(source)
    if total == 0:
        raise InputError('the log has no images')
    keep = set(np.linspace(0, total - 1, min(total, config.max_images)).round().astype(int))
    dropped: Counter[str] = Counter()
    waiting: list[tuple[str, Frame]] = []
    stages = stages or BuildStages(None, {})
    log = stages.log('features')
    digests: list[str] = []
    in_memory: dict[str, LocalFeatures] = {}
    bar = tqdm(source, total=total, desc='features', unit='image', disable=not progress)

    def without_features() -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for index, frame in enumerate(bar):
            if index not in keep:
                continue
            if frame.image is None or frame.camera is None:
                dropped[frame.error or 'no camera calibration'] += 1
                continue
            digest = frame_digest(frame)
            digests.append(digest)
            waiting.append((digest, replace(frame, image=None)))
            if digest not in log:
                yield digest, frame.image

    if extract is not None:
        extract(without_features(), log)
    else:
        for digest, image in without_features():
            features = extractor.extract(image)
            if not keep_features(log, digest, features):
                in_memory[digest] = features
    stages.set_images(digests)
    images: list[ImageInput] = []
    for digest, frame in waiting:
        kept = load_features(log, digest)
        features = in_memory[digest] if kept is None else kept
        if len(features) < _MIN_KEYPOINTS:
            dropped[f'fewer than {_MIN_KEYPOINTS} keypoints (dark, blurred or empty)'] += 1
            continue
        assert frame.camera is not None
        pose = frame.map_from_camera if use_poses else None
        images.append(ImageInput(frame.name, frame.stamp_ns, frame.camera, pose, features))
    posed = [image for image in images if image.map_from_camera is not None]
    if len(posed) >= 2 and len(posed) < len(images):
        dropped['no pose'] += len(images) - len(posed)
        images = posed
    elif len(posed) < 2 <= len(images) and (posed or require_poses):
        raise InputError(
            f'{len(posed)} of {len(images)} images have a pose; do the stamps (or names) of poses '
            'and images fit?'
        )
    for reason, count in dropped.items():
        _logger.warning('%d images not used: %s', count, reason)
    if len(images) < 2:
        reasons = '; '.join(f'{count} x {reason}' for reason, count in dropped.items())
        raise InputError(
            f'{len(images)} usable images in the log, mapping needs at least two ({reasons})'
        )
    return images, dict(dropped)
