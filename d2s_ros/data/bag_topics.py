"""Which topics of a log are the images and their calibration."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from d2s_ros.data.bag_messages import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    IMAGE,
    clean_frame,
    deserialize,
)
from d2s_ros.data.bag_storage import Log, Topic
from d2s_ros.errors import BagError

_logger = logging.getLogger(__name__)

#: Encodings of depth images; 16UC1 may be a thermal camera where it is the only one.
DEPTH_ENCODINGS = ('32FC1', '16UC1')
#: What `format` of a CompressedImage contains that carries packets of a video, in lower case.
_VIDEO_FORMATS = ('h264', 'h265', 'hevc', 'avc', 'av1', 'vp8', 'vp9', 'mpeg')


def first_message(log: Log, topic: Topic) -> Any:
    """Return the first message of a topic that can be read, None if there is none."""
    for _topic, _received, data in log.messages([topic.name]):
        message = deserialize(data, topic.type)
        if message is not None:
            return message
    return None


def choose_image(path: Path, log: Log, wanted: str | None) -> Topic:
    """Return the topic of the images.

    Topics are distinguished by type and by what their first message holds: depth and video are left
    out where there are pictures. The raw and the transported forms of one camera count as one.

    Raises:
        BagError: no images, or several cameras; `wanted` does not exist.
    """
    topics = log.topics
    images = [topic for topic in topics if topic.type in (IMAGE, COMPRESSED_IMAGE)]
    if wanted is not None:
        for topic in images:
            if topic.name == wanted:
                if not topic.count:
                    raise BagError(f'{path} has no messages on {wanted}')
                return topic
        raise BagError(f'{path} has no images on {wanted}; {listing(images, "image topics")}')
    filled = {topic.name: topic for topic in images if topic.count}
    if not filled:
        foreign = f'; in other encodings: {", ".join(log.foreign[:5])}' if log.foreign else ''
        raise BagError(
            f'{path} holds no images (sensor_msgs/Image or CompressedImage); '
            f'{listing(topics, "topics")}{foreign}'
        )
    if len(filled) > 1:
        pictures = {name: topic for name, topic in filled.items() if _is_picture(log, topic)}
        if pictures and len(pictures) < len(filled):
            left_out = ', '.join(sorted(set(filled) - set(pictures)))
            _logger.info('%s: no pictures, left out: %s', path, left_out)
        filled = pictures or filled
    # image_transport sends an image below the name of its raw form; raw loses nothing.
    candidates = {
        name: topic for name, topic in filled.items() if name.rpartition('/')[0] not in filled
    }
    if len(candidates) > 1:
        raise BagError(
            f'{path} holds several image topics ({", ".join(sorted(candidates))}); choose one '
            f'with --image-topic'
        )
    return next(iter(candidates.values()))


def _is_picture(log: Log, topic: Topic) -> bool:
    message = first_message(log, topic)
    if message is None:
        return True
    if topic.type == IMAGE:
        return message.encoding not in DEPTH_ENCODINGS
    form = str(message.format)
    return not is_video(form) and 'compresseddepth' not in form.lower()


def is_video(form: str) -> bool:
    """Return whether the `format` of a CompressedImage is that of a video, not of pictures."""
    return any(word in form.lower() for word in _VIDEO_FORMATS)


def choose_camera_info(
    path: Path, log: Log, image_topic: str, image_frame: str, wanted: str | None, given: bool
) -> Topic | None:
    """Return the topic of the images' calibration, None if there is none.

    The one beside the images is preferred, in their folder or above it; then one of their frame.
    A calibration that may be another camera's is used with a warning.

    Args:
        path: The log, for messages.
        log: The log.
        image_topic, image_frame: Topic and frame_id of the images.
        wanted: The topic to use; None to find one.
        given: A calibration is given, so that none of the log is needed.

    Raises:
        BagError: several that fit equally, or `wanted` does not exist.
    """
    infos = {topic.name: topic for topic in log.topics if topic.type == CAMERA_INFO and topic.count}
    if wanted is not None:
        if wanted not in infos:
            known = [topic for topic in log.topics if topic.type == CAMERA_INFO]
            raise BagError(
                f'{path} has no camera_info on {wanted}; {listing(known, "camera_info topics")}'
            )
        return infos[wanted]
    if given or not infos:
        return None
    frames = {name: _frame_of(log, topic) for name, topic in infos.items()}
    chosen = _beside(image_topic, infos)
    same_frame = [name for name, frame in frames.items() if image_frame and frame == image_frame]
    if chosen is None and len(same_frame) == 1:
        chosen = same_frame[0]
    if chosen is None and len(infos) == 1:
        chosen = next(iter(infos))
    if chosen is None:
        raise BagError(
            f'{path} holds several camera_info topics ({", ".join(sorted(infos))}), none beside '
            f'{image_topic}; choose one with --camera-info-topic'
        )
    if frames[chosen] and image_frame and frames[chosen] != image_frame:
        other = f'; of that frame is {same_frame[0]}' if same_frame else ''
        _logger.warning(
            '%s: %s (frame %r) gives the calibration of %s (frame %r): if that is another camera, '
            'all poses are wrong; choose with --camera-info-topic or --calibration%s',
            path,
            chosen,
            frames[chosen],
            image_topic,
            image_frame,
            other,
        )
    return infos[chosen]


def _beside(image_topic: str, infos: Collection[str]) -> str | None:
    base = image_topic
    while '/' in base:
        base = base.rpartition('/')[0]
        if f'{base}/camera_info' in infos:
            return f'{base}/camera_info'
    return None


def _frame_of(log: Log, topic: Topic) -> str:
    message = first_message(log, topic)
    return '' if message is None else clean_frame(message.header.frame_id)


def listing(topics: Sequence[Topic], what: str) -> str:
    """Return the names of topics as a part of a message."""
    names = ', '.join(sorted(topic.name for topic in topics)) or 'none'
    return f'{what} in the log: {names}'
