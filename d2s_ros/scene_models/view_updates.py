"""What a scene model can that is updated by images of a log, without any update data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.reconstruction.reconstruction import Reconstruction
from d2s_ros.scene_models.base import Built, View


@dataclass(frozen=True, eq=False)
class PosedView:
    """An image of a log whose pose was verified.

    Attributes:
        view: The image.
        map_from_camera: Where it was taken.
        point_idx: (N,) int64 point that each keypoint shows, -1 for none; those after the points
            of the model are new.
    """

    view: View
    map_from_camera: RigidTransform
    point_idx: NDArray[np.int64]


class LearnsFromViews(ABC):
    """What a scene model can that is updated by images of a log, without any update data."""

    @abstractmethod
    def remembered(self, camera: Camera) -> Reconstruction:
        """Return how the model remembers its mapping images, as seen by a camera.

        Keypoints are its points where they project; there are no descriptors. `with_mapping` takes
        the reconstruction, after which these images can be left out.
        """

    @abstractmethod
    def with_views(
        self,
        views: Sequence[PosedView],
        points_in_map: NDArray[np.float64],
        covariances: NDArray[np.float64],
        *,
        device: str,
    ) -> Built:
        """Return the model with further images and points.

        Args:
            views: The images.
            points_in_map: (Q, 3) new points.
            covariances: (Q, 3, 3) of them, for a keypoint noise of 1 px.
            device: 'cpu' or 'cuda'.
        """
