"""What one camera of a rig gives to `Localizer.localize_rig`; free of torch, for the node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform


@dataclass(frozen=True, eq=False)
class RigShot:
    """The image of one camera of a rig.

    Attributes:
        name: Of the camera, for people; each has another.
        image, camera: As for `Localizer.localize`.
        rig_from_camera: Pose of the camera in the frame whose pose is asked for.
    """

    name: str
    image: NDArray[np.uint8] | None
    camera: Camera | None
    rig_from_camera: RigidTransform
