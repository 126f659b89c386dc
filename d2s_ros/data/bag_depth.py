"""Depth images of a log that are registered to its camera images: distance for each pixel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.bag_messages import IMAGE, clean_frame, deserialize, peek_stamp_ns
from d2s_ros.data.bag_storage import Log
from d2s_ros.data.bag_topics import DEPTH_ENCODINGS, first_message

#: Words in the names of topics whose depth has the pixels of the colour image.
_REGISTERED = ('aligned', 'registered', 'rect_to_color')
#: A depth image belongs to the image that is at most this far in time.
_TOLERANCE_NS = 25_000_000


@dataclass(frozen=True, eq=False)
class DepthImages:
    """The registered depth images of a log.

    Attributes:
        log: The log.
        topic: Of sensor_msgs/Image, 16UC1 (mm) or 32FC1 (m).
    """

    log: Log
    topic: str

    def at(self, stamps_ns: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield, for the times (N,) of images that have one, their index and depth.

        Depth is (H, W) float32 metres along the optical axis, NaN where nothing was measured.
        """
        order = np.argsort(stamps_ns, kind='stable')
        times = np.asarray(stamps_ns)[order]
        done: set[int] = set()
        for _topic, received, data in self.log.messages([self.topic]):
            stamp = peek_stamp_ns(data) or received
            after = int(np.searchsorted(times, stamp))
            near = [row for row in (after - 1, after) if 0 <= row < len(times)]
            row = min(near, key=lambda index: abs(int(times[index]) - stamp))
            index = int(order[row])
            if abs(int(times[row]) - stamp) > _TOLERANCE_NS or index in done:
                continue
            depth = decode_depth(deserialize(data, IMAGE))
            if depth is not None:
                done.add(index)
                yield index, depth


def find_depth(log: Log, camera_frame: str) -> DepthImages | None:
    """Return the depth images with the pixels of the camera; None if the log has none.

    Depth of another frame is of another camera's pixels, unless the name of its topic says that it
    was registered.
    """
    for topic in log.topics:
        if topic.type != IMAGE or not topic.count:
            continue
        message = first_message(log, topic)
        if message is None or message.encoding not in DEPTH_ENCODINGS:
            continue
        frame = clean_frame(message.header.frame_id)
        named = any(word in topic.name.lower() for word in _REGISTERED)
        if named or (camera_frame and frame == camera_frame):
            return DepthImages(log, topic.name)
    return None


def decode_depth(message: Any) -> NDArray[np.float32] | None:
    """Return the depth (H, W) float32 m of a sensor_msgs/Image; None if it does not hold one."""
    if message is None or message.encoding not in DEPTH_ENCODINGS:
        return None
    order = '>' if message.is_bigendian else '<'
    kind = np.dtype(f'{order}u2' if message.encoding == '16UC1' else f'{order}f4')
    height, width = int(message.height), int(message.width)
    step = int(message.step) or width * kind.itemsize
    buffer = np.frombuffer(message.data, np.uint8)
    if height < 1 or width < 1 or step < width * kind.itemsize or len(buffer) < height * step:
        return None
    rows = buffer[: height * step].reshape(height, step)[:, : width * kind.itemsize]
    depth = np.ascontiguousarray(rows).view(kind).astype(np.float32)
    if message.encoding == '16UC1':
        depth *= 1e-3
    depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    return depth
