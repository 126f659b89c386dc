"""One image of a log with what is known about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform


@dataclass(frozen=True, eq=False)
class Frame:
    """An image with its time and, where known, its camera and pose.

    Attributes:
        name: Unique within its source (file name, or topic stamp of a bag).
        stamp_ns: Acquisition time in nanoseconds.
        image: (H, W) uint8 grey or (H, W, 3) uint8 BGR; None if it could not be read.
        camera: Intrinsics at the image's size; None if unknown.
        map_from_camera: Pose of the camera's optical frame in the map; None if unknown.
        error: Why image or camera is None, for people; empty if nothing is wrong.
    """

    name: str
    stamp_ns: int
    image: NDArray[np.uint8] | None
    camera: Camera | None = None
    map_from_camera: RigidTransform | None = None
    error: str = ''


class FrameSource(Protocol):
    """A log that can be read several times, in order of time."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...
