"""Where the camera should be, for images that do not prove it alone.

A prior names the landmarks that an image may show; the pose is then found as ever, from nothing but
the image, and must agree with the prior. So a prior can make a refused image a pose, never another
pose of an image that needs none, and an image of another place has nothing to agree with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.localization.guided_refinement import CandidateMatches, most_similar_close

#: Standard deviations of a prior that landmarks are looked for in.
_SEARCH_SIGMAS = 3.0
#: Largest radius of that search, share of the focal length: further out chance finds poses too.
_MAX_SEARCH = 0.06


@dataclass(frozen=True, eq=False)
class PosePrior:
    """A pose from elsewhere, as the last one moved on by odometry.

    Attributes:
        map_from_camera: The pose.
        sigma_m: Standard deviation of the camera's position in each direction, unit of the map.
        sigma_deg: Standard deviation of its rotation about each axis.
        place: Of an area, the place that the pose is in; empty for a single map.
    """

    map_from_camera: RigidTransform
    sigma_m: float
    sigma_deg: float
    place: str = ''

    def moved(self, offset: NDArray[np.float64]) -> PosePrior:
        """Return the prior moved by an offset (3,) of the map frame."""
        return replace(self, map_from_camera=self.map_from_camera.moved(offset))

    def search_px(self, camera: Camera, depth: float, threshold_px: float) -> float:
        """Return how far from their projection landmarks are looked for; 0 if that is too far.

        Args:
            camera: Of the image.
            depth: Distance of the landmarks.
            threshold_px: What the pose solver allows an inlier.
        """
        focal = 0.5 * (camera.fx + camera.fy)
        sigma = np.hypot(np.radians(self.sigma_deg), self.sigma_m / max(depth, 1e-9))
        radius = float(focal * _SEARCH_SIGMAS * sigma) + threshold_px
        return radius if radius <= max(_MAX_SEARCH * focal, threshold_px) else 0.0

    def pairs(
        self, matches: CandidateMatches, depth: float, threshold_px: float
    ) -> NDArray[np.int64]:
        """Return pairs (K, 2) of keypoint and landmark that may be seen from here."""
        radius = self.search_px(matches.camera, depth, threshold_px)
        if radius <= 0:
            return np.empty((0, 2), np.int64)
        return most_similar_close(matches, self.map_from_camera.inverse(), radius)


#: Asked where the camera should be; None where nothing is known.
PriorSource = Callable[[], PosePrior | None]


def relative_to(origin: NDArray[np.float64], prior: PriorSource | None) -> PriorSource | None:
    """Return a source of priors relative to the origin (3,) of a map."""
    if prior is None or not origin.any():
        return prior

    def relative() -> PosePrior | None:
        known = prior()
        return None if known is None else known.moved(-origin)

    return relative
